"""Channels and spans marked as bad: interpolated as MNE does, dropped, refused or kept."""

from __future__ import annotations

import logging

import mne
import numpy as np
import pytest

from brain2img.studies.marks import Quality, good_epochs, good_events, honour_bad_channels, in_words

NAMES = mne.channels.make_standard_montage("colin27_1020").ch_names[:32]


def recording(*, montage=True, bads=("Fz",), first_samp=0):
    rng = np.random.default_rng(0)
    signals = 1e-5 * rng.standard_normal((33, 1000)).cumsum(axis=1)
    raw = mne.io.RawArray(signals, mne.create_info([*NAMES, "EOG"], 100.0, ["eeg"] * 32 + ["eog"]),
                          first_samp=first_samp, verbose="ERROR")
    if montage:
        raw.set_montage("colin27_1020", on_missing="ignore")
    raw.info["bads"] = list(bads)
    return raw


def test_bad_channels_are_interpolated_as_mne_does_and_no_longer_bad():
    raw = recording(bads=["Fz", "EOG"])
    there = raw.ch_names.index("Fz")
    signals = raw.get_data()
    expected = raw.copy()
    expected.info["bads"] = ["Fz"]
    expected.interpolate_bads(verbose="ERROR")
    raw._data[there] = 1e3  # what the bad channel holds does not matter
    assert honour_bad_channels(raw, policy="interpolate", what="r") == ["Fz"]
    np.testing.assert_allclose(raw.get_data()[there], expected.get_data()[there], rtol=1e-6)
    assert np.array_equal(np.delete(raw.get_data(), there, axis=0), np.delete(signals, there, axis=0))
    assert raw.info["bads"] == ["EOG"], "what is not of the brain is left as it is"


@pytest.mark.parametrize("policy", ["drop", "keep"])
def test_dropping_and_keeping_change_nothing_and_name_the_channels(policy):
    raw = recording(bads=["Fz", "F3", "EOG"])
    before = raw.get_data()
    assert set(honour_bad_channels(raw, policy=policy, what="r")) == {"Fz", "F3"}
    assert honour_bad_channels(raw, policy=policy, what="r", among=["F3"]) == ["F3"]
    assert np.array_equal(raw.get_data(), before)


def test_what_cannot_be_interpolated_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match=r"^run 1: expected positions .* \(Fz\), got none of .*Give a montage, or set "
                                         r"study\.quality\.bad_channels=drop"):
        honour_bad_channels(recording(montage=False), policy="interpolate", what="run 1")
    with pytest.raises(ValueError, match=r"got 17 bad ones of 32"):
        honour_bad_channels(recording(bads=NAMES[:17]), policy="interpolate", what="run 1")
    with pytest.raises(ValueError, match=r"^run 1: expected no channel marked as bad, got 1 \(Fz\)"):
        honour_bad_channels(recording(), policy="refuse", what="run 1")
    assert honour_bad_channels(recording(bads=[]), policy="refuse", what="run 1") == []


@pytest.mark.parametrize("first_samp", [0, 250])
def test_trials_that_overlap_a_bad_span_are_told_and_joints_are_where_trials_reach_over_them(first_samp):
    raw = recording(first_samp=first_samp)
    raw.set_annotations(mne.Annotations([2.0, 5.0, 8.0, 1.0], [0.5, 0.0, 0.1, 0.3],
                                        ["bad_blink", "BAD boundary", "BAD_x", "stimulus"]))
    samples = np.array([110, 149, 150, 225, 250, 260, 430, 450, 500, 510, 512, 790, 900])
    reasons = good_events(raw, samples, tmin=-0.1, tmax=0.5, policy="drop", what="r")
    # windows: sample - 10 to sample + 50; bad: 200 to 250; 500 (a joint); 800 to 810
    assert reasons.tolist() == ["", "", "overlaps bad_blink", "overlaps bad_blink", "overlaps bad_blink",
                                "overlaps bad_blink", "", "overlaps BAD boundary", "overlaps BAD boundary", "", "",
                                "overlaps BAD_x", ""]


def test_overlaps_are_refused_or_kept_as_set(caplog):
    raw = recording()
    raw.set_annotations(mne.Annotations([2.0], [0.5], ["BAD_x"]))
    samples = np.array([100, 220])
    with pytest.raises(ValueError, match=r"^run 1: expected no trial in a span marked as bad, got 1 of 2 \(trial 1 "
                                         r"overlaps BAD_x\)\. Set study\.quality\.bad_spans"):
        good_events(raw, samples, tmin=0, tmax=0.5, policy="refuse", what="run 1")
    with caplog.at_level(logging.WARNING):
        assert good_events(raw, samples, tmin=0, tmax=0.5, policy="keep", what="run 1").tolist() == ["", ""]
    assert "run 1: 1 of 2 trials overlap a span marked as bad; they are kept" in caplog.text


def test_epochs_of_a_file_carry_their_bad_spans(tmp_path):
    raw = recording()
    raw.set_annotations(mne.Annotations([2.0, 4.0], [0.5, 0.1], ["BAD_x", "stimulus"]))
    events = np.c_[[100, 220, 400], [0, 0, 0], [1, 1, 1]]
    mne.Epochs(raw, events, tmin=0, tmax=0.5, baseline=None, reject_by_annotation=False, preload=True,
               verbose="ERROR").save(tmp_path / "x-epo.fif", verbose="ERROR")
    epochs = mne.read_epochs(tmp_path / "x-epo.fif", verbose="ERROR")
    assert good_epochs(epochs, policy="drop", what="e").tolist() == ["", "overlaps BAD_x", ""]


def test_words_for_the_spec_and_settings():
    assert in_words({"1": ["Fz", "F3"], "2": ["Fz"], "3": []}, policy="interpolate") == (
        "bad channels interpolated: F3 (1), Fz (1, 2)")
    assert in_words({"1": []}, policy="drop") == ""
    assert Quality.of(None) == Quality("interpolate", "drop", "refuse", None)
    assert Quality.of({"bad_spans": "keep"}).bad_spans == "keep"
    with pytest.raises(ValueError, match=r"study\.quality: expected the settings bad_channels, .*, got bad_span\."):
        Quality.of({"bad_span": "keep"})
    with pytest.raises(ValueError, match=r"study\.quality\.bad_channels: expected one of .*, got 'mend'"):
        Quality(bad_channels="mend")
