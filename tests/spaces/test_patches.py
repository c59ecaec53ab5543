"""Patch tokens of open_clip: which values they are, and that pictures reach the network in the range it expects."""

import json

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from brain2img.records import Stimuli
from brain2img.spaces.open_clip import OpenCLIP

CONFIG = {"embed_dim": 8, "vision_cfg": {"image_size": 16, "layers": 1, "width": 24, "patch_size": 4, "head_width": 8},
          "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 8, "heads": 1, "layers": 1}}


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, str(tmp_path / "open_clip_model.safetensors"))
    (tmp_path / "open_clip_config.json").write_text(json.dumps(
        {"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}}))
    return tmp_path


def stimuli(*greys):
    images = np.stack([np.full((16, 16, 3), grey, dtype=np.uint8) for grey in greys])
    images[0, :8] = 200
    table = pd.DataFrame({"stimulus_id": [str(g) for g in greys], "captions": [["a"]] * len(greys)})
    return Stimuli(table, lambda rows: images[list(rows)])


def test_patches_are_the_normalised_last_states_without_the_class_token(folder):
    space, shown = OpenCLIP(model=str(folder), of="patches", device="cpu"), stimuli(10, 0, 255)
    visual, seen = space._model[0].visual, {}
    visual.conv1.register_forward_hook(lambda _, given, out: seen.update(pixels=given[0].clone()))
    visual.ln_post.register_forward_hook(lambda _, given, out: seen.update(states=out.clone()))
    found = space.embed(shown, range(3))
    assert space.spec(shown).shape == (16, 24)
    np.testing.assert_allclose(found, seen["states"][:, 1:], atol=1e-6)
    assert seen["states"].shape == (3, 17, 24)
    # black and white are 0 and 1 before the network's own normalisation; MindEye2 hands over (x + 1) / 2
    torch.testing.assert_close(seen["pixels"][1:, 0, 0, 0], torch.tensor([(0 - 0.5) / 0.25, (1 - 0.5) / 0.25]))


def test_pooled_and_patches_are_different_spaces_and_cannot_be_mixed_up(folder):
    whole, patches = OpenCLIP(model=str(folder), device="cpu"), OpenCLIP(model=str(folder), of="patches", device="cpu")
    assert whole.uid() != patches.uid()
    assert whole.embed(stimuli(10, 0), [0, 1]).shape == (2, 8)
    with pytest.raises(ValueError, match="expected patches as they are, got normalise=true"):
        OpenCLIP(model=str(folder), of="patches", normalise=True)
    with pytest.raises(ValueError, match="expected a vision transformer for of: patches, got 'scenes_clip'"):
        OpenCLIP(model="scenes_clip", of="patches").spec(stimuli(10))
