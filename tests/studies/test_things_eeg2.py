"""THINGS-EEG2 from raw files that the writer made of a known study: trials, signals, images, and every bad input."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from brain2img.data.datamodule import BrainData
from brain2img.data.normalisation import Normalisation
from brain2img.data.prepared import PreparedStudy, PreparedWriter
from brain2img.data.trials import Split
from brain2img.records import SignalSpec
from brain2img.simulate.things_eeg2_files import EEG_CHANNELS, resampled, write_preprocessed, write_things_eeg2
from brain2img.studies.things_eeg2 import CHANNELS, TARGET, ThingsEEG2

SHUFFLED = tuple(np.random.default_rng(0).permutation(EEG_CHANNELS).tolist())
REPETITIONS = {"training": 2, "test": 3}
CONCEPTS = ["red bus", "red bus", "cat", "cat", "old lamp", "sock", "sun", "fish"]
IDS = [f"s{i}" for i in range(len(CONCEPTS))]


def known(out: Path, subjects=("sub-01",)) -> PreparedStudy:
    """Return a study like the simulated scenes: 6 training and 2 test stimuli, 2 sessions, 1000 Hz."""
    out.mkdir()
    rng = np.random.default_rng(0)
    writer = PreparedWriter(out, study="known")
    splits = ["train"] * 4 + ["val"] * 2 + ["test"] * 2
    for subject in subjects:
        shown = rng.permutation(np.repeat(np.arange(8), [2] * 6 + [3] * 2))
        trials = pd.DataFrame({"stimulus_id": [IDS[i] for i in shown], "split": [splits[i] for i in shown],
                               "session": np.repeat([1, 2], [10, 8]), "repetition": 0})
        # smooth, so that what resampling does is no accident of noise at the edges
        x = np.cumsum(rng.standard_normal((18, 63, 1201)), axis=2) * 1e-7
        writer.add_subject(SignalSpec(subject=subject, modality="eeg", units="V", n_channels=63, n_times=1201,
                                      sfreq=1000.0, tmin=-0.2, ch_names=EEG_CHANNELS, ch_types=["eeg"] * 63),
                           trials=trials, signals=[x])
    writer.finish(pd.DataFrame({"stimulus_id": IDS, "kind": "image", "concept": CONCEPTS, "category": "thing",
                                "captions": [[c] for c in CONCEPTS], "attributes": None}),
                  images=np.repeat(rng.integers(0, 255, (8, 4, 4, 3), dtype=np.uint8), 4, axis=1).repeat(4, axis=2))
    return PreparedStudy(out, finished=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Known study, folder with both raw forms, and the names its stimuli got."""
    folder = tmp_path_factory.mktemp("things_eeg2")
    study = known(folder / "known")
    names = write_things_eeg2(study, folder / "raw", channels=SHUFFLED, target_every=4)
    write_preprocessed(study, folder / "raw", channels=SHUFFLED)
    return study, folder / "raw", names.set_index("stimulus_id")


@pytest.fixture
def raw(source, tmp_path) -> Path:
    """Return a copy of the raw folder that may be damaged."""
    return Path(shutil.copytree(source[1], tmp_path / "raw"))


def make(**changes) -> ThingsEEG2:
    return ThingsEEG2(**{"subjects": [1], "n_sessions": 2, "repetitions": REPETITIONS, "n_val_concepts": 2,
                         "image_size": 16, **changes})


def prepare(raw: Path, out: Path, **changes) -> PreparedStudy:
    out.mkdir(exist_ok=True)
    make(**changes).prepare(raw, out)
    return PreparedStudy(out, finished=False)


def as_presented(study: PreparedStudy, names: pd.DataFrame) -> pd.DataFrame:
    """Return the known trials in the order of the files: session by session, training before test."""
    trials = study.trials_of("sub-01").assign(test=lambda t: t["split"] == "test")
    trials = trials.sort_values(["session", "test", "row"], kind="stable", ignore_index=True)
    return trials.assign(name=names["name"][trials["stimulus_id"]].to_numpy())


def edit(path: Path, **changes) -> None:
    """Rewrite a pickled file with other values; None removes a key."""
    with path.open("rb") as file:
        values = pickle.load(file) if file.read(1) == b"\x80" and not file.seek(0) else None
    values = np.load(path, allow_pickle=True).item() if values is None else values
    values = {key: value for key, value in {**values, **changes}.items() if value is not None}
    np.save(path, values, allow_pickle=True)


def test_raw_gives_the_known_trials_signals_and_images(source, tmp_path, monkeypatch):
    study, raw, names = source
    add = PreparedWriter.add_sessions

    def sent(self, spec, *, trials, sessions, jobs):  # as processes of their own get them
        add(self, spec, trials=trials, sessions=pickle.loads(pickle.dumps(sessions)))

    monkeypatch.setattr(PreparedWriter, "add_sessions", sent)
    prepared = prepare(raw, tmp_path / "p", jobs=2)
    wanted, trials = as_presented(study, names), prepared.trials_of("sub-01")
    assert trials["stimulus_id"].tolist() == wanted["name"].tolist()
    assert trials["session"].tolist() == [f"0{s}" for s in wanted["session"]]
    assert trials["run"].tolist() == np.where(wanted["test"], "test", "training").tolist()
    assert trials["repetition"].tolist() == wanted.groupby("stimulus_id").cumcount().tolist()
    assert (trials["duration"] == 0.1).all()
    first = trials[(trials["session"] == "01") & (trials["run"] == "training")]
    # every fifth event is a target, which is left out
    assert first["onset"].round(3).tolist() == [round(0.2 + 1.25 * (i + i // 4), 3) for i in range(len(first))]
    signals = prepared.signals("sub-01")
    expected = resampled(study.signals("sub-01")[wanted["row"].to_numpy()])
    assert signals.shape == (18, 63, 300)
    np.testing.assert_allclose(signals, expected, rtol=0, atol=2e-7 * np.abs(expected).max())
    spec = prepared.specs["sub-01"]
    assert spec.ch_names == CHANNELS == EEG_CHANNELS
    assert (spec.units, spec.sfreq, spec.tmin, spec.whitened) == ("V", 250.0, -0.2, False)
    np.testing.assert_allclose(np.abs(signals[:, :, :50].mean(axis=2)).max(), 0, atol=0.02 * np.abs(signals).max())
    for stimulus, name in names["name"].items():
        picture = prepared.stimuli_of([name]).images()[0].astype(int)
        assert np.abs(picture - study.stimuli_of([stimulus]).images()[0]).max() < 30  # JPEG


def test_stimuli_and_splits(source, tmp_path):
    _, raw, names = source
    prepared = prepare(raw, tmp_path / "p")
    table = prepared.stimulus_table.set_index("stimulus_id")
    assert table.loc["red_bus_02b", "concept"] == "red_bus"
    assert table.loc["red_bus_02b", "captions"] == ["red bus"]
    assert table.loc["red_bus_02b", "category"] == "thing"
    assert names.loc["s6", "name"] == "sun_01s"
    split = prepared.trials.drop_duplicates("stimulus_id").set_index("stimulus_id")["split"]
    concepts = table["concept"][split.index]
    assert set(split[names.loc[names["part"] == "test", "name"]]) == {"test"}
    assert concepts[split == "val"].nunique() == 2
    assert set(concepts[split == "val"]).isdisjoint(concepts[split == "train"])
    other = prepare(raw, tmp_path / "q", seed=5).trials.drop_duplicates("stimulus_id").set_index("stimulus_id")["split"]
    assert (other[split == "test"] == "test").all()
    without = prepare(raw, tmp_path / "r", n_val_concepts=0)
    assert set(without.trials["split"]) == {"train", "test"}


def test_order_of_images_is_that_of_the_metadata_or_of_the_folders(source, raw, tmp_path):
    whole = prepare(raw, tmp_path / "p").trials["stimulus_id"].tolist()
    (raw / "image_set" / "image_metadata.npy").unlink()
    (raw / "image_set" / "things_concepts.tsv").unlink()
    first = next((raw / "image_set" / "training_images").glob("*/*.jpg"))
    first.with_name(f"._{first.name}").touch()  # as macOS leaves them
    prepared = prepare(raw, tmp_path / "q")
    assert prepared.trials["stimulus_id"].tolist() == whole
    assert prepared.stimulus_table["category"].isna().all()


def test_subjects_may_lie_in_the_folder_itself(source, raw, tmp_path):
    ids = make().raw_id(raw)
    for folder in (raw / "raw_data").iterdir():
        folder.rename(raw / folder.name)
    assert make().raw_id(raw) == ids
    assert len(prepare(raw, tmp_path / "p").trials) == 18


def test_preprocessed_equals_the_published_chain_on_raw(source, tmp_path):
    _, raw, names = source
    public = prepare(raw, tmp_path / "p", form="preprocessed")
    own = prepare(raw, tmp_path / "q")
    spec = public.specs["sub-01"]
    assert (spec.whitened, spec.tmin, spec.n_times, spec.ch_names) == (True, 0.0, 250, CHANNELS)
    assert public.trials["session"].isna().all()
    assert public.trials_of("sub-01").groupby("stimulus_id")["repetition"].apply(list)["sun_01s"] == [0, 1, 2]
    # the preset, fitted on what was prepared from raw, gives the published signals
    preset = yaml.safe_load((Path(__file__).parents[2] / "configs/data/things_eeg2_published.yaml").read_text())
    preset.pop("defaults")
    data = BrainData(own, targets={}, split=Split(),
                     normalisation=Normalisation(**{**preset, "window": tuple(preset["window"]), "min_trials": 2}))
    data.fit_normalisation()
    for name in names["name"]:
        rows, published = (p.trials.loc[p.trials["stimulus_id"] == name, "row"].tolist() for p in (own, public))
        x = data.signals("sub-01", [[row] for row in rows])
        y = public.signals("sub-01")[published]
        assert x.shape == y.shape == (len(rows), 63, 250)
        nearest = [int(np.argmin(((y - one) ** 2).sum(axis=(1, 2)))) for one in x]
        assert sorted(nearest) == list(range(len(rows)))
        np.testing.assert_allclose(x, y[nearest], atol=1e-5 * np.abs(y).max())


def test_of_more_presentations_those_are_kept_that_the_authors_draw(source, raw, tmp_path):
    path = raw / TRAINING
    data = np.load(path, allow_pickle=True).item()["raw_eeg_data"]
    at = np.flatnonzero((data[-1] != 0) & (data[-1] != TARGET))
    data[-1, at[:5]] = data[-1, at[0]]  # one image five times
    edit(path, raw_eeg_data=data)
    few = {"repetitions": {"training": 0, "test": 3}}
    everything, drawn = (prepare(raw, tmp_path / str(d), drawn=d, **few).trials_of("sub-01") for d in (False, True))
    assert len(everything) == 18
    order = np.arange(5)
    np.random.RandomState(20200220).shuffle(order)  # what scikit-learn's shuffle does
    mine = everything[(everything["session"] == "02") & (everything["run"] == "training")]
    left_out = mine["onset"].to_numpy()[np.sort(order[2:])]
    kept = drawn[(drawn["session"] == "02") & (drawn["run"] == "training")]
    assert sorted(set(mine["onset"]) - set(kept["onset"])) == left_out.tolist()
    columns = ["stimulus_id", "session", "run", "onset"]
    rest = everything[~everything["row"].isin(mine.index[np.sort(order[2:])])]
    assert drawn[columns].to_numpy().tolist() == rest[columns].to_numpy().tolist()


def test_the_seventeen_channels_of_the_authors_are_those_over_occipital_and_parietal_cortex(source, tmp_path):
    own = prepare(source[1], tmp_path / "p")
    data = BrainData(own, targets={}, split=Split(), normalisation=Normalisation(channels=["P*", "O*"]))
    assert data.specs["sub-01"].ch_names == tuple("P7 P5 P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2".split())


def test_whitened_signals_refuse_a_subset_of_channels(source, tmp_path):
    public = prepare(source[1], tmp_path / "p", form="preprocessed")
    with pytest.raises(ValueError, match="whitened and every channel is a mixture"):
        BrainData(public, targets={}, split=Split(), normalisation=Normalisation(channels=["O*"]))


def test_an_interrupted_run_goes_on_with_the_session_it_was_in(source, tmp_path, monkeypatch):
    from brain2img.studies import things_eeg2

    study, raw, names = source
    read, real = [], things_eeg2._epochs

    def dies(recording, onsets, *, path, **arguments):
        read.append("/".join(path.parts[-2:]))
        if path.parts[-2:] == ("ses-02", "raw_eeg_test.npy") and stop:
            raise KeyboardInterrupt
        return real(recording, onsets, path=path, **arguments)

    monkeypatch.setattr(things_eeg2, "_epochs", dies)
    stop = True
    with pytest.raises(KeyboardInterrupt):
        prepare(raw, tmp_path / "p")
    assert not (tmp_path / "p" / "spec.json").exists()
    assert not (tmp_path / "p" / "signals_sub-01.npy").exists()
    stop, done = False, len(read)
    prepared = prepare(raw, tmp_path / "p")
    assert {name.split("/")[0] for name in read[done:]} == {"ses-02"}
    expected = resampled(study.signals("sub-01")[as_presented(study, names)["row"].to_numpy()])
    np.testing.assert_allclose(prepared.signals("sub-01"), expected, rtol=0, atol=2e-7 * np.abs(expected).max())


def test_rapid_presentation_fills_the_recording(source, tmp_path):
    study, _, names = source
    write_things_eeg2(study, tmp_path / "raw", soa=0.2, target_every=100)
    prepared = prepare(tmp_path / "raw", tmp_path / "p")
    wanted = as_presented(study, names)
    assert prepared.trials_of("sub-01")["stimulus_id"].tolist() == wanted["name"].tolist()
    steps = prepared.trials_of("sub-01").groupby(["session", "run"])["onset"].diff().dropna()
    np.testing.assert_allclose(steps, 0.2, atol=1e-9)
    # the first 0.2 s of a response are its own; their baseline belongs to the picture before
    own = np.ptp(study.signals("sub-01")[wanted["row"].to_numpy()[1]][:, 210:390], axis=1)
    assert np.corrcoef(own, np.ptp(prepared.signals("sub-01")[1][:, 53:97], axis=1))[0, 1] > 0.98


def test_pauses_between_sequences_are_as_long_as_asked_and_files_are_those_of_numpy(source, tmp_path):
    write_things_eeg2(source[0], tmp_path / "raw", soa=0.2, target_every=4, pause=2.38)
    trials = prepare(tmp_path / "raw", tmp_path / "p").trials_of("sub-01")
    _, run = next(iter(trials[trials["run"] == "training"].groupby("session")))
    expected = np.full(len(run) - 1, 0.2)
    expected[3::4] += 0.2 + 2.38  # the target, and the pause
    np.testing.assert_allclose(run["onset"].diff().dropna(), expected, atol=1e-9)
    path = tmp_path / "raw/raw_data/sub-01/ses-01/raw_eeg_training.npy"
    values = np.load(path, allow_pickle=True).item()
    stim = values["raw_eeg_data"][-1]
    assert values["ch_names"][-1] == "stim"
    np.testing.assert_array_equal(np.flatnonzero((stim > 0) & (stim != TARGET)) / 1000, run["onset"])
    assert (stim == TARGET).sum() == len(run) // 4


# ---- bad input

TRAINING, TEST = "raw_data/sub-01/ses-02/raw_eeg_training.npy", "raw_data/sub-01/ses-01/raw_eeg_test.npy"
PUBLIC = "Preprocessed_data_250Hz/sub-01/preprocessed_eeg_training.npy"


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def in_microvolts(path):
    data = np.array(np.load(path, allow_pickle=True).item()["raw_eeg_data"])
    data[:-1] *= 1e6  # all but the codes
    edit(path, raw_eeg_data=data)


def renamed(path):
    edit(path, ch_names=["Fz" if name == "Oz" else name for name in [*SHUFFLED, "stim"]])


def without_channel(path):
    values = np.load(path, allow_pickle=True).item()
    edit(path, ch_names=values["ch_names"][1:], raw_eeg_data=values["raw_eeg_data"][1:])


def change_stim(path, change):
    data = np.load(path, allow_pickle=True).item()["raw_eeg_data"]
    change(data[-1])
    edit(path, raw_eeg_data=data)


def truncated(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def one_missing(stim):
    stim[np.flatnonzero((stim != 0) & (stim != TARGET))[0]] = 0


def another_code(stim):
    stim[np.flatnonzero((stim != 0) & (stim != TARGET))[0]] = 7


def nan(path):
    data = np.load(path, allow_pickle=True).item()["raw_eeg_data"]
    data[SHUFFLED.index("Cz"), 500] = np.nan
    edit(path, raw_eeg_data=data)


BAD = [
    (TRAINING, lambda p: shutil.rmtree(p.parent), "sub-01: expected the sessions ses-01, ses-02, got ses-01. Fetch"),
    (TRAINING, Path.unlink, r"ses-02/raw_eeg_training.npy: expected a pickled dictionary, got no such file"),
    (TRAINING, truncated, r"ses-02/raw_eeg_training.npy: expected a whole .* got a truncated or damaged file of"),
    (TEST, lambda p: change_stim(p, one_missing),
     r"raw_eeg_test.npy: expected every test image at least 3 times, got 2 of .*_01s \(ses-01: \d, ses-02: \d\)"),
    (TRAINING, lambda p: change_stim(p, another_code),
     r"ses-02/raw_eeg_training.npy: expected codes of the 6 training images in 'stim', 1 to 6, got 7. Give the images"),
    (TRAINING, lambda p: change_stim(p, lambda stim: stim.fill(0)), "expected every training image at least 2 times"),
    (TEST, lambda p: edit(p, sfreq=500), r"ses-01/raw_eeg_test.npy: expected 1000 Hz, got 500 Hz. Fetch the file"),
    (TEST, renamed, r"raw_eeg_test.npy: expected the 63 channels .* each once, got 1 of them missing .*\(Oz\)"),
    (TEST, without_channel, rf"raw_eeg_test.npy: expected the 63 channels .* 1 of them missing .*\({SHUFFLED[0]}\)"),
    (TEST, lambda p: edit(p, ch_names=["Oz" if name == "Cz" else name for name in [*SHUFFLED, "stim"]]),
     r"raw_eeg_test.npy: expected the 63 channels .* got 2 of them missing or twice \(Cz, Oz\)"),
    (TEST, lambda p: edit(p, ch_names=[*SHUFFLED, "status"]), "raw_eeg_test.npy: expected a channel 'stim'"),
    (TEST, lambda p: edit(p, ch_names=[*SHUFFLED, "stim", "more"]), "expected raw_eeg_data of 65 channels x samples"),
    (TEST, lambda p: edit(p, sfreq=None), r"raw_eeg_test.npy: expected a dictionary with raw_eeg_data, .* got \["),
    (TEST, lambda p: edit(p, comment=Hostile()), r"raw_eeg_test.npy: .* asks for posix.system. It may be hostile"),
    (TEST, in_microvolts, r"subject 'sub-01', session '01': expected EEG in V .* looks like uV read as V\. Correct"),
    (TEST, nan, r"raw_eeg_test.npy: expected finite values, got NaN or infinity in Cz, at 0 to"),
    ("image_set/training_images", shutil.rmtree, "training_images/.*jpg: expected an image there, got none"),
    (PUBLIC, lambda p: edit(p, times=np.arange(-20, 100) / 100), "expected 250 samples at 250 Hz, got 120 times at"),
    (PUBLIC, lambda p: edit(p, preprocessed_eeg_data=np.zeros((5, 2, 63, 250))),
     r"preprocessed_eeg_data of images x repetitions x channels \(6, 2, 63\) x samples, got \(5, 2, 63, 250\)"),
    (PUBLIC, renamed, r"preprocessed_eeg_training.npy: expected the 63 channels .* got 1 of them missing .*\(Oz\)"),
    (PUBLIC, lambda p: edit(p, comment=Hostile()), r"preprocessed_eeg_training.npy: .* asks for posix.system"),
    (PUBLIC, truncated, r"preprocessed_eeg_training.npy: expected a whole .* got a truncated or damaged file"),
    (PUBLIC, Path.unlink, r"preprocessed_eeg_training.npy: expected a pickled dictionary, got no such file"),
]


@pytest.mark.parametrize(("file", "damage", "message"), BAD,
                         ids=[f"{number}-{Path(file).stem}" for number, (file, _, _) in enumerate(BAD)])
def test_bad_files_are_named_and_leave_nothing_finished(raw, tmp_path, monkeypatch, file, damage, message):
    monkeypatch.chdir(tmp_path)
    damage(raw / file)
    with pytest.raises(ValueError, match=message):
        prepare(raw, tmp_path / "p", form="preprocessed" if file == PUBLIC else "raw")
    left = {path.name for path in (tmp_path / "p").iterdir()}
    assert left.isdisjoint({"spec.json", "trials.parquet", "stimuli.parquet", "signals_sub-01.npy"})
    assert not (tmp_path / "hacked").exists()


def test_names_in_capitals_are_read_and_what_is_not_read_is_listed(raw, tmp_path):
    expected = np.array(prepare(raw, tmp_path / "p").signals("sub-01"))
    subject = (raw / TEST).parents[1]
    (raw / TEST).rename((raw / TEST).with_name("RAW_EEG_TEST.NPY"))
    (raw / TEST).parent.rename(subject / (raw / TEST).parent.name.upper())
    subject.rename(subject.with_name("Sub-01"))
    image = next((raw / "image_set" / "test_images").glob("*/*"))
    image.rename(image.with_suffix(image.suffix.upper()))
    (raw / "notes.txt").write_bytes(b"x")
    (raw / "._notes.txt").write_bytes(b"x")
    np.testing.assert_array_equal(prepare(raw, tmp_path / "q").signals("sub-01"), expected)
    not_read = pd.read_parquet(tmp_path / "q" / "not_read.parquet")["path"].tolist()
    assert not_read == ["Preprocessed_data_250Hz/", "notes.txt"]


def test_trials_cut_off_by_the_end_are_left_out_and_missed(raw, tmp_path, caplog):
    data = np.load(raw / TEST, allow_pickle=True).item()["raw_eeg_data"]
    edit(raw / TEST, raw_eeg_data=data[:, :-1700])
    with pytest.raises(ValueError, match="expected every test image at least 3 times, got 2"):
        prepare(raw, tmp_path / "p")
    assert "1 images are shown too near to an end of the recording" in caplog.text


@pytest.mark.parametrize(("changes", "message"), [
    ({"form": "fif"}, r"study.form: expected one of \('raw', 'preprocessed'\), got 'fif'"),
    ({"repetitions": {"val": 2}}, "study.repetitions: expected the parts"),
    ({"subjects": []}, "study.subjects: expected different numbers, e.g. .* got "),
])
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_bad_folders_and_numbers(source, tmp_path):
    (tmp_path / "p").mkdir()
    for changes, raw, message in (
            ({}, None, "raw: expected the folder of THINGS-EEG2, got nothing"),
            ({}, tmp_path / "gone", "gone, which is no folder"),
            ({"subjects": [7]}, source[1], "expected sub-07/ses-.* in it or in a folder of it, got nothing"),
            ({"images": "pictures"}, source[1], "pictures/training_images: expected images of different names"),
            ({"n_val_concepts": 4}, source[1], "study.n_val_concepts: expected 0 to 3 of the 4 training concepts")):
        with pytest.raises(ValueError, match=message):
            make(**changes).prepare(raw, tmp_path / "p")


def test_how_fast_it_is_prepared_and_from_where_does_not_name_the_folder(composed):
    from brain2img.stages.build import build_study

    study, raw, identity = build_study(composed("prepare", "study=things_eeg2", "raw=/somewhere", "study.jobs=3"))
    assert study.jobs == 3
    assert raw == Path("/somewhere")
    assert {"raw", "jobs"}.isdisjoint(identity)
    assert identity["n_sessions"] == 4


def test_a_concept_that_is_trained_and_tested_is_refused(raw, tmp_path):
    (raw / "image_set" / "image_metadata.npy").unlink()
    folder = next((raw / "image_set" / "test_images").glob("*_sun"))
    (folder / "sun_01s.jpg").rename(folder / "cat_09s.jpg")
    with pytest.raises(ValueError, match=r"image_set: expected test images of other concepts .* got 'cat' among"):
        prepare(raw, tmp_path / "p")


def test_raw_id_changes_with_a_file_and_not_with_the_place(source, raw, repair):
    before = make().raw_id(source[1])
    assert make().raw_id(raw) == before
    repair(raw / TEST)
    changed = make().raw_id(raw)
    repair(next(raw.rglob("*.jpg")))
    pictures = make().raw_id(raw)
    (raw / "image_set" / "things_concepts.tsv").unlink()
    assert len({before, changed, pictures, make().raw_id(raw)}) == 4


def test_a_repaired_file_of_equal_size_is_prepared_and_embedded_again(command, raw, repair, tmp_path):
    arguments = ["study=things_eeg2", f"raw={raw}", "study.subjects=[1]", "study.n_sessions=2", "study.image_size=16",
                 "study.repetitions={training:2,test:3}", "study.n_val_concepts=2", "space=[pixels]",
                 "split.duplicates=keep"]

    def run() -> tuple[int, int, str]:
        printed = ""
        for stage in ("prepare", "embed"):
            code, said = command(stage, *arguments)
            assert code == 0, said
            printed += said
        outputs = tmp_path / "outputs"
        return *(len(list((outputs / part).rglob("manifest.json"))) for part in ("prepared", "cache")), printed

    assert run()[:2] == (1, 1)
    again = run()
    assert again[:2] == (1, 1)
    assert again[2].count("finished already") == 2
    repair(raw / TEST)
    recording = run()  # the same pictures: their embeddings are used
    assert recording[:2] == (2, 1)
    assert recording[2].count("finished already") == 1
    picture = next(raw.rglob("*_sun/*.jpg"))
    size, state = picture.stat().st_size, picture.stat()
    Image.new("RGB", (16, 16), "red").save(picture, quality=50)
    with picture.open("ab") as file:
        file.write(bytes(size - file.tell()))
    os.utime(picture, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert picture.stat().st_size == size
    changed = run()
    assert changed[:2] == (3, 2)
    assert "finished already" not in changed[2]


@pytest.mark.slow
def test_the_simulated_scenes_in_both_layouts(tmp_path, monkeypatch):
    from brain2img.studies import scenes

    monkeypatch.setattr(scenes, "N_TEST", 4)
    (tmp_path / "scenes").mkdir()
    scenes.Scenes("eeg", snr=1.0, n_subjects=1, n_train=10, n_val=2, n_sessions=2,
                  repetitions={"train": 2, "val": 2, "test": 3},
                  recording={"sfreq": 1000.0, "tmax": 1.001}).prepare(None, tmp_path / "scenes")
    study = PreparedStudy(tmp_path / "scenes", finished=False)
    names = write_things_eeg2(study, tmp_path / "raw").set_index("stimulus_id")
    prepared = prepare(tmp_path / "raw", tmp_path / "p", image_size=64)
    wanted = as_presented(study, names)
    assert prepared.trials_of("sub-01")["stimulus_id"].tolist() == wanted["name"].tolist()
    expected = resampled(study.signals("sub-01")[wanted["row"].to_numpy()])
    np.testing.assert_allclose(prepared.signals("sub-01"), expected, rtol=0, atol=2e-7 * np.abs(expected).max())
    write_preprocessed(study, tmp_path / "raw")
    public = prepare(tmp_path / "raw", tmp_path / "q", form="preprocessed", image_size=64).trials_of("sub-01")
    assert public["stimulus_id"].value_counts().to_dict() == wanted["name"].value_counts().to_dict()
