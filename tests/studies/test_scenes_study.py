"""The study `scenes`: what it writes, that it can be continued, and its messages."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from brain2img.data.prepared import PreparedStudy
from brain2img.studies.scenes import N_TEST, Scenes


def study(**changes):
    arguments = dict(snr=0.5, n_subjects=2, n_train=40, n_val=8, repetitions={"train": 2, "test": 3}, n_sessions=2,
                     recording={"n_voxels": 60})
    return Scenes("fmri", **(arguments | changes))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("scenes")
    study().prepare(None, out)
    return out


def again(prepared, out, **changes):
    """Prepare another variant with the pictures already drawn."""
    shutil.copy(prepared / "images.npy", out)
    study(**changes).prepare(None, out)
    return PreparedStudy(out, finished=False)


def test_prepared_folder(prepared):
    folder = PreparedStudy(prepared, finished=False)
    folder.validate()
    assert folder.name == "scenes_fmri"
    assert folder.subjects == ["sub-01", "sub-02"]
    table = folder.stimulus_table
    assert len(table) == 40 + 8 + N_TEST
    assert folder.stimuli.images([0]).shape == (1, 64, 64, 3)
    assert {"kind", "colour", "background"} <= set(table["attributes"][0])
    assert all(len(captions) for captions in table["captions"])
    for subject in folder.subjects:
        trials = folder.trials_of(subject)
        assert trials.groupby(["split", "stimulus_id"]).size().groupby("split").unique().str[0].to_dict() == {
            "train": 2, "val": 1, "test": 3}
        assert (trials.groupby("stimulus_id")["repetition"].max() + 1
                == trials.groupby("stimulus_id").size()).all()
        assert trials["session"].is_monotonic_increasing
        assert (trials.groupby(["session", "run"])["onset"].first() == 0).all()
    orders = [folder.trials_of(s)["stimulus_id"].tolist() for s in folder.subjects]
    assert orders[0] != orders[1]


def test_concepts_do_not_cross_splits(prepared):
    folder = PreparedStudy(prepared, finished=False)
    concept = folder.stimulus_table.set_index("stimulus_id")["concept"]
    splits = folder.trials.assign(concept=folder.trials["stimulus_id"].map(concept)).groupby("concept")["split"]
    assert (splits.nunique() == 1).all()
    test = folder.trials.loc[folder.trials["split"] == "test", "stimulus_id"].unique()
    assert concept[test].nunique() == N_TEST


def test_ceiling(prepared):
    table = pd.read_parquet(prepared / "ceiling.parquet")
    assert {"subject", "stimulus_id", "repetitions", "direction", "above", "tied", "candidates"} < set(table)
    assert len(table) == 2 * 3 * 2 * N_TEST  # subjects, numbers of repetitions, directions
    assert (table["candidates"] == N_TEST).all()
    mean = table.groupby(["repetitions"])["rank"].mean()
    assert mean[1] > mean[3]
    assert mean[3] < 20  # of 200; chance is 100.5


def test_a_subject_does_not_depend_on_the_others(prepared, tmp_path):
    whole = PreparedStudy(prepared, finished=False)
    alone = again(prepared, tmp_path, n_subjects=1)
    assert alone.subjects == ["sub-01"]
    np.testing.assert_array_equal(alone.signals("sub-01"), whole.signals("sub-01"))
    pd.testing.assert_frame_equal(alone.trials_of("sub-01"), whole.trials_of("sub-01"))


def test_seed_changes_recordings_and_not_stimuli(prepared, tmp_path):
    other = again(prepared, tmp_path, seed=1, n_subjects=1)
    whole = PreparedStudy(prepared, finished=False)
    pd.testing.assert_frame_equal(other.stimulus_table, whole.stimulus_table)
    assert other.trials_of("sub-01")["stimulus_id"].tolist() != whole.trials_of("sub-01")["stimulus_id"].tolist()


def test_pictures_for_a_gallery_change_no_recording(prepared, tmp_path):
    study(n_subjects=1, repetitions={"train": 2, "test": 3, "gallery": 2}).prepare(None, tmp_path)
    with_gallery, whole = PreparedStudy(tmp_path, finished=False), PreparedStudy(prepared, finished=False)
    n = len(whole.stimulus_table)
    pd.testing.assert_frame_equal(with_gallery.stimulus_table[:n], whole.stimulus_table)
    np.testing.assert_array_equal(with_gallery.stimuli.images(range(n)), whole.stimuli.images(range(n)))
    np.testing.assert_array_equal(with_gallery.signals("sub-01"), whole.signals("sub-01"))
    pd.testing.assert_frame_equal(with_gallery.trials_of("sub-01"), whole.trials_of("sub-01"))
    ceilings = [pd.read_parquet(folder / "ceiling.parquet") for folder in (tmp_path, prepared)]
    pd.testing.assert_frame_equal(ceilings[0], ceilings[1][ceilings[1]["subject"] == "sub-01"])
    extra = with_gallery.stimulus_table[n:]
    test = set(with_gallery.trials.loc[with_gallery.trials["split"] == "test", "stimulus_id"])
    concepts = with_gallery.stimulus_table.set_index("stimulus_id").loc[sorted(test), "concept"]
    assert extra["concept"].value_counts().to_dict() == dict.fromkeys(concepts, 2)
    assert not set(extra["stimulus_id"]) & set(with_gallery.trials["stimulus_id"])


def test_an_interrupted_call_is_continued(prepared, tmp_path, monkeypatch):
    from brain2img.simulate import fmri

    real = fmri.simulate_subject

    def dies(subject, **arguments):
        spec, blocks, ideal = real(subject, **arguments)
        return spec, (block for block in list(blocks)[:1] + [1 / 0]), ideal

    shutil.copy(prepared / "images.npy", tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fmri, "simulate_subject", lambda s, **a: (dies if s == "sub-02" else real)(s, **a))
        with pytest.raises(ZeroDivisionError, match="division"):
            study().prepare(None, tmp_path)
    written = (tmp_path / "signals_sub-01.npy").stat().st_mtime_ns
    study().prepare(None, tmp_path)
    assert (tmp_path / "signals_sub-01.npy").stat().st_mtime_ns == written
    for name in ("signals_sub-01.npy", "signals_sub-02.npy", "ceiling.parquet", "trials.parquet", "stimuli.parquet"):
        assert (tmp_path / name).read_bytes() == (prepared / name).read_bytes(), name


@pytest.mark.parametrize(("changes", "message"), [
    ({"snr": -1.0}, "expected a finite snr of at least 0, got -1.0. Set study.snr"),
    ({"n_train": 0}, "expected n_train of at least 1, got 0. Set study.n_train"),
    ({"image_size": 80}, "expected an image_size of 64, 128, ..., got 80. Set study.image_size"),
    ({"repetitions": {"test": 0}}, "expected repetitions.test of at least 1, got 0"),
    ({"repetitions": {"gallery": -1}}, "expected repetitions.gallery of at least 0, got -1"),
    ({"repetitions": {"tset": 2}}, r"expected keys of repetitions among .* got \['tset'\]. Correct study.repetitions"),
    ({"recording": {"sfreq": 100.0}}, r"expected keys of recording among \['n_voxels'\], got \['sfreq'\]"),
])
def test_messages(changes, message):
    with pytest.raises(ValueError, match=message):
        study(**changes)


def test_unknown_modality():
    with pytest.raises(ValueError, match=r"expected a modality of .*, got 'mri'. Set study.modality"):
        Scenes("mri", snr=1.0)


@pytest.mark.parametrize("modality", ["eeg", "meg"])
def test_sensors(prepared, tmp_path, modality):
    shutil.copy(prepared / "images.npy", tmp_path)
    Scenes(modality, snr=1.0, n_subjects=1, n_train=40, n_val=8, n_sessions=2,
           recording={"sfreq": 100.0, "n_channels": 8}).prepare(None, tmp_path)
    folder = PreparedStudy(tmp_path, finished=False)
    assert folder.modality == modality
    assert folder.name == f"scenes_{modality}"
    assert folder.signals("sub-01").shape == (40 + 8 + N_TEST, 8, 120)
    assert pd.read_parquet(tmp_path / "ceiling.parquet")["rank"].between(1, N_TEST).all()


def test_tiny_is_a_study():
    tiny = Scenes.tiny()
    assert tiny.name == "scenes_fmri"
    assert tiny.subjects == ["sub-01", "sub-02"]


def test_raw_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected no raw files, for it is simulated, got .*Leave out raw="):
        study().prepare(tmp_path, tmp_path)


@pytest.mark.parametrize("modality", ["eeg", "meg"])
def test_no_run_of_rapid_presentation_mixes_splits(modality):
    study = Scenes(modality, snr=1.0, n_subjects=1, n_train=50, n_val=10, repetitions={"train": 3, "test": 5})
    ids = [f"{split}-{i:06d}" for split, n in (("train", 50), ("val", 10), ("test", 200)) for i in range(n)]
    stimuli = pd.DataFrame({"stimulus_id": ids, "split": [i.split("-")[0] for i in ids]})
    trials = study.trials("sub-01", stimuli)
    assert (trials.groupby(["session", "run"])["split"].nunique() == 1).all()
    assert (trials.groupby(["session", "run"])["onset"].min() == 0).all()
    assert trials["split"].value_counts().to_dict() == {"test": 1000, "train": 150, "val": 10}
