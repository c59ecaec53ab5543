"""The worked examples of docs/adding_a_part.md, each one file and one YAML, are found and keep every promise."""

from __future__ import annotations

import re
import sys
import types

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from decoded import decoded_of
from parts import CONFIGS, SIGNALS, spec
from promises import (
    check_adapter,
    check_captioner,
    check_encoder,
    check_head,
    check_metric,
    check_reconstructor,
    check_space,
    check_study,
    refuses,
)

import brain2img.interfaces as interfaces
from brain2img.records import Grid, Stimuli
from brain2img.stages.build import build

TEXT = (CONFIGS.parent / "docs" / "adding_a_part.md").read_text()
FILES = {path: text for path, text in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", TEXT, flags=re.S)}


@pytest.fixture
def part(monkeypatch):
    """Return a function that puts the example of a group where it says it stands, and returns how to build it."""
    def make(group, interface):
        path = next(p for p in FILES if p.startswith(f"configs/{group}/"))
        said = yaml.safe_load(FILES[path].replace("${raw}", "null"))
        key, config = ("", said) if "_target_" in said else next(iter(said.items()))
        config.pop("raw", None)
        name = config["_target_"].rpartition(".")[0]
        module = types.ModuleType(name)
        exec(compile(FILES[f"src/{name.replace('.', '/')}.py"], name, "exec"), vars(module))
        monkeypatch.setitem(sys.modules, name, module)
        cls = getattr(module, config["_target_"].rpartition(".")[2])
        return key, cls, lambda **given: build(config, getattr(interfaces, interface), **given)

    return make


def test_encoder(part):
    _, cls, built = part("encoder", "Encoder")
    check_encoder(cls.tiny(), again=cls.tiny)
    check_encoder(built(specs=SIGNALS["eeg"]))


def test_adapter(part):
    _, cls, built = part("adapter", "SubjectAdapter")
    check_adapter(cls.tiny())
    check_adapter(built(specs=SIGNALS["eeg"], grid=Grid(12, 250)))


def test_head(part):
    _, cls, built = part("head", "Head")
    check_head(cls.tiny(), again=cls.tiny)
    check_head(built(hidden=(2, 8), spec=spec("clip", 3, 24)))


def stimuli():
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
    return Stimuli(pd.DataFrame({"stimulus_id": list("abcde")}), lambda rows: images[list(rows)])


def test_space_reconstructor_and_captioner_are_a_chain(part):
    key, cls, built = part("space", "Space")
    check_space(cls.tiny(), stimuli())
    assert built().name == key
    check_reconstructor(part("reconstructor", "Reconstructor")[1].tiny(), {"mean_colour": (3,)})
    check_captioner(part("captioner", "Captioner")[1].tiny(), {"mean_colour": (3,)})
    embedded = torch.from_numpy(built().embed(stimuli(), [0, 1]))
    given = {"mean_colour": embedded}
    picture = part("reconstructor", "Reconstructor")[2]().reconstruct(given, generators=[torch.Generator()] * 2)
    torch.testing.assert_close(picture.mean(dim=(2, 3)), embedded)
    assert all(text.endswith("picture") for text in part("captioner", "Captioner")[2]().caption(given))


def test_metric(part):
    _, cls, built = part("metric", "Metric")
    check_metric(cls.tiny(), decoded_of(cls.tiny()))
    check_metric(built(), decoded_of(built()))


def test_study(part, tmp_path):
    _, cls, built = part("study", "Study")
    raw, rng = tmp_path / "raw", np.random.default_rng(0)
    refuses("study.prepare", built().prepare, None, tmp_path)
    raw.mkdir()
    images = rng.integers(0, 255, (30, 8, 8, 3), dtype=np.uint8)
    for subject in ("sub-01", "sub-02"):
        np.savez(raw / f"{subject}.npz", betas=rng.standard_normal((30, 7)), images=images)
    check_study(cls.tiny(), raw, tmp_path)
    (tmp_path / "elsewhere").mkdir()
    for path in raw.iterdir():
        path.rename(tmp_path / "elsewhere" / path.name)
    first = built().raw_id(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").rename(raw.with_name("there"))
    assert built().raw_id(raw.with_name("there")) == first


def test_every_example_is_run():
    groups = {path.split("/")[1] for path in FILES if path.startswith("configs/")}
    assert groups == {"encoder", "adapter", "head", "space", "reconstructor", "captioner", "metric", "study"}
    assert len(FILES) == 2 * len(groups)
