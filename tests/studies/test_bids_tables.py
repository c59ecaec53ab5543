"""study=bids: events, pictures, splits and subjects as people have them; right readings, and messages that help."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bids_raw import Dataset
from PIL import Image

from brain2img.data.prepared import PreparedStudy
from brain2img.studies.bids import BIDS
from brain2img.studies.bids_files import BIDSFile, read_table, same_label


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return Dataset(tmp_path_factory.mktemp("bids") / "raw", subjects=("01", "02"), runs=("1", "2"), n_repeats=1,
                   noise=1.0, sfreq=125.0).write()


@pytest.fixture
def copy(data, tmp_path):
    return Path(shutil.copytree(data.root, tmp_path / "copy"))


def prepare(root: Path, out: Path, **changes) -> PreparedStudy:
    out.mkdir()
    BIDS(**{"recording": {"band": None, "sfreq": None}, **changes}).prepare(root, out)
    return PreparedStudy(out, finished=False)


def events(root: Path, subject: str = "01", run: str = "1") -> Path:
    return root / f"sub-{subject}/eeg/sub-{subject}_task-look_run-{run}_events.tsv"


def edit(root: Path, change, *, subjects=("01", "02"), runs=("1", "2")) -> None:
    for subject in subjects:
        for run in runs:
            path = events(root, subject, run)
            change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False, na_rep="n/a")


def test_names_of_bids():
    file = BIDSFile.of(Path("sub-01_ses-a_task-look_acq-x_run-02_split-01_meg.fif"))
    assert file.entities == {"sub": "01", "ses": "a", "task": "look", "acq": "x", "run": "02", "split": "01"}
    assert (file.suffix, file.extension) == ("meg", ".fif")
    assert BIDSFile.of(Path("sub-01_space-T1w_betas.nii.gz")).extension == ".nii.gz"
    assert BIDSFile.of(Path("._sub-01_eeg.vhdr")) is BIDSFile.of(Path("participants.tsv")) is None
    runs = [BIDSFile.of(Path(f"sub-1_task-a_run-{n}_eeg.edf")) for n in (10, 9, 1)]
    assert [f.entities["run"] for f in sorted(runs, key=BIDSFile.order)] == ["1", "9", "10"]
    assert same_label(1, "01")
    assert same_label("sub-01", "01")
    assert not same_label("a1", "1")


def test_any_column_may_name_the_picture_and_events_without_one_are_left_out(data, copy, tmp_path):
    def change(table):
        table["image"] = table.pop("stim_file").str.removeprefix("shapes/").str.removesuffix(".png").str.upper()
        table["trial_type"] = np.where(table.index % 2, "image", "catch")
        more = pd.DataFrame({"onset": [1.0, 2.0], "duration": 0, "trial_type": ["response", "fixation"]})
        return pd.concat([table, more])  # without picture, sample and value

    edit(copy, change)
    study = prepare(copy, tmp_path / "all", events={"stimulus_column": "image", "timing": "onset"})
    expected = [*data.table("01", None, "1")["stim_file"], *data.table("01", None, "2")["stim_file"]]
    assert study.trials_of("sub-01")["stimulus_id"].tolist() == expected
    half = prepare(copy, tmp_path / "half", events={
        "stimulus_column": "image", "timing": "onset", "where": {"trial_type": "image"}})
    assert half.trials_of("sub-01")["stimulus_id"].tolist() == [*expected[1:10:2], *expected[11::2]]
    with pytest.raises(ValueError, match=r"run-1_events.tsv: expected the column 'stim_file', got onset, duration, "
                                         r"trial_type, value, sample, image. Set study.events.stimulus_column to one"):
        prepare(copy, tmp_path / "a")
    with pytest.raises(ValueError, match=r"expected events whose trial_type is face or house, got only catch, image, "
                                         r"response, fixation. Correct study.events.where"):
        prepare(copy, tmp_path / "b", events={"stimulus_column": "image", "where": {"trial_type": ["face", "house"]}})
    with pytest.raises(ValueError, match=r"expected the column 'type', by study.events.where, got onset, duration"):
        prepare(copy, tmp_path / "c", events={"stimulus_column": "image", "where": {"type": 1}})
    edit(copy, lambda t: t.assign(onset=t["onset"].where(t.index != 2)))
    with pytest.raises(ValueError, match=r"run-1_events.tsv: expected a number in column 'onset' of every event with a "
                                         r"picture, got none in line 4 \(1 in all\)"):
        prepare(copy, tmp_path / "d", events={"stimulus_column": "image", "timing": "onset"})
    edit(copy, lambda t: t.drop(columns="sample"))
    with pytest.raises(ValueError, match=r"run-1_events.tsv: expected the column 'sample', by study.events.timing"):
        prepare(copy, tmp_path / "e", events={"stimulus_column": "image", "timing": "sample"})


@pytest.mark.parametrize("spelling", ["stimuli/{}", "/stimuli/{}", "./{}", "stimuli\\{}"])
def test_pictures_are_found_however_they_are_spelled(data, copy, tmp_path, spelling):
    edit(copy, lambda t: t.assign(stim_file=[spelling.format(name) for name in t["stim_file"]]), subjects=("01",))
    study = prepare(copy, tmp_path / "out")
    assert study.trials_of("sub-01")["stimulus_id"].iloc[0] == data.table()["stim_file"].iloc[0]
    assert len(study.stimulus_table) == 10, "both subjects saw the same ten"


def test_missing_and_ambiguous_pictures(data, copy, tmp_path):
    (copy / "stimuli/shapes/p03.png").unlink()
    with pytest.raises(ValueError, match=r"stimuli: expected the pictures of all events, got none for 1 of 10 names "
                                         r"\('shapes/p03.png'; the first in .*sub-01_task-look_run-1_events.tsv\); 9 "
                                         r"pictures are there"):
        prepare(copy, tmp_path / "a")
    Image.new("RGB", (8, 8)).save(copy / "stimuli/shapes/p03.bmp")
    assert "shapes/p03.bmp" not in prepare(copy, tmp_path / "b", events={"where": {
        "stim_file": [n for n in data.names if "p03" not in n]}}).stimulus_table["stimulus_id"].tolist()
    edit(copy, lambda t: t.assign(stim_file=t["stim_file"].str.removesuffix(".png")))
    assert "shapes/p03.bmp" in prepare(copy, tmp_path / "c").stimulus_table["stimulus_id"].tolist()
    Image.new("RGB", (8, 8)).save(copy / "stimuli/shapes/p03.jpg")
    with pytest.raises(ValueError, match=r"expected one picture named 'shapes/p03', got shapes/p03.bmp and "
                                         r"shapes/p03.jpg. Name it with its folder and ending"):
        prepare(copy, tmp_path / "d")
    shutil.move(copy / "stimuli", tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"stimuli: expected the folder of the pictures, got no such folder"):
        prepare(copy, tmp_path / "e")
    (tmp_path / "elsewhere/shapes/p03.jpg").unlink()
    assert len(prepare(copy, tmp_path / "f", stimuli={"folder": str(tmp_path / "elsewhere")}).stimulus_table) == 10


def test_a_table_tells_files_captions_concepts_and_splits(data, copy, tmp_path):
    numbers = {name: f"7{i}" for i, name in enumerate(data.names)}
    edit(copy, lambda t: t.assign(stim_id=t.pop("stim_file").map(numbers)))
    table = pd.DataFrame({"stim_id": list(numbers.values()), "stim_file": list(numbers),
                          "concept": list("abcde") * 2, "category": "x", "caption": "one",
                          "caption_2": ["two"] + [None] * 9, "part": ["training"] * 6 + ["test"] * 4})
    table.to_csv(copy / "stimuli/stimuli.tsv", sep="\t", index=False, na_rep="n/a")
    study = prepare(copy, tmp_path / "out", events={"stimulus_column": "stim_id"}, split={"column": "part"})
    found = study.stimulus_table.set_index("stimulus_id")
    assert found.loc[data.names, "concept"].tolist() == list("abcde") * 2
    assert [list(c) for c in found.loc[data.names, "captions"]] == [["one", "two"]] + [["one"]] * 9
    split = study.trials.drop_duplicates("stimulus_id").set_index("stimulus_id")["split"]
    assert set(split[data.names[6:]]) == {"test"}
    assert sorted(split[data.names[:6]]) == ["train"] * 5 + ["val"], "a tenth of the others, at least one"
    by_concept = prepare(copy, tmp_path / "concept", events={"stimulus_column": "stim_id"}, split={"by": "concept"})
    of = by_concept.trials.assign(concept=by_concept.trials["stimulus_id"].map(found["concept"]))
    assert of.groupby("concept")["split"].nunique().tolist() == [1] * 5
    table.assign(stim_id="70").to_csv(copy / "stimuli/stimuli.tsv", sep="\t", index=False)
    with pytest.raises(ValueError, match=r"stimuli.tsv: expected every picture once, got '70' twice"):
        prepare(copy, tmp_path / "twice", events={"stimulus_column": "stim_id"})
    table[["concept"]].to_csv(copy / "stimuli/stimuli.tsv", sep="\t", index=False)
    with pytest.raises(ValueError, match=r"stimuli.tsv: expected a column of \('stimulus_id', .* got concept"):
        prepare(copy, tmp_path / "none", events={"stimulus_column": "stim_id"})
    with pytest.raises(ValueError, match=r"other.tsv: expected the table of the pictures, by study.stimuli.table"):
        prepare(copy, tmp_path / "other", stimuli={"table": "other.tsv"}, events={"stimulus_column": "stim_id"})


def test_concepts_from_folders_and_columns(copy, tmp_path):
    edit(copy, lambda t: t.assign(kind=np.where(t["stim_file"] < "shapes/p05", "low_one", "high")))
    study = prepare(copy, tmp_path / "column", stimuli={"concept": "kind"})
    assert study.stimulus_table["concept"].tolist() == ["low_one"] * 5 + ["high"] * 5
    assert list(study.stimulus_table["captions"][0]) == ["low one"]
    study = prepare(copy, tmp_path / "folder", stimuli={"concept": "folder"})
    assert set(study.stimulus_table["concept"]) == {"shapes"}
    edit(copy, lambda t: t.assign(kind=t.index.astype(str)))
    with pytest.raises(ValueError, match=r"study.stimuli.concept: expected one kind for every picture, got several"):
        prepare(copy, tmp_path / "several", stimuli={"concept": "kind"})
    with pytest.raises(ValueError, match=r"study.stimuli.concept: expected 'folder' or a column of the events, got"):
        prepare(copy, tmp_path / "x", stimuli={"concept": "x"})


def test_a_column_of_the_events_tells_the_split(data, copy, tmp_path):
    names = {**dict.fromkeys(data.names[:6], "Train"), **dict.fromkeys(data.names[6:8], "validation"),
             **dict.fromkeys(data.names[8:], "test")}
    edit(copy, lambda t: t.assign(part=t["stim_file"].map(names)))
    trials = prepare(copy, tmp_path / "out", split={"column": "part"}).trials
    assert trials["split"].tolist() == [{"Train": "train", "validation": "val"}.get(names[s], "test")
                                        for s in trials["stimulus_id"]]
    edit(copy, lambda t: t.assign(part=t["part"].replace("validation", "held")))
    with pytest.raises(ValueError, match=r"study bids: expected train, val or test in column 'part', got 'held' for"):
        prepare(copy, tmp_path / "held", split={"column": "part"})
    edit(copy, lambda t: t.assign(part=np.where(t.index < 5, "train", "test")))
    with pytest.raises(ValueError, match=r"study bids: expected every stimulus in one split over all subjects, got "):
        prepare(copy, tmp_path / "crossing", split={"column": "part"})
    edit(copy, lambda t: t.assign(part="train"))
    with pytest.raises(ValueError, match=r"expected stimuli of the split test in column 'part', got none"):
        prepare(copy, tmp_path / "no_test", split={"column": "part"})
    with pytest.raises(ValueError, match=r"study.split.column: expected a column of sub-01_task-look_run-1_events.tsv "
                                         r"or of the table of pictures, got 'fold'. There are onset, duration"):
        prepare(copy, tmp_path / "fold", split={"column": "fold"})


def test_a_split_that_is_drawn_is_the_same_for_all_subjects(copy, tmp_path):
    trials = {seed: prepare(copy, tmp_path / f"{seed}", split={"seed": seed, "test_fraction": 0.3}).trials
              for seed in (0, 1)}
    for some in trials.values():
        assert some.groupby("stimulus_id")["split"].nunique().max() == 1
        assert some.drop_duplicates("stimulus_id")["split"].value_counts().to_dict() == {
            "train": 6, "test": 3, "val": 1}
    assert set(trials[0].query("split == 'test'")["stimulus_id"]) != set(
        trials[1].query("split == 'test'")["stimulus_id"])


def test_subjects_tasks_and_runs_that_lack_something(copy, tmp_path, caplog):
    for path in sorted((copy / "sub-02/eeg").glob("*task-look*")):
        path.rename(path.with_name(path.name.replace("task-look", "task-rest")))
    for path in (copy / "sub-02/eeg").glob("*.vhdr"):
        path.write_text(path.read_text().replace("task-look", "task-rest"))
    for path in (copy / "sub-02/eeg").glob("*events.tsv"):
        path.unlink()
    (copy / "sub-02/sub-02_scans.tsv").unlink()
    study = prepare(copy, tmp_path / "auto")
    assert study.subjects == ["sub-01"]
    assert "no pictures were shown in task rest, which is left out" in caplog.text
    assert "sub-02 has no recordings with pictures and is left out" in caplog.text
    with pytest.raises(ValueError, match=r"sub-02: expected recordings with pictures, of task look, got none"):
        prepare(copy, tmp_path / "asked", subjects=["01", "02"])
    with pytest.raises(ValueError, match=r"sub-02: expected EEG recordings of {'task': 'look'}, got none. There are "
                                         r"eeg/\*_eeg.eeg, .*task: rest"):
        prepare(copy, tmp_path / "task", subjects=["01", "02"], entities={"task": "look"})
    assert prepare(copy, tmp_path / "all", entities={"task": "look"}).subjects == ["sub-01"]
    assert "1 subjects have no EEG recordings of {'task': 'look'} and are left out (sub-02)" in caplog.text
    with pytest.raises(ValueError, match=r"expected MEG recordings, got none of its 2 subjects. There are eeg/"):
        prepare(copy, tmp_path / "meg", datatype="meg")
    with pytest.raises(ValueError, match=r"study.subjects: expected different subjects of \['01', '02'\], got "):
        prepare(copy, tmp_path / "twice", subjects=["01", 1])
    events(copy, "01", "2").unlink()
    with pytest.raises(ValueError, match=r"run-2_eeg.vhdr: expected a table of its events, sub-01_task-look_run-2_"
                                         r"events.tsv, got none. Write it, or choose the runs that have one"):
        prepare(copy, tmp_path / "no_events")
    assert len(prepare(copy, tmp_path / "one_run", entities={"run": 1}).trials) == 10


def test_events_at_a_higher_level_are_inherited(data, copy, tmp_path):
    for run in "12":
        events(copy, "02", run).unlink()
    shared = data.table("01", None, "1")
    shared.to_csv(copy / "task-look_events.tsv", sep="\t", index=False)
    study = prepare(copy, tmp_path / "out")
    assert study.trials_of("sub-02").query("run == '2'")["stimulus_id"].tolist() == shared["stim_file"].tolist()
    assert study.trials_of("sub-01").query("run == '2'")["stimulus_id"].tolist() == data.table(
        "01", None, "2")["stim_file"].tolist()


def test_tables_that_are_none(tmp_path):
    path = tmp_path / "x_events.tsv"
    path.write_text("onset,duration\n1,2\n")
    with pytest.raises(ValueError, match=r"x_events.tsv: expected columns separated by tabs, as BIDS wants, got"):
        read_table(path)
    path.write_bytes(b"onset\tduration\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"x_events.tsv: expected a table of UTF-8 text, columns separated by tabs"):
        read_table(path)
    path.write_bytes("\ufeffonset\tstim_file \n1\tn/a\n2\t a.png\n".encode())
    table = read_table(path)
    assert list(table) == ["onset", "stim_file"]
    assert table["stim_file"].isna().tolist() == [True, False]
    assert table["stim_file"][1] == "a.png"


def test_folders_that_are_no_dataset(data, tmp_path):
    with pytest.raises(ValueError, match=r"raw: expected the folder of a BIDS dataset, got nothing"):
        BIDS().raw_id(None)
    with pytest.raises(ValueError, match=r"nowhere, which is no folder. Give raw=<folder>; docs/studies/bids.md"):
        BIDS().raw_id(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected folders sub-<label> in it, as BIDS has them, got eeg, .*perhaps "
                                         r".*raw"):
        BIDS().raw_id(data.root / "sub-01")


def test_what_was_left_out_and_not_read_is_listed(copy, tmp_path):
    (copy / "stimuli/extra.png").write_bytes((copy / "stimuli/shapes/p00.png").read_bytes())
    edit(copy, lambda t: t.assign(onset=np.where(t.index == 0, 0.05, t["onset"])), subjects=("01",), runs=("1",))
    study = prepare(copy, tmp_path / "out", subjects=["01"], entities={"run": "1"}, events={"timing": "onset"})
    left_out = pd.read_parquet(tmp_path / "out/left_out.parquet")
    assert left_out[["subject", "run", "onset", "reason"]].values.tolist() == [
        ["sub-01", "1", 0.05, "reaches over an end of the recording"]]
    not_read = pd.read_parquet(tmp_path / "out/not_read.parquet")["path"].tolist()
    lost = left_out["stimulus"][0]  # its only trial
    assert not_read == ["stimuli/extra.png", f"stimuli/{lost}", "sub-01/eeg/sub-01_task-look_run-2_eeg.eeg",
                        "sub-01/eeg/sub-01_task-look_run-2_eeg.vhdr", "sub-01/eeg/sub-01_task-look_run-2_eeg.vmrk",
                        "sub-02/"]
    assert study.notes[0].startswith("9 trials of 9 pictures (6 train, 1 val, 2 test: drawn by stimulus, ")
