"""Code in a run folder, a manifest, an experiment or a checkpoint never runs: each route with a marker it would write."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import brain2img.stages.command_line as command_line
from brain2img.artifacts import digest
from brain2img.decoders.training import read_checkpoint
from brain2img.interfaces import Encoder, Head, Prior, Reconstructor, Space, Study
from brain2img.stages.build import as_data, build, class_of, defined, trust
from brain2img.stages.workspace import REMEMBERED, adopt_run

PIXELS = "brain2img.spaces.pixels.Pixels"


class Writes:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "ran"
    yield path
    assert not path.exists(), "code of the file ran"


@pytest.fixture
def pickled(tmp_path, marker):
    torch.save(Writes(marker), tmp_path / "hostile.pt")
    np.save(tmp_path / "hostile.npy", np.array([Writes(marker)], dtype=object), allow_pickle=True)
    return tmp_path


def test_what_a_module_of_ours_imports_is_no_part(pickled):
    routes = [({"_target_": "brain2img.decoders.training.torch.load", "f": str(pickled / "hostile.pt"),
                "weights_only": False}, "which is none"),
              ({"_target_": "brain2img.data.datamodule.np.load", "file": str(pickled / "hostile.npy"),
                "allow_pickle": True}, "which is none"),
              ({"_target_": "brain2img.stages.reconstruct.shutil.copyfile", "src": "a", "dst": "b"}, "which is none"),
              ({"_target_": "brain2img.decoders.training.Path", "0": "x"}, "has from elsewhere"),
              ({"_target_": "brain2img.interfaces.nn.Linear"}, "which is none"),
              ({"_target_": "brain2img.spaces.pixels.Space"}, "has from elsewhere"),
              ({"_target_": "brain2img.artifacts.write_json"}, "has from elsewhere"),
              ({"_target_": "brain2img.artifacts.files.write_json"}, "expected a Space"),
              ({"_target_": "brain2img.encoders.mlp.MLP"}, "expected a Space, got 'brain2img.encoders.mlp.MLP'"),
              ({"_target_": "os.system"}, "expected a class of brain2img"),
              ({"_target_": "brain2img..os.system"}, "expected a class of brain2img"),
              ({"_target_": "brain2imgs.spaces.Evil"}, "expected a class of brain2img"),
              ({"_target_": 7}, "expected one that names a Space")]
    for config, message in routes:
        for found in (build, class_of):
            with pytest.raises(ValueError, match=message):
                found(config, Space)


def test_nothing_is_imported_from_elsewhere(tmp_path, monkeypatch, marker):
    (tmp_path / "evil_part.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for target in ("evil_part.Space", "evil_part", "brain2img.evil_part.Space"):
        with pytest.raises(ValueError, match="_target_: expected a class of"):
            defined(target)
    assert "evil_part" not in sys.modules


def test_nested_parts_are_checked_and_stand_where_they_may(marker):
    evil = {"_target_": "brain2img.decoders.training.torch.load", "f": "x", "weights_only": False}
    head = {"_target_": "brain2img.heads.linear.LinearHead", "space": "clip"}
    for config, kind, message in [
            ({"_target_": PIXELS, "size": evil}, Space, "expected plain data in 'size'"),
            ({"_target_": PIXELS, "size": [{"deep": [evil]}]}, Space, "expected plain data in 'size'"),
            ({**head, "losses": {"mse": evil}}, Head, "which is none"),
            ({**head, "losses": {"mse": {"_target_": PIXELS}}}, Head, "expected a Loss, got"),
            ({"_target_": "brain2img.spaces.views.MeanOfViews", "space": {
                "_target_": "brain2img.losses.MSE"}, "views": {}}, Space, "expected a Space, got"),
            ({"_target_": "brain2img.priors.diffusion.DiffusionPrior", "network": evil}, Prior, "which is none"),
            ({"_target_": "brain2img.reconstructors.stable_diffusion.StableDiffusion", "model": "x",
              "condition": evil}, Reconstructor, "which is none")]:
        with pytest.raises(ValueError, match=message):
            build(config, kind)


@pytest.mark.parametrize("key", ["_partial_", "_args_", "_recursive_", "_convert_"])
def test_keys_of_hydra_are_no_arguments(key):
    with pytest.raises(ValueError, match=f"expected names of arguments, got '{key}'"):
        build({"_target_": PIXELS, "size": 4, key: True}, Space)


def test_text_stays_text(monkeypatch):
    """A manifest is data: nothing in it is looked up in the environment."""
    monkeypatch.setenv("SECRET", "8")
    space = build({"_target_": "brain2img.spaces.open_clip.OpenCLIP", "model": "${oc.env:SECRET}"}, Space)
    assert space.model_name == "${oc.env:SECRET}"
    with pytest.raises(ValueError, match=r"run x: expected plain values in the manifest, got '\$\{oc.env:SECRET\}'"):
        as_data({"a": ["${oc.env:SECRET}"]}, what="run x")


def test_a_package_that_the_user_trusts_counts(tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "parts.py").write_text(
        "import shutil\nfrom brain2img.spaces.pixels import Pixels\n\nclass Mine(Pixels):\n    pass\n\nclass Other:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = {"_target_": "my_lab.parts.Mine", "size": 4}
    with pytest.raises(ValueError, match=r"expected a class of brain2img\.\*, got 'my_lab.parts.Mine'.*trusted="):
        build(mine, Space)
    try:
        trust(["my_lab"])
        assert type(build(mine, Space)).__name__ == "Mine"
        for name, message in (("Other", "expected a Space"), ("Pixels", "has from elsewhere"),
                              ("shutil.copyfile", "which is none")):
            with pytest.raises(ValueError, match=message):
                build({"_target_": f"my_lab.parts.{name}"}, Space)
    finally:
        trust([])
    with pytest.raises(ValueError, match="expected names of packages of Python, got '../x'"):
        trust(["../x"])


def test_a_run_sets_only_what_a_run_may(composed, tmp_path):
    """A manifest names no trusted packages, no folder of results, and no interpolation."""
    fold = tmp_path / "run" / "fold-0_seed-0"
    fold.mkdir(parents=True)
    manifest = {"stage": "train", "id": "x", "name": "a", "later": {"trusted": ["evil"]}, "study": {"name": "x"},
                "study_name": "x", "config": {"seed": 7, "trusted": ["evil"], "overwrite": True, "hydra": {},
                                              "paths": {"outputs": "/elsewhere"}, "trainer": {"max_epochs": 3}}}
    (fold / "manifest.json").write_text(json.dumps(manifest))
    cfg = composed("predict", f"run={fold.parent}")
    adopted = adopt_run(cfg, given=[])
    assert (adopted.seed, adopted.trainer, adopted.study) == (7, {"max_epochs": 3}, {"name": "x"})
    assert list(adopted.trusted) == [] and adopted.overwrite is False and "hydra" not in adopted
    assert adopted.paths.outputs == cfg.paths.outputs and "trusted" not in REMEMBERED
    manifest["config"]["trainer"] = {"max_epochs": "${oc.env:HOME}"}
    (fold / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"fold-0_seed-0, trainer|run .*trainer: expected plain values"):
        adopt_run(cfg, given=[])


def test_a_checkpoint_runs_nothing(pickled):
    with pytest.raises(ValueError, match="asks for pathlib.Path.touch|asks for"):
        read_checkpoint(pickled / "hostile.pt")


@pytest.fixture
def experiment(tmp_path):
    """Return a function that writes an experiment into a folder that ``--config-dir`` names."""
    def write(text: str, *, name: str = "theirs") -> list[str]:
        folder = tmp_path / "their_configs" / "experiment"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
        return ["--config-dir", str(folder.parent), f"+experiment@_global_={name}"]
    return write


HOSTILE = {
    "callbacks": "hydra:\n  callbacks:\n    x:\n      _target_: pathlib.Path.touch\n      self: {marker}\n",
    "launcher": "hydra:\n  launcher:\n    _target_: pathlib.Path.touch\n    self: {marker}\n",
    "sweeper": "hydra:\n  sweeper:\n    _target_: pathlib.Path.touch\n    self: {marker}\n",
    "job_logging": ("hydra:\n  job_logging:\n    version: 1\n    handlers:\n      x:\n        (): pathlib.Path.touch\n"
                    "        self: {marker}\n"),
    "run": "hydra:\n  run:\n    dir: {marker}\n",
    "env_set": "hydra:\n  job:\n    env_set: {{BRAIN2IMG_MARK: '1'}}\n",
}


def given(monkeypatch, text, *, name="experiment"):
    """Put an experiment of this text among those of configs/."""
    path = command_line.CONFIGS / name


@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_an_experiment_sets_nothing_of_hydra(command, tmp_path, marker, their_experiment, what):
    their_experiment(HOSTILE[what].format(marker=marker))
    for more in ([], ["-m"]):
        code, output = command("scripts/embed.py", "experiment=zz_theirs", *more)
        assert code == 1 and "hydra: expected its settings from configs/hydra and the command line alone" in output
        assert what in output and "Traceback" not in output
