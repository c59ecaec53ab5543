from __future__ import annotations

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from brain2img.records import Stimuli
from brain2img.spaces.attributes import Attributes
from brain2img.spaces.open_clip import OpenCLIP
from brain2img.spaces.pixels import Pixels


@pytest.fixture
def stimuli():
    images = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    table = pd.DataFrame({"stimulus_id": [f"s{i}" for i in range(6)], "attributes": [
        {"kind": k, "x": i / 10, "two": i % 2 == 0} for i, k in enumerate(["cat", "dog", "cat", "owl", "owl", "dog"])]})
    return Stimuli(table, lambda rows: images[list(rows)])


@pytest.mark.parametrize("space", [Pixels.tiny(), Pixels(size=4, grey=True), Attributes.tiny(), OpenCLIP.tiny()],
                         ids=lambda s: type(s).__name__)
def test_embeddings_fit_their_spec_and_do_not_depend_on_the_batch(space, stimuli):
    spec = space.spec(stimuli)
    whole = space.embed(stimuli, range(6))
    assert whole.shape == (6, *spec.shape)
    assert whole.dtype == np.float32
    assert spec.uid == space.uid()
    parts = np.concatenate([space.embed(stimuli, [4, 1]), space.embed(stimuli, [0])])
    np.testing.assert_allclose(parts, whole[[4, 1, 0]], rtol=1e-4, atol=1e-5)
    if spec.value_range:
        assert whole.min() >= spec.value_range[0]
        assert whole.max() <= spec.value_range[1]


def test_pixels_are_area_means(stimuli):
    got = Pixels(size=16).embed(stimuli, [2])[0]
    expected = stimuli.images([2])[0].reshape(16, 4, 16, 4, 3).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(np.moveaxis(got, 0, -1), expected, atol=1 / 255)
    assert Pixels(size=8).uid() != Pixels(size=16).uid()


def test_attributes_are_one_hot_and_named(stimuli):
    space = Attributes(fields=["kind", "x", "two"])
    spec = space.spec(stimuli)
    assert spec.labels == ("kind=cat", "kind=dog", "kind=owl", "x", "two=False", "two=True")
    np.testing.assert_allclose(space.embed(stimuli, [3]), [[0, 0, 1, 0.3, 1, 0]], rtol=1e-6)
    with pytest.raises(ValueError, match="expected attribute 'wings' of every stimulus, got none for 's0'"):
        Attributes(fields=["wings"]).spec(stimuli)


def test_open_clip_equals_a_plain_call_of_the_library(stimuli):
    space = OpenCLIP(model="scenes_clip", seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, _, transform = open_clip.create_model_and_transforms("scenes_clip", weights_only=True)
    images = torch.stack([transform(Image.fromarray(i)) for i in stimuli.images()])
    with torch.no_grad():
        expected = model.eval().encode_image(images).numpy()
    np.testing.assert_allclose(space.embed(stimuli, range(6)), expected, rtol=1e-4, atol=1e-5)
    unit = OpenCLIP(model="scenes_clip", seed=3, normalise=True).embed(stimuli, range(6))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)


def test_open_clip_identity_follows_the_weights(stimuli, tmp_path):
    random = OpenCLIP(model="scenes_clip", seed=0)
    assert random.uid() == OpenCLIP(model="scenes_clip", seed=0).uid()
    assert random.uid() != OpenCLIP(model="scenes_clip", seed=1).uid()
    checkpoint = tmp_path / "weights.safetensors"
    save_file(random._model[0].state_dict(), checkpoint)
    loaded = OpenCLIP(model="scenes_clip", pretrained=str(checkpoint), seed=9)
    np.testing.assert_allclose(loaded.embed(stimuli, [0]), random.embed(stimuli, [0]), rtol=1e-5)


def test_open_clip_says_what_is_missing(stimuli, tmp_path):
    with pytest.raises(ValueError, match="expected an open_clip architecture, got 'ViT-X-99'"):
        OpenCLIP(model="ViT-X-99").spec(stimuli)
    with pytest.raises(ValueError, match=r"expected weights '.*nothing\.pt' for scenes_clip"):
        OpenCLIP(model="scenes_clip", pretrained=str(tmp_path / "nothing.pt")).embed(stimuli, [0])
