"""Deviations from publications: every published row states its own, every switch composes, the pages say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from brain2img.analyses.deviations import Deviation, deviations, deviations_of, table, with_table

ROOT = Path(__file__).parents[2]
ROWS = sorted(str(p.relative_to(ROOT / "configs/experiment").with_suffix(""))
              for p in (ROOT / "configs/experiment/published").rglob("*.yaml"))
GOOD = {"what": "ours", "published": "theirs", "why": "a reason", "switch": "seed=1 encoder.n_blocks=2"}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_states_its_deviations_and_every_switch_composes_and_changes_something(name, composed):
    cfg = composed("pipeline", f"experiment={name}")
    stated = deviations_of(OmegaConf.to_container(cfg.published), name=name)
    assert cfg.published.system
    assert stated, "a row without deviations: say which there are"
    for key, deviation in stated.items():
        if deviation.switch is not None:
            assert deviation.overrides, key
            for override in deviation.overrides:
                assert composed("pipeline", f"experiment={name}", override) != cfg, f"{key}: {override} changes nothing"


def test_the_pages_show_what_the_experiments_state(composed):
    models = {name: {"published": OmegaConf.to_container(composed("pipeline", f"experiment={name}").published)}
              for name in ROWS}
    tables = deviations(OmegaConf.create({"models": models, "pages": None}))
    marked = {p.stem for p in (ROOT / "docs/systems").glob("*.md") if "<!-- deviations -->" in p.read_text()}
    assert set(tables) == marked
    for system, made in tables.items():
        page = ROOT / "docs/systems" / f"{system}.md"
        assert with_table(page.read_text(), made, page=page) == page.read_text(), \
            "brain2img deviations pages=docs/systems"


@pytest.mark.parametrize(("change", "message"), [
    ({"why": None}, r"experiment 'x', published.deviations.d: expected text, got None as why"),
    ({"what": " "}, r"got ' ' as what"), ({"switch": 3}, r"got 3 as switch"), ({"switch": ""}, r"got '' as switch"),
    ({"other": "y"}, r"expected what, published, why, switch, got \{")])
def test_a_deviation_in_another_form_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        deviations_of({"deviations": {"d": {**GOOD, **change}}}, name="x")
    assert deviations_of({"deviations": {"d": GOOD, "e": None}}, name="x") == {"d": Deviation(**GOOD)}
    assert Deviation(**GOOD).overrides == ["seed=1", "encoder.n_blocks=2"]
    assert Deviation(**{**GOOD, "switch": None}).overrides == []


def test_a_table_names_the_rows_of_what_is_not_shared(tmp_path):
    both, one = Deviation(**GOOD), Deviation("a", "b", "c", None)
    made = table({"published/x": {"d": both}, "published/y": {"d": both, "e": one}})
    assert made.splitlines()[2:] == [
        "| ours | theirs | a reason | `seed=1 encoder.n_blocks=2` | all |", "| a | b | c | none | `y` |"]
    page = tmp_path / "s.md"
    page.write_text("Before\n<!-- deviations -->\nold\n<!-- end of deviations -->\nafter\n")
    cfg = {"models": {"published/x": {"published": {"system": "s", "deviations": {"d": GOOD}}}}, "pages": str(tmp_path)}
    deviations(OmegaConf.create(cfg))
    assert re.match(r"Before\n<!-- deviations -->\n\n\| here .*\| all \|\n\n<!-- end of deviations -->\nafter\n$",
                    page.read_text(), flags=re.S)
    page.write_text("no marks")
    with pytest.raises(ValueError, match="expected the lines <!-- deviations --> and <!-- end of deviations --> once"):
        deviations(OmegaConf.create(cfg))
    del cfg["models"]["published/x"]["published"]["system"]
    with pytest.raises(ValueError, match=r"expected published\.system"):
        deviations(OmegaConf.create(cfg))
