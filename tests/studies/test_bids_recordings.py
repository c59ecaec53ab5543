"""study=bids: EEG and MEG written by MNE-BIDS, prepared, and compared with the planted responses sample by sample."""

from __future__ import annotations

import json
from pathlib import Path

import edfio
import mne
import mne_bids
import numpy as np
import pandas as pd
import pytest
from bids_raw import Dataset, response, weights
from edf_gaps import begin_records_at, room
from mne.io.constants import FIFF

from brain2img.data.prepared import PreparedStudy
from brain2img.studies.bids import BIDS
from brain2img.studies.bids_files import BIDSFile
from brain2img.studies.bids_recordings import Recording, epochs

PLAIN = {"band": None, "sfreq": None, "reference": None}


def prepare(data: Dataset | Path, out: Path, **changes) -> PreparedStudy:
    out.mkdir()
    root = data.root if isinstance(data, Dataset) else data
    datatype = data.datatype if isinstance(data, Dataset) else "eeg"
    quality = {"amplitudes": "keep", **changes.pop("quality", {})}  # without noise hardly any sample varies
    BIDS(**{"datatype": datatype, "recording": PLAIN, "quality": quality, **changes}).prepare(root, out)
    return PreparedStudy(out, finished=False)


def planted(study: PreparedStudy, data: Dataset, subject: str = "sub-01") -> np.ndarray:
    """Return the response that every trial must have, by its picture."""
    spec = study.specs[subject]
    shape = response(spec.times)
    shape = shape - shape[spec.times <= 1e-9].mean()
    numbers = [data.names.index(s) for s in study.trials_of(subject)["stimulus_id"]]
    return np.stack([weights(spec.n_channels, n, scale=data.scale)[:, None] * shape for n in numbers])


@pytest.fixture(scope="module")
def eeg(tmp_path_factory):
    return Dataset(tmp_path_factory.mktemp("bids") / "eeg", sessions=("a", "b"), runs=("1", "2"), n_repeats=1).write()


@pytest.fixture
def copy(eeg, tmp_path):
    import shutil

    return Path(shutil.copytree(eeg.root, tmp_path / "copy"))


def edited(root: Path, change, *, session: str = "a", run: str = "1") -> Path:
    path = root / f"sub-01/ses-{session}/eeg/sub-01_ses-{session}_task-look_run-{run}_events.tsv"
    change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False, na_rep="n/a")
    return path


@pytest.mark.parametrize(("form", "datatype", "sfreq"), [("BrainVision", "eeg", 500.0), ("EDF", "eeg", 256.0),
                                                          ("FIF", "meg", 600.0)])
def test_every_epoch_is_the_planted_response_at_the_right_sample(tmp_path, form, datatype, sfreq):
    data = Dataset(tmp_path / "raw", datatype=datatype, form=form, sfreq=sfreq, n_stimuli=8).write()
    study = prepare(data, tmp_path / "out")
    spec, trials = study.specs["sub-01"], study.trials_of("sub-01")
    assert (spec.units, spec.sfreq, spec.tmin) == ({"eeg": "V", "meg": "T"}[datatype], sfreq, np.ceil(-0.2 * sfreq)
                                                   / sfreq)
    table = data.table()
    assert trials["stimulus_id"].tolist() == table["stim_file"].tolist()
    np.testing.assert_allclose(trials["onset"].astype(float), table["onset"], atol=1e-6)
    assert trials["repetition"].tolist() == table.groupby("stim_file").cumcount().tolist()
    expected = planted(study, data)
    np.testing.assert_allclose(study.signals("sub-01"), expected, atol=0.01 * np.abs(expected).max())
    peaks = np.abs(study.signals("sub-01")).max(axis=1).argmax(axis=1)
    assert set(peaks) <= {np.abs(expected).max(axis=1).argmax(axis=1)[0] + i for i in (-1, 0, 1)}


@pytest.mark.parametrize(("sfreq", "to"), [(1000.0, 250.0), (512.0, 200.0), (600.615, 200.0), (160.0, 250.0)])
def test_resampled_epochs_keep_the_event_on_a_sample(sfreq, to):
    onsets = np.array([1.003, 2.5, 3.71])
    nearest = np.rint(onsets * sfreq) / sfreq
    line = sum(response(np.arange(int(5 * sfreq)) / sfreq - onset) for onset in nearest)[None]
    asked = Recording()
    (found,) = epochs(line, np.rint(onsets * sfreq).astype(int), sfreq=sfreq, to=to, asked=asked)
    times = np.arange(-0.2 * to, to + 1) / to
    expected = response(times) - response(times)[times <= 0].mean()
    assert found.shape == (3, 1, len(times))
    np.testing.assert_allclose(found[:, 0], np.tile(expected, (3, 1)), atol=2e-3)


def test_what_is_above_the_new_rate_is_not_folded_into_it():
    times = np.arange(5000) / 1000
    (found,) = epochs(np.sin(2 * np.pi * 130 * times)[None], np.array([2000]), sfreq=1000.0, to=200.0,
                      asked=Recording(baseline=None))
    assert np.abs(found).max() < 5e-3, "every fifth sample would show 70 Hz of full size"


def test_defaults_are_those_of_mne_by_hand(tmp_path):
    data = Dataset(tmp_path / "raw", noise=1.0, n_stimuli=10, n_repeats=3, bads=("P3",)).write()
    (tmp_path / "out").mkdir()
    BIDS().prepare(data.root, tmp_path / "out")
    study = PreparedStudy(tmp_path / "out", finished=False)
    raw = mne.io.read_raw_brainvision(next(data.root.rglob("*.vhdr")), preload=True, verbose="ERROR")
    raw.set_montage("colin27_1005", verbose="ERROR")
    raw.info["bads"] = ["P3"]
    raw.interpolate_bads(verbose="ERROR", origin=(0, 0, 0.04)).set_eeg_reference("average", verbose="ERROR")
    raw.filter(0.1, 100.0, verbose="ERROR")
    onsets = data.table()["onset"].to_numpy()
    events = np.c_[np.rint(onsets * 500), np.zeros((len(onsets), 2))].astype(int)
    by_hand = mne.Epochs(raw, events, tmin=-0.2, tmax=1.0, baseline=(-0.2, 0), preload=True, verbose="ERROR")
    expected = by_hand.get_data()[..., ::2]
    expected -= expected[..., :51].mean(axis=-1, keepdims=True)
    spec = study.specs["sub-01"]
    assert (spec.n_times, spec.sfreq, spec.n_channels) == (301, 250.0, 8)
    assert spec.filtered == ("0.1-100 Hz; reference: average; bad channels interpolated: P3 "
                             "(sub-01_task-look_run-1_eeg.vhdr)")
    # the filter against aliasing takes the little off that the other one leaves at 100 to 125 Hz
    assert np.corrcoef(study.signals("sub-01").ravel(), expected.ravel())[0, 1] > 0.99
    np.testing.assert_allclose(study.signals("sub-01").mean(axis=1), 0, atol=1e-9)
    np.testing.assert_allclose(spec.positions, [c["loc"][:3] for c in raw.info["chs"]], atol=5e-4)


def test_sessions_runs_and_repetitions(eeg, tmp_path):
    study = prepare(eeg, tmp_path / "out")
    trials = study.trials_of("sub-01")
    assert trials.groupby(["session", "run"], sort=False).size().to_dict() == {
        (s, r): 10 for s in "ab" for r in "12"}
    assert (trials.groupby("stimulus_id")["repetition"].max() == 3).all()
    assert trials.groupby("stimulus_id")["split"].nunique().max() == 1
    assert trials.drop_duplicates("stimulus_id")["split"].value_counts().to_dict() == {"train": 7, "val": 1, "test": 2}
    expected = planted(study, eeg)
    np.testing.assert_allclose(study.signals("sub-01"), expected, atol=0.01 * np.abs(expected).max())
    second = prepare(eeg, tmp_path / "second", entities={"ses": ["b", "a"], "run": [2]})
    np.testing.assert_array_equal(second.signals("sub-01"), study.signals("sub-01")[(trials["run"] == "2").to_numpy()])


@pytest.mark.slow
def test_sessions_are_read_in_several_processes(eeg, tmp_path):
    np.testing.assert_array_equal(prepare(eeg, tmp_path / "two", jobs=2).signals("sub-01"),
                                  prepare(eeg, tmp_path / "one").signals("sub-01"))


@pytest.mark.parametrize("split", [False, True])
def test_a_fif_with_a_late_first_sample_and_one_in_parts(tmp_path, split):
    rate = 1200.0 if split else 300.0
    data = Dataset(tmp_path / "raw", datatype="meg", form="FIF", sfreq=rate, n_stimuli=8).write()
    path = next(data.root.rglob("*_meg.fif"))
    raw = mne.io.read_raw_fif(path, preload=True, verbose="ERROR")
    late = mne.io.RawArray(raw.get_data(), raw.info, first_samp=1234, verbose="ERROR")
    path.unlink()
    late.save(path, split_naming="bids", split_size="2MB", verbose="ERROR", fmt="double")
    assert len(list(path.parent.glob("*_split-*_meg.fif"))) == (3 if split else 0)
    study = prepare(data, tmp_path / "out")
    expected = planted(study, data)
    assert len(study.trials) == 16
    np.testing.assert_allclose(study.signals("sub-01"), expected, atol=0.01 * np.abs(expected).max())


def test_events_of_a_discontinuous_edf_are_at_the_samples_taken_then(tmp_path, caplog):
    data = Dataset(tmp_path / "raw", form="EDF", sfreq=250.0, n_stimuli=8).write()
    onsets = data.table()["onset"].to_numpy()
    n = int(onsets[-1]) + 3
    # a second each; 2.5 s are missing after the ninth: 9 to 11.5 s
    starts = np.arange(n) + np.where(np.arange(n) >= 9, 2.5, 0)
    times = (starts[:, None] + np.arange(250) / 250).ravel()
    signals = np.zeros((8, len(times)))
    for onset, name in zip(onsets, data.table()["stim_file"], strict=True):
        signals += weights(8, data.names.index(name), scale=data.scale)[:, None] * response(times - onset)
    path = next(data.root.rglob("*.edf"))
    edfio.Edf([edfio.EdfSignal(1e6 * x, 250, label=label, physical_dimension="uV", physical_range=(-200, 200))
               for x, label in zip(signals, data.ch_names, strict=True)], annotations=room(n),
              data_record_duration=1).write(path)
    begin_records_at(path, starts)
    edit = data.table().drop(columns="sample")
    edit.to_csv(data.events_path(), sep="\t", index=False)
    study = prepare(data, tmp_path / "out")
    lost = (onsets + 1 > 9 - 1e-6) & (onsets - 0.2 < 11.5)
    assert 0 < lost.sum() < 5
    assert study.trials["stimulus_id"].tolist() == data.table()["stim_file"][~lost].tolist()
    np.testing.assert_allclose(study.trials["onset"].astype(float), onsets[~lost])
    expected = planted(study, data)
    np.testing.assert_allclose(study.signals("sub-01"), expected, atol=0.01 * np.abs(expected).max())
    reasons = set(pd.read_parquet(tmp_path / "out/left_out.parquet")["reason"])
    assert reasons <= {"is in a gap of the recording", "overlaps BAD boundary"}
    assert reasons


def test_spans_and_channels_marked_bad(eeg, copy, tmp_path, caplog):
    def with_span(table):
        return pd.concat([table, pd.DataFrame({"onset": [table["onset"][3] + 0.5], "duration": [0.1],
                                               "trial_type": ["BAD_jump"], "sample": [0]})])

    def mark(run):
        path = copy / f"sub-01/ses-a/eeg/sub-01_ses-a_task-look_run-{run}_channels.tsv"
        pd.read_csv(path, sep="\t").assign(status=lambda t: np.where(t["name"] == "O1", "bad", "good")).to_csv(
            path, sep="\t", index=False, na_rep="n/a")

    edited(copy, with_span)
    mark(2)
    study = prepare(copy, tmp_path / "drop", quality={"bad_channels": "drop"}, events={"timing": "onset"})
    assert study.specs["sub-01"].ch_names == tuple(n for n in eeg.ch_names if n != "O1")
    table = eeg.table("01", "a", "1")
    assert study.trials_of("sub-01")["stimulus_id"].tolist()[:9] == table["stim_file"].drop(3).tolist()
    assert "1 of 10 epochs are left out (the first overlaps BAD_jump)" in caplog.text
    kept = prepare(copy, tmp_path / "keep", quality={"bad_channels": "keep", "bad_spans": "keep"},
                   events={"timing": "onset"})
    assert kept.signals("sub-01").shape[:2] == (40, 8)
    inter = prepare(copy, tmp_path / "inter", recording=PLAIN, events={"timing": "onset"})
    at = list(eeg.ch_names).index("O1")
    others = [i for i in range(8) if i != at]
    x, y = kept.signals("sub-01")[np.r_[0:3, 4:40]], inter.signals("sub-01")
    np.testing.assert_array_equal(x[:, others], y[:, others])
    mended = study.trials_of("sub-01").assign(n=range(39)).query("session == 'a' and run == '2'")["n"].to_numpy()
    assert np.abs(x[mended, at] - y[mended, at]).max() > 1e-6
    np.testing.assert_array_equal(np.delete(x[:, at], mended, axis=0), np.delete(y[:, at], mended, axis=0))
    with pytest.raises(ValueError, match=r"run-2_eeg.vhdr: expected no channel marked as bad, got 1 \(O1\)"):
        prepare(copy, tmp_path / "refuse", quality={"bad_channels": "refuse"}, events={"timing": "onset"})


def test_marks_in_a_fif_file_itself_count(tmp_path):
    data = Dataset(tmp_path / "raw", datatype="meg", form="FIF", sfreq=300.0, n_stimuli=8).write()
    path = next(data.root.rglob("*_meg.fif"))
    raw = mne.io.read_raw_fif(path, preload=True, verbose="ERROR")
    raw.set_annotations(mne.Annotations([data.table()["onset"][2]], [0.2], ["BAD_muscle"]))
    raw.info["bads"] = raw.ch_names[:1]
    raw.save(path, overwrite=True, verbose="ERROR")
    study = prepare(data, tmp_path / "out", quality={"bad_channels": "drop"})
    assert study.specs["sub-01"].ch_names == tuple(raw.ch_names[1:])
    assert study.trials_of("sub-01")["stimulus_id"].tolist() == data.table()["stim_file"].drop(2).tolist()


def test_onset_and_sample_that_disagree_are_refused_and_either_can_be_chosen(eeg, copy, tmp_path):
    path = edited(copy, lambda t: t.assign(sample=t["sample"] + np.where(t.index == 4, 75, 0)))
    with pytest.raises(ValueError, match=rf"{path.name}: expected columns onset and sample that agree at 500 Hz, got "
                                         r"onset .* in line 6. Choose the one"):
        prepare(copy, tmp_path / "auto")
    by_onset = prepare(copy, tmp_path / "onset", events={"timing": "onset"})
    expected = planted(by_onset, eeg)
    np.testing.assert_allclose(by_onset.signals("sub-01"), expected, atol=0.01 * np.abs(expected).max())
    by_sample = prepare(copy, tmp_path / "sample", events={"timing": "sample"})
    np.testing.assert_allclose(np.diff(by_sample.signals("sub-01")[4, :, :-75]),
                               np.diff(by_onset.signals("sub-01")[4, :, 75:]), atol=0.01 * np.abs(expected).max())
    assert by_sample.trials_of("sub-01")["onset"].astype(float)[4] == pytest.approx(
        by_onset.trials_of("sub-01")["onset"].astype(float)[4] + 0.15)


def test_channels_and_rates_that_differ(tmp_path, caplog):
    data = Dataset(tmp_path / "raw", runs=("1",), n_stimuli=8).write()
    data.runs, data.ch_names, data.sfreq = ("2",), (*data.ch_names[:0:-1], "POz"), 250.0
    data._write_run("01", None, "2", seed=[0, 0, 1])
    study = prepare(data.root, tmp_path / "out", recording={**PLAIN, "sfreq": 250.0})
    spec = study.specs["sub-01"]
    assert spec.ch_names == ("Cz", "Pz", "P3", "P4", "O1", "Oz", "O2")
    assert "2 channels are not in all of its 2 runs and are left out (Fz, POz)" in caplog.text
    shape = response(spec.times) - response(spec.times)[spec.times <= 1e-9].mean()
    for run, names in (("1", ("Fz", "Cz", "Pz", "P3", "P4", "O1", "Oz", "O2")), ("2", data.ch_names)):
        rows = (study.trials_of("sub-01")["run"] == run).to_numpy()
        for x, stimulus in zip(study.signals("sub-01")[rows], study.trials_of("sub-01")["stimulus_id"][rows],
                               strict=True):
            size = weights(8, data.names.index(stimulus), scale=data.scale)
            expected = np.stack([size[names.index(name)] * shape for name in spec.ch_names])
            np.testing.assert_allclose(x, expected, atol=0.01 * np.abs(size).max())
    with pytest.raises(ValueError, match=r"sub-01: expected one rate of all runs, got 250 and 500 Hz"):
        prepare(data.root, tmp_path / "plain")
    data._write_run("02", None, "2", seed=[0, 0, 1])
    caplog.clear()
    prepare(data.root, tmp_path / "two", recording={**PLAIN, "sfreq": 250.0})
    assert "sub-02 differs from sub-01: 8 channels in place of 7: missing [], others ['POz']" in caplog.text


def test_a_recording_that_ends_before_its_events(eeg, copy, tmp_path, caplog):
    path = edited(copy, lambda t: t.assign(onset=np.where(t.index == 9, 1e4, t["onset"])).drop(columns="sample"))
    with pytest.raises(ValueError, match=rf"{path.name}: expected events within the recording of .* s, got one at "
                                         r"10000 s in line 11 \(1 in all\)"):
        prepare(copy, tmp_path / "a")
    edited(copy, lambda t: t.assign(onset=np.where(t.index == 9, 0.1, t["onset"])))
    study = prepare(copy, tmp_path / "b")
    assert len(study.trials) == 39
    assert "1 of 10 epochs are left out (the first reaches over an end of the recording)" in caplog.text


def test_positions_come_from_the_dataset_a_montage_or_nowhere(tmp_path, caplog):
    data = Dataset(tmp_path / "raw", montage=None, n_stimuli=8).write()
    study = prepare(data, tmp_path / "auto")
    known = mne.create_info(list(data.ch_names), 1.0, "eeg").set_montage("colin27_1005")
    np.testing.assert_allclose(study.specs["sub-01"].positions, [c["loc"][:3] for c in known["chs"]], atol=1e-6)
    assert prepare(data, tmp_path / "none", recording={**PLAIN, "montage": None}).specs["sub-01"].positions is None
    with pytest.raises(ValueError, match=r"expected channels of the montage GSN-HydroCel-32, got Fz, "):
        prepare(data, tmp_path / "egi", recording={**PLAIN, "montage": "GSN-HydroCel-32"})
    channels = next(data.root.rglob("*_channels.tsv"))
    channels.write_text(channels.read_text().replace("good", "bad", 1))
    with pytest.raises(ValueError, match=r"expected positions of the channels, to interpolate the bad ones "
                                         r"\(Fz\), got none of Fz, "):
        prepare(data, tmp_path / "bad", recording={**PLAIN, "montage": None})


def test_reference_channels_and_the_notch(tmp_path):
    data = Dataset(tmp_path / "raw", n_stimuli=8).write()
    study = prepare(data, tmp_path / "cz", recording={**PLAIN, "reference": ["Cz"], "notch": 50})
    np.testing.assert_allclose(study.signals("sub-01")[:, 1], 0, atol=1e-12)
    assert study.specs["sub-01"].filtered == "notch 50; reference: Cz"
    with pytest.raises(ValueError, match=r"expected the channels of study.recording.reference, got none named TP9"):
        prepare(data, tmp_path / "tp9", recording={**PLAIN, "reference": ["TP9"]})


@pytest.mark.parametrize(("changes", "message"), [
    ({"datatype": "ieeg"}, r"study.datatype: expected one of \('eeg', 'meg'\), got 'ieeg'"),
    ({"recording": {"band": [40, 1]}}, r"study.recording.band: expected \[lower, upper\] in Hz"),
    ({"recording": {"tmin": 1.0, "tmax": 0.5}}, r"expected a window from tmin to a later tmax, got 1.0 to 0.5 s"),
    ({"recording": {"baseline": [-0.5, 0]}}, r"study.recording.baseline: expected \[from, to\] within -0.2 to 1.0 s"),
    ({"quality": {"bad_channels": "ignore"}}, r"study.quality.bad_channels: expected one of .* got 'ignore'"),
    ({"events": {"column": "x"}}, r"study.events: expected the settings stimulus_column, where, .* got column"),
    ({"recording": {"picks": "mag"}}, r"study.recording.picks: expected types of \('eeg',\), got \['mag'\]"),
    ({"recording": {"sfreq": -1}}, r"study.recording.sfreq: expected samples per second"),
    ({"datatype": "meg", "recording": {"reference": "average"}}, r"study.recording.reference: expected null for MEG"),
    ({"events": {"timing": "both"}}, r"study.events.timing: expected one of"),
    ({"split": {"by": "subject"}}, r"study.split.by: expected one of"),
    ({"split": {"test_fraction": 1.5}}, r"study.split.test_fraction: expected a share"),
    ({"entities": {"sub": "01"}}, r"study.entities: expected entities of .* got \['sub'\]"),
])
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        BIDS(**changes)


def test_the_identity_of_the_raw_files(eeg, copy, repair):
    study = BIDS()
    first = study.raw_id(eeg.root)
    assert first == study.raw_id(copy), "where it lies does not matter"
    edited(copy, lambda t: t.assign(stim_file=t["stim_file"][::-1].to_numpy()))
    second = study.raw_id(copy)
    repair(next(copy.rglob("*.eeg")))
    third = study.raw_id(copy)
    repair(next(copy.rglob("stimuli/**/*.png")))
    assert len({first, second, third, study.raw_id(copy)}) == 4


@pytest.mark.slow
def test_ctf_as_the_study_of_things_meg_prepares_it(tmp_path, monkeypatch):
    from brain2img.simulate import things_meg_files as files
    from brain2img.studies import scenes
    from brain2img.studies.things_meg import ThingsMEG

    monkeypatch.setattr(scenes, "N_TEST", 4)
    for name in ("scenes", "things", "raw"):
        (tmp_path / name).mkdir()
    scenes.Scenes("meg", snr=1.0, n_subjects=1, n_train=20, n_val=4, repetitions={"test": 2}, n_sessions=2,
                  recording={"sfreq": 200.0, "tmin": -0.1, "tmax": 1.305}).prepare(None, tmp_path / "scenes")
    source = PreparedStudy(tmp_path / "scenes", finished=False)
    files.write_images(tmp_path / "raw" / "object_images", source)
    files.write_recordings(tmp_path / "raw", source)
    ThingsMEG(form="ctf", subjects=[1], n_sessions=2, zero_shot=False, n_val_concepts=1).prepare(
        tmp_path / "raw", tmp_path / "things")
    known = PreparedStudy(tmp_path / "things", finished=False)
    design = known.trials.groupby(["session", "run"])
    for path in sorted((tmp_path / "raw").rglob("*_events.tsv")):
        session, run = (int(BIDSFile.of(path).entities[key]) for key in ("ses", "run"))
        shown = design.get_group((session, run)).set_index("onset")["stimulus_id"]
        table = pd.read_csv(path, sep="\t")
        table["stim_file"] = [shown.get(sample / 1200) for sample in table["sample"]]
        table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    study = prepare(tmp_path / "raw", tmp_path / "bids", datatype="meg", stimuli={"folder": "object_images"},
                    events={"timing": "sample"}, recording={"tmin": -0.1, "tmax": 1.3, "baseline": [-0.1, 0]})
    assert [Path(s).stem for s in study.trials["stimulus_id"]] == known.trials["stimulus_id"].tolist()
    (spec, *_), (other, *_) = study.specs.values(), known.specs.values()
    assert (spec.units, spec.filtered) == ("T", "0.1-40 Hz")
    order = [spec.ch_names.index(name) for name in other.ch_names]
    np.testing.assert_allclose(spec.positions[order], other.positions, atol=1e-6)
    x, y = study.signals(spec.subject)[:, order], known.signals(other.subject)
    assert np.abs(x - y).max() < 0.02 * np.abs(y).max()
    assert np.corrcoef(x.ravel(), y.ravel())[0, 1] > 0.9995


def test_magnetometers_and_gradiometers(tmp_path):
    data = Dataset(tmp_path / "raw", datatype="meg", form="FIF", sfreq=300.0, n_stimuli=8).write()
    path = next(data.root.rglob("*_meg.fif"))
    raw = mne.io.read_raw_fif(path, preload=True, verbose="ERROR")
    for channel in raw.info["chs"][::2]:
        channel["coil_type"], channel["unit"] = FIFF.FIFFV_COIL_VV_PLANAR_T1, FIFF.FIFF_UNIT_T_M
    raw.save(path, overwrite=True, verbose="ERROR")
    channels = next(data.root.rglob("*_channels.tsv"))
    table = pd.read_csv(channels, sep="\t")
    table.loc[::2, ["type", "units"]] = ["MEGGRADPLANAR", "T/m"]
    table.to_csv(channels, sep="\t", index=False, na_rep="n/a")
    spec = prepare(data, tmp_path / "both").specs["sub-01"]
    assert (spec.ch_types, spec.units) == (("grad", "mag") * 6, "T/m and T")
    grad = prepare(data, tmp_path / "grad", recording={**PLAIN, "picks": "grad"}).specs["sub-01"]
    assert (grad.ch_names, grad.units) == (spec.ch_names[::2], "T/m")


def test_a_damaged_recording_is_named(copy, tmp_path):
    next(copy.rglob("*ses-a*run-1*.vhdr")).write_text("nonsense")
    with pytest.raises(ValueError, match=r"ses-a_task-look_run-1_eeg.vhdr: expected a whole recording, got a "):
        prepare(copy, tmp_path / "out")
    assert json.loads((copy / "dataset_description.json").read_text())["BIDSVersion"]
    assert mne_bids.get_entity_vals(copy, "session") == ["a", "b"]
