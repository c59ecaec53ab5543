"""Alljoined-1.6M: written raw by edfio, prepared, and compared with the known trials and images."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest

from brain2img.data.prepared import PreparedStudy, PreparedWriter
from brain2img.data.things import validation_concepts
from brain2img.records import SignalSpec
from brain2img.simulate import alljoined_files as files
from brain2img.simulate.continuous import continuous
from brain2img.simulate.sensors import EEG_CHANNELS
from brain2img.studies.alljoined import MOVED, Alljoined
from brain2img.studies.alljoined_recordings import CHANNELS, EDFSession

CONCEPTS = ("bat2", "coat_rack", "fir", "goat")
SIZE = 24


def make_source(folder: Path, *, n_subjects: int = 1) -> PreparedStudy:
    """Two sessions of three blocks: one of the test (2 images, twice), two of training (8 images, once a session)."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    known = [(f"{concept}_{number:02d}s", concept, "train") for concept in CONCEPTS for number in (1, 2)]
    known += [("kite_13s", "kite", "test"), ("oboe_13s", "oboe", "test")]
    stimuli = pd.DataFrame(known, columns=["stimulus_id", "concept", "split"])
    stimuli = stimuli.assign(kind="image", category="thing", captions=[["x"]] * 10, attributes=[{}] * 10)
    names = sorted(CHANNELS)
    writer = PreparedWriter(folder, study="source")
    for number in range(1, n_subjects + 1):
        order, session, run = [], [], []
        for this in (1, 2):
            train = rng.permutation(8)
            for block, places in ((1, rng.permutation([8, 9, 8, 9])), (2, train[:4]), (3, train[4:])):
                order += list(places)
                session += [this] * 4
                run += [block] * 4
        trials = stimuli.iloc[order][["stimulus_id", "split"]].reset_index(drop=True).assign(session=session, run=run)
        trials["repetition"] = trials.groupby("stimulus_id").cumcount()
        x = rng.standard_normal((len(trials), len(names), 38)).repeat(8, axis=2)[..., :300].cumsum(axis=2)
        x -= x[..., :51].mean(axis=2, keepdims=True)
        spec = SignalSpec(subject=f"sub-{number:02d}", modality="eeg", units="V", n_channels=len(names), n_times=300,
                          sfreq=250.0, tmin=-0.2, ch_names=names, ch_types=["eeg"] * len(names))
        writer.add_subject(spec, trials=trials, signals=[x * 1e-6])
    images = rng.integers(0, 255, size=(10, 3, 3, 3)).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    writer.finish(stimuli.drop(columns="split"), images=images)
    return PreparedStudy(folder, finished=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> PreparedStudy:
    return make_source(tmp_path_factory.mktemp("eeg") / "source")


def write(folder: Path, source: PreparedStudy, form: str, **changes) -> Path:
    files.write_images(folder, source)
    (files.write_recordings if form == "edf" else files.write_flat)(folder, source, **changes)
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory, source):
    """Return the folder of a form, written once; tests that damage it take a copy."""
    order = np.random.default_rng(3).permutation(32)
    return {form: write(tmp_path_factory.mktemp(form) / "raw", source, form, channel_order=order)
            for form in ("edf", "preprocessed")}


@pytest.fixture
def damaged(tmp_path, raw):
    def copy(form):
        return Path(shutil.copytree(raw[form], tmp_path / f"damaged-{form}"))

    return copy


def study(form="edf", **changes) -> Alljoined:
    return Alljoined(**{"form": form, "subjects": [1], "n_sessions": 2, "n_blocks": 3, "n_val_concepts": 1,
                        "image_size": SIZE, **changes})


def prepare(raw, out, form="edf", **changes) -> PreparedStudy:
    out.mkdir(exist_ok=True)
    study(form, **changes).prepare(raw, out)
    return PreparedStudy(out, finished=False)


def epochs_by_mne(source: PreparedStudy) -> np.ndarray:
    """The authors' chain in MNE's own words, from the recordings before they were rounded to 16 bit."""
    table = files.stimulus_order(source, "sub-01")
    out = {}
    for _, lines in table.groupby(["session", "block_id"]):
        rows = lines["row"].to_numpy()
        signals = np.where((rows >= 0)[:, None, None], files.signals_of(source, "sub-01", np.maximum(rows, 0)), 0)
        line = mne.io.RawArray(continuous(signals, sfreq=250.0, tmin=-0.2, raw_sfreq=256.0),
                               mne.create_info(list(CHANNELS), 256.0, "eeg"), verbose="ERROR")
        events = np.c_[256 + 384 * np.arange(len(rows)), np.zeros(len(rows), int), np.arange(len(rows)) + 1]
        epochs = mne.Epochs(line, events, tmin=-0.2, tmax=1.0, baseline=(None, 0), preload=True, verbose="ERROR")
        out |= dict(zip(rows, epochs.resample(250, verbose="ERROR").get_data(copy=False), strict=True))
    return np.stack([out[row] for row in range(len(out) - (-1 in out))])


@pytest.mark.parametrize("form", ["edf", "preprocessed"])
def test_what_was_recorded_is_prepared(form, source, raw, tmp_path):
    prepared = prepare(raw[form], tmp_path / "p", form)
    trials, got = source.trials_of("sub-01"), prepared.trials_of("sub-01")
    number = files.numbers(source)
    assert got["stimulus_id"].tolist() == [f"{number[name]:05d}" for name in trials["stimulus_id"]]
    for column in ("session", "run", "repetition"):
        assert got[column].tolist() == trials[column].tolist()
    spec, signals = prepared.specs["sub-01"], prepared.signals("sub-01")
    assert spec.ch_names == CHANNELS, "in the order of the spec, whatever that of the file"
    assert set(CHANNELS) < set(EEG_CHANNELS), "all of them are recorded in THINGS-EEG2, too"
    assert np.isfinite(spec.positions).all()
    if form == "edf":
        expected = epochs_by_mne(source)
        step = 2 * np.abs(expected).max() / 2**16
        np.testing.assert_allclose(signals, expected, atol=4 * step)
        assert (spec.n_times, spec.tmin, spec.units, spec.whitened) == (301, -51 / 256, "V", False)
        planted = files.signals_of(source, "sub-01", np.arange(len(trials)))[..., 60:290]
        assert np.corrcoef(planted.ravel(), signals[..., 60:290].ravel())[0, 1] > 0.99
    else:
        np.testing.assert_allclose(signals, files.whitened(source, "sub-01"), rtol=1e-6, atol=1e-6)
        assert (spec.n_times, spec.units, spec.whitened) == (250, "a.u.", True)
        assert spec.tmin == pytest.approx(50 / 250 - 51 / 256)


@pytest.mark.parametrize("form", ["edf", "preprocessed"])
def test_stimuli_images_and_splits(form, source, raw, tmp_path):
    prepared = prepare(raw[form], tmp_path / "p", form)
    number = files.numbers(source)
    wanted = source.stimulus_table.assign(number=source.stimulus_table["stimulus_id"].map(number)).sort_values("number")
    table = prepared.stimulus_table
    assert table["stimulus_id"].tolist() == [f"{n:05d}" for n in range(10)]
    assert table["concept"].tolist() == wanted["concept"].tolist()
    assert table["captions"].tolist()[0] == ["bat"]
    assert set(table["category"]) == {"thing"}
    difference = prepared.stimuli.images().astype(int) - source.stimuli_of(wanted["stimulus_id"].tolist()).images()
    assert np.abs(difference).mean() < 12, "JPEG, no more"
    split = dict(zip(table["concept"], table["stimulus_id"].map(
        dict(prepared.trials[["stimulus_id", "split"]].itertuples(index=False))), strict=True))
    held_out = validation_concepts(CONCEPTS, n=1, seed=0)
    assert split == {name: "test" if name in ("kite", "oboe") else "val" if name in held_out else "train"
                     for name in split}


def left_out(out: Path) -> list[tuple]:
    table = pd.read_parquet(out / "left_out.parquet")
    return list(table[["subject", "session", "run", "place", "reason"]].itertuples(index=False, name=None))


def test_lost_markers_and_missing_blocks_are_recorded_and_leave_gaps(source, tmp_path):
    raw = write(tmp_path / "raw", source, "edf", unmarked=[5, 21], missing=[(1, 3)])
    prepared = prepare(raw, tmp_path / "p")
    kept = [row for row in range(24) if row not in (5, 21, 8, 9, 10, 11)]
    trials = source.trials_of("sub-01").iloc[kept]
    got = prepared.trials_of("sub-01")
    number = files.numbers(source)
    assert got["stimulus_id"].tolist() == [f"{number[name]:05d}" for name in trials["stimulus_id"]]
    assert got["repetition"].tolist() == trials["repetition"].tolist(), "as designed: what is lost leaves a gap"
    expected = epochs_by_mne(source)[kept]
    np.testing.assert_allclose(prepared.signals("sub-01"), expected, atol=8 * np.abs(expected).max() / 2**16)
    assert left_out(tmp_path / "p") == [
        ("sub-01", 1, 2, 1, "no marker"), *(("sub-01", 1, 3, place, "block missing") for place in range(4)),
        ("sub-01", 2, 3, 1, "no marker")]


def test_trials_dropped_by_the_authors_are_recorded(source, tmp_path):
    raw = write(tmp_path / "raw", source, "preprocessed", dropped=[2, 13])
    prepared = prepare(raw, tmp_path / "p", "preprocessed")
    kept = [row for row in range(24) if row not in (2, 13)]
    np.testing.assert_allclose(prepared.signals("sub-01"), files.whitened(source, "sub-01")[kept], rtol=1e-6, atol=1e-6)
    assert left_out(tmp_path / "p") == [("sub-01", 1, 1, 2, "dropped by the authors"),
                                        ("sub-01", 2, 1, 1, "dropped by the authors")]


def block(raw, session=2, run=2) -> Path:
    return next((raw / f"raw_eeg/sub-01/session_{session:02d}/block_{run:02d}").glob("*.edf"))


def test_several_markers_on_one_sample_and_one_too_near_the_end_are_left_out(source, tmp_path, monkeypatch):
    import brain2img.studies.alljoined as module

    raw = write(tmp_path / "raw", source, "edf")
    real = module.markers

    def changed(path, **options):
        found, n_times = real(path, **options)
        if "session_02/block_02" in str(path):
            found[1] = type(found[1])(found[1].part, found[1].number, found[0].sample)
            n_times = found[-1].sample + 256
        return found, n_times

    monkeypatch.setattr(module, "markers", changed)
    prepared = prepare(raw, tmp_path / "p")
    assert left_out(tmp_path / "p") == [
        ("sub-01", 2, 2, 0, "several markers on one sample"), ("sub-01", 2, 2, 1, "several markers on one sample"),
        ("sub-01", 2, 2, 3, "cut off by an end of the recording")]
    assert len(prepared.trials) == 21


def edit_order(raw, change, name="raw_eeg/sub-01/stim_order.parquet"):
    change(pd.read_parquet(raw / name)).to_parquet(raw / name)


def test_the_row_the_authors_move_is_moved(source, damaged, tmp_path, monkeypatch):
    raw = damaged("edf")
    edit_order(raw, lambda t: t.iloc[[1, 0, *range(2, len(t))]])
    with pytest.raises(ValueError, match=r"Block 1_EPOCFLEX.edf: expected markers in the order of stim_order.parquet"):
        prepare(raw, tmp_path / "p")
    monkeypatch.setitem(MOVED, 1, (1, 0))
    shutil.rmtree(tmp_path / "p")
    prepared = prepare(raw, tmp_path / "p")
    number = files.numbers(source)
    assert prepared.trials_of("sub-01")["stimulus_id"].tolist() == [
        f"{number[name]:05d}" for name in source.trials_of("sub-01")["stimulus_id"]]


@pytest.mark.parametrize("form", ["edf", "preprocessed"])
def test_sessions_can_be_sent_to_processes_of_their_own(form, raw, tmp_path, monkeypatch):
    one = prepare(raw[form], tmp_path / "one", form)
    add = PreparedWriter.add_sessions

    def sent(self, spec, *, trials, sessions, jobs):
        add(self, spec, trials=trials, sessions=pickle.loads(pickle.dumps(sessions)))

    monkeypatch.setattr(PreparedWriter, "add_sessions", sent)
    two = prepare(raw[form], tmp_path / "two", form, jobs=2)
    np.testing.assert_array_equal(one.signals("sub-01"), two.signals("sub-01"))


def test_an_interrupted_call_goes_on_with_the_session_it_was_in(raw, tmp_path, monkeypatch):
    read: list[str] = []
    whole = EDFSession.__call__

    def call(self, *, fail):
        for (path, _), signals in zip(self.blocks, whole(self), strict=True):
            read.append(f"{path.parts[-3]}/{path.parts[-2]}")
            if fail and read[-1] == "session_02/block_02":
                raise KeyboardInterrupt
            yield signals

    monkeypatch.setattr(EDFSession, "__call__", lambda self: call(self, fail=True))
    with pytest.raises(KeyboardInterrupt):
        prepare(raw["edf"], tmp_path / "p")
    assert not (tmp_path / "p" / "spec.json").exists()
    read.clear()
    monkeypatch.setattr(EDFSession, "__call__", lambda self: call(self, fail=False))
    prepared = prepare(raw["edf"], tmp_path / "p")
    assert read == [f"session_02/block_0{run}" for run in (1, 2, 3)], "the first session was whole"
    monkeypatch.undo()
    np.testing.assert_array_equal(prepared.signals("sub-01"),
                                  prepare(raw["edf"], tmp_path / "whole").signals("sub-01"))


def rename(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old.ljust(16), new.ljust(16), 1))


@pytest.mark.parametrize(("damage", "message"), [
    (lambda raw: shutil.rmtree(raw / "raw_eeg/sub-01/session_02"), r"session_02: expected a session, got no such"),
    (lambda raw: shutil.rmtree(raw / "raw_eeg/sub-01"), r"sub-01: expected the files of this subject, got no such"),
    (lambda raw: [shutil.rmtree(p) for p in (raw / "raw_eeg/sub-01/session_02").iterdir()],
     r"sub-01: expected trials in sessions 1 to 2, got some in \[1\]"),
    (lambda raw: shutil.copy(block(raw), block(raw).with_name("again.edf")), r"block_02: expected one EDF file, got 2"),
    (lambda raw: block(raw).write_bytes(block(raw).read_bytes()[:-1000]), r"2_EPOCFLEX.edf: expected \d+ bytes by its"),
    (lambda raw: block(raw).write_bytes(block(raw).read_bytes()[:300]), r"2_EPOCFLEX.edf: expected a whole recording"),
    (lambda raw: block(raw).write_bytes(b""), r"Block 2_EPOCFLEX.edf: expected a whole recording, got an empty file"),
    (lambda raw: rename(block(raw), b"POz", b"POx"), r"2_EPOCFLEX.edf: expected the 32 .* 1 of them .*\(POz\)"),
    (lambda raw: rename(block(raw), b"POz", b"Pz"), r"2_EPOCFLEX.edf: expected the 32 .* 2 of them .*\(Pz, POz\)"),
    (lambda raw: shutil.copy(block(raw, 1, 2), block(raw, 2, 3)),
     r"Session 2, Block 3_EPOCFLEX.edf: expected markers in the order of stim_order.parquet, got image \d+ of stim_"),
    (lambda raw: edit_order(raw, lambda t: t.drop(columns="block_id")), r"stim_order.parquet: expected the columns"),
    (lambda raw: edit_order(raw, lambda t: t.assign(block_id=t["block_id"] + 1)),
     r"stim_order.parquet: expected blocks 1 to 3, got \[2, 3, 4\]. Set study.n_blocks"),
    (lambda raw: edit_order(raw, lambda t: t.drop(columns="category_num")),
     r"stim_order.parquet: .* and category_num or"),
    (lambda raw: edit_order(raw, lambda t: t[t["session"] == 1]), r"stim_order.parquet: expected sessions 1 to 2, got"),
    (lambda raw: (raw / "raw_eeg/sub-01/stim_order.parquet").unlink(),
     r"stim_order.parquet: expected the order of this"),
    (lambda raw: (raw / "stimuli/images/00004.jpg").unlink(),
     r"00004.jpg: expected an image there, got none \(1 of 10"),
])
def test_recordings_that_are_not_the_published_ones_are_refused(damage, message, damaged, tmp_path):
    raw = damaged("edf")
    damage(raw)
    with pytest.raises(ValueError, match=message):
        prepare(raw, tmp_path / "p")
    assert not (tmp_path / "p" / "spec.json").exists()


def test_a_recording_whose_header_does_not_say_how_long_it_is_is_read_as_it_is(raw, damaged, tmp_path):
    moved = damaged("edf")
    header = bytearray(block(moved).read_bytes())
    header[236:244] = b"-1      "  # as of a recording that was not ended
    block(moved).write_bytes(header)
    np.testing.assert_array_equal(prepare(moved, tmp_path / "p").signals("sub-01"),
                                  prepare(raw["edf"], tmp_path / "q").signals("sub-01"))


def test_recordings_of_another_rate_are_refused(source, tmp_path):
    raw = write(tmp_path / "raw", source, "edf", sfreq=128)
    with pytest.raises(ValueError, match=r"Block 1_EPOCFLEX.edf: expected 256 samples per second, got 128"):
        prepare(raw, tmp_path / "p")


FLAT = "preprocessed_eeg/sub-01/preprocessed_eeg_training_flat.npy"


class Hostile:
    def __reduce__(self):
        return (print, ("run",))


TABLE = "preprocessed_eeg/sub-01/experiment_metadata.parquet"


def edit_flat(raw, **changes):
    values = pickle.loads((raw / FLAT).read_bytes())
    values |= {key: change(values[key]) for key, change in changes.items()}
    (raw / FLAT).write_bytes(pickle.dumps(values))


@pytest.mark.parametrize(("damage", "message"), [
    (lambda raw: (raw / FLAT).unlink(), r"training_flat.npy: expected a pickled dictionary, got no such file"),
    (lambda raw: (raw / FLAT).write_bytes((raw / FLAT).read_bytes()[:-5000]), r"training_flat.npy: expected a whole"),
    (lambda raw: (raw / FLAT).write_bytes(pickle.dumps(Hostile())), r"training_flat.npy: expected nothing but arrays"),
    (lambda raw: edit_flat(raw, preprocessed_eeg_data=lambda x: x[:-1]),
     r"training_flat.npy: expected 16 trials, as experiment_metadata.parquet has kept.*got \(15, 32, 250\)"),
    (lambda raw: edit_flat(raw, ch_names=lambda names: ["X1", *names[1:]]),
     r"training_flat.npy: expected the 32 channels of the study, each once, got 1 of them missing"),
    (lambda raw: edit_flat(raw, times=lambda t: t * 2.5),
     r"training_flat.npy: expected 32 channels x 250 samples at 250"),
    (lambda raw: edit_flat(raw, times=lambda t: t + 0.1), r"sub-01: expected the same times in both files"),
    (lambda raw: edit_order(raw, lambda t: t.drop(columns="dropped"), TABLE),
     r"experiment_metadata.parquet: expected the columns .*dropped"),
])
def test_preprocessed_folders_that_are_not_the_published_ones_are_refused(damage, message, damaged, tmp_path, capsys):
    raw = damaged("preprocessed")
    damage(raw)
    with pytest.raises(ValueError, match=message):
        prepare(raw, tmp_path / "p", "preprocessed")
    assert not (tmp_path / "p" / "spec.json").exists()
    assert capsys.readouterr().out == "", "nothing of the file was run"


def test_without_the_names_of_categories_concepts_are_numbers_and_have_no_caption(damaged, tmp_path):
    raw = damaged("edf")
    (raw / "preprocessed_eeg" / "experiment_metadata_categories.parquet").unlink()
    prepared = prepare(raw, tmp_path / "p")
    table = prepared.stimulus_table
    assert table["concept"].iloc[0] == table["concept"].iloc[1] == "train-0"
    assert set(map(len, table["captions"])) == {0}


def test_names_of_categories_go_by_the_images_name_too_and_a_table_without_them_is_refused(damaged, tmp_path):
    raw = damaged("preprocessed")
    path = raw / "preprocessed_eeg" / "experiment_metadata_categories.parquet"
    whole = prepare(raw, tmp_path / "p", "preprocessed").stimulus_table
    named = pd.read_parquet(path)
    named.assign(fname=named["image_path"].str[-9:]).drop(columns="image_path").to_parquet(path)
    pd.testing.assert_frame_equal(prepare(raw, tmp_path / "q", "preprocessed").stimulus_table, whole)
    named.drop(columns="category_name").to_parquet(path)
    with pytest.raises(ValueError, match=r"experiment_metadata_categories.parquet: expected the columns image_path or"):
        prepare(raw, tmp_path / "r", "preprocessed")


def test_arguments_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"study.form: expected one of \('edf', 'preprocessed'\), got 'bids'"):
        Alljoined(form="bids")
    with pytest.raises(ValueError, match=r"study.subjects: expected different numbers"):
        Alljoined(subjects=[])
    with pytest.raises(ValueError, match=r"raw: expected the folder of Alljoined-1.6M, got nothing"):
        Alljoined().prepare(None, tmp_path)


def test_the_identity_of_the_raw_files_changes_with_them_and_not_with_their_place(damaged, raw, repair):
    for form in ("edf", "preprocessed"):
        moved = damaged(form)
        first = study(form).raw_id(raw[form])
        assert first == study(form).raw_id(moved)
        recording = next(p for p in sorted(moved.rglob("*")) if p.suffix in (".edf", ".npy"))
        repair(recording)
        second = study(form).raw_id(moved)
        repair(next(moved.rglob("*.jpg")))
        third = study(form).raw_id(moved)
        (moved / "preprocessed_eeg" / "experiment_metadata_categories.parquet").unlink()
        assert len({first, second, third, study(form).raw_id(moved)}) == 4


def test_writers_want_their_window_and_channels(source, tmp_path):
    source = PreparedStudy(source.folder, finished=False)
    spec = source.specs["sub-01"]
    source.specs["sub-01"] = spec.select(np.arange(spec.n_channels), samples=slice(1, None))
    with pytest.raises(ValueError, match=r"signals of subject 'sub-01': expected at least 300 samples from -0.2 s"):
        files.write_flat(tmp_path / "a", source)
    source.specs["sub-01"] = spec.select(np.arange(1, spec.n_channels))
    with pytest.raises(ValueError, match=r"signals of subject 'sub-01': expected the channels .* got none named AFz"):
        files.write_flat(tmp_path / "b", source)


@pytest.mark.slow
def test_the_simulated_scenes_in_both_layouts(tmp_path, monkeypatch):
    from brain2img.studies import scenes

    monkeypatch.setattr(scenes, "N_TEST", 4)
    (tmp_path / "scenes").mkdir()
    scenes.Scenes("eeg", snr=1.0, n_subjects=1, n_train=20, n_val=4, n_sessions=2).prepare(None, tmp_path / "scenes")
    source = PreparedStudy(tmp_path / "scenes", finished=False)
    number = files.numbers(source)
    trials = source.trials_of("sub-01")
    planted = files.signals_of(source, "sub-01", np.arange(len(trials)))[..., 60:290]
    for form in ("edf", "preprocessed"):
        prepared = prepare(write(tmp_path / form, source, form), tmp_path / f"p-{form}", form, n_val_concepts=2)
        got = prepared.trials_of("sub-01")
        assert got["stimulus_id"].tolist() == [f"{number[s]:05d}" for s in trials["stimulus_id"]]
        if form == "edf":
            assert np.corrcoef(planted.ravel(), prepared.signals("sub-01")[..., 60:290].ravel())[0, 1] > 0.9
        else:
            whitened = files.whitened(source, "sub-01")
            np.testing.assert_allclose(prepared.signals("sub-01"), whitened, rtol=1e-5, atol=1e-5)
