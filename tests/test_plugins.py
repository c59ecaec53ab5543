"""Parts of another package count where an installed distribution declares them, with the choices that it brings."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

import brain2img
from brain2img import plugins
from brain2img.command_line.arguments import CONFIGS, choices
from brain2img.interfaces import Encoder
from brain2img.records import SignalSpec
from brain2img.stages.build import build

EEG = {"sub-01": SignalSpec(subject="sub-01", modality="eeg", units="V", n_channels=3, n_times=4, sfreq=100.0)}
PARTS = """
from brain2img.encoders.mlp import MLP


class LabEncoder(MLP):
    pass
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Return a function that puts the package brain2img_lab in a folder of libraries, as its distribution says."""
    def make(declared: str | None):
        site = tmp_path / "site"
        package = site / "brain2img_lab"
        group = package / "configs" / "encoder"
        group.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "parts.py").write_text(PARTS)
        (group / "lab.yaml").write_text("_target_: brain2img_lab.parts.LabEncoder\nwidth: 5\n")
        (group / "nice.yaml").write_text("_target_: brain2img_lab.parts.Nice\n")
        info = site / "brain2img_lab-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brain2img-lab\nVersion: 1.0\n")
        if declared is not None:
            (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\nlab = {declared}\n")
        monkeypatch.syspath_prepend(str(site))

    return make


def test_an_installed_plugin_counts_with_its_choices(lab):
    lab("brain2img_lab")
    assert "lab" in choices(CONFIGS / "encoder")
    cfg = brain2img.compose("train", "experiment=demo/eeg_atm", "encoder=lab")
    assert OmegaConf.to_container(cfg.encoder) == {"_target_": "brain2img_lab.parts.LabEncoder", "width": 5}
    encoder = build(cfg.encoder, Encoder, specs=EEG)
    assert type(encoder).__name__ == "LabEncoder"
    assert encoder.hidden == (1, 5)
    nice = brain2img.compose("train", "experiment=demo/eeg_atm", "encoder=nice").encoder
    assert nice._target_ == "brain2img.encoders.nice.NICE", "a plug-in takes the place of no choice of ours"


def test_a_package_that_no_distribution_declares_stays_refused(lab):
    lab(None)
    assert "lab" not in choices(CONFIGS / "encoder")
    with pytest.raises(ValueError, match=r"encoder"):
        brain2img.compose("train", "experiment=demo/eeg_atm", "encoder=lab")
    with pytest.raises(ValueError, match=r"expected a class of brain2img\.\*, got 'brain2img_lab.parts.LabEncoder'.*"
                                         r"entry point brain2img\.plugins"):
        build({"_target_": "brain2img_lab.parts.LabEncoder", "width": 5}, Encoder, specs=EEG)


def test_only_what_a_plugin_defines_counts(lab):
    lab("brain2img_lab")
    with pytest.raises(ValueError, match="has from elsewhere"):
        build({"_target_": "brain2img_lab.parts.MLP", "width": 5}, Encoder, specs=EEG)
    with pytest.raises(ValueError, match=r"expected a class of brain2img\.\* or brain2img_lab\.\*, got 'os\.system'"):
        build({"_target_": "os.system", "command": "true"}, Encoder)


def test_an_entry_point_names_a_package(lab):
    lab("brain2img_lab.parts:LabEncoder")
    with pytest.raises(ValueError, match=r"entry point brain2img.plugins: expected the name of a package, got "
                                         r"'brain2img_lab.parts:LabEncoder'"):
        plugins.packages()
