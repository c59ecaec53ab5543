"""What `check` says of a study: what is understood, missing and wrong, and the command that follows."""

from __future__ import annotations

import shlex
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brain2img.data.inspection import inspect
from brain2img.data.prepared import PreparedStudy
from brain2img.simulate.own_study import write_own_study
from brain2img.stages.check import run_name, whole_chain
from brain2img.studies.arrays import Arrays

SETTINGS = ["study.modality=eeg", "study.units=uV", "study.sfreq=100", "study.tmin=-0.2"]
N_STIMULI, N_REPETITIONS = 12, 10


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """Write the example of a person's own study once."""
    folder = tmp_path_factory.mktemp("example")
    write_own_study(folder, n_subjects=1)
    return folder


@pytest.fixture
def raw(example, tmp_path):
    return shutil.copytree(example, tmp_path / "mine")


def prepared(raw, out, **changes) -> PreparedStudy:
    out.mkdir()
    Arrays(**({"modality": "eeg", "units": "uV", "sfreq": 100.0, "tmin": -0.2} | changes)).prepare(raw, out)
    return PreparedStudy(out, finished=False)


def looked(raw, out, **changes):
    return inspect(prepared(raw, out, **changes))


def spoiled(raw, change) -> None:
    """Change the signals of the example."""
    path = next(raw.glob("signals_*.npy"))
    x = np.load(path)
    np.save(path, change(x))


def test_the_command_says_what_it_understood_and_prints_the_whole_chain(raw, command, tmp_path):
    code, printed = command("check", "study=arrays", f"raw={raw}", *SETTINGS)
    assert code == 0, printed
    assert ("sub-01: 120 trials of 12 stimuli, each shown 10 times, in 2 sessions; 32 channels, 100 samples at 100 Hz, "
            "from -200 to 790 ms after onset; in V.") in printed
    assert "12 stimuli of 12 concepts and 5 categories, all with captions; pictures are read as 64 x 64" in printed
    assert "12 different stimuli are few" in printed
    assert "top-1 by chance is 8.33 %, two-way 50 %" in printed
    assert "The small backbones of the demo know drawn scenes only" in printed
    assert "space=[clip_vit_h14]" in printed
    last = shlex.split(printed.rsplit("up to the report:\n", 1)[1])
    assert last[:3] == ["brain2img", "pipeline", "experiment=own_data"]
    assert {"study=arrays", f"raw={raw}", *SETTINGS, "name=mine", "data.window=[0,0.79]",
            "split.kind=leave_one_stimulus_out", "trainer.batch_size=16"} <= set(last)
    page = (tmp_path / "outputs" / "check" / "mine" / "check.html").read_text()
    assert page.count("<img src=\"data:image/") == 3, "counts, stimuli, evoked response; nothing outside the page"
    assert "What is missing" not in page
    assert Image.open(tmp_path / "outputs" / "check" / "mine" / "check.png").size[0] > 1000


def test_what_cannot_be_prepared_ends_with_what_to_type(raw, command):
    code, printed = command("check", "study=arrays", f"raw={raw}")
    assert (code, printed.count("\n")) == (1, 1)
    assert "Type study.modality=eeg" in printed


def test_an_example_is_written_with_its_own_words_and_not_twice(command, tmp_path):
    code, printed = command("new_study", f"raw={tmp_path / 'new'}", "modality=fmri", "n_subjects=1",
                            "n_stimuli=3", "n_repetitions=2")
    assert code == 0, printed
    settings = shlex.split(printed.strip().rsplit("\n", 1)[1])
    assert settings[:4] == ["brain2img", "check", "study=arrays", f"raw={tmp_path / 'new'}"]
    readme = (tmp_path / "new" / "README.txt").read_text()
    for name in ("signals_<subject>.npy", "trials.csv", "stimuli/", "channels", "study=arrays"):
        assert name in readme
    assert len(pd.read_csv(tmp_path / "new" / "trials.csv")) == 6
    assert command("new_study", f"raw={tmp_path / 'new'}")[0] == 1


# ---- what looks wrong


def test_nothing_is_said_of_signals_that_are_as_they_should_be(raw, tmp_path):
    assert [line for line in looked(raw, tmp_path / "out").wrong if "few" not in line] == []


def repeated(x):
    x[7] = x[3]
    return x


def flat(x):
    x[:, 4] = 0
    return x


def loud(x):
    x[:, 2] *= 100
    return x


def artefact(x):
    x[11] *= 100
    return x


@pytest.mark.parametrize(("change", "settings", "message"), [
    (repeated, {}, "1 trials hold the same signals as another (first: rows 3 and 7)"),
    (flat, {}, "1 channels never change: "), (loud, {}, "1 channels are more than 8 times as strong"),
    (artefact, {}, "1 trials reach more than 10 times the usual peak"),
    (lambda x: x + 1000, {}, "the mean before onset is"),
    (lambda x: 100 * x, {}, "usual are 2e-07 to 0.0003 V. Is the unit right?"),
    (lambda x: np.moveaxis(x, 1, 2).copy(), {"axes": ["trials", "channels", "samples"], "channels": False},
     "Are the two axes exchanged?")])
def test_signals_that_look_wrong_are_told(raw, tmp_path, change, settings, message):
    spoiled(raw, change)
    if settings.pop("channels", None) is False:
        (raw / "channels.csv").unlink()
    assert any(message in line for line in looked(raw, tmp_path / "out", **settings).wrong)


def table(raw, change) -> None:
    trials = pd.read_csv(raw / "trials.csv", dtype=str)
    change(trials).to_csv(raw / "trials.csv", index=False)


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.assign(onset=t["onset"].astype(float) / 5), "one onset to the next takes 0.3 s, less than the 1 s"),
    (lambda t: t.assign(onset=t["onset"].astype(float).to_numpy()[::-1]), "onsets are not after the one before"),
    (lambda t: t.assign(stimulus_id=[t["stimulus_id"][0]] * 60 + t["stimulus_id"][60:].tolist()),
     "stimuli were shown 65 times, others 5")])
def test_trials_that_look_wrong_are_told(raw, tmp_path, change, message):
    table(raw, lambda t: change(t).drop(columns="repetition"))
    assert any(message in line for line in looked(raw, tmp_path / "out").wrong)


def test_what_is_missing_is_told_with_what_it_costs(raw, tmp_path):
    table(raw, lambda t: t[["subject", "stimulus_id"]])
    for name in ("channels.csv", "stimuli.csv"):
        (raw / name).unlink()
    missing = " ".join(looked(raw, tmp_path / "out").missing)
    for words in ("no sessions", "no onsets", "no names of channels", "No concepts", "No categories", "No captions"):
        assert words in missing


def test_one_picture_under_two_names_and_pictures_that_are_not_square_are_told(raw, tmp_path):
    files = sorted((raw / "stimuli").glob("*.png"))
    shutil.copyfile(files[0], files[5])
    wrong = looked(raw, tmp_path / "out").wrong
    assert any(f"1 pictures are there under two names ({files[0].stem!r} is {files[5].stem!r})" in w for w in wrong)
    for number, file in enumerate(files):
        Image.new("RGB", (20, 30), (number, 0, 0)).save(file)
    wrong = " ".join(looked(raw, tmp_path / "wide").wrong)
    assert "20 x 30 pixels, not square" in wrong
    assert "are small" in wrong
    assert "12 pictures are of one colour" in wrong


# ---- the command


def words(study, *given) -> set[str]:
    return set(whole_chain(study, inspect(study), given=["study=arrays", "raw=/data/My study", *given]))


def test_the_command_leaves_out_constant_channels_and_keeps_what_was_typed(raw, tmp_path):
    spoiled(raw, flat)
    found = words(prepared(raw, tmp_path / "out"), "split.kind=study", "trainer.max_epochs=3", "name=mine")
    assert any(word.startswith("'data.exclude_channels=[") for word in found)
    assert {"split.kind=study", "trainer.max_epochs=3", "name=mine", "'raw=/data/My study'"} <= found
    assert not any(word.startswith(("split.kind=leave", "trainer.max_epochs=2")) for word in found)


@pytest.mark.parametrize(("n", "expected"), [(30, "split.kind=leave_one_stimulus_out"), (60, "split.n_folds=6"),
                                             (61, None)])
def test_few_stimuli_are_decoded_in_turns(toy, n, expected):
    study = toy().study
    study.trials = study.trials.assign(stimulus_id=[f"s{i % n}" for i in range(len(study.trials))])
    found = {word for word in whole_chain(study, inspect_nothing(study), given=[]) if word.startswith("split")}
    assert (expected in found) if expected else not found


def inspect_nothing(study):
    from brain2img.data.inspection import Inspection

    return Inspection()


@pytest.mark.parametrize(("rate", "n_times", "expected"), [
    (250.0, 250, set()), (100.0, 100, {"++encoder.bin=2"}), (1000.0, 1000, {"++encoder.bin=16"}),
    (50.0, 12, {"++encoder.bin=1", "++encoder.kernel=2", "++encoder.pool=4", "++encoder.stride=1",
                "++encoder.n_heads=4"})])
def test_kernels_fit_the_window_and_the_rate(raw, tmp_path, rate, n_times, expected):
    spoiled(raw, lambda x: np.resize(x, (len(x), 8, n_times)))
    (raw / "channels.csv").unlink()
    study = prepared(raw, tmp_path / "out", sfreq=rate, tmin=0.0)
    assert {word for word in words(study) if "encoder" in word} == expected


def test_names_of_results(toy):
    study = toy().study
    study.name = "arrays"
    assert run_name(study, given=["study=arrays", "raw=/data/My study (2)"]) == "My_study_2_"
    assert run_name(study, given=["study=arrays", "raw=/data/x", "name=first"]) == "first"
    study.name = "faces"
    assert run_name(study, given=["study=arrays", "raw=/data/x", "study.name=faces"]) == "faces"
