"""Amplitudes of EEG and MEG: what heads have passes, what a wrong unit makes of it is named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from brain2img.data.amplitudes import check_amplitude, spread
from brain2img.data.prepared import PreparedStudy, PreparedWriter
from brain2img.records import SignalSpec

RNG = np.random.default_rng(0)
NOISE = RNG.standard_normal((20, 6, 100))


def test_the_spread_is_the_standard_deviation_of_the_middle_channel_whatever_a_few_samples_do():
    signals = NOISE * np.array([1, 2, 3, 4, 5, 600.0])[:, None] * 1e-5 + 3.0
    signals[0, :, :3] = 1e3
    found = spread(signals, ch_types=["eeg"] * 5 + ["eog"])
    assert found == {"eeg": pytest.approx(3e-5, rel=0.05)}
    assert spread(signals[0], ch_types=["mag", "mag", "mag", "grad", "grad", "misc"]).keys() == {"mag", "grad"}


@pytest.mark.parametrize(("kind", "size"), [("eeg", 2e-7), ("eeg", 2e-5), ("eeg", 3e-3), ("mag", 2e-15), ("mag", 1e-12),
                                            ("mag", 5e-11), ("grad", 5e-13), ("grad", 4e-11), ("grad", 5e-9)])
def test_what_heads_have_passes(kind, size):
    check_amplitude(NOISE * size, ch_types=[kind] * 6, what="x")


@pytest.mark.parametrize(("kind", "size", "looks"), [
    ("eeg", 20.0, "looks like uV read as V"), ("eeg", 0.02, "looks like mV read as V"),
    ("eeg", 2e4, "looks like nV read as V"), ("eeg", 2e-11, "looks like V scaled as if they were uV"),
    ("eeg", 2e-8, "looks like V scaled as if they were mV"), ("eeg", 0.0, "a flat line"),
    ("mag", 1e3, "looks like fT read as T"), ("mag", 1.0, "looks like pT read as T"),
    ("mag", 1e-27, "looks like T scaled as if they were fT"),
    ("grad", 400.0, "looks like fT/cm read as T/m")])
def test_what_no_head_has_is_refused_with_the_unit_it_looks_like(kind, size, looks):
    with pytest.raises(ValueError, match=rf"^run 3: expected .* to spread by .*, which {looks}\. Correct the unit"
                       if size else rf"got 0, {looks}"):
        check_amplitude(NOISE * size, ch_types=[kind] * 6, what="run 3")


def write(folder, signals, *, units="V", modality="eeg", ch_types=("eeg",) * 6, whitened=False, **options):
    folder.mkdir()
    writer = PreparedWriter(folder, study="x", **options)
    spec = SignalSpec(subject="s1", modality=modality, units=units, n_channels=6, n_times=100, sfreq=100.0,
                      ch_types=ch_types, whitened=whitened)
    trials = pd.DataFrame({"stimulus_id": "a", "split": "train", "session": np.repeat(["1", "2"], 10)})
    writer.add_sessions(spec, trials=trials, sessions=[lambda: [signals[:10]], lambda: [signals[10:]]])
    writer.finish(pd.DataFrame({"stimulus_id": ["a"], "kind": "image", "captions": [[]], "attributes": [{}]}),
                  images=np.zeros((1, 4, 4), dtype=np.uint8))
    return np.array(PreparedStudy(folder, finished=False).signals("s1"))


def test_a_session_in_another_unit_is_refused_by_name_before_anything_looks_finished(tmp_path):
    signals = NOISE * 2e-5
    signals[10:] *= 1e6
    with pytest.raises(ValueError, match=r"signals of subject 's1', session '2': expected EEG in V .*, got 2\d\.?\d*, "
                                         r"which looks like uV read as V\..*study\.quality\.amplitudes=keep"):
        write(tmp_path / "a", signals, any_amplitude=False)
    with pytest.raises(ValueError, match=r"session '2': expected EEG in V .*\. Correct the unit in the files\.$"):
        write(tmp_path / "b", signals, ch_types=())  # channels without a type are of the modality's
    assert not (tmp_path / "a" / "signals_s1.npy").exists()


def test_what_is_whitened_unit_free_or_known_to_be_odd_passes(tmp_path):
    for name, options in (("white", {"whitened": True}), ("free", {"units": "a.u."}), ("odd", {"any_amplitude": True})):
        assert np.array_equal(write(tmp_path / name, NOISE, **options), NOISE.astype(np.float32))
