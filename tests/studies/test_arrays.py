"""A person's own study as arrays and tables: what people's files look like is read rightly, or refused with a cure."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from brain2img.data.prepared import PreparedStudy
from brain2img.studies.arrays import Arrays
from brain2img.studies.arrays_files import open_signals

STIMULI = ["001", "002", "003", "007", "010", "x"]
SETTINGS = {"modality": "eeg", "units": "uV", "sfreq": 100.0, "tmin": -0.05}
N_TRIALS, N_CHANNELS, N_TIMES = 18, 5, 20


@pytest.fixture
def raw(tmp_path):
    """Write a small study of one subject, every stimulus shown three times, and return its folder."""
    folder = tmp_path / "raw"
    (folder / "stimuli").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in STIMULI:
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(folder / "stimuli" / f"{name}.png")
    np.save(folder / "signals_01.npy", signals())
    trials(folder)
    return folder


def signals(seed: int = 0) -> np.ndarray:
    """Return signals (uV) of the amplitude that EEG has."""
    return (20 * np.random.default_rng(seed).standard_normal((N_TRIALS, N_CHANNELS, N_TIMES))).astype(np.float32)


def trials(folder, text: str | None = None, **columns) -> None:
    """Write trials.csv: every stimulus in turn, with more columns."""
    table = pd.DataFrame({"subject": "01", "stimulus_id": STIMULI * 3, **columns})
    (folder / "trials.csv").write_text(table.to_csv(index=False) if text is None else text)


def prepared(raw, out, **changes) -> PreparedStudy:
    out.mkdir()
    Arrays(**(SETTINGS | changes)).prepare(raw, out)
    return PreparedStudy(out, finished=False)


def refused(raw, tmp_path, match: str, **changes) -> None:
    (tmp_path / "refused").mkdir(parents=True, exist_ok=True)
    with pytest.raises(ValueError, match=match):
        Arrays(**(SETTINGS | changes)).prepare(raw, tmp_path / "refused")


def test_signals_trials_and_pictures_are_what_the_files_say(raw, tmp_path):
    study = prepared(raw, tmp_path / "out")
    np.testing.assert_allclose(study.signals("01"), 1e-6 * signals(), rtol=1e-6)
    spec = study.specs["01"]
    assert (spec.units, spec.sfreq, spec.tmin, spec.n_channels) == ("V", 100.0, -0.05, N_CHANNELS)
    assert study.trials["stimulus_id"].tolist() == STIMULI * 3
    assert study.trials["repetition"].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    picture = np.asarray(Image.open(raw / "stimuli" / "007.png"))
    np.testing.assert_array_equal(study.stimuli_of(["007"]).images()[0], picture)
    assert study.trials.groupby("split")["stimulus_id"].nunique().to_dict() == {"test": 1, "train": 4, "val": 1}
    assert "held out at random: 1 for test, 1 for validation, 4 are left" in study.notes[-1]


@pytest.mark.parametrize(("changes", "message"), [
    ({"modality": None}, "modality: expected one of fmri, eeg, meg, .* got nothing. Type study.modality=eeg"),
    ({"units": None}, "units: expected what the numbers are, .* Type study.units=uV"),
    ({"sfreq": None}, r"sampling rate .* Type study.sfreq=<samples per second>\."),
    ({"sfreq": None, "tmin": None}, "Type study.sfreq=<samples per second> study.tmin=<time of the first sample"),
    ({"axes": ["trials", "time"]}, r"study.axes: expected \['trials', 'channels', 'samples'\]"),
    ({"units": "V"}, "standard deviations of channels between 1e-08 and 0.01 V, got 19.8 V with study.units=V"),
    ({"units": "fT"}, "study.units=fT")])
def test_what_files_cannot_say_has_to_be_typed(raw, tmp_path, changes, message):
    if changes.get("units") == "fT":
        np.save(raw / "signals_01.npy", 1e-12 * signals())
    refused(raw, tmp_path, message, **changes)


# ---- arrays


@pytest.mark.parametrize("form", ["npy", "fortran", "MAT", "mat73", "h5"])
@pytest.mark.parametrize("turned", [False, True])
def test_every_kind_of_file_gives_the_same_signals(raw, tmp_path, form, turned):
    x = np.moveaxis(signals(), 0, 2).copy() if turned else signals()
    (raw / "signals_01.npy").unlink()
    if form in ("npy", "fortran"):
        np.save(raw / "signals_01.npy", x if form == "npy" else np.asfortranarray(x))
    elif form == "MAT":
        savemat(raw / "signals_01.MAT", {"data": x, "fs": 100.0}, appendmat=False)
    elif form == "mat73":  # MATLAB turns the axes round
        with h5py.File(raw / "signals_01.mat", "w", userblock_size=512) as file:
            file.create_dataset("data", data=x.T).attrs["MATLAB_class"] = np.bytes_("double")
            file["fs"] = [[100.0]]
        with (raw / "signals_01.mat").open("r+b") as file:
            file.write(b"MATLAB 7.3 MAT-file")
    else:
        with h5py.File(raw / "signals_01.h5", "w") as file:
            file["group/eeg"] = x
    study = prepared(raw, tmp_path / "out", axes=["channels", "samples", "trials"] if turned else None)
    np.testing.assert_allclose(study.signals("01"), 1e-6 * signals(), rtol=1e-6)


def test_one_of_several_variables_is_named(raw, tmp_path):
    (raw / "signals_01.npy").unlink()
    savemat(raw / "signals_01.mat", {"eeg": signals(), "noise": signals(1)})
    refused(raw, tmp_path, r"expected one array, got eeg \(18, 5, 20\), noise .*study.variable=<name>")
    study = prepared(raw, tmp_path / "other", variable="noise")
    np.testing.assert_allclose(study.signals("01"), 1e-6 * signals(1), rtol=1e-6)


def test_axes_turned_round_are_noticed(raw, tmp_path):
    np.save(raw / "signals_01.npy", np.moveaxis(signals(), 0, 1))
    refused(raw, tmp_path, r"signals_01.npy: 5 trials x 18 channels x 20 samples: expected 18 trials, .* got 5. The "
                           r"axis of channels has 18: .* study.axes=\[channels,trials,samples\]")


def test_samples_before_channels_are_noticed_with_a_table_of_channels_and_without(raw, tmp_path):
    np.save(raw / "signals_01.npy", np.moveaxis(signals(), 1, 2))
    refused(raw, tmp_path, r"expected more samples than channels, .* study.axes=\[trials,samples,channels\]")
    (raw / "channels.csv").write_text("name\n" + "\n".join(f"C{i}" for i in range(N_CHANNELS)))
    refused(raw, tmp_path, r"expected 5 channels, the lines of channels.csv, got 20. The axis of samples has 5: .*"
                           r"study.axes=\[trials,samples,channels\]")
    study = prepared(raw, tmp_path / "right", axes=["trials", "samples", "channels"])
    np.testing.assert_allclose(study.signals("01"), 1e-6 * signals(), rtol=1e-6)


@pytest.mark.parametrize(("array", "message"), [
    (np.zeros((18, 2, 2, 2)), r"expected trials x channels.* got 4 axes \(18, 2, 2, 2\)"),
    (np.array([{}] * 18), "an array and no list of arrays"),
    (np.zeros((18, 5), dtype=complex), "expected real numbers, got an array of complex128"),
    (np.zeros((0, 5, 20)), "got an empty array")])
def test_arrays_that_are_no_signals_are_refused(raw, tmp_path, array, message):
    np.save(raw / "signals_01.npy", array, allow_pickle=True)
    refused(raw, tmp_path, message)


def test_a_damaged_array_is_named(raw, tmp_path):
    for name, content in (("npy", b"\x93NUMPY"), ("mat", b"MATLAB 5.0 MAT-file" + b" " * 200), ("h5", b"\x89HDF\r\n")):
        for path in raw.glob("signals_*"):
            path.unlink()
        (raw / f"signals_01.{name}").write_bytes(content)
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=rf"signals_01.{name}: expected a whole .* cannot be read"):
            Arrays(**SETTINGS).prepare(raw, tmp_path / "out")


def test_what_is_not_finite_is_named_by_trial_and_channel(raw, tmp_path):
    x = signals()
    x[4, 3, 7] = np.nan
    np.save(raw / "signals_01.npy", x)
    refused(raw, tmp_path, "got NaN or infinity, first in trial 4, channel 3 .* a column 'row'")
    trials(raw, "stimulus_id,row\n" + "\n".join(f"{STIMULI[i % 6]},{i}" for i in range(N_TRIALS) if i != 4))
    study = prepared(raw, tmp_path / "without")
    np.testing.assert_allclose(study.signals("01"), 1e-6 * np.delete(signals(), 4, axis=0), rtol=1e-6)
    assert any("1 of 18 trials are in no line of the table and left out" in note for note in study.notes)


def test_voxels_that_never_change_are_left_out_and_channels_are_said(raw, tmp_path):
    betas = signals()[:, :, 0]
    betas[:, 2] = 7
    np.save(raw / "signals_01.npy", betas)
    (raw / "channels.csv").write_text("roi,i,j,k\nV1,0,0,0\nV1,0,0,1\nV2,0,1,0\nV3,0,1,1\n,1,0,0\n")
    study = prepared(raw, tmp_path / "out", modality="fmri", units="psc", sfreq=None, tmin=None)
    spec = study.specs["01"]
    assert spec.rois == ("V1", "V1", "V3", "")
    assert spec.ijk.tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 0, 0]]
    assert (spec.units, spec.n_times, spec.sfreq) == ("percent signal change", 1, None)
    assert "1 voxels that never change are left out" in spec.filtered
    np.testing.assert_allclose(study.signals("01")[:, :, 0], np.delete(betas, 2, axis=1), rtol=1e-6)
    eeg = signals()
    eeg[:, 2] = 0
    np.save(raw / "signals_01.npy", eeg)
    (raw / "channels.csv").unlink()
    study = prepared(raw, tmp_path / "eeg")
    assert study.specs["01"].n_channels == N_CHANNELS
    assert any("1 channels never change (channel 2)" in note for note in study.notes)


def test_large_arrays_are_read_in_blocks(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("brain2img.studies.arrays_files._BLOCK_BYTES", 8 * 4 * N_CHANNELS * N_TIMES)
    order = np.random.default_rng(1).permutation(N_TRIALS)
    trials(raw, "stimulus_id,row\n" + "\n".join(f"{STIMULI[i % 6]},{row}" for i, row in enumerate(order)))
    file = open_signals(raw / "signals_01.npy", variable=None, axes=None)
    blocks = list(file.blocks(order, np.arange(N_CHANNELS), factor=1.0))
    assert [len(block) for block in blocks] == [4, 4, 4, 4, 2]
    np.testing.assert_allclose(prepared(raw, tmp_path / "out").signals("01"), 1e-6 * signals()[order], rtol=1e-6)


# ---- trials


def excel(text: str) -> bytes:
    return b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()


@pytest.mark.parametrize("encode", [
    lambda text: excel("sep=;\n" + text.replace(",", ";").replace(".", ",")),
    lambda text: excel(text.replace(",", ";")),
    lambda text: text.replace(",", "\t").encode("utf-16"), lambda text: text.replace(",", " , ").encode(),
    lambda text: text.replace("\n", ",,\n").encode(), lambda text: text.upper().replace("X", "x").encode()],
    ids=["german excel", "excel", "utf-16", "spaces", "empty columns", "capitals"])
def test_tables_as_spreadsheets_write_them(raw, tmp_path, encode):
    text = "subject,stimulus_id,onset\n" + "\n".join(f"01,{s},{0.5 * i}" for i, s in enumerate(STIMULI * 3)) + "\n"
    (raw / "trials.csv").write_bytes(encode(text))
    study = prepared(raw, tmp_path / "out")
    assert study.trials["stimulus_id"].tolist() == STIMULI * 3
    assert study.trials["onset"].tolist() == [0.5 * i for i in range(N_TRIALS)]


def test_a_table_of_parquet_keeps_its_names(raw, tmp_path):
    (raw / "trials.csv").unlink()
    pd.DataFrame({"stimulus_id": STIMULI * 3, "run": [1.0] * 17 + [None]}).to_parquet(raw / "trials.parquet")
    study = prepared(raw, tmp_path / "out")
    assert study.trials["stimulus_id"].tolist() == STIMULI * 3
    assert study.trials["run"].fillna("none").tolist() == ["1"] * 17 + ["none"]


@pytest.mark.parametrize(("table", "message"), [
    ("stimulus_id,session\n" + "1,1\n" * 18, r"'1'\). '001' is there: leading zeros or capitals were lost"),
    ("stimulus_id\n" + "7.0\n" * 18, "'007' is there: leading zeros"),
    ("stimulus_id\n" + "007.png\n" * 18, "'007' is there: write names without the ending"),
    ("stimulus_id\n" + "07-Mar\n" * 18, "It looks like a date: a spreadsheet"),
    ("stimulus_id\n" + "2024-03-07 00:00:00\n" * 18, "It looks like a date: a spreadsheet"),
    ("stimulus_id\n" + "1,00E+05\n" * 18, "expected 1 values in every line, as the first has, got 2 in line 2"),
    ("stimulus_id;a\n" + "1,00E+05;\n" * 18, "A spreadsheet shortened it"),
    ("subject,stimulus_id\n" + "1,001\n" * 18, "got '1'. '01' is there: leading zeros"),
    ("subject,stimulus_id\n" + "01,001\n" * 17, "expected 17 trials, the lines of this subject .* got 18"),
    ("subject,picture\n" + "01,001\n" * 18, "expected the column stimulus_id, got subject, picture"),
    ("stimulus_id\n", "expected lines below the names of the columns, got none"),
    ("stimulus_id,run\n" + ",1\n" * 18, r"expected a value of 'stimulus_id' in every line, got 18 empty .* line 2"),
    ("stimulus_id,onset\n" + "001,1 s\n" * 18, "numbers in the column 'onset', got '1 s' in line 2"),
    ("stimulus_id,row\n" + "001,3\n002,3\n", "got 1 lines again .*row 3, line 3"),
    ("stimulus_id,row\n" + "001,1\n002,18\n", "expected rows 0 to 17 .* got 1 to 18"),
    ("stimulus_id,session,run,onset\n" + "001,1,1,0.5\n" * 18, "got 17 lines again .*onset 0.5, line 3"),
    ("stimulus_id,repetition\n" + "001,0\n" * 18, "got 17 lines again"),
    ("stimulus_id,split\n" + "001,train\n" * 9 + "002,eval\n" * 9, "expected train, val, test .* got 'eval'"),
    ("stimulus_id,split\n" + "001,train\n" * 9 + "001,test\n" * 9, "in several .*'001' in test and train"),
    ("stimulus_id,Stimulus_ID\n" + "001,001\n" * 18, r"expected every column once, got \['stimulus_id'\] twice")])
def test_tables_that_cannot_be_right_say_why(raw, tmp_path, table, message):
    trials(raw, table)
    refused(raw, tmp_path, message)


def test_the_split_of_the_table_is_kept(raw, tmp_path):
    split = ["Training", "train", "TEST", "validation", "test", "train"]
    trials(raw, split=split * 3)
    study = prepared(raw, tmp_path / "out")
    assert study.trials["split"].tolist() == ["train", "train", "test", "val", "test", "train"] * 3


def test_files_and_table_have_the_same_subjects(raw, tmp_path):
    np.save(raw / "signals_02.npy", signals())
    refused(raw, tmp_path, r"expected trials of every file of signals, got none of subject '02'")
    (raw / "SIGNALS_02.NPY").write_bytes((raw / "signals_02.npy").read_bytes())
    refused(raw, tmp_path, "expected one file of signals of subject '02'")


def test_a_folder_without_signals_says_what_is_there(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "eeg.npy").touch()
    refused(tmp_path / "a", tmp_path, r"expected signals_<subject>.npy \(or .mat, .h5\), got eeg.npy")
    with pytest.raises(ValueError, match=r"got nothing. Give raw=<folder>; brain2img new_study"):
        Arrays(**SETTINGS).raw_id(None)


# ---- stimuli and channels


def test_pictures_that_are_missing_or_too_many_are_said(raw, tmp_path):
    (raw / "stimuli" / "._001.png").write_bytes(b"\0")
    (raw / "stimuli" / "Thumbs.db").write_bytes(b"\0")
    Image.new("RGB", (16, 16)).save(raw / "stimuli" / "more.PNG")
    study = prepared(raw, tmp_path / "out")
    assert "stimuli/: 1 pictures are in no trial and left out." in study.notes
    (raw / "stimuli" / "x.png").unlink()
    refused(raw, tmp_path / "out", r"expected pictures of the 6 stimuli of trials.csv, got none for 1 of them \('x'\)")


def test_pictures_of_several_sizes_need_one(raw, tmp_path):
    Image.new("RGB", (40, 20), "red").save(raw / "stimuli" / "x.png")
    refused(raw, tmp_path, "expected pictures of one size, got 2 sizes .*study.image_size=<pixels>")
    study = prepared(raw, tmp_path / "sized", image_size=16)
    assert study.stimuli_of(["x"]).images().shape == (1, 16, 16, 3)
    Image.new("RGB", (16, 16)).save(raw / "stimuli" / "x.jpg")
    refused(raw, tmp_path / "sized", "expected one picture of stimulus 'x', got x.jpg and x.png", image_size=16)


def test_a_table_of_stimuli_names_files_captions_and_classes(raw, tmp_path):
    lines = "\n".join(f"{s};{s}.png;a thing|thing {s};{'a' if s < '005' else 'b'}" for s in [*STIMULI, "extra"])
    (raw / "stimuli.csv").write_text(f"stimulus_id;file;captions;class\n{lines}\n")
    study = prepared(raw, tmp_path / "out")
    table = study.stimulus_table.set_index("stimulus_id")
    assert table.loc["007", "captions"] == ["a thing", "thing 007"]
    assert table["concept"].to_dict() == {s: "a" if s < "005" else "b" for s in STIMULI}
    assert "stimuli.csv: 1 stimuli are in no trial and left out." in study.notes
    (raw / "stimuli.csv").write_text(f"stimulus_id;file;captions;class\n{lines}\n007;007.png;;a\n")
    refused(raw, tmp_path / "out", "expected every stimulus_id once, got '007' again in line 9")


def test_channels_have_names_places_and_types_and_others_are_left_out(raw, tmp_path):
    lines = [f"C{i},{'EOG' if i == 1 else 'eeg'},0.0{i},0,0.1" for i in range(N_CHANNELS)]
    (raw / "channels.tsv").write_text("name,type,x,y,z\n".replace(",", "\t") + "\n".join(lines).replace(",", "\t"))
    study = prepared(raw, tmp_path / "out")
    spec = study.specs["01"]
    assert spec.ch_names == ("C0", "C2", "C3", "C4")
    np.testing.assert_allclose(spec.positions[:, 0], [0.0, 0.02, 0.03, 0.04])
    np.testing.assert_allclose(study.signals("01"), 1e-6 * np.delete(signals(), 1, axis=1), rtol=1e-6)
    (raw / "channels.tsv").write_text("name\tx\ty\tz\n" + "\n".join(f"C{i}\t{i}0\t0\t98" for i in range(N_CHANNELS)))
    refused(raw, tmp_path / "out", "expected positions in metres, got up to 98 .* Divide millimetres by 1000")
    (raw / "channels.tsv").write_text("name\n" + "C\n" * N_CHANNELS)
    refused(raw, tmp_path / "new", "expected every channel once, got 'C' 5 times")


def test_raw_identity_follows_the_content_and_not_the_place(raw, tmp_path, repair):
    study, known = Arrays(**SETTINGS), Arrays(**SETTINGS).raw_id(raw)
    moved = raw.rename(tmp_path / "elsewhere")
    assert study.raw_id(moved) == known
    changed = signals()
    changed[3, 2, 1] += 1
    np.save(moved / "signals_01.npy", changed)
    signal = study.raw_id(moved)
    repair(next(moved.glob("stimuli/*.png")))
    assert len({known, signal, study.raw_id(moved)}) == 3
