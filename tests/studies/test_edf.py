"""EDF and BDF, written by edfio: gaps between records, units, ranges, rates and sizes, by the right value."""

from __future__ import annotations

import logging
from pathlib import Path

import mne
import numpy as np
import pytest
from edf_gaps import begin_records_at, room
from edfio import Bdf, BdfSignal, Edf, EdfAnnotation, EdfSignal, read_edf

from brain2img.studies.edf import mend_edf, open_edf

SFREQ, N_RECORDS = 100, 20
#: Seconds at which the records of the discontinuous file begin: gaps of 2.5 and of 3000 s, off the grid of samples.
STARTS = np.arange(N_RECORDS) + np.where(np.arange(N_RECORDS) >= 5, 2.504, 0) + np.where(
    np.arange(N_RECORDS) >= 12, 3000.0, 0)


def write(path: Path, *, starts=None, annotations=(), unit="uV", ranges=((-1000, 1000),), labels=("Cz",), rates=None,
          kind=Edf, signals=None, **header) -> Path:
    """Write channels that tell the time: each sample is when it was taken (s from the beginning), in its unit."""
    starts = np.arange(N_RECORDS, dtype=float) if starts is None else starts
    rates = rates or [SFREQ] * len(labels)
    make = EdfSignal if kind is Edf else BdfSignal
    channels = []
    for i, (label, rate) in enumerate(zip(labels, rates, strict=True)):
        times = (starts[:, None] % 1000 + np.arange(rate) / rate).ravel()
        channels.append(make(times if signals is None else signals[i], rate, label=label, physical_dimension="uV",
                             physical_range=ranges[i % len(ranges)]))
    kind(channels, annotations=[*room(N_RECORDS), *annotations], data_record_duration=1).write(path)
    data = bytearray(path.read_bytes())
    n = len(labels) + 1
    data[256 + 96 * n:256 + 104 * n] = b"".join(
        text.encode("latin-1").ljust(8) for text in (*([unit] if isinstance(unit, str) else unit) * (
            len(labels) if isinstance(unit, str) else 1), ""))
    for name, value in header.items():
        place = {"n_records": slice(236, 244), "date": slice(168, 176)}[name]
        data[place] = str(value).encode().ljust(8)
    path.write_bytes(data)
    if not np.array_equal(starts, np.arange(N_RECORDS)):
        begin_records_at(path, starts)
    return path


ONSETS = np.array([0.5, 4.99, 7.524, 8.774, 14.5, 3014.504, 3021.804])  # all but 14.5, which is in the second gap


def test_events_of_a_discontinuous_file_are_at_the_samples_taken_then(tmp_path, caplog):
    path = write(tmp_path / "d.edf", starts=STARTS, annotations=[EdfAnnotation(t, None, f"e{t}") for t in ONSETS])
    assert not read_edf(path).is_continuous
    assert [a.onset for a in read_edf(path).annotations] == pytest.approx(ONSETS)
    with caplog.at_level(logging.WARNING):
        raw, timing = open_edf(path)
    found = {text: round(onset * SFREQ) for onset, text in zip(raw.annotations.onset, raw.annotations.description,
                                                                strict=True) if text.startswith("e")}
    assert list(found) == [f"e{t}" for t in ONSETS if t != 14.5]
    signal = raw.get_data()[0] * 1e6
    for text, sample in found.items():
        assert signal[sample] == pytest.approx(float(text[1:]) % 1000, abs=0.02), text
    by_mne = mne.io.read_raw_edf(path, preload=True, verbose="ERROR")
    wrong = [text for onset, text in zip(by_mne.annotations.onset, by_mne.annotations.description, strict=True)
             if abs(by_mne.get_data()[0][round(onset * SFREQ)] * 1e6 - float(text[1:]) % 1000) > 0.02]
    assert len(wrong) + len(ONSETS) - len(by_mne.annotations) >= 4, "what MNE makes of it is why this is here"
    assert timing.samples(ONSETS).tolist() == [50, 499, 502, 627, -1, 1200, 1930]
    assert timing.times(np.array([50, 502, 1200])).tolist() == pytest.approx([0.5, 7.524, 3014.504])
    assert "the recording has 2 gaps" in caplog.text
    assert "1 annotations in them are left out" in caplog.text
    joints = [onset for onset, text in zip(raw.annotations.onset, raw.annotations.description, strict=True)
              if text == "BAD boundary"]
    assert joints == [5.0, 12.0]


def test_a_span_over_a_gap_ends_at_the_sample_it_ended(tmp_path):
    path = write(tmp_path / "d.edf", starts=STARTS, annotations=[EdfAnnotation(4.0, 4.504, "BAD_x"),
                                                                 EdfAnnotation(6.0, 2.504, "BAD_y")])
    raw, _ = open_edf(path)
    spans = {text: (onset, duration) for onset, duration, text in zip(
        raw.annotations.onset, raw.annotations.duration, raw.annotations.description, strict=True)}
    assert spans["BAD_x"] == pytest.approx((4.0, 2.0))
    assert spans["BAD_y"] == pytest.approx((5.0, 1.0))


def test_what_mne_bids_has_read_is_mended_too(tmp_path):
    path = write(tmp_path / "d.edf", starts=STARTS, annotations=[EdfAnnotation(7.524, None, "e")], unit="nV")
    raw = mne.io.read_raw_edf(path, verbose="ERROR")
    mend_edf(raw, path=path)
    assert raw.annotations.onset[list(raw.annotations.description).index("e")] == pytest.approx(5.02)
    assert raw.get_data()[0, 502] == pytest.approx(7.524e-9, abs=1e-11)


def test_continuous_files_are_as_mne_reads_them(tmp_path):
    path = write(tmp_path / "C.EDF", annotations=[EdfAnnotation(3.25, 0.5, "e")])
    raw, timing = open_edf(path)
    assert raw.annotations == mne.io.read_raw_edf(path, verbose="ERROR").annotations
    assert not len(timing.joints)
    assert timing.samples([3.25, 19.99, 20.0, -1.0]).tolist() == [325, 1999, -1, -1]
    assert raw.get_data()[0, 325] * 1e6 == pytest.approx(3.25, abs=0.02)


@pytest.mark.parametrize(("early", "message"), [
    (STARTS - np.where(np.arange(N_RECORDS) == 7, 0.5, 0), r"expected records one after the other, got record 7 at "),
    (STARTS[::-1].copy(), r"got record 1 at ")])
def test_records_that_overlap_are_refused(early, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        open_edf(write(tmp_path / "d.edf", starts=early))


def test_a_discontinuous_file_whose_records_do_not_say_when_they_begin_is_refused(tmp_path):
    path = write(tmp_path / "d.edf", starts=STARTS)
    path.write_bytes(path.read_bytes().replace(b"+3\x14", b"x3\x14"))
    with pytest.raises(ValueError, match=r"expected every record to say when it begins, .* got none in record 3\."):
        open_edf(path)


@pytest.mark.parametrize(("unit", "volts"), [
    ("uV", 1e-6), ("µV", 1e-6), ("\u00ce\u00bcV", 1e-6), ("UV", 1e-6), ("uVolt", 1e-6), ("microV", 1e-6), ("mV", 1e-3),
    ("mv", 1e-3), ("V", 1.0), ("Volts", 1.0), ("nV", 1e-9)])
def test_units_are_read_however_they_are_spelled(unit, volts, tmp_path):
    raw, _ = open_edf(write(tmp_path / "u.edf", unit=unit), channels=["CZ"])
    assert raw.get_data()[0, 325] / volts == pytest.approx(3.25, abs=0.02)


@pytest.mark.parametrize("unit", ["", "ADC", "MV", "uV/bit", "T"])
def test_unknown_units_are_refused_unless_stated(unit, tmp_path, caplog):
    path = write(tmp_path / "u.edf", unit=[unit, "mV", unit], labels=("Cz", "Pz", "Counter"))
    with pytest.raises(ValueError, match=rf"channel Cz: expected a unit of V, mV, uV or nV in the header, got "
                                         rf"'{unit or 'none'}'\. Set study\.quality\.unit"):
        open_edf(path, channels=["Cz", "Pz"])
    with caplog.at_level(logging.WARNING):
        raw, _ = open_edf(path, channels=["Cz", "Pz"], unit="uV")
    assert raw.get_data(["Cz", "Pz"])[:, 325] / [1e-6, 1e-3] == pytest.approx(3.25, abs=0.02)
    assert "1 channels state no known unit (Cz, ...); they are read as uV, as set" in caplog.text
    assert open_edf(path, channels=["Pz"])[0].get_data("Pz")[0, 325] == pytest.approx(3.25e-3, abs=2e-5)
    with pytest.raises(ValueError, match=r"study\.quality\.unit: expected one of V, mV, uV, nV, got 'pV'"):
        open_edf(path, unit="pV")


def test_channels_of_another_rate_are_left_out_and_several_rates_refused(tmp_path):
    path = write(tmp_path / "r.edf", labels=("Cz", "Pz", "Accel", "Temp"), rates=(100, 100, 400, 1))
    raw, _ = open_edf(path, channels=["Cz", "Pz"])
    assert raw.info["sfreq"] == 100
    assert raw.ch_names == ["Cz", "Pz"]
    assert raw.get_data()[:, 325] * 1e6 == pytest.approx(3.25, abs=0.02)
    with pytest.raises(ValueError, match=r"expected one rate of all channels, got 1 Hz \(Temp, \.\.\.\), 100 Hz"):
        open_edf(path)
    with pytest.raises(ValueError, match=r"expected 100 samples per second, those of Cz, got 400"):
        mend_edf(mne.io.read_raw_edf(path, verbose="ERROR"), path=path, channels=["Cz"])


@pytest.mark.parametrize(("field", "value", "message"), [
    ("physical_max", "-1000", r"channel Cz: expected ranges .*, got physical -1000 to -1000 and digital"),
    ("digital_max", "-32768", r"channel Cz: expected ranges .* digital -32768 to -32768"),
    ("digital_max", "-32769", r"channel Cz: expected ranges .* digital -32768 to -32769")])
def test_empty_and_reversed_ranges_are_refused(field, value, message, tmp_path):
    path = write(tmp_path / "r.edf")
    data = bytearray(path.read_bytes())
    begin = 256 + 2 * {"physical_max": 112, "digital_max": 128}[field]  # two channels: that of the annotations, too
    data[begin:begin + 8] = value.encode().ljust(8)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        open_edf(path)


def test_sizes_are_those_of_the_header_and_an_unclosed_recording_is_read_as_it_is(tmp_path, caplog):
    path = write(tmp_path / "s.edf")
    data = path.read_bytes()
    for changed in (data[:-3], data + b"\0" * 300):
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=rf"expected {len(data)} bytes by its header, got {len(changed)}\."):
            open_edf(path)
    write(path, n_records=-1)
    with caplog.at_level(logging.WARNING):
        assert open_edf(path)[0].n_times == N_RECORDS * SFREQ
    assert "(the recording was not closed); all 20 that are there are read" in caplog.text
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"expected whole records of \d+ bytes, got \d+ bytes more"):
        open_edf(path)


def test_files_of_24_bits_and_anonymous_dates(tmp_path):
    raw, _ = open_edf(write(tmp_path / "b.BDF", kind=Bdf, annotations=[EdfAnnotation(3.25, None, "e")]))
    assert raw.get_data()[0, 325] * 1e6 == pytest.approx(3.25, abs=2e-4)
    assert 3.25 in raw.annotations.onset
    for date in ("xx.xx.xx", "00.00.00", "01.01.85"):
        raw, _ = open_edf(write(tmp_path / "x.edf", date=date, starts=STARTS,
                                annotations=[EdfAnnotation(7.524, None, "e")]))
        assert raw.annotations.onset[list(raw.annotations.description).index("e")] == pytest.approx(5.02)
    path = write(tmp_path / "d.bdf", kind=Bdf, starts=STARTS, annotations=[EdfAnnotation(7.524, None, "e")])
    raw, timing = open_edf(path)
    assert timing.samples([7.524]).tolist() == [502]
    assert raw.get_data()[0, 502] * 1e6 == pytest.approx(7.524, abs=2e-4)


def test_files_without_signals_or_with_the_ending_of_another_kind_are_refused(tmp_path):
    Edf([], annotations=[EdfAnnotation(1.0, None, "e")]).write(tmp_path / "a.edf")
    with pytest.raises(ValueError, match=r"a\.edf: expected signals, got annotations alone"):
        open_edf(tmp_path / "a.edf")
    path = write(tmp_path / "b.edf", kind=Bdf)
    with pytest.raises(ValueError, match=r"b\.edf: expected a name that ends in \.bdf, for that is what the file is"):
        open_edf(path)
    (tmp_path / "c.edf").write_bytes(b"nothing of the kind" * 40)
    with pytest.raises(ValueError, match=r"c\.edf: expected a whole recording, got a truncated or damaged file"):
        open_edf(tmp_path / "c.edf")


def test_channels_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected channels of different names, got cz twice"):
        open_edf(write(tmp_path / "t.edf", labels=("Cz", "CZ")))
