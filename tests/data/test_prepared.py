from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from brain2img.data.prepared import PreparedStudy, PreparedWriter, check_splits
from brain2img.records import SignalSpec


def trials(splits="ttttvvee", stimuli=None):
    names = {"t": "train", "v": "val", "e": "test"}
    return pd.DataFrame({"stimulus_id": stimuli or [f"s{i}" for i in range(len(splits))],
                         "session": "1", "repetition": 0, "split": [names[s] for s in splits]})


def stimuli(n=8):
    return pd.DataFrame({"stimulus_id": [f"s{i}" for i in range(n)], "kind": "image", "concept": "c",
                         "captions": [["one", "two"]] * n, "attributes": [{"x": i} for i in range(n)]})


def spec(subject="sub-01", **changes):
    return SignalSpec(**{"subject": subject, "modality": "fmri", "units": "a.u.", "n_channels": 3, "n_times": 1,
                         **changes})


def write(out, signals=None, table=None, **changes):
    out.mkdir(exist_ok=True)
    writer = PreparedWriter(out, study="test")
    table = trials() if table is None else table
    x = np.random.default_rng(0).standard_normal((len(table), 3, 1)) if signals is None else signals
    writer.add_subject(spec(**changes), trials=table, signals=[x[:3], x[3:]])
    writer.finish(stimuli(), images=np.arange(8 * 4 * 4 * 3, dtype=np.uint8).reshape(8, 4, 4, 3))
    return x


def test_what_is_written_is_read_back(tmp_path):
    x = write(tmp_path / "p", rois=("V1", "V2", ""), noise_ceiling=np.array([0.1, 0.2, 0.3]))
    study = PreparedStudy(tmp_path / "p", finished=False)
    np.testing.assert_array_equal(study.signals("sub-01"), x.astype("float32"))
    assert study.specs["sub-01"].rois == ("V1", "V2", "")
    np.testing.assert_allclose(study.specs["sub-01"].noise_ceiling, [0.1, 0.2, 0.3])
    some = study.stimuli_of(["s5", "s2"])
    assert some.images().shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(some.images([1])[0].ravel(), (np.arange(48) + 2 * 48).astype(np.uint8))
    assert some.table["attributes"].tolist() == [{"x": 5}, {"x": 2}]
    assert some.table["captions"].tolist()[0] == ["one", "two"]


def test_a_subject_that_is_whole_is_known_after_an_interruption(tmp_path):
    writer = PreparedWriter(tmp_path, study="test")
    with pytest.raises(ValueError, match="expected 8 trials, got 3"):
        writer.add_subject(spec(), trials=trials(), signals=[np.zeros((3, 3, 1))])
    assert not writer.has_subject("sub-01")
    writer.add_subject(spec(), trials=trials(), signals=[np.ones((8, 3, 1))])
    assert PreparedWriter(tmp_path, study="test").has_subject("sub-01")


@pytest.mark.parametrize(("signals", "message"), [
    (np.ones((8, 4, 1)), r"expected at most 8 more trials of \(3, 1\), got a block of \(3, 4, 1\)"),
    (np.where(np.arange(24).reshape(8, 3, 1) == 10, np.nan, 1.0), "got NaN or infinity in 1 trials .first: trial 3"),
    (np.ones((9, 3, 1)), "expected at most"),
])
def test_bad_signals_are_refused(tmp_path, signals, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "p", signals=signals)
    assert not (tmp_path / "p" / "spec.json").exists()


def test_a_stimulus_in_two_splits_is_refused_over_all_subjects():
    both = pd.concat([trials().assign(subject="a"),
                      trials(stimuli=["s6", "x1", "x2", "x3", "x4", "x5", "x6", "x7"]).assign(subject="b")])
    with pytest.raises(ValueError, match="'s6' in test and train"):
        check_splits(both, what="study x")


def test_a_subject_without_training_trials_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none of subject 'sub-01'"):
        write(tmp_path / "p", table=trials("eeeeeeee"))


def test_unknown_split_and_unknown_stimulus_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected splits of"):
        check_splits(trials().assign(subject="a", split="holdout"), what="study x")
    with pytest.raises(ValueError, match=r"expected stimuli of stimuli\.parquet"):
        write(tmp_path / "p", table=trials(stimuli=[f"z{i}" for i in range(8)]))


def test_a_stimulus_that_is_listed_twice_is_refused(tmp_path):
    write(tmp_path / "p")
    path = tmp_path / "p" / "stimuli.parquet"
    table = pd.read_parquet(path)
    pd.concat([table, table[6:7]]).to_parquet(path)
    with pytest.raises(ValueError, match=r"stimuli\.parquet of study test: expected every stimulus_id once, got 's6' "
                                         r"twice\. Correct the study"):
        PreparedStudy(tmp_path / "p", finished=False).validate()


def test_truncated_signals_are_named(tmp_path):
    write(tmp_path / "p")
    path = tmp_path / "p" / "signals_sub-01.npy"
    path.write_bytes(path.read_bytes()[:150])
    study = PreparedStudy(tmp_path / "p", finished=False)
    with pytest.raises(ValueError, match="truncated or damaged"):
        study.validate()


def test_unfinished_and_unknown_are_refused(tmp_path):
    write(tmp_path / "p")
    with pytest.raises(ValueError, match="got an unfinished one"):
        PreparedStudy(tmp_path / "p")
    with pytest.raises(ValueError, match=r"expected a subject of \['sub-01'\]"):
        PreparedStudy(tmp_path / "p", finished=False).signals("sub-09")


def test_spec_refuses_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="expected 3 entries in ch_names"):
        spec(ch_names=("a", "b"))
    with pytest.raises(ValueError, match="expected a modality"):
        spec(modality="eog")
    with pytest.raises(ValueError, match="expected sfreq"):
        spec(n_times=2)
