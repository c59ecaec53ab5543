"""The compare command: files, and runs that are missing or unfinished."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from brain2img.analyses.compare import compare, scores_folder

sys.path.append(str(Path(__file__).parents[1] / "report"))
from fake_outputs import FakeOutputs, finish, fmri_spec


@pytest.fixture
def outputs(tmp_path):
    fake = FakeOutputs(tmp_path / "outputs")
    fake.scenes("scenes_fmri", [fmri_spec("sub-01", fake.rng)], "mindbridge")
    finish(fake.write("tiny"), "evaluate", name="tiny")
    return tmp_path / "outputs"


def test_the_table_is_printed_and_written(command, composed, outputs):
    code, text = command("compare", "runs=[tiny]", "name=side")
    assert code == 0, text
    assert "**scenes_fmri: top-1 of 20, in clip, image from brain, 2 repetitions averaged**" in text
    folder = outputs / "compare" / "side"
    assert {p.name for p in folder.iterdir()} == {"compare.md", "compare.csv", "compare.parquet", "compare.png",
                                                  "compare.html", "contents.json", "manifest.json"}
    table = pd.read_parquet(folder / "compare.parquet")
    assert table["decoder"].tolist() == ["mindbridge", "ridge"]
    pd.testing.assert_frame_equal(pd.read_csv(folder / "compare.csv")[["run", "value"]], table[["run", "value"]])
    assert (folder / "compare.md").read_text() in text
    assert compare(composed("compare", "runs=[tiny]", "name=side")) == folder  # again, in its place


def test_missing_and_unfinished_runs_are_named(composed, outputs):
    (outputs / "scores" / "half").mkdir()
    for runs, said in (("[]", "runs: expected folders or names of evaluated runs, got none"),
                       ("[nowhere]", "or names under"), ("[tiny,half]", "got an unfinished one")):
        with pytest.raises(ValueError, match=said):
            compare(composed("compare", f"runs={runs}"))


def test_a_trained_run_stands_for_its_scores(outputs):
    trained = outputs / "train" / "scenes_fmri-mindbridge"
    assert (trained / "fold-0_seed-7").exists()
    with pytest.raises(ValueError, match=r"scenes_fmri-mindbridge: expected scores of it in .* got nothing"):
        scores_folder(str(trained), outputs)
    scores = outputs / "scores" / "scenes_fmri-mindbridge"
    scores.mkdir()
    assert scores_folder(str(trained), outputs) == scores
    assert scores_folder("tiny", outputs) == outputs / "scores" / "tiny"
