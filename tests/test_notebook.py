"""Finished work from Python: every example of docs/notebook.md runs, and what cannot be had is said."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import brain2img
from brain2img.data.trials import session_names

PAGE = Path(__file__).parents[1] / "docs" / "notebook.md"


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> dict:
    """Return the names that the page's examples leave behind, run one after the other in an empty folder."""
    names: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("notebook"))
        for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.S | re.M):
            exec(compile(block, str(PAGE), "exec"), names)
        names["folder"] = Path.cwd()
    return names


def test_the_examples_give_what_they_say(read):
    run, table = read["run"], read["table"]
    assert repr(run) == "Run small (ridge) of study scenes_fmri: 1 fold, subjects sub-01"
    assert run.report.is_file()
    top1 = table.set_index(["metric", "space", "direction", "condition"]).loc[
        ("top1", "clip", "image_from_brain", "decoded")]
    assert top1["chance"] == pytest.approx(1 / 200)
    assert top1["low"] > top1["chance"]
    assert len(read["signals"]) == len(read["true"]) == len(read["decoded"].rows) == 200
    assert read["pictures"].shape == (3, 64, 64, 3)
    assert [folder.name for folder in read["folders"]] == ["decoded", "noise"]
    assert not np.array_equal(read["noise"], read["decoded"].embeddings("clip"))


def test_new_signals_are_decoded_as_the_stage_does(read):
    """The first test stimulus: the mean of its trials, which are normalised one by one, decodes as in predictions."""
    run, data, decoded = read["run"], read["data"], read["decoded"]
    trials = list(decoded.rows["trial_ids"].iloc[0])
    sessions = session_names(data.trials.set_index("row").loc[trials])
    signals = np.asarray(data.study.stored_signals("sub-01")[np.array(trials)])
    again = [run.decode(signals[[i]], subject="sub-01", session=session)["clip"][0]
             for i, session in enumerate(sessions)]
    # ridge is linear: the mean of what trials give is what their mean gives
    np.testing.assert_allclose(np.mean(again, axis=0), decoded.embeddings("clip")[0], rtol=1e-3, atol=1e-4)
    other = run.decode(signals[[0]], subject="sub-01")["clip"][0]
    assert not np.allclose(other, again[0], atol=1e-4), "statistics of all sessions are others than those of one"
    assert read["embeddings"]["pixels"].shape == (5, *decoded.specs["pixels"].shape)
    assert read["embeddings"]["clip"].dtype == np.float32


def test_what_is_not_there_is_said(read, tmp_path):
    run = read["run"]
    with pytest.raises(ValueError, match=r"run .*nothing: expected the folder of a run, .* got nothing"):
        brain2img.open_run(tmp_path / "train" / "nothing")
    with pytest.raises(ValueError, match=r"subject: expected one of the run, \['sub-01'\], got 'sub-09'"):
        run.decode(np.zeros((1, 2, 1)), subject="sub-09")
    with pytest.raises(ValueError, match=r"signals of subject 'sub-01': expected \(n, \d+ channels, 1 samples\) in .*"
                                         r"got \(1, 2, 1\)"):
        run.decode(np.zeros((1, 2, 1)), subject="sub-01")
    spec = read["data"].study.specs["sub-01"]
    with pytest.raises(ValueError, match="expected finite values, got NaN"):
        run.decode(np.full((1, spec.n_channels, 1), np.nan), subject="sub-01")
    with pytest.raises(ValueError, match="fold: expected 0 to 0, got 3"):
        run.data(3)
    with pytest.raises(ValueError, match=r"reconstructions of run small: expected one of \['pixels'\], got kandinsky"):
        run.pictures("kandinsky")
    with pytest.raises(ValueError, match=r"captions of run small: expected one of those that were made.*Caption first"):
        run.captions()
