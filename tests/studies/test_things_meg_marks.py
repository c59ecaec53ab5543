"""THINGS-MEG as people have it: marks of bad channels and spans, events that cannot be, names, what was not read."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest
from test_things_meg import EPOCHS, RUN, edit_csv, make_source, prepare, rewrite_epochs, write

from brain2img.studies.things_meg_recordings import CHANNELS, CTFSession

BAD = CHANNELS[40]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp("meg") / "source")


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    return {form: write(tmp_path_factory.mktemp(form) / "raw", source, form) for form in ("epochs", "ctf")}


@pytest.fixture
def copy(whole, tmp_path):
    return lambda form: Path(shutil.copytree(whole[form], tmp_path / f"raw-{form}"))


@pytest.fixture
def unfiltered(monkeypatch):
    monkeypatch.setattr(mne.filter, "filter_data", lambda x, *_, **__: x)  # it takes its time


def mark(raw: Path, *names: str) -> None:
    (raw / f"{RUN}_meg.ds" / "BadChannels").write_text("".join(f"{name}\n" for name in names))


def left_out(folder: Path) -> list[tuple[str, int, int, str]]:
    table = pd.read_parquet(folder / "left_out.parquet")
    return list(table[["subject", "session", "run", "reason"]].itertuples(index=False, name=None))


@pytest.mark.slow
def test_channels_that_ctf_marks_as_bad_are_interpolated_as_mne_does_and_the_spec_says_so(
        copy, tmp_path, unfiltered, caplog):
    raw = copy("ctf")
    before = prepare(raw, tmp_path / "p", "ctf", zero_shot=False)
    mark(raw, BAD)
    with caplog.at_level(logging.WARNING):
        after = prepare(raw, tmp_path / "q", "ctf", zero_shot=False)
    assert f"bad channels interpolated: {BAD} (sub-01 session 2)" in caplog.text
    assert after.specs["sub-01"].filtered == f"0.1-40 Hz; bad channels interpolated: {BAD} (session 2)"
    recording = mne.io.read_raw_ctf(raw / f"{RUN}_meg.ds", preload=True, verbose="ERROR")
    assert recording.info["bads"] == [f"{BAD}-1609"]
    recording.interpolate_bads(origin=(0, 0, 0.04), verbose="ERROR")
    line = recording.get_data(f"{BAD}-1609")[0]
    trials = after.trials_of("sub-01")
    second = np.flatnonzero(trials["session"] == 2)
    for row in second:
        onset = round(trials["onset"][row] * 1200)
        epoch = line[onset - 120:onset + 1681]
        expected = (epoch - epoch[:121].mean())[::6][:281]
        np.testing.assert_allclose(after.signals("sub-01")[row, 40], expected, rtol=1e-4, atol=1e-4 * np.ptp(expected))
    changed = (before.signals("sub-01")[:] != after.signals("sub-01")[:]).any(axis=2)
    assert set(map(tuple, np.argwhere(changed).tolist())) == {(row, 40) for row in second.tolist()}


def test_bad_channels_are_dropped_for_all_sessions_kept_or_refused(copy, tmp_path, unfiltered):
    raw = copy("ctf")
    before = prepare(raw, tmp_path / "p", "ctf")
    mark(raw, BAD, CHANNELS[7])
    dropped = prepare(raw, tmp_path / "q", "ctf", quality={"bad_channels": "drop"})
    np.testing.assert_array_equal(dropped.signals("sub-01"), np.delete(before.signals("sub-01"), [7, 40], axis=1))
    spec = dropped.specs["sub-01"]
    assert spec.ch_names == tuple(name for i, name in enumerate(CHANNELS) if i not in (7, 40))
    np.testing.assert_array_equal(spec.positions, np.delete(before.specs["sub-01"].positions, [7, 40], axis=0))
    assert spec.filtered == f"0.1-40 Hz; bad channels dropped for all: {CHANNELS[7]}, {BAD}"
    kept = prepare(raw, tmp_path / "r", "ctf", quality={"bad_channels": "keep"})
    np.testing.assert_array_equal(kept.signals("sub-01"), before.signals("sub-01"))
    assert "bad channels kept" in kept.specs["sub-01"].filtered
    with pytest.raises(ValueError, match=rf"run-01_meg\.ds: expected no channel marked as bad, got {CHANNELS[7]}, "):
        prepare(raw, tmp_path / "s", "ctf", quality={"bad_channels": "refuse"})


def test_trials_in_a_bad_segment_of_ctf_are_left_out_and_leave_a_gap(copy, tmp_path, unfiltered):
    raw = copy("ctf")
    before = prepare(raw, tmp_path / "p", "ctf", zero_shot=False)
    trials = before.trials_of("sub-01")
    lost = trials.index[(trials["session"] == 2) & (trials["repetition"] == 1)][0]
    onset = trials["onset"][lost]
    (raw / f"{RUN}_meg.ds" / "bad.segments").write_text(f"1 {onset + 0.2:.4f} {onset + 0.3:.4f}\n")
    after = prepare(raw, tmp_path / "q", "ctf", zero_shot=False)
    assert left_out(tmp_path / "q") == [("sub-01", 2, 1, "overlaps bad_1")]
    np.testing.assert_array_equal(after.signals("sub-01"), np.delete(before.signals("sub-01"), lost, axis=0))
    assert after.trials_of("sub-01")["repetition"].tolist() == trials["repetition"].drop(lost).tolist()


def test_marked_epochs_and_dropped_ones_are_left_out(copy, tmp_path, caplog):
    raw = copy("epochs")
    before = prepare(raw, tmp_path / "p", zero_shot=False)
    table = pd.read_csv(raw / "sourcedata/sample_attributes_P1.csv")
    shown = np.flatnonzero(table["trial_type"] != "catch")

    def change(epochs):
        epochs.set_annotations(mne.Annotations([(epochs.events[shown[3], 0]) / 200.0], [0.1], ["BAD_x"]))
        return epochs.drop([int(shown[5])], reason="EOG", verbose="ERROR")

    rewrite_epochs(raw, change)
    after = prepare(raw, tmp_path / "q", zero_shot=False)
    assert [reason for *_, reason in left_out(tmp_path / "q")] == ["overlaps BAD_x", "dropped from the epochs (EOG)"]
    np.testing.assert_array_equal(after.signals("sub-01"), np.delete(before.signals("sub-01"), [3, 5], axis=0))
    assert after.trials_of("sub-01")["stimulus_id"].tolist() == before.trials_of("sub-01")["stimulus_id"].drop(
        [3, 5]).tolist()
    assert "1 epochs are dropped in the file (dropped from the epochs (EOG), ...)" in caplog.text
    with pytest.raises(ValueError, match=r"P1-epo\.fif: expected no dropped epochs, got 1"):
        prepare(raw, tmp_path / "r", quality={"bad_spans": "refuse"})


def test_bad_channels_of_z_scored_epochs_are_not_interpolated(copy, tmp_path):
    raw = copy("epochs")

    def change(epochs):
        epochs.info["bads"] = [f"{BAD}-1609"]
        return epochs

    rewrite_epochs(raw, change)
    with pytest.raises(ValueError, match=rf"expected no channel marked as bad, for z-scored .* got {BAD}\. Set study"):
        prepare(raw, tmp_path / "p")
    assert prepare(raw, tmp_path / "q", quality={"bad_channels": "drop"}).specs["sub-01"].n_channels == 270


@pytest.mark.parametrize(("change", "message"), [
    (lambda e: e.apply_function(lambda x: x * 1e-13), r"P1-epo\.fif: expected z-scored signals, .* got \d.*e-1\d"),
    (lambda e: (e.info["chs"][3].update(unit_mul=-15), e)[1], r"P1-epo\.fif: expected channels in their unit, got \S+ "
                                                              r"in 10\^-15 of it")])
def test_epochs_in_another_scale_are_refused(change, message, copy, tmp_path):
    raw = copy("epochs")
    rewrite_epochs(raw, change)
    with pytest.raises(ValueError, match=message):
        prepare(raw, tmp_path / "p")


def test_recordings_of_another_amplitude_are_refused(source, tmp_path, monkeypatch, unfiltered):
    from brain2img.simulate import ctf

    monkeypatch.setattr(ctf, "STEP", 1e-17)
    raw = write(tmp_path / "raw", source, "ctf")
    whole = CTFSession.__call__
    monkeypatch.setattr(CTFSession, "__call__", lambda self: (1e15 * block for block in whole(self)))
    with pytest.raises(ValueError, match=r"subject 'sub-01', session '1': expected MEG \(magnetometers\) in T .* looks "
                                         r"like fT read as T"):
        prepare(raw, tmp_path / "p", "ctf")


def events(raw: Path, change) -> None:
    def changed(table):
        samples = table["sample"].astype(object)
        change(samples)
        return table.assign(sample=samples)

    edit_csv(raw, f"{RUN}_events.tsv", changed, "\t")


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.__setitem__(3, np.nan), r"line 5: expected a number as the sample of the event, got none \(1 such of"),
    (lambda s: s.__setitem__(3, "soon"), r"line 5: expected a number as the sample of the event, got soon"),
    (lambda s: s.__setitem__(3, s[3] + 0.5), r"line 5: expected a whole number .*, got \d+\.5"),
    (lambda s: s.__setitem__(0, -5), r"line 2: expected 0 or more as the sample of the event, got -5"),
    (lambda s: s.__setitem__(4, s[3]), r"line 6: expected another one than that of the event before as the sample"),
    (lambda s: s.__setitem__(4, s[3] - 1), r"line 6: expected a later one than that of the event before"),
    (lambda s: s.__setitem__(0, 100), r"line 2: expected at least 120, where a trial begins in the recording"),
    (lambda s: s.__setitem__(8, 10**6), r"line 10: expected less than \d+, where a trial ends in sub-.*_meg\.ds")])
def test_events_that_cannot_be_are_refused_with_their_line(change, message, copy, tmp_path):
    raw = copy("ctf")
    events(raw, change)
    with pytest.raises(ValueError, match=rf"run-01_events\.tsv, {message}"):
        prepare(raw, tmp_path / "p", "ctf")


def test_names_in_capitals_are_read_and_what_is_not_read_is_listed(copy, tmp_path, unfiltered):
    raw = copy("ctf")
    before = prepare(raw, tmp_path / "p", "ctf", zero_shot=False)
    (raw / f"{RUN}_events.tsv").rename(raw / f"{RUN}_EVENTS.TSV")
    (raw / "sourcedata").rename(raw / "SourceData")
    (raw / "sub-BIGMEG1").rename(raw / "sub-bigmeg1")
    image = next((raw / "object_images" / "fir").iterdir())
    image.rename(image.with_suffix(".JPG"))
    shutil.copytree(raw / f"{RUN}_meg.ds".replace("BIGMEG1/", "bigmeg1/"), raw / "sub-bigmeg1/ses-03/x_meg.ds")
    (raw / "notes.txt").write_text("x")
    after = prepare(raw, tmp_path / "q", "ctf", zero_shot=False)
    np.testing.assert_array_equal(after.signals("sub-01"), before.signals("sub-01"))
    table = pd.read_parquet(tmp_path / "q" / "not_read.parquet")
    assert table["path"].tolist() == ["notes.txt", "sub-bigmeg1/ses-03/"]


def test_runs_of_another_compensation_are_refused(copy, tmp_path, monkeypatch):
    from mne.io import BaseRaw

    monkeypatch.setattr(BaseRaw, "compensation_grade", property(
        lambda self: 3 if "ses-02" in str(getattr(self, "_filenames", "")) else 0))
    with pytest.raises(ValueError, match=r"ses-02_task-main_run-01_meg\.ds: expected compensation of grade 0, as in "
                                         r"sub-BIGMEG1_ses-01.*_meg\.ds, got grade 3"):
        prepare(copy("ctf"), tmp_path / "p", "ctf")


def test_epochs_are_named_as_they_are_on_the_disk(copy, tmp_path):
    raw = copy("epochs")
    expected = np.array(prepare(raw, tmp_path / "p").signals("sub-01"))
    (raw / EPOCHS).rename((raw / EPOCHS).with_name("Preprocessed_p1-epo.fif"))
    np.testing.assert_array_equal(prepare(raw, tmp_path / "q").signals("sub-01"), expected)
