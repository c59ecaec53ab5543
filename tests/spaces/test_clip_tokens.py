"""All tokens of a small CLIP that transformers builds and saves, against plain calls of the library."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from brain2img.records import Stimuli
from brain2img.spaces.clip_tokens import CLIPTokens

TEXTS = [["a cat", "tac"], ["at", "cat a cat"], ["tt a a", "a"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder as the hub has it: configuration, both halves, tokenizer."""
    path = tmp_path_factory.mktemp("clip")
    vocabulary = ["a", "c", "t", "a</w>", "c</w>", "t</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, merges=[])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "projection_dim": 8}
    config = CLIPConfig(text_config={**sizes, "vocab_size": 8, "max_position_embeddings": 10, "eos_token_id": 7,
                                     "bos_token_id": 6},
                        vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=8)
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def stimuli():
    images = np.random.default_rng(0).integers(0, 255, (3, 40, 56, 3), dtype=np.uint8)
    table = pd.DataFrame({"stimulus_id": list("xyz"), "captions": TEXTS})
    return Stimuli(table, lambda rows: images[list(rows)])


def test_image_tokens_equal_a_plain_evaluation(folder, stimuli):
    space = CLIPTokens(model=str(folder), device="cpu")
    model = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    pixels = processor(images=[Image.fromarray(i) for i in stimuli.images()], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        hidden = model.vision_model(pixel_values=pixels).last_hidden_state
        norm = model.vision_model.post_layernorm
        expected = torch.nn.functional.layer_norm(hidden, (16,), norm.weight, norm.bias, 1e-5
                                                  ) @ model.visual_projection.weight.T
        pooled = model.get_image_features(pixel_values=pixels)
    pooled = getattr(pooled, "pooler_output", pooled)
    expected = (expected / expected[:, :1].norm(dim=-1, keepdim=True)).numpy()
    found = space.embed(stimuli, range(3))
    spec = space.spec(stimuli)
    assert found.shape == (3, *spec.shape) == (3, 17, 8)
    # our resizing is Pillow's, the library's torchvision's: equal up to the rounding of pixels
    np.testing.assert_allclose(found, expected, atol=0.02)
    np.testing.assert_allclose(space._of_images(pixels).numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(expected[:, 0], torch.nn.functional.normalize(pooled, dim=1), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found[:, 0], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([space.embed(stimuli, [2]), space.embed(stimuli, [0])]), found[[2, 0]],
                               atol=1e-5)


@pytest.mark.parametrize("n_captions", [1, None])
def test_text_tokens_are_divided_by_the_norm_of_the_pooled_embedding(folder, stimuli, n_captions):
    space = CLIPTokens(model=str(folder), of="text", n_captions=n_captions, device="cpu", name="clip_text")
    model, letters = CLIPModel.from_pretrained(folder).eval(), {"a": 3, "t": 5}
    found = space.embed(stimuli, range(3))
    assert found.shape == (3, *space.spec(stimuli).shape) == (3, 10, 8)
    assert space.spec(stimuli).n_views == (n_captions or 2)
    expected = []
    for captions in TEXTS:
        tokens = []
        for text in captions[:n_captions]:
            ids = [6]
            for word in text.split():
                ids += [{"a": 0, "c": 1, "t": 2}[letter] for letter in word[:-1]] + [letters.get(word[-1], 4)]
            end = len(ids)
            ids += [7] * (10 - len(ids))
            with torch.no_grad():
                hidden = model.text_model(input_ids=torch.tensor([ids])).last_hidden_state[0]
                projected = hidden @ model.text_projection.weight.T
            tokens.append(projected / projected[end].norm())
        expected.append(torch.stack(tokens).mean(dim=0).numpy())
    np.testing.assert_allclose(found, np.stack(expected), atol=1e-5)


def test_identity_and_messages(folder, stimuli, tmp_path):
    uids = {CLIPTokens(model=str(folder), of=of, n_captions=n).uid() for of, n in (("image", 1), ("text", 1),
                                                                                  ("text", None))}
    assert len(uids) == 3
    with pytest.raises(ValueError, match="expected of to be image or text, got 'sound'"):
        CLIPTokens(of="sound")
    with pytest.raises(ValueError, match=r"expected a model of .*, got FileNotFoundError: no config\.json"):
        CLIPTokens(model=str(tmp_path)).spec(stimuli)
    bare = Stimuli(stimuli.table.assign(captions=[[]] * 3), stimuli.read_images)
    with pytest.raises(ValueError, match="expected captions of every stimulus, got a stimulus without"):
        CLIPTokens(model=str(folder), of="text").spec(bare)
    (tmp_path / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text())))
    weights = {k: v for k, v in load_file(folder / "model.safetensors").items() if k != "visual_projection.weight"}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"expected every weight of .*missing: \['visual_projection.weight'\]"):
        CLIPTokens(model=str(tmp_path)).embed(stimuli, [0])
