"""Captioners: training, resuming, loading, what they refuse, and equality with a decoding written out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from brain2img.captioners.nearest_caption import NearestCaption
from brain2img.captioners.prefix import PrefixLanguageModel
from brain2img.metrics.caption_attributes import name_accuracy
from brain2img.pretrained import locate
from brain2img.records import EmbeddingSpec
from brain2img.simulate import scenes
from brain2img.small_backbones import captioner as training
from brain2img.step_training import StepPlan

SCENES = [scenes.scene(i) for i in scenes.ids("backbone", 20)]
CAPTIONS = [list(s.captions) for s in SCENES]
SPEC = EmbeddingSpec(name="clip", shape=(16,), dtype="float32", uid="the-right-one")
PLAN = StepPlan(steps=150, batch_size=20, lr=1e-2, warmup=10, checkpoint_every=50)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Return a folder with a word-level tokenizer."""
    split = pre_tokenizers.Whitespace()
    words = sorted({word for texts in CAPTIONS for text in texts for word, _ in split.pre_tokenize_str(text)})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[BOS]", *words, "[EOS]"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = split
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]",
                            eos_token="[EOS]").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def embeddings():
    """Return distinct embeddings, far from zero mean and unit variance."""
    rng = np.random.default_rng(0)
    return (3 + 0.1 * rng.standard_normal((len(SCENES), 16))).astype(np.float32)


@pytest.fixture(scope="module")
def small():
    """Make the language model small for this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LANGUAGE", {"n_layer": 1, "n_head": 2, "n_embd": 48, "n_positions": 40})
        yield


def learn(tokenizer, embeddings, work, out, **changes):
    training.train_captioner(embeddings=embeddings, captions=changes.pop("captions", CAPTIONS),
                             pairs=([], []), tokenizer_folder=tokenizer, condition_spec=SPEC,
                             plan=changes.pop("plan", PLAN), work=work, out=out)
    return out


@pytest.fixture(scope="module")
def trained(tokenizer, embeddings, small, tmp_path_factory):
    """Return the folder of a captioner that knows twenty scenes by heart."""
    folder = tmp_path_factory.mktemp("captioner")
    return learn(tokenizer, embeddings, folder / "work", folder / "out")


@pytest.fixture
def copy(trained, tmp_path):
    """Return a copy of it that a test may damage."""
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_it_learns_the_scenes(trained, embeddings):
    captions = PrefixLanguageModel(model=str(trained)).caption({"clip": torch.from_numpy(embeddings)})
    assert sum(got == s.caption for got, s in zip(captions, SCENES, strict=True)) >= 18
    assert name_accuracy(captions, [s.attributes for s in SCENES])["kind_and_colour"] >= 0.9
    mean = torch.from_numpy(embeddings.mean(axis=0, keepdims=True))
    assert PrefixLanguageModel(model=str(trained)).caption({"clip": mean})[0]


def test_the_folder_is_of_the_libraries_and_in_half_precision(trained):
    stored = load_file(trained / "model.safetensors") | load_file(trained / "prefix.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert AutoTokenizer.from_pretrained(trained).eos_token == "[EOS]"
    assert AutoModelForCausalLM.from_pretrained(trained).config.n_embd == 48
    assert json.loads((trained / "brain2img.json").read_text())["condition"]["uid"] == "the-right-one"


def test_the_language_model_that_is_shipped_stays_below_a_million():
    folder = Path(locate("scenes_captioner"))
    language, prefix = (sum(v.numel() for v in load_file(folder / f"{name}.safetensors").values())
                        for name in ("model", "prefix"))
    assert language < 1_000_000
    # 8 tokens of 128 from half as many hidden units, and the mean and spread of the embeddings
    assert prefix == (128 + 1) * 512 + (512 + 1) * 1024 + 2 * 128


def test_what_a_noun_tells_of_its_adjective_is_counted():
    """Words 1 and 2 are adjectives, 3 and 4 nouns: "1 3" twice, "2 3" once, "2 4" once; 0 is any other word."""
    tokens = torch.tensor([[0, 1, 3], [1, 3, 0], [0, 2, 3], [2, 4, 0]])
    after, before = training._pair_shares(tokens, torch.tensor([1, 2]), torch.tensor([3, 4]), n_words=5)
    torch.testing.assert_close(after[1].exp(), torch.tensor([1, 1, 1, 1, 1e-4]))
    torch.testing.assert_close(after[2].exp(), torch.tensor([1, 1, 1, 0.5, 0.5]))
    torch.testing.assert_close(before[3].exp(), torch.tensor([1, 2 / 3, 1 / 3, 1, 1]))
    torch.testing.assert_close(before[4].exp(), torch.tensor([1, 1e-4, 1, 1, 1]))
    assert not after[[0, 3, 4]].any()
    assert not before[[0, 1, 2]].any()


def test_an_interrupted_training_ends_with_the_same_weights(tokenizer, embeddings, small, tmp_path, monkeypatch):
    plan = StepPlan(steps=12, batch_size=8, lr=5e-3, warmup=2, checkpoint_every=4, ema=0.9)
    alone = learn(tokenizer, embeddings, tmp_path / "a", tmp_path / "alone", plan=plan)
    calls, forward = [], training._Captioner.forward

    def killed(self, *args):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return forward(self, *args)

    monkeypatch.setattr(training._Captioner, "forward", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(tokenizer, embeddings, tmp_path / "b", tmp_path / "resumed", plan=plan)
    assert not (tmp_path / "resumed").exists()
    resumed = learn(tokenizer, embeddings, tmp_path / "b", tmp_path / "resumed", plan=plan)
    assert len(calls) == 7 + 8, "begun again after step 4"
    for name in ("model.safetensors", "prefix.safetensors"):
        ours, theirs = load_file(alone / name), load_file(resumed / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_greedy_decoding_equals_a_loop_without_a_cache(trained, embeddings):
    captioner = PrefixLanguageModel(model=str(trained), max_length=12)
    model, projection, spoken = captioner._language, captioner._projection, captioner._tokenizer
    x = torch.from_numpy(embeddings[:3])
    for row, got in zip(x, captioner.caption({"clip": x}), strict=True):
        words = projection(row[None])
        numbers = []
        with torch.inference_mode():
            while len(numbers) < 12:
                best = int(model(inputs_embeds=words).logits[0, -1].argmax())
                if best == spoken.eos_token_id:
                    break
                numbers.append(best)
                words = torch.cat([words, model.get_input_embeddings()(torch.tensor([[best]]))], dim=1)
        text = " ".join(spoken.convert_ids_to_tokens(numbers)).replace(" ,", ",")
        assert got == text


@pytest.mark.parametrize("n_beams", [1, 3])
def test_a_caption_does_not_depend_on_those_beside_it(trained, embeddings, n_beams):
    captioner = PrefixLanguageModel(model=str(trained), n_beams=n_beams)
    rng = np.random.default_rng(1)
    noisy = torch.from_numpy(embeddings[:6] + 0.1 * rng.standard_normal((6, 16)).astype(np.float32))
    together = captioner.caption({"clip": noisy})
    order = rng.permutation(6)
    assert captioner.caption({"clip": noisy[order]}) == [together[i] for i in order]
    assert [captioner.caption({"clip": row[None]})[0] for row in noisy] == together


def test_other_embeddings_are_refused_before_any_work(trained):
    captioner = PrefixLanguageModel(model=str(trained))
    captioner.check({"clip": SPEC})
    other = EmbeddingSpec(name="clip", shape=(16,), uid="another")
    with pytest.raises(ValueError, match=r"expected as condition the embeddings it was trained on .*got space 'clip'"):
        captioner.check({"clip": other})
    assert not {"_language", "_projection"} & set(vars(captioner)), "no weights were read"


def test_sizes_are_checked_where_nobody_noted_the_space(copy):
    (copy / "brain2img.json").unlink()
    with pytest.raises(ValueError, match=r"expected embeddings of shape \(16,\), got \(5,\) in space 'clip'"):
        PrefixLanguageModel(model=str(copy)).check({"clip": EmbeddingSpec(name="clip", shape=(5,))})


def test_weights_that_are_missing_are_named(copy, embeddings):
    x = {"clip": torch.from_numpy(embeddings[:1])}
    whole = load_file(copy / "prefix.safetensors")
    save_file({k: v for k, v in whole.items() if k != "layers.2.bias"}, copy / "prefix.safetensors")
    with pytest.raises(ValueError, match=r"missing: layers\.2\.bias"):
        PrefixLanguageModel(model=str(copy)).caption(x)
    save_file(whole, copy / "prefix.safetensors")
    state = load_file(copy / "model.safetensors")
    save_file({k: v for k, v in state.items() if "mlp.c_fc.weight" not in k}, copy / "model.safetensors",
              metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"expected every weight of GPT2LMHeadModel in .* missing: .*c_fc\.weight"):
        PrefixLanguageModel(model=str(copy)).caption(x)


def test_a_folder_that_is_none_and_a_caption_too_long(trained, embeddings, tmp_path):
    with pytest.raises(ValueError, match=r"captioner\.model: expected a folder with a language model"):
        PrefixLanguageModel(model=str(tmp_path)).check({"clip": SPEC})
    with pytest.raises(ValueError, match=r"captioner\.max_length: expected 1 to 32 tokens for .*, got 33"):
        PrefixLanguageModel(model=str(trained), max_length=33).caption({"clip": torch.from_numpy(embeddings)})


def test_captions_the_tokenizer_cannot_hold(tokenizer, embeddings, small, tmp_path):
    strange = [["a purple zeppelin"], *CAPTIONS[1:]]
    with pytest.raises(ValueError, match=r"expected words that the tokenizer knows, got others in 1 .*zeppelin"):
        learn(tokenizer, embeddings, tmp_path / "w", tmp_path / "o", captions=strange)
    with pytest.raises(ValueError, match="expected at most 32 tokens, got 61"):
        learn(tokenizer, embeddings, tmp_path / "w", tmp_path / "o", captions=[["a " * 60], *CAPTIONS[1:]])


def test_the_identity_is_that_of_the_weights(trained, copy):
    uid = PrefixLanguageModel(model=str(trained)).uid()
    assert PrefixLanguageModel(model=str(copy)).uid() == uid
    state = load_file(copy / "prefix.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, copy / "prefix.safetensors")
    assert PrefixLanguageModel(model=str(copy)).uid() != uid


def test_nearest_caption_equals_brute_force():
    rng = np.random.default_rng(0)
    train, new = 5 + rng.standard_normal((30, 2, 4)), 5 + rng.standard_normal((7, 2, 4)).astype(np.float32)
    captioner = NearestCaption(space="code")
    captioner.fit({"code": train}, [[f"first {i}", "second"] for i in range(30)])
    expected = []
    for row in new:
        a, b = row.ravel() - train.mean(axis=0).ravel(), train.reshape(30, -1) - train.mean(axis=0).ravel()
        expected.append(f"first {np.argmax(b @ a / np.linalg.norm(b, axis=1))}")
    assert captioner.caption({"code": torch.from_numpy(new)}) == expected


def test_nearest_caption_wants_captions():
    with pytest.raises(ValueError, match="expected at least one for each, got none for 1 of 2"):
        NearestCaption().fit({"clip": np.eye(2)}, [["a cat"], []])
