"""Code in a run folder, manifest, experiment or checkpoint never runs: each route with a marker that it would write."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import hydra
import numpy as np
import pytest
import torch

from brain2img.command_line.arguments import CONFIGS
from brain2img.command_line.resolve import REMEMBERED, Request, adopt_run
from brain2img.decoders.settings import read_checkpoint
from brain2img.interfaces import Head, Prior, Reconstructor, Space
from brain2img.stages.build import as_data, build, class_of, defined, trust

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
    routes = [({"_target_": "brain2img.decoders.settings.torch.load", "f": str(pickled / "hostile.pt"),
                "weights_only": False}, "which is none"),
              ({"_target_": "brain2img.data.datamodule.np.load", "file": str(pickled / "hostile.npy"),
                "allow_pickle": True}, "which is none"),
              ({"_target_": "brain2img.stages.reconstruct.shutil.copyfile", "src": "a", "dst": "b"}, "which is none"),
              ({"_target_": "brain2img.decoders.settings.Path", "0": "x"}, "has from elsewhere"),
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


@pytest.fixture
def evil_part(tmp_path, monkeypatch, marker):
    """Put a module where it can be imported; it writes the marker when it is."""
    (tmp_path / "evil_part.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("evil_part")
def test_nothing_is_imported_from_elsewhere():
    for target in ("evil_part.Space", "evil_part", "brain2img.evil_part.Space"):
        with pytest.raises(ValueError, match=r"_target_: expected a class of"):
            defined(target)
    assert "evil_part" not in sys.modules


def test_nested_parts_are_checked_and_stand_where_they_may(marker):
    evil = {"_target_": "brain2img.decoders.settings.torch.load", "f": "x", "weights_only": False}
    head = {"_target_": "brain2img.heads.linear.LinearHead", "space": "clip"}
    for config, kind, message in [
            ({"_target_": PIXELS, "size": evil}, Space, "expected plain data in 'size'"),
            ({"_target_": PIXELS, "size": [{"deep": [evil]}]}, Space, "expected plain data in 'deep'"),
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
        "import shutil\nfrom brain2img.spaces.pixels import Pixels\n"
        "class Mine(Pixels):\n    pass\nclass Other:\n    pass\n")
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
    with pytest.raises(ValueError, match=r"expected names of packages of Python, got '\.\./x'"):
        trust(["../x"])


def test_a_run_sets_only_what_a_run_may(tmp_path):
    """A manifest names no trusted packages, no folder of results, and no interpolation."""
    fold = tmp_path / "run" / "fold-0_seed-0"
    fold.mkdir(parents=True)
    manifest = {"stage": "train", "id": "x", "name": "a", "label": "a", "subjects": [], "inputs": {}, "paths": {},
                "fold": 0, "seed": 7, "split_seed": 0, "n_fold_runs": 1, "seconds": 1.0,
                "later": {"trusted": ["evil"]}, "study": {"name": "x"},
                "study_name": "x", "config": {"seed": 7, "trusted": ["evil"], "overwrite": True, "hydra": {},
                                              "paths": {"outputs": "/elsewhere"}, "trainer": {"max_epochs": 3}}}
    (fold / "manifest.json").write_text(json.dumps(manifest))
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = hydra.compose("base", overrides=[f"run={fold.parent}"])
    adopted = adopt_run(cfg, request=Request("base", (), None, ()))
    assert (adopted.seed, adopted.trainer, adopted.study) == (7, {"max_epochs": 3}, {"name": "x"})
    assert "trusted" not in adopted
    assert adopted.overwrite is False
    assert "hydra" not in adopted
    assert adopted.paths.outputs == cfg.paths.outputs
    assert "trusted" not in REMEMBERED
    manifest["config"]["trainer"] = {"max_epochs": "${oc.env:HOME}"}
    (fold / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"run .*, trainer: expected plain values"):
        adopt_run(cfg, request=Request("base", (), None, ()))


def test_a_checkpoint_runs_nothing(pickled):
    with pytest.raises(ValueError, match=r"asks for [\w.]+, which cannot be read without running code"):
        read_checkpoint(pickled / "hostile.pt")


@pytest.fixture
def theirs(tmp_path):
    """Return a function that writes an experiment of somebody else, and returns the arguments that choose it."""
    def write(text: str, *more: str, chosen: str = "theirs") -> list[str]:
        folder = tmp_path / "their_configs" / "experiment"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "theirs.yaml").write_text(f"# @package _global_\n{text}")
        return [f"experiment={chosen}", *more, "--config-dir", str(folder.parent)]
    return write


HOSTILE = {
    "callbacks": "hydra:\n  callbacks:\n    x:\n      _target_: pathlib.Path.touch\n      self: {marker}\n",
    "launcher": "hydra:\n  launcher:\n    _target_: evil_part.Space\n",
    "sweeper": "hydra:\n  sweeper:\n    _target_: evil_part.Space\n",
    "job_logging": ("hydra:\n  job_logging:\n    version: 1\n    handlers:\n      x:\n        (): pathlib.Path.touch\n"
                    "        self: {marker}\n"),
    "run": "hydra:\n  run:\n    dir: {marker}\n",
    "env_set": "hydra:\n  job:\n    env_set: {{BRAIN2IMG_MARK: '1'}}\n",
}


@pytest.mark.usefixtures("evil_part")
@pytest.mark.parametrize("what", sorted(HOSTILE))
def test_an_experiment_sets_nothing_of_hydra(command, monkeypatch, marker, theirs, what):
    """Hydra obeys it before the stage begins."""
    monkeypatch.delenv("BRAIN2IMG_MARK", raising=False)
    text = HOSTILE[what].format(marker=marker)
    for arguments in (theirs(text), [*theirs(text, "seed=0,1"), "-m"]):
        code, output = command("embed", *arguments)
        assert code == 1, output
        assert "hydra: expected its settings from configs/hydra and the command line alone" in output
        assert what in output
        assert "Traceback" not in output
        assert not marker.exists()
    assert "BRAIN2IMG_MARK" not in os.environ


def test_a_swept_experiment_sets_nothing_of_hydra(command, marker, theirs):
    arguments = theirs(HOSTILE["job_logging"].format(marker=marker), chosen="digit69/ridge,theirs")
    code, output = command("embed", *arguments, "-m")
    assert code == 1, output
    assert "hydra: expected its settings from configs/hydra and the command line alone" in output


def test_what_is_typed_is_obeyed_as_far_as_it_runs_nothing(command, tmp_path, marker):
    code, output = command("embed", f"hydra.run.dir={tmp_path / 'here'}",
                           "hydra/launcher=submitit_local", "--cfg", "hydra")
    assert code == 0, output
    assert f"dir: {tmp_path / 'here'}" in output
    code, output = command("embed", "+hydra.callbacks.x._target_=pathlib.Path.touch",
                           f"+hydra.callbacks.x.self={marker}")
    assert code == 1, output
    assert "hydra.callbacks.x._target_: expected one of BasicLauncher" in output
    code, output = command("embed", f"--experimental-rerun={marker}")
    assert code == 1, output
    assert "--experimental-rerun: expected no file of an older command" in output


@pytest.mark.parametrize("script", ["simulate", "download"])
def test_a_root_that_asks_for_a_choice_is_composed(command, script):
    code, output = command(script, "study=nsd", "--cfg", "job")
    assert code == 0, output
    assert "brain2img.studies.nsd.NSD" in output


def test_an_experiment_trusts_nobody(command, theirs):
    code, output = command("embed", *theirs("trusted: [os]\n"))
    assert code == 1, output
    assert "trusted: expected packages that the command line names, got ['os'] from an experiment" in output


def test_an_experiment_names_only_parts(command, theirs, pickled):
    text = (f"study:\n  _target_: brain2img.decoders.settings.torch.load\n  f: {pickled / 'hostile.pt'}\n"
            "  weights_only: false\n")
    code, output = command("prepare", *theirs(text))
    assert code == 1, output
    assert "brain2img.decoders.settings.torch.load', which is none" in output


@pytest.mark.slow
def test_manifests_of_runs_and_priors_name_only_parts(command, digits, tmp_path, pickled):
    """The route by which code of a run folder ran: predict, and everything after it, reads the run's manifest."""
    small = ["experiment=digit69/ridge", "split.n_repeats=1", "split.n_folds=2", "space.pixels.size=8", "decoder.cv=2",
             f"raw={digits()}"]
    for stage in ("prepare", "embed", "train"):
        code, output = command(stage, *small)
        assert code == 0, output
    run = next((tmp_path / "outputs" / "train").rglob("fold-0*")) / "manifest.json"
    evil = {"_target_": "brain2img.decoders.settings.torch.load", "f": str(pickled / "hostile.pt"),
            "weights_only": False}
    whole = json.loads(run.read_text())
    later = whole["later"]
    for script, place, key in (("predict", whole["config"], "decoder"), ("predict", whole, "study"),
                               ("evaluate", later, "metric"), ("reconstruct", later, "reconstructor")):
        before = place[key]
        place[key] = {"x": evil} if script != "predict" else evil
        run.write_text(json.dumps(whole))
        code, output = command(script, f"run={run.parent.parent}")
        assert code == 1, output
        assert "torch.load', which is none" in output, output
        place[key] = before
        run.write_text(json.dumps(whole))
        if script == "predict" and key == "study":
            assert command("predict", f"run={run.parent.parent}")[0] == 0
