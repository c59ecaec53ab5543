"""GIT, BLIP, DPT and text states on small models of transformers that were saved to the disk: equal to the library."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BlipForConditionalGeneration,
    CLIPTextModel,
    DPTForDepthEstimation,
    GitForCausalLM,
    PreTrainedTokenizerFast,
)

from brain2img.captioners import blip, git
from brain2img.captioners.blip import BLIP
from brain2img.captioners.git import GIT
from brain2img.pretrained.loading import CLIP_COLOURS
from brain2img.records import EmbeddingSpec, Stimuli
from brain2img.spaces.blip import BLIPFeatures
from brain2img.spaces.dpt import DPTStates
from brain2img.spaces.git import GITFeatures
from brain2img.spaces.text_states import TextStates

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"a red blue cat dog on at night the sky of green".split()]


def stimuli(size: int = 16, n: int = 4) -> Stimuli:
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    texts = [["a red cat"], ["a dog at night", "the green sky of a blue dog"], ["a cat"], ["a"]][:n]
    return Stimuli(pd.DataFrame({"stimulus_id": [str(i) for i in range(n)], "captions": texts}),
                   lambda rows: images[list(rows)])


def normalised(seen: Stimuli, colours=CLIP_COLOURS) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in colours)
    return (torch.from_numpy(seen.images()).permute(0, 3, 1, 2).float() / 255 - mean) / std


def save(folder, model, *, tokenizer_folder=None):
    """Save a tokenizer and a model with random matrices of some size, so that captions differ, and small biases."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.5)
            else:
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.eval().save_pretrained(folder)
    vocabulary = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, pad_token="[PAD]", unk_token="[UNK]",
                                        bos_token="[CLS]", eos_token="[SEP]")
    tokenizer.save_pretrained(tokenizer_folder or folder)
    return model, tokenizer


@pytest.fixture
def small_git(tmp_path):
    torch.manual_seed(0)
    return tmp_path, *save(tmp_path, GitForCausalLM(git.tiny_config(len(WORDS))))


@pytest.fixture
def small_blip(tmp_path):
    torch.manual_seed(0)
    return tmp_path, *save(tmp_path, BlipForConditionalGeneration(blip.tiny_config(len(WORDS))))


@pytest.mark.parametrize("n_beams", [1, 3])
def test_git_captions_its_own_features_as_it_captions_pictures(small_git, n_beams):
    folder, model, tokenizer = small_git
    seen = stimuli()
    space = GITFeatures(model=str(folder), device="cpu")
    features = torch.from_numpy(space.embed(seen, range(4)))
    assert features.shape[1:] == space.spec(seen).shape == (5, 16)
    with torch.no_grad():
        expected = tokenizer.batch_decode(model.generate(pixel_values=normalised(seen), num_beams=n_beams,
                                                         do_sample=False, max_length=9), skip_special_tokens=True)
    captioner = GIT(model=str(folder), n_beams=n_beams, max_length=9, device="cpu")
    got = captioner.caption({"git": features})
    assert got == expected
    assert len(set(got)) > 1, "captions that do not depend on the picture would prove nothing"
    assert [captioner.caption({"git": features[i:i + 1]})[0] for i in range(4)] == got


@pytest.mark.parametrize("size", [16, 24])
def test_blip_captions_its_own_features_as_it_captions_pictures(small_blip, size):
    folder, model, tokenizer = small_blip
    seen = stimuli(size)
    space = BLIPFeatures(model=str(folder), size=size, device="cpu")
    features = torch.from_numpy(space.embed(seen, range(4)))
    assert features.shape[1:] == space.spec(seen).shape == (1 + (size // 8) ** 2, 16)
    with torch.no_grad():
        tokens = model.generate(normalised(seen), interpolate_pos_encoding=True, num_beams=3, do_sample=False,
                                min_length=5, max_length=12, repetition_penalty=1.5)
    got = BLIP(model=str(folder), max_length=12, device="cpu").caption({"blip": features})
    assert got == tokenizer.batch_decode(tokens, skip_special_tokens=True)
    assert len(set(got)) > 1


def test_published_blip_features_have_their_size():
    from transformers import BlipVisionConfig

    space = BLIPFeatures(model="published", size=240, device="cpu", name="blip")
    space._config = BlipVisionConfig(image_size=384, patch_size=16, hidden_size=768)
    space.uid = lambda: ""
    assert space.spec(stimuli()).shape == (226, 768)


def test_dpt_states_and_depth_are_those_of_the_library(tmp_path):
    torch.manual_seed(0)
    model, _ = save(tmp_path, DPTForDepthEstimation(DPTStates.tiny()._config))
    seen = stimuli(32)
    with torch.no_grad():
        out = model(normalised(seen, ((0.5,) * 3, (0.5,) * 3)), output_hidden_states=True)
    states = []
    for stage in range(4):
        space = DPTStates(model=str(tmp_path), stage=stage, device="cpu", name=f"dpt_{stage}")
        states.append(torch.from_numpy(space.embed(seen, range(4))))
        np.testing.assert_allclose(states[-1], out.hidden_states[stage + 1], atol=1e-5)
        assert space.spec(seen).shape == states[-1].shape[1:] == (17, 16)
    side = out.predicted_depth.shape[-1]
    space = DPTStates(model=str(tmp_path), size=side, device="cpu")
    expected = out.predicted_depth.flatten(1).numpy()
    low, high = expected.min(axis=1, keepdims=True), expected.max(axis=1, keepdims=True)
    got = space.embed(seen, range(4))
    assert got.shape[1:] == space.spec(seen).shape
    np.testing.assert_allclose(got.reshape(4, -1), 2 * (expected - low) / (high - low) - 1, atol=1e-4)
    np.testing.assert_allclose(space.depth(states), got, atol=1e-4)


def test_text_states_are_the_mean_over_captions(tmp_path):
    torch.manual_seed(0)
    made = TextStates.tiny()
    config = made._config
    config.vocab_size = len(WORDS)
    model, tokenizer = save(tmp_path / "text_encoder", CLIPTextModel(config), tokenizer_folder=tmp_path / "tokenizer")
    seen = stimuli()
    with torch.no_grad():
        states = [[model(tokenizer(text, padding="max_length", truncation=True, max_length=6,
                                   return_tensors="pt")["input_ids"]).last_hidden_state[0] for text in mine]
                  for mine in seen.table["captions"]]
    space = TextStates(model=str(tmp_path), device="cpu")
    got = space.embed(seen, [1, 0])
    np.testing.assert_allclose(got, torch.stack([torch.stack(states[i]).mean(dim=0) for i in (1, 0)]), atol=1e-5)
    spec = space.spec(seen)
    assert (spec.shape, spec.view_rule, spec.n_views) == ((6, 16), "single", 1)


def test_pictures_of_another_size_are_resized_and_batches_do_not_matter(small_git):
    folder, *_ = small_git
    space, seen = GITFeatures(model=str(folder), device="cpu"), stimuli(40)
    together = space.embed(seen, range(4))
    np.testing.assert_allclose(np.concatenate([space.embed(seen, [i]) for i in range(4)]), together, atol=1e-5)


def test_what_does_not_fit_is_refused(small_git, tmp_path):
    folder, *_ = small_git
    with pytest.raises(ValueError, match=r"expected image features of shape \(5, 16\), got \(6, 16\) in space 'git'"):
        GIT(model=str(folder), device="cpu").check({"git": EmbeddingSpec(name="git", shape=(6, 16))})
    with pytest.raises(ValueError, match=r"expected image features of shape \(tokens, 16\), got \(4,\)"):
        BLIP.tiny().check({"blip": EmbeddingSpec(name="blip", shape=(4,))})
    with pytest.raises(ValueError, match=r"space 'git': expected a model of transformers in .*nowhere"):
        GITFeatures(model=str(tmp_path / "nowhere"), device="cpu").spec(stimuli())
    with pytest.raises(ValueError, match=r"space 'depth': expected a stage of 0 to 3, or null"):
        DPTStates(model="any", stage=4)
    BlipForConditionalGeneration(blip.tiny_config(len(WORDS))).save_pretrained(tmp_path / "blip")
    space = BLIPFeatures(model=str(tmp_path / "blip"), size=250, device="cpu")
    with pytest.raises(ValueError, match=r"expected a size divisible by the patches of 8 pixels, got 250"):
        space.spec(stimuli())


def test_missing_weights_are_named(small_git):
    from safetensors.torch import load_file, save_file

    folder, *_ = small_git
    state = load_file(folder / "model.safetensors")
    state.pop(next(key for key in state if "image_encoder" in key and "layernorm" in key.lower()))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"space 'git': expected every weight of GitForCausalLM .* missing: \[.*norm"):
        GITFeatures(model=str(folder), device="cpu").embed(stimuli(), [0])
