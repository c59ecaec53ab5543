"""A prepared study stands on its own: later stages go on when its raw files have been moved away."""

from __future__ import annotations

import shutil

import pytest

from brain2img.data.prepared import PreparedStudy
from brain2img.simulate.own_study import write_own_study

QUICK = ["experiment=own_data/fmri_ridge", "study=arrays", "space=[pixels]", "space.pixels.size=8",
         "reconstructor=[pixels]", "captioner=[]", "space@metric_space=[]", "metric=[retrieval,pixcorr]",
         "headline.space=pixels", "split.kind=by_concept"]


@pytest.fixture
def raw(tmp_path):
    """Return the folder of a small study, and what has to be typed to use it."""
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder, [*QUICK, f"raw={folder}", *write_own_study(folder, modality="fmri", n_subjects=1).split()]


def test_every_stage_after_prepare_goes_on_without_raw_files(command, tmp_path, raw):
    folder, settings = raw
    code, said = command("data_prep/arrays.py", *settings[9:])
    assert code == 0, said
    prepared = PreparedStudy(next((tmp_path / "outputs" / "prepared").glob("*/*/manifest.json")).parent)
    assert all((prepared.folder / file).is_file() for file in prepared.stimulus_table["file"])
    shutil.move(folder, tmp_path / "elsewhere")
    code, said = command("pipeline", *settings, "stages=[prepare,embed,train,predict,reconstruct]")
    assert code == 0, said
    assert "its raw files are not at hand" in said
    assert (tmp_path / "outputs" / "scores" / "own_data" / "fmri_ridge" / "report.html").is_file()
    assert len(list((tmp_path / "outputs" / "prepared").glob("*/*/manifest.json"))) == 1


def test_what_was_not_prepared_still_asks_for_them(command, tmp_path, raw):
    folder, settings = raw
    shutil.move(folder, tmp_path / "elsewhere")
    code, said = command("train", *settings)
    assert code == 1
    assert "expected a prepared study of these settings" in said
    assert "Run the prepare stage first" in said
    code, said = command("pipeline", *settings)
    assert code == 1
    assert "which is no folder" in said or "expected the folder" in said
