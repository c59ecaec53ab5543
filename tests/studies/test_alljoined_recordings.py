"""Alljoined-1.6M as people have it: names in capitals, gaps, units, marks, and what was not read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from edf_gaps import begin_records_at, room
from edfio import Edf, EdfAnnotation, read_edf
from test_alljoined import block, left_out, make_source, prepare, write


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folder of the recordings, and what is prepared of them."""
    folder = tmp_path_factory.mktemp("alljoined")
    raw = write(folder / "raw", make_source(folder / "source"), "edf")
    return raw, prepare(raw, folder / "p")


@pytest.fixture
def raw(whole, tmp_path):
    return Path(shutil.copytree(whole[0], tmp_path / "raw"))


def rewrite(path: Path, *, annotations=(), starts=None) -> None:
    """Write a block again: with further annotations, and its records (and what happened in them) at other times."""
    edf = read_edf(path)
    old = [*edf.annotations, *annotations]
    if starts is None:
        Edf(edf.signals, annotations=old, data_record_duration=1).write(path)
        return
    moved = [EdfAnnotation(starts[int(a.onset)] + a.onset % 1, a.duration, a.text) for a in old]
    # those later than the file is long are written into its last record
    more = [EdfAnnotation(edf.num_data_records - 1.0, None, "room" * 100)]
    Edf(edf.signals, annotations=[*room(edf.num_data_records), *more, *moved], data_record_duration=1).write(path)
    begin_records_at(path, starts)


def unit(path: Path, value: str) -> None:
    data = bytearray(path.read_bytes())
    n = int(data[252:256])
    for i in range(n):
        place = slice(256 + 96 * n + 8 * i, 256 + 96 * n + 8 * (i + 1))
        if data[place].strip() == b"uV":
            data[place] = value.encode().ljust(8)
    path.write_bytes(data)


def test_names_in_capitals_are_read_and_what_is_not_read_is_listed(whole, raw, tmp_path):
    subject = raw / "raw_eeg" / "sub-01"
    for path in sorted(subject.rglob("*.edf")):
        path.rename(path.with_suffix(".EDF"))
    (subject / "session_02" / "block_03").rename(subject / "session_02" / "BLOCK_03")
    (subject / "stim_order.parquet").rename(subject / "Stim_Order.Parquet")
    subject.rename(subject.with_name("SUB-01"))
    (raw / "stimuli" / "images" / "00004.jpg").rename(raw / "stimuli" / "images" / "00004.JPG")
    for name in ("Thumbs.db", ".DS_Store", "SUB-01/session_01/._block_01", "SUB-01/session_02/block_02b.edf.gz",
                 "sub-02/session_01/block_01/a.edf", "sub-02/stim_order.parquet"):
        (raw / "raw_eeg" / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / "raw_eeg" / name).write_bytes(b"12")
    prepared = prepare(raw, tmp_path / "p")
    assert left_out(tmp_path / "p") == []
    np.testing.assert_array_equal(prepared.signals("sub-01"), whole[1].signals("sub-01"))
    np.testing.assert_array_equal(prepared.stimuli.images([4]), whole[1].stimuli.images([4]))
    assert pd.read_parquet(tmp_path / "p" / "not_read.parquet").to_numpy().tolist() == [
        ["raw_eeg/SUB-01/session_02/block_02b.edf.gz", 1, 2], ["raw_eeg/sub-02/", 2, 4]]
    shutil.copy(block_of(raw), block_of(raw).with_suffix(".edf"))
    with pytest.raises(ValueError, match=r"block_02: expected names that differ in more than capitals, got "):
        prepare(raw, tmp_path / "q")


def block_of(raw: Path) -> Path:
    return next((raw / "raw_eeg/SUB-01/session_02/block_02").glob("*.EDF"))


def test_preprocessed_names_in_capitals_are_read(tmp_path):
    raw = write(tmp_path / "raw", make_source(tmp_path / "source"), "preprocessed")
    expected = np.array(prepare(raw, tmp_path / "p", "preprocessed").signals("sub-01"))
    for path in sorted((raw / "preprocessed_eeg" / "sub-01").iterdir()):
        path.rename(path.with_name(path.name.upper()))
    np.testing.assert_array_equal(prepare(raw, tmp_path / "q", "preprocessed").signals("sub-01"), expected)
    assert pd.read_parquet(tmp_path / "q" / "not_read.parquet").empty


def test_trials_of_a_discontinuous_recording_are_those_shown_and_one_over_a_gap_is_left_out(whole, raw, tmp_path):
    path = block(raw)
    n = read_edf(path).num_data_records
    onsets = sorted(a.onset for a in read_edf(path).annotations if a.text.startswith("stim"))
    gap = int(np.ceil(onsets[2] - 0.2))  # a record that begins within the third picture's trial
    starts = np.arange(n) + np.where(np.arange(n) >= gap, 7.5, 0)
    rewrite(path, starts=starts)
    assert not read_edf(path).is_continuous
    prepared = prepare(raw, tmp_path / "p")
    assert left_out(tmp_path / "p") == [("sub-01", 2, 2, 2, "overlaps BAD boundary")]
    lost = whole[1].trials_of("sub-01").query("session == 2 and run == 2")["row"].iloc[2]
    np.testing.assert_array_equal(prepared.signals("sub-01"), np.delete(whole[1].signals("sub-01"), lost, axis=0))
    times = prepared.trials_of("sub-01").query("session == 2 and run == 2")["onset"]
    assert times.tolist() == pytest.approx([onsets[0], onsets[1], onsets[3] + 7.5])


def test_channels_without_a_unit_are_refused_or_read_as_set(whole, raw, tmp_path):
    unit(block(raw), "")
    with pytest.raises(ValueError, match=r"2_EPOCFLEX\.edf: channel Cz: expected a unit of V, mV, uV or nV in the "
                                         r"header, got 'none'\. Set study\.quality\.unit"):
        prepare(raw, tmp_path / "p")
    prepared = prepare(raw, tmp_path / "q", quality={"unit": "uV"})
    np.testing.assert_allclose(prepared.signals("sub-01"), whole[1].signals("sub-01"), rtol=1e-5, atol=1e-12)


def test_a_wrong_unit_is_seen_by_the_amplitude_and_kept_if_so_set(whole, raw, tmp_path):
    for path in raw.rglob("*.edf"):
        unit(path, "V")
    with pytest.raises(ValueError, match=r"signals of subject 'sub-01', session '1': expected EEG in V .* which looks "
                                         r"like uV read as V\."):
        prepare(raw, tmp_path / "p")
    assert not (tmp_path / "p" / "spec.json").exists()
    prepared = prepare(raw, tmp_path / "q", quality={"amplitudes": "keep"})
    np.testing.assert_allclose(1e-6 * prepared.signals("sub-01"), whole[1].signals("sub-01"), rtol=1e-5, atol=1e-12)


def test_trials_in_a_span_marked_as_bad_are_left_out_or_kept_or_refused(whole, raw, tmp_path):
    onsets = sorted(a.onset for a in read_edf(block(raw)).annotations if a.text.startswith("stim"))
    rewrite(block(raw), annotations=[EdfAnnotation(onsets[1] + 0.5, 0.1, "bad jump")])
    lost = whole[1].trials_of("sub-01").query("session == 2 and run == 2")["row"].iloc[1]
    dropped = prepare(raw, tmp_path / "p")
    assert left_out(tmp_path / "p") == [("sub-01", 2, 2, 1, "overlaps bad jump")]
    np.testing.assert_array_equal(dropped.signals("sub-01"), np.delete(whole[1].signals("sub-01"), lost, axis=0))
    kept = prepare(raw, tmp_path / "q", quality={"bad_spans": "keep"})
    np.testing.assert_array_equal(kept.signals("sub-01"), whole[1].signals("sub-01"))
    with pytest.raises(ValueError, match=r"2_EPOCFLEX\.edf: expected no trial in a span marked as bad, got 1 of 4"):
        prepare(raw, tmp_path / "r", quality={"bad_spans": "refuse"})
