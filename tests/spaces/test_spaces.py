from __future__ import annotations

import json

import numpy as np
import open_clip
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from brain2img.pretrained import locate
from brain2img.records import Stimuli
from brain2img.spaces.attributes import Attributes
from brain2img.spaces.open_clip import OpenCLIP
from brain2img.spaces.pixels import Pixels
from brain2img.spaces.timm import TimmModel


@pytest.fixture
def stimuli():
    images = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3), dtype=np.uint8)
    table = pd.DataFrame({"stimulus_id": [f"s{i}" for i in range(6)], "attributes": [
        {"kind": k, "x": i / 10, "two": i % 2 == 0} for i, k in enumerate(["cat", "dog", "cat", "owl", "owl", "dog"])],
        "captions": [[f"a red {k}", f"at night: a {k}"] for k in ("cat", "duck", "apple", "fir", "cake", "sock")]})
    return Stimuli(table, lambda rows: images[list(rows)])


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


TINY = {"embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 16, "width": 8, "heads": 1, "layers": 1}}


@pytest.fixture
def tiny_clip(tmp_path):
    """A small architecture known to open_clip by name."""
    (tmp_path / "tiny_clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path / "tiny_clip.json")
    return "tiny_clip"


def test_open_clip_equals_a_plain_call_of_the_library(stimuli, tiny_clip):
    space = OpenCLIP(model=tiny_clip, seed=3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model, _, transform = open_clip.create_model_and_transforms(tiny_clip, weights_only=True)
    images = torch.stack([transform(Image.fromarray(i)) for i in stimuli.images()])
    with torch.no_grad():
        expected = model.eval().encode_image(images).numpy()
    np.testing.assert_allclose(space.embed(stimuli, range(6)), expected, rtol=1e-4, atol=1e-5)
    unit = OpenCLIP(model=tiny_clip, seed=3, normalise=True).embed(stimuli, range(6))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)


def test_open_clip_identity_follows_the_weights(stimuli, tiny_clip, tmp_path):
    random = OpenCLIP(model=tiny_clip, seed=0)
    assert random.uid() == OpenCLIP(model=tiny_clip, seed=0).uid()
    assert random.uid() != OpenCLIP(model=tiny_clip, seed=1).uid()
    checkpoint = tmp_path / "weights.safetensors"
    save_file(random._model[0].state_dict(), checkpoint)
    loaded = OpenCLIP(model=tiny_clip, pretrained=str(checkpoint), seed=9)
    np.testing.assert_allclose(loaded.embed(stimuli, [0]), random.embed(stimuli, [0]), rtol=1e-5)


def test_open_clip_reads_a_folder_wherever_it_lies(stimuli, tmp_path):
    uids = []
    for name, scale in (("here", 1.0), ("there", 1.0), ("changed", 2.0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(json.dumps(
            {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}))
        torch.manual_seed(0)
        model = open_clip.CLIP(**json.loads(json.dumps(TINY)))
        save_file({k: v * scale for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
        space = OpenCLIP(model=str(folder))
        uids.append(space.uid())
        if scale == 1.0:
            x = (torch.from_numpy(np.stack([np.asarray(Image.fromarray(i).resize((32, 32), Image.Resampling.BICUBIC))
                                            for i in stimuli.images()])).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
            with torch.no_grad():
                expected = model.eval().encode_image(x).numpy()
            np.testing.assert_allclose(space.embed(stimuli, range(6)), expected, rtol=1e-3, atol=1e-4)
    assert uids[0] == uids[1] != uids[2]
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match=r"expected open_clip_config\.json in .*changed, got none"):
        OpenCLIP(model=str(folder)).spec(stimuli)


def test_open_clip_text_is_the_mean_over_captions(stimuli):
    both, first = (OpenCLIP(model="scenes_clip", of="text", n_captions=n).embed(stimuli, [3, 1]) for n in (None, 1))
    model = OpenCLIP(model="scenes_clip")._model[0]
    tokens = open_clip.get_tokenizer(f"local-dir:{locate('scenes_clip')}")(["a red fir", "at night: a fir"])
    with torch.no_grad():
        expected = model.encode_text(tokens).numpy()
    np.testing.assert_allclose(first[0], expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(both[0], expected.mean(axis=0), rtol=1e-4, atol=1e-5)
    spec = OpenCLIP(model="scenes_clip", of="text").spec(stimuli)
    assert (spec.n_views, spec.view_rule) == (2, "mean")
    assert len({OpenCLIP(model="scenes_clip", of=of).uid() for of in ("image", "text")}) == 2
    with pytest.raises(ValueError, match="expected of to be image, text or patches, got 'sound'"):
        OpenCLIP(model="scenes_clip", of="sound")
    bare = Stimuli(stimuli.table.assign(captions=[[]] * 6), stimuli.read_images)
    with pytest.raises(ValueError, match="expected captions of every stimulus, got a stimulus without"):
        OpenCLIP(model="scenes_clip", of="text").spec(bare)


def test_open_clip_says_what_is_missing(stimuli, tiny_clip, tmp_path):
    with pytest.raises(ValueError, match="expected an open_clip architecture or a folder, got 'ViT-X-99'"):
        OpenCLIP(model="ViT-X-99").spec(stimuli)
    with pytest.raises(ValueError, match=r"expected weights '.*nothing\.pt' for tiny_clip"):
        OpenCLIP(model=tiny_clip, pretrained=str(tmp_path / "nothing.pt")).embed(stimuli, [0])


@pytest.mark.parametrize(("output", "shape"), [("features", (64,)), ("tokens", (101, 64)), ("logits", (1000,))])
def test_timm_equals_a_plain_call_of_the_library(stimuli, output, shape):
    space = TimmModel(model="test_vit", output=output, pretrained=False)
    assert space.spec(stimuli).shape == shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("test_vit").eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    x = torch.stack([transform(Image.fromarray(i)) for i in stimuli.images()])
    with torch.no_grad():
        expected = {"logits": model, "tokens": model.forward_features,
                    "features": lambda x: model.forward_head(model.forward_features(x), pre_logits=True)}[output](x)
    np.testing.assert_allclose(space.embed(stimuli, range(6)), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_timm_says_what_is_wrong(stimuli):
    with pytest.raises(ValueError, match=r"expected output to be one of .*, got 'pixels'"):
        TimmModel(model="test_vit", output="pixels")
    with pytest.raises(ValueError, match="expected a timm model, got RuntimeError for 'vit_of_mine'"):
        TimmModel(model="vit_of_mine").spec(stimuli)
    with pytest.raises(ValueError, match="expected a transformer with tokens, got 'test_resnet'"):
        TimmModel(model="test_resnet", output="tokens", pretrained=False).spec(stimuli)


def test_a_prompt_stands_around_the_caption(stimuli):
    captions = [[f"a {texts[0]}"] for texts in stimuli.table["captions"]]
    told = Stimuli(stimuli.table.assign(captions=captions), stimuli.read_images)
    plain = OpenCLIP(model="scenes_clip", of="text", n_captions=1)
    prompted = OpenCLIP(model="scenes_clip", of="text", n_captions=1, prompt="a {}")
    np.testing.assert_array_equal(prompted.embed(stimuli, [0, 3]), plain.embed(told, [0, 3]))
    assert prompted.uid() != plain.uid()
    with pytest.raises(ValueError, match=r"expected a prompt with \{\} for the caption, got 'a picture'"):
        OpenCLIP(model="scenes_clip", of="text", prompt="a picture")
