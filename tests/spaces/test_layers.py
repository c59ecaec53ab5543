"""Several layers at once, and means of views: against the networks and filters themselves."""

import numpy as np
import open_clip
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from brain2img.pretrained import locate
from brain2img.records import Stimuli
from brain2img.spaces.layers import Layers
from brain2img.spaces.open_clip import OpenCLIP
from brain2img.spaces.views import MeanOfViews


@pytest.fixture
def stimuli():
    pixels = np.random.default_rng(0).integers(0, 255, (5, 64, 64, 3), dtype=np.uint8)
    return Stimuli(pd.DataFrame({"stimulus_id": [f"s{i}" for i in range(5)]}), lambda rows: pixels[list(rows)])


def test_feature_maps_are_those_of_the_network(stimuli):
    space = Layers(model="scenes_clip", library="open_clip", layers=["layer1", ""], side=4, device="cpu")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{locate('scenes_clip')}")
    model.eval()
    x = torch.stack([transform(Image.fromarray(image)) for image in stimuli.images([3, 1])])
    with torch.no_grad():
        visual = model.visual
        stem = visual.stem(x)
        maps = visual.layer1(stem)
        expected = torch.nn.functional.avg_pool2d(maps, maps.shape[-1] // 4).flatten(1)
    spec, found = space.spec(stimuli), space.embed(stimuli, [3, 1])
    assert spec.parts == {"layer1": expected.shape[1], "output": 128}
    assert spec.shape == (sum(spec.parts.values()),)
    np.testing.assert_allclose(found[:, :expected.shape[1]], expected, atol=1e-5)
    last = OpenCLIP(model="scenes_clip", device="cpu").embed(stimuli, [3, 1])
    np.testing.assert_allclose(found[:, expected.shape[1]:], last, atol=1e-5)


def test_tokens_are_class_token_and_mean_of_patches(stimuli):
    space = Layers(model="scenes_dino", layers=["blocks.1"], device="cpu")
    model = timm.create_model(f"local-dir:{locate('scenes_dino')}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    x = torch.stack([transform(Image.fromarray(image)) for image in stimuli.images([0, 4])])
    with torch.no_grad():
        _, tokens = model.forward_intermediates(x, indices=[1], intermediates_only=False, output_fmt="NLC",
                                                return_prefix_tokens=True, norm=False)
    patches, first = tokens[0]
    expected = torch.cat([first[:, 0], patches.mean(1)], dim=1)
    np.testing.assert_allclose(space.embed(stimuli, [0, 4]), expected, atol=1e-4)


def test_an_unknown_layer_names_those_there_are(stimuli):
    with pytest.raises(ValueError, match=r"expected layers of scenes_clip, got 'layer9'. Choose of .*'layer1'"):
        Layers(model="scenes_clip", library="open_clip", layers=["layer9"]).spec(stimuli)
    with pytest.raises(ValueError, match="expected library to be one of"):
        Layers(model="scenes_clip", library="keras", layers=[""])
    with pytest.raises(ValueError, match="expected names of layers"):
        Layers(model="scenes_clip", layers=[])


def test_layers_and_grid_are_part_of_the_identity():
    uids = {Layers(model="scenes_clip", library="open_clip", layers=layers, side=side).uid()
            for layers in (["layer1"], ["layer2"], ["layer1", "layer2"]) for side in (1, 4)}
    assert len(uids) == 6


class Pictures(MeanOfViews.tiny().space.__class__):
    """Hands on what it is shown."""

    def embed(self, stimuli, rows):
        return stimuli.images(rows).astype(np.float32).reshape(len(rows), -1)


def test_views_are_averaged_after_the_backbone(stimuli):
    one, other = (MeanOfViews(space=Pictures(), views=views) for views in ({"plain": 1}, {"low_resolution": 8}))
    both = MeanOfViews(space=Pictures(), views={"plain": 1, "low_resolution": 8})
    rows = [4, 0]
    np.testing.assert_array_equal(one.embed(stimuli, rows), stimuli.images(rows).reshape(2, -1))
    np.testing.assert_allclose(both.embed(stimuli, rows), (one.embed(stimuli, rows) + other.embed(stimuli, rows)) / 2)
    assert both.spec(stimuli).n_views == 2
    assert len({space.uid() for space in (one, other, both)}) == 3


def test_blur_is_a_gaussian_of_the_stated_width(stimuli):
    blurred = MeanOfViews(space=Pictures(), views={"blur": 7}).embed(stimuli, [2]).reshape(64, 64, 3)
    expected = gaussian_filter(stimuli.images([2])[0].astype(float), sigma=(2, 2, 0), mode="mirror", truncate=3.0)
    assert np.abs(blurred - expected).max() <= 1.0  # grey levels: it is stored in whole ones


def test_low_resolution_keeps_the_means_of_cells(stimuli):
    space = MeanOfViews(space=Pictures(), views={"low_resolution": 1})
    mean = stimuli.images([1])[0].reshape(-1, 3).mean(0)
    np.testing.assert_allclose(space.embed(stimuli, [1]).reshape(-1, 3), np.tile(mean, (4096, 1)), atol=0.51)


def test_unknown_views_are_refused():
    for views in ({"sepia": 1}, {"blur": 0}, {}):
        with pytest.raises(ValueError, match="views"):
            MeanOfViews(space=Pictures(), views=views)
