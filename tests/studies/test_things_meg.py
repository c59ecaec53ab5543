"""THINGS-MEG: written raw by MNE (and the CTF writer), prepared, and compared with the known trials and images."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pytest

from brain2img.data.prepared import PreparedStudy, PreparedWriter
from brain2img.data.things import caption_of, concept_of, validation_concepts
from brain2img.records import SignalSpec
from brain2img.simulate import things_meg_files as files
from brain2img.simulate.continuous import continuous
from brain2img.simulate.sensors import helmet
from brain2img.studies.things_meg import ThingsMEG
from brain2img.studies.things_meg_recordings import CHANNELS, CTFSession

CONCEPTS = ("bat2", "coat_rack", "fir", "goat", "kite", "oboe")
TEST = ("kite", "oboe")
SIZE = 24


def make_source(folder: Path, *, n_subjects: int = 1, seed: int = 0) -> PreparedStudy:
    """Two sessions, of two runs and of one: test images once a session, training images once, in random order."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    exemplars = [(f"{concept}_{number:02d}s", concept, "train") for concept in CONCEPTS for number in (1, 2)]
    stimuli = pd.DataFrame([*exemplars, *((f"{concept}_13s", concept, "test") for concept in TEST)],
                           columns=["stimulus_id", "concept", "split"])
    stimuli = stimuli.assign(kind="image", captions=[["x"]] * len(stimuli), attributes=[{}] * len(stimuli))
    names, positions, _ = helmet()
    writer = PreparedWriter(folder, study="source")
    for number in range(1, n_subjects + 1):
        train = rng.permutation(np.flatnonzero(stimuli["split"] == "train"))
        test = np.flatnonzero(stimuli["split"] == "test")
        shown = [rng.permutation([*part, *test]) for part in np.array_split(train, 2)]
        trials = stimuli.iloc[np.concatenate(shown)][["stimulus_id", "split"]].reset_index(drop=True)
        trials["session"] = np.repeat([1, 2], [len(part) for part in shown])
        trials["run"] = 1 + ((trials.groupby("session").cumcount() >= 4) & (trials["session"] == 1))
        trials["repetition"] = trials.groupby("stimulus_id").cumcount()
        spec = SignalSpec(subject=f"sub-{number:02d}", modality="meg", units="T", n_channels=271, n_times=281,
                          sfreq=200.0, tmin=-0.1, ch_names=names, ch_types=["mag"] * 271, positions=positions)
        smooth = rng.standard_normal((len(trials), 271, 36)).repeat(8, axis=2)[..., :281].cumsum(axis=2)
        smooth -= smooth[..., :21].mean(axis=2, keepdims=True)
        writer.add_subject(spec, trials=trials, signals=[smooth * 1e-13])
    images = rng.integers(0, 255, size=(len(stimuli), 3, 3, 3)).astype(np.uint8).repeat(8, axis=1).repeat(8, axis=2)
    writer.finish(stimuli.drop(columns="split"), images=images)
    return PreparedStudy(folder, finished=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> PreparedStudy:
    return make_source(tmp_path_factory.mktemp("meg") / "source")


def write(folder: Path, source: PreparedStudy, form: str, **changes) -> Path:
    files.write_images(folder / "object_images", source)
    (files.write_epochs if form == "epochs" else files.write_recordings)(folder, source, **changes)
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory, source):
    """Return the folder of a form, written once; tests that damage it take a copy."""
    order = np.random.default_rng(3).permutation(271)
    return {form: write(tmp_path_factory.mktemp(form) / "raw", source, form, channel_order=order)
            for form in ("epochs", "ctf")}


@pytest.fixture
def damaged(tmp_path, raw):
    def copy(form):
        return Path(shutil.copytree(raw[form], tmp_path / f"damaged-{form}"))

    return copy


def study(form="epochs", **changes) -> ThingsMEG:
    return ThingsMEG(**{"form": form, "subjects": [1], "n_sessions": 2, "n_val_concepts": 1, "image_size": SIZE,
                        **changes})


def prepare(raw, out, form="epochs", **changes) -> PreparedStudy:
    out.mkdir(exist_ok=True)
    study(form, **changes).prepare(raw, out)
    return PreparedStudy(out, finished=False)


def known(source: PreparedStudy, form: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Trials, and every ninth channel as it must come out: z-scored, or by the authors' chain in MNE's words."""
    subject = source.subjects[0]
    trials, signals = source.trials_of(subject), np.asarray(source.signals(subject)[:, ::9], dtype=float)
    if form == "epochs":
        baseline = signals[..., :21]
        return trials, (signals - baseline.mean(-1, keepdims=True)) / baseline.std(-1, keepdims=True)
    table = files.attributes(source, subject)
    out = np.empty_like(signals)
    for _, lines in table.groupby(["session_nr", "run_nr"]):
        line = continuous(files._signals(source, subject, lines["row"].to_numpy())[:, ::9], sfreq=200.0, tmin=-0.1,
                          raw_sfreq=1200.0)
        raw = mne.io.RawArray(np.rint(line / 1e-17) * 1e-17, mne.create_info(len(line), 1200.0, "mag"), verbose="ERROR")
        raw.filter(0.1, 40.0, verbose="ERROR")
        events = np.c_[np.round(lines["image_on"] * 1200), np.zeros(len(lines)), np.ones(len(lines))].astype(int)
        epochs = mne.Epochs(raw, events, tmin=-0.1, tmax=1.3, baseline=(None, 0), preload=True, verbose="ERROR")
        shown = (lines["row"] >= 0).to_numpy()
        out[lines["row"][shown]] = epochs.decimate(6, verbose="ERROR").get_data(copy=False)[shown]
    return trials, out


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, raw):
    """Return what is prepared of a form, of all images."""
    return {form: prepare(raw[form], tmp_path_factory.mktemp("prepared") / form, form, zero_shot=False)
            for form in ("epochs", "ctf")}


@pytest.mark.parametrize("form", ["epochs", "ctf"])
def test_what_was_recorded_is_prepared(form, source, prepared):
    prepared = prepared[form]
    trials, signals = known(source, form)
    got = prepared.trials_of("sub-01")
    assert got["stimulus_id"].tolist() == trials["stimulus_id"].tolist(), "every trial but the catch trials, in order"
    for column in ("session", "run", "repetition"):
        assert got[column].tolist() == trials[column].tolist()
    np.testing.assert_allclose(prepared.signals("sub-01")[:, ::9], signals, rtol=2e-6,
                               atol=1e-6 * np.abs(signals).max())
    spec = prepared.specs["sub-01"]
    assert spec.ch_names == source.specs["sub-01"].ch_names, "in the order of the spec, whatever that of the file"
    np.testing.assert_allclose(spec.positions, source.specs["sub-01"].positions, atol=1e-6)
    assert (spec.units, spec.sfreq, spec.tmin, spec.n_times) == ("T" if form == "ctf" else "a.u.", 200.0, -0.1, 281)
    if form == "ctf":  # and what the brain did is what the filter leaves of it
        planted = np.asarray(source.signals("sub-01"), dtype=float)
        assert np.corrcoef(planted.ravel(), np.asarray(prepared.signals("sub-01")).ravel())[0, 1] > 0.8


def test_a_table_of_concepts_without_its_columns_is_refused(damaged, tmp_path):
    raw = damaged("epochs")
    (raw / "things_concepts.tsv").write_text("Word\tuniqueID\nbat\tbat2\n")
    with pytest.raises(ValueError, match=r"things_concepts.tsv: expected the columns 'uniqueID' and 'Top-down"):
        prepare(raw, tmp_path / "p")


@pytest.mark.parametrize("form", ["epochs", "ctf"])
def test_both_forms_know_the_same_stimuli_and_images(form, source, prepared):
    prepared = prepared[form]
    wanted = source.stimulus_table.sort_values("stimulus_id", ignore_index=True)
    table = prepared.stimulus_table
    assert table["stimulus_id"].tolist() == wanted["stimulus_id"].tolist()
    assert table["concept"].tolist() == wanted["concept"].tolist()
    assert table["captions"].tolist() == [[caption_of(c)] for c in wanted["concept"]]
    difference = prepared.stimuli.images().astype(int) - source.stimuli_of(wanted["stimulus_id"].tolist()).images()
    assert np.abs(difference).mean() < 12, "JPEG, no more"


def test_images_are_read_where_they_are_in_one_size(source, raw, tmp_path):
    prepared = prepare(raw["epochs"], tmp_path / "p", image_size=16)
    assert not (tmp_path / "p" / "images.npy").exists()
    assert prepared.stimuli.images([0, 1]).shape == (2, 16, 16, 3)


def test_the_test_images_are_the_published_ones_and_their_concepts_are_not_trained(raw, tmp_path):
    prepared = prepare(raw["epochs"], tmp_path / "p")
    trials = prepared.trials_of("sub-01")
    test = trials[trials["split"] == "test"]
    assert sorted(set(test["stimulus_id"])) == ["kite_13s", "oboe_13s"]
    assert test.groupby("stimulus_id")["repetition"].apply(list).tolist() == [[0, 1], [0, 1]]
    rest = {concept_of(name) for name in trials.loc[trials["split"] != "test", "stimulus_id"]}
    assert rest == set(CONCEPTS) - set(TEST)
    held_out = validation_concepts(rest, n=1, seed=0)
    assert {concept_of(name) for name in trials.loc[trials["split"] == "val", "stimulus_id"]} == held_out


def test_validation_concepts_do_not_depend_on_the_order_and_change_with_the_seed():
    names = [f"c{i}" for i in range(50)]
    first = validation_concepts(names, n=5, seed=0)
    assert first == validation_concepts(names[::-1], n=5, seed=0)
    assert first != validation_concepts(names, n=5, seed=1)
    assert len(first - validation_concepts([n for n in names if n != min(first)], n=5, seed=0)) == 1
    with pytest.raises(ValueError, match=r"study.n_val_concepts: expected 0 to 49 of the 50"):
        validation_concepts(names, n=50, seed=0)


def test_sessions_that_stand_in_another_order_in_the_file_are_put_in_order(source, tmp_path):
    raw = write(tmp_path / "raw", source, "epochs", session_order=[2, 1])
    prepared = prepare(raw, tmp_path / "p", zero_shot=False)
    trials, signals = known(source, "epochs")
    assert prepared.trials_of("sub-01")["stimulus_id"].tolist() == trials["stimulus_id"].tolist()
    np.testing.assert_allclose(prepared.signals("sub-01")[:, ::9], signals, rtol=2e-6, atol=1e-4)


def test_epochs_in_parts_without_a_table_of_their_own(source, tmp_path):
    raw = write(tmp_path / "raw", source, "epochs", metadata=False, split_size="3MB")
    assert (raw / "derivatives" / "preprocessed" / "preprocessed_P1-epo-1.fif").exists()
    prepared = prepare(raw, tmp_path / "p", zero_shot=False)
    np.testing.assert_allclose(prepared.signals("sub-01")[:, ::9], known(source, "epochs")[1], rtol=2e-6, atol=1e-4)


def test_subjects_are_split_alike_and_categories_are_taken_from_the_table_of_concepts(tmp_path):
    source = make_source(tmp_path / "source", n_subjects=2, seed=5)
    raw = write(tmp_path / "raw", source, "epochs")
    pd.DataFrame({"uniqueID": ["coat rack", "fir"], "Top-down Category (manual selection)": ["furniture", None]}
                 ).to_csv(raw / "things_concepts.tsv", sep="\t", index=False)
    prepared = prepare(raw, tmp_path / "p", subjects=[1, 2])
    assert prepared.subjects == ["sub-01", "sub-02"]
    by_subject = [dict(prepared.trials_of(s)[["stimulus_id", "split"]].itertuples(index=False)) for s in
                  prepared.subjects]
    assert by_subject[0] == by_subject[1]
    table = prepared.stimulus_table.set_index("concept")["category"]
    assert set(table["coat_rack"]) == {"furniture"}
    assert table["fir"].isna().all()


def test_sessions_can_be_sent_to_processes_of_their_own(raw, prepared, tmp_path, monkeypatch):
    add = PreparedWriter.add_sessions

    def sent(self, spec, *, trials, sessions, jobs):
        add(self, spec, trials=trials, sessions=pickle.loads(pickle.dumps(sessions)))

    monkeypatch.setattr(PreparedWriter, "add_sessions", sent)
    two = prepare(raw["epochs"], tmp_path / "two", zero_shot=False, jobs=2)
    np.testing.assert_array_equal(two.signals("sub-01"), prepared["epochs"].signals("sub-01"))


def test_an_interrupted_call_goes_on_with_the_session_it_was_in(raw, tmp_path, monkeypatch):
    monkeypatch.setattr(mne.filter, "filter_data", lambda x, *_, **__: x)  # it takes its time
    read: list[str] = []
    whole = CTFSession.__call__

    def call(self, *, fail):
        for (path, *_), block in zip(self.runs, whole(self), strict=True):
            read.append(path.name.split("_")[1])
            if fail and "ses-02" in path.name:
                raise KeyboardInterrupt
            yield block

    monkeypatch.setattr(CTFSession, "__call__", lambda self: call(self, fail=True))
    with pytest.raises(KeyboardInterrupt):
        prepare(raw["ctf"], tmp_path / "p", "ctf")
    assert not (tmp_path / "p" / "spec.json").exists()
    assert not (tmp_path / "p" / "signals_sub-01.npy").exists()
    assert read == ["ses-01", "ses-01", "ses-02"]
    read.clear()
    monkeypatch.setattr(CTFSession, "__call__", lambda self: call(self, fail=False))
    prepared = prepare(raw["ctf"], tmp_path / "p", "ctf")
    assert read == ["ses-02"], "the first session was whole"
    np.testing.assert_array_equal(prepared.signals("sub-01"),
                                  prepare(raw["ctf"], tmp_path / "whole", "ctf").signals("sub-01"))


EPOCHS = "derivatives/preprocessed/preprocessed_P1-epo.fif"
RUN = "sub-BIGMEG1/ses-02/meg/sub-BIGMEG1_ses-02_task-main_run-01"


def rewrite_epochs(raw, change):
    path = raw / EPOCHS
    epochs = mne.read_epochs(path, preload=True, verbose="ERROR")
    change(epochs).save(path, overwrite=True, verbose="ERROR")


def renumber(epochs):
    epochs.events[3, 2] += 1
    return epochs


def without_metadata_line(epochs):
    shorter = epochs.metadata.iloc[:-1]
    epochs.metadata = None
    path = Path(epochs.filename).parents[2] / "sourcedata" / "sample_attributes_P1.csv"
    shorter.to_csv(path, index=False)
    return epochs


def edit_table(column, value):
    def change(epochs):
        epochs.metadata = epochs.metadata.assign(**{column: value}) if value is not None else epochs.metadata.drop(
            columns=column)
        return epochs

    return change


@pytest.mark.parametrize(("change", "message"), [
    (lambda e: e.rename_channels({"MLC11-1609": "MLC99-1609"}), r"P1-epo.fif: expected the 271 channels.*MLC11"),
    (lambda e: e.drop_channels(["MRO22-1609", "MZC01-1609"]),
     r"P1-epo.fif: expected the 271.*2 of them missing or twice \(MRO22"),
    (lambda e: e.decimate(2, verbose="ERROR"), r"P1-epo.fif: expected 281 samples from -0.1 s at 200 Hz, got 141"),
    (lambda e: e.crop(0.0, 1.0), r"P1-epo.fif: expected 281 samples from -0.1 s at 200 Hz, got 201 from 0 s"),
    (renumber, r"P1-epo.fif: expected the images of sample_attributes.*in 1 of \d+ trials \(trial 3: \d+, not \d+\)"),
    (without_metadata_line, r"P1-epo.fif: expected \d+ epochs, one for each line of its table, got \d+"),
    (lambda e: e[e.metadata["session_nr"] == 1], r"P1-epo.fif: expected sessions 1 to 2, got \[1\] \(missing: \[2\]\)"),
    (lambda e: e[np.arange(len(e)) != np.flatnonzero(e.metadata["trial_type"] == "test")[0]],
     r"P1-epo.fif: expected every test image in 2 trials of subject 1, one a session, got 1 trials of '\w+_13s'"),
    (edit_table("session_nr", None), r"P1-epo.fif: expected the columns.*got none of session_nr"),
    (edit_table("trial_type", "other"), r"P1-epo.fif: expected trials of type exp, test or catch, got \['other'\]"),
])
def test_epochs_that_are_not_the_published_ones_are_refused(change, message, damaged, tmp_path):
    raw = damaged("epochs")
    rewrite_epochs(raw, change)
    with pytest.raises(ValueError, match=message):
        prepare(raw, tmp_path / "p")
    assert not (tmp_path / "p" / "spec.json").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_truncated_epochs_are_refused(share, damaged, tmp_path):
    raw = damaged("epochs")
    whole = (raw / EPOCHS).read_bytes()
    (raw / EPOCHS).write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(ValueError, match=r"P1-epo.fif: expected a whole recording, got an? (truncated|empty)"):
        prepare(raw, tmp_path / "p")
    assert not (tmp_path / "p" / "spec.json").exists()


def test_a_missing_part_of_the_epochs_is_named(source, tmp_path):
    raw = write(tmp_path / "raw", source, "epochs", split_size="3MB")
    (raw / EPOCHS).with_name("preprocessed_P1-epo-1.fif").unlink()
    with pytest.raises(ValueError, match=r"got a part of it missing \(FileNotFoundError: .*preprocessed_P1-epo-1.fif"):
        prepare(raw, tmp_path / "p")


def edit_csv(raw, name, change, sep=","):
    path = raw / name
    change(pd.read_csv(path, sep=sep)).to_csv(path, sep=sep, index=False, na_rep="n/a")


def truncate(raw, name, keep):
    path = raw / name
    path.write_bytes(path.read_bytes()[:keep])


@pytest.mark.parametrize(("damage", "message"), [
    (lambda raw: shutil.rmtree(raw / "sub-BIGMEG1/ses-02"), r"ses-02_task-main_run-01_meg.ds: expected a recording"),
    (lambda raw: shutil.rmtree(raw / f"{RUN}_meg.ds"), r"run-01_meg.ds: expected a recording, by sample_attributes"),
    (lambda raw: (raw / f"{RUN}_events.tsv").unlink(), r"run-01_events.tsv: expected the events of this run"),
    (lambda raw: (raw / "sourcedata/sample_attributes_P1.csv").unlink(), r"attributes_P1.csv: expected the table"),
    (lambda raw: edit_csv(raw, f"{RUN}_events.tsv", lambda t: t.iloc[:-1], "\t"),
     r"run-01_events.tsv: expected 9 trials by sample_attributes_P\*.csv, got 8"),
    (lambda raw: edit_csv(raw, f"{RUN}_events.tsv", lambda t: t.assign(value=t["value"].to_numpy()[::-1]), "\t"),
     r"run-01_events.tsv: expected the images of sample_attributes"),
    (lambda raw: edit_csv(raw, f"{RUN}_events.tsv", lambda t: t.drop(columns="sample"), "\t"),
     r"run-01_events.tsv: expected the columns sample and value"),
    (lambda raw: edit_csv(raw, f"{RUN}_events.tsv", lambda t: t.assign(sample=t["sample"] + 3000), "\t"),
     r"run-01_events.tsv, line \d+: expected less than \d+, where a trial ends in sub-.*_meg.ds as the sample"),
    (lambda raw: edit_csv(raw, "sourcedata/sample_attributes_P1.csv", lambda t: t[t["session_nr"] == 2]),
     r"sub-BIGMEG1: expected sessions 1 to 2, got \[2\] \(missing: \[1\]\)"),
    (lambda raw: truncate(raw, f"{RUN}_meg.ds/{Path(RUN).name}_meg.meg4", 100_000), r"run-01_meg.ds: expected a whole"),
    (lambda raw: truncate(raw, f"{RUN}_meg.ds/{Path(RUN).name}_meg.res4", 3000), r"run-01_meg.ds: expected a whole"),
    (lambda raw: (raw / f"{RUN}_meg.ds/{Path(RUN).name}_meg.meg4").unlink(), r"run-01_meg.ds: expected a whole"),
    (lambda raw: shutil.rmtree(raw / "object_images/goat"),
     r"goat_01s.jpg: expected an image there, got none \(2 of \d+ images are missing\)"),
])
def test_recordings_that_are_not_the_published_ones_are_refused(damage, message, damaged, tmp_path):
    raw = damaged("ctf")
    damage(raw)
    with pytest.raises(ValueError, match=message):
        prepare(raw, tmp_path / "p", "ctf")
    assert not (tmp_path / "p" / "spec.json").exists()


def test_recordings_of_another_rate_channel_or_trigger_are_refused(source, tmp_path, monkeypatch):
    raw = write(tmp_path / "rate", source, "ctf", sfreq=600.0)
    with pytest.raises(ValueError, match=r"run-01_meg.ds: expected 1200 samples per second, got 600"):
        prepare(raw, tmp_path / "p", "ctf")
    raw = write(tmp_path / "channels", source, "ctf", channel_order=np.arange(1, 271))
    with pytest.raises(ValueError, match=r"run-01_meg.ds: expected the 271.*1 of them missing or twice \(MLC11\)"):
        prepare(raw, tmp_path / "p", "ctf")
    monkeypatch.setattr(files, "_TRIGGER", 63)
    raw = write(tmp_path / "triggers", source, "ctf")
    with pytest.raises(ValueError, match=r"run-01_meg.ds: expected \d triggers of value 64 by its events.tsv, got 0"):
        prepare(raw, tmp_path / "p", "ctf")
    monkeypatch.setattr("brain2img.studies.things_meg_recordings.TRIGGERS", "UPPT002")
    with pytest.raises(ValueError, match=r"run-01_meg.ds: expected the channel UPPT002 of the triggers, got none"):
        prepare(raw, tmp_path / "p", "ctf")


def test_the_drop_out_is_filled_with_the_median_as_the_authors_do(raw, monkeypatch):
    monkeypatch.setattr(mne.filter, "filter_data", lambda x, *_, **__: x)
    path = raw["ctf"] / f"{RUN}_meg.ds"
    n = len(pd.read_csv(f"{raw['ctf'] / RUN}_events.tsv", sep="\t"))
    onsets = np.array([1200, 3000])  # the drop-out, from sample 3120 to 3360, is within the second
    recording = mne.io.read_raw_ctf(path, verbose="ERROR").get_data(picks=CHANNELS[5] + "-1609")[0]
    for dropout, filled in ((None, False), (2.6, True)):
        session = pickle.loads(pickle.dumps(CTFSession(((path, onsets, n, dropout),))))
        (block,) = session()
        line = recording.copy()
        if filled:
            line[3120:3360] = np.median(recording)
        for trial, onset in zip(block, onsets, strict=True):
            epoch = line[onset - 120:onset + 1561]
            np.testing.assert_allclose(trial[5], (epoch - epoch[:121].mean())[::6], rtol=1e-5, atol=1e-18)


def test_the_drop_outs_are_those_of_their_subject_session_and_run(raw, monkeypatch):
    monkeypatch.setattr("brain2img.studies.things_meg.DROPOUTS", {(1, 1, 2): 2.6, (2, 1, 1): 5.0})
    recording = study("ctf")._ctf(raw["ctf"], 1)
    found = {path.name.removeprefix("sub-BIGMEG1_").removesuffix("_meg.ds"): dropout
             for _, rows in recording.trials.groupby("session") for path, _, _, dropout in recording.session(rows).runs}
    assert found == {"ses-01_task-main_run-01": None, "ses-01_task-main_run-02": 2.6, "ses-02_task-main_run-01": None}


def test_a_subject_who_saw_other_numbers_of_images_than_published_is_reported(raw, tmp_path, caplog):
    prepare(raw["epochs"], tmp_path / "p")
    assert "P1-epo.fif: subject 1 saw 12 images of type exp, where 22248 are published" in caplog.text
    assert "P1-epo.fif: subject 1 saw 2 images of type test, where 200 are published" in caplog.text


def test_arguments_and_folders_that_cannot_be_are_refused(raw, tmp_path):
    with pytest.raises(ValueError, match=r"study.form: expected one of \('epochs', 'ctf'\), got 'bids'"):
        ThingsMEG(form="bids")
    with pytest.raises(ValueError, match=r"study.subjects: expected different numbers"):
        ThingsMEG(subjects=[1, 1])
    with pytest.raises(ValueError, match=r"raw: expected the folder of THINGS-MEG .* got nothing"):
        ThingsMEG().prepare(None, tmp_path)
    with pytest.raises(ValueError, match=r"preprocessed_P2-epo.fif: expected the published epochs of this subject"):
        prepare(raw["epochs"], tmp_path / "p", subjects=[1, 2])


def test_the_identity_of_the_raw_files_changes_with_them_and_not_with_their_place(damaged, raw, repair):
    for form in ("epochs", "ctf"):
        moved = damaged(form)
        first = study(form).raw_id(raw[form])
        assert first == study(form).raw_id(moved)
        recording = next(p for p in moved.rglob("*") if p.suffix in (".meg4", ".fif"))
        repair(recording)
        second = study(form).raw_id(moved)
        repair(next(moved.rglob("*.jpg")))
        third = study(form).raw_id(moved)
        (moved / "things_concepts.tsv").write_text("other")
        ids = [first, second, third, study(form).raw_id(moved)]
        if form == "ctf":
            edit_csv(moved, f"{RUN}_events.tsv", lambda t: t.assign(sample=t["sample"] + 1), "\t")
            ids.append(study(form).raw_id(moved))
        assert len(set(ids)) == len(ids)


def test_writers_want_the_published_window(source, tmp_path):
    source = PreparedStudy(source.folder, finished=False)
    spec = source.specs["sub-01"]
    source.specs["sub-01"] = spec.select(np.arange(271), samples=slice(1, None))
    with pytest.raises(ValueError, match=r"signals of subject 'sub-01': expected 281 samples from -0.1 s at 200 Hz"):
        files.write_epochs(tmp_path, source)


@pytest.mark.slow
def test_the_simulated_scenes_in_both_layouts(tmp_path, monkeypatch):
    from brain2img.studies import scenes

    monkeypatch.setattr(scenes, "N_TEST", 4)
    (tmp_path / "scenes").mkdir()
    scenes.Scenes("meg", snr=1.0, n_subjects=1, n_train=20, n_val=4, repetitions={"test": 2}, n_sessions=2,
                  recording={"sfreq": 200.0, "tmin": -0.1, "tmax": 1.305}).prepare(None, tmp_path / "scenes")
    source = PreparedStudy(tmp_path / "scenes", finished=False)
    names = {row.stimulus_id: files.image_name(row.stimulus_id, row.concept) for row in
             source.stimulus_table.itertuples()}
    for form in ("epochs", "ctf"):
        prepared = prepare(write(tmp_path / form, source, form), tmp_path / f"p-{form}", form, zero_shot=False,
                           n_val_concepts=2)
        trials, signals = known(source, form)
        # the writer shows every test image once a session, as published; the scenes come in any order
        trials["session"] = trials["session"].where(trials["split"] != "test", trials["repetition"] + 1)
        trials = trials.sort_values(["session", "run"], kind="stable")
        signals = signals[trials.index]
        np.testing.assert_allclose(prepared.signals("sub-01")[:, ::9], signals, rtol=2e-6,
                                   atol=1e-6 * np.abs(signals).max())
        found = prepared.trials_of("sub-01")
        assert found["stimulus_id"].tolist() == [names[s] for s in trials["stimulus_id"]]
        assert found["session"].astype(int).tolist() == trials["session"].tolist()
