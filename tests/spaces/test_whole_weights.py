"""Weights that do not belong to their model are refused: another activation, some that would be made up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from brain2img.pretrained import locate
from brain2img.pretrained.loading import load_diffusers
from brain2img.pretrained.open_clip_models import _check_activation
from brain2img.spaces.layers import Layers
from brain2img.spaces.open_clip import OpenCLIP
from brain2img.spaces.vae import VAELatents

CONFIGS = Path(__file__).parents[2] / "configs"


def test_an_activation_that_the_weights_were_not_trained_with(monkeypatch):
    """open_clip warns, and gives other embeddings."""
    import open_clip

    def fetched(*args, **kwargs):
        raise AssertionError("weights were fetched")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", fetched)
    for model in (OpenCLIP(model="ViT-B-32", pretrained="openai"),
                  Layers(model="ViT-B-32", pretrained="openai", library="open_clip", layers=["x"])):
        with pytest.raises(ValueError, match=r"space '\w+': expected an architecture with QuickGELU, .*'openai', "
                                             r"got ViT-B-32: .*Set model: ViT-B-32-quickgelu\."):
            model._network if isinstance(model, Layers) else model._model
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: {"url": "x"})
    with pytest.raises(ValueError, match=r"expected an architecture without QuickGELU, .*Set model: ViT-B-32"):
        _check_activation("ViT-B-32-quickgelu", "some_tag", what="x")


def test_every_yaml_has_the_activation_of_its_weights():
    checked = 0
    for path in [*(CONFIGS / "space").rglob("*.yaml"), *(CONFIGS / "experiment").rglob("*.yaml")]:
        spaces = yaml.safe_load(path.read_text()) or {}
        for part in (spaces.get("space", spaces) or {}).values():
            if isinstance(part, dict) and "pretrained" in part and "open_clip" in str(part.get("_target_")):
                _check_activation(part["model"], part["pretrained"], what=str(path))
                checked += 1
    assert checked >= 4


@pytest.fixture
def lacking(tmp_path):
    """Return a folder of our diffusion decoder whose autoencoder lacks a weight."""
    folder = tmp_path / "decoder"
    shutil.copytree(locate("scenes_decoder"), folder)
    file = folder / "movq" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["encoder.conv_in.weight"]
    save_file(state, file, metadata={"format": "pt"})
    return folder


def test_weights_that_would_be_made_up(lacking):
    """diffusers warns, and goes on with random ones."""
    import diffusers

    for load in (lambda: VAELatents(model=str(lacking))._autoencoder,
                 lambda: load_diffusers(diffusers.KandinskyV22Pipeline, str(lacking), what="space 'vae'")):
        with pytest.raises(ValueError, match=r"space 'vae': expected every weight in its file, got some that would be "
                                             r"made up: .*encoder\.conv_in\.weight"):
            load()


def test_a_pipeline_of_other_code_is_refused(tmp_path, monkeypatch):
    """diffusers would import what the index of a pipeline names."""
    import diffusers

    folder, marker = tmp_path / "decoder", tmp_path / "ran"
    shutil.copytree(locate("scenes_decoder"), folder)
    (tmp_path / "evil_library.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "scheduler": ["evil_library", "DDPMScheduler"]}))
    with pytest.raises(ValueError, match=r"reconstructor\.model: expected parts of diffusers and transformers, got "
                                         r"'evil_library' for 'scheduler'"):
        load_diffusers(diffusers.KandinskyV22Pipeline, str(folder), what="reconstructor.model")
    assert not marker.exists()
