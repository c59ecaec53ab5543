"""What commands say to signals that an EEG decoder does not fit: other channels, rate or window, no positions."""

from __future__ import annotations

import json

import pytest

from brain2img.artifacts import keep_contents

STUDY = ["experiment=scenes_eeg/atm", "study.n_subjects=3", "study.n_train=24", "study.n_val=8", "study.n_sessions=1",
         "study.repetitions={train:1,val:1,test:1}", "study.recording.sfreq=125", "data.min_trials=5",
         "data.noise_normalise=false", "data.channels=[O1,Oz,O2,PO7,PO8]", "space=[attributes]",
         "head=[attributes_linear]", "headline.space=attributes", "encoder={bin:2,kernel:6,pool:12,stride:3}",
         "trainer.max_epochs=1", "trainer.batch_size=8", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Return the results folder of this module's tests."""
    return tmp_path_factory.mktemp("shared") / "outputs"


@pytest.fixture
def call(command, shared):
    """Return `command` on the shared results, with ATM trained on two of three subjects."""

    def run(script, *arguments):
        return command(script, *arguments, f"paths.outputs={shared}")

    if not (shared / "train" / "two").exists():
        for script in ("prepare", "embed", "train"):
            code, printed = run(script, *STUDY, "name=two", "data.subjects=[sub-01,sub-02]")
            assert code == 0, printed
    return run


@pytest.fixture
def rewrite(shared):
    """Return a function that changes what the prepared study says of a subject's signals, for one test.

    A study that another version of the code, or of its raw files, prepared again has the same identity.
    """
    path = next((shared / "prepared").rglob("spec.json"), None)
    before = path.read_text() if path else None

    def change(subject, **changes):
        nonlocal path, before
        path = path or next((shared / "prepared").rglob("spec.json"))
        before = before or path.read_text()
        values = json.loads(before)
        signals = values["subjects"][subject]
        signals |= {key: value(signals[key]) for key, value in changes.items()}
        path.write_text(json.dumps(values))
        keep_contents(path.parent)

    yield change
    if path:
        path.write_text(before)
        keep_contents(path.parent)


def swapped(names):
    return [{"O1": "Oz", "Oz": "O1"}.get(name, name) for name in names]


def renamed(names):
    return ["X1" if name == "PO7" else name for name in names]


def refused(result, *parts):
    code, printed = result
    assert code == 1, printed
    assert "Traceback" not in printed, printed
    for part in parts:
        assert part in printed, printed


@pytest.mark.parametrize(("changes", "message"), [
    ({"sfreq": lambda sfreq: 100.0}, "got 100.0 in place of 125.0 samples per second"),
    ({"tmin": lambda tmin: tmin - 0.1}, "samples from "),
    ({"ch_names": renamed}, "channels of subject 'sub-01': expected names of")])
def test_predict_refuses_a_study_that_is_not_as_it_was(call, shared, rewrite, changes, message):
    rewrite("sub-01", **changes)
    refused(call("predict", f"run={shared / 'train' / 'two'}", "name=refused"), message)


def test_predict_asks_for_channels_by_name(call, shared, rewrite):
    """Names choose the right channels of a study in which they stand in another order."""
    rewrite("sub-01", ch_names=swapped)
    code, printed = call("predict", f"run={shared / 'train' / 'two'}", "conditions=[decoded]", "name=named")
    assert code == 0, printed
    # where patterns choose, the order is the study's
    patterns = [o.replace("[O1,Oz,O2,PO7,PO8]", "[O*,PO7]") for o in STUDY]
    code, printed = call("train", *patterns, "name=patterns", "data.subjects=[sub-02]")
    assert code == 0, printed
    rewrite("sub-02", ch_names=swapped)
    refused(call("predict", f"run={shared / 'train' / 'patterns'}"),
            "normalisation of subject 'sub-02': expected the signals it was fitted on, got another order of channels: "
            "Oz in place of O1, .... Prepare the study as it was then")


@pytest.mark.parametrize(("changes", "message"), [
    ({"sfreq": lambda sfreq: 100.0}, "subject 'sub-03': expected the sampling rate and the window that run "),
    ({"tmin": lambda tmin: tmin - 0.1}, "subject 'sub-03': expected the sampling rate and the window that run "),
    ({"ch_names": renamed}, "channels of subject 'sub-03': expected names of")])
def test_adapt_refuses_a_subject_that_was_recorded_otherwise(call, shared, rewrite, changes, message):
    rewrite("sub-03", **changes)
    refused(call("adapt", f"run={shared / 'train' / 'two'}", "subject=sub-03", "name=refused"), message)


def test_adapt_compares_channels_by_name_where_the_adapter_shares_them(call, shared, rewrite):
    patterns = [o.replace("[O1,Oz,O2,PO7,PO8]", "[O*,PO7]") for o in STUDY]
    attention = ["experiment=scenes_eeg/simple_conv", *(o for o in patterns[1:] if not o.startswith("encoder=")),
                 "adapter={n_virtual:4,width:16}", "encoder={channels:4,bin:2,hidden:8,out:8}"]
    for name, options in (("token", patterns), ("attention", attention)):
        code, printed = call("train", *options, f"name={name}", "data.subjects=[sub-01]")
        assert code == 0, printed
    rewrite("sub-03", ch_names=swapped)
    refused(call("adapt", f"run={shared / 'train' / 'token'}", "subject=sub-03", "mode=full", "name=other"),
            "subject 'sub-03': expected the channels of 'sub-01 of the run' in the same order, got others: "
            "[('O1', 'Oz'), ('Oz', 'O1')]. Select the same channels")
    code, printed = call("adapt", f"run={shared / 'train' / 'attention'}", "subject=sub-03", "mode=full", "name=any")
    assert code == 0, printed
    rewrite("sub-03", positions=lambda places: None)
    refused(call("train", *attention, "name=nowhere", "data.subjects=[sub-03]"),
            "SpatialAttention adapter, subject 'sub-03': expected sensor positions, got none. Prepare a study that "
            "states them, or choose adapter=subject_token")


def test_a_run_keeps_its_study_window_and_channels(call, shared):
    run = f"run={shared / 'train' / 'two'}"
    slower = [o.replace("sfreq=125", "sfreq=100") for o in STUDY if o.startswith(("experiment", "study"))]
    refused(call("predict", run, *slower), "expected a run of the study asked for",
            "recording.sfreq: 125 there, 100 asked for")
    for setting in ("data.window=[0,0.5]", "data.channels=[O1,O2]"):
        refused(call("predict", run, setting), "expected its own split and data settings, got overrides of them")


def test_one_subject_cannot_be_left_out_of_one(call):
    refused(call("train", *STUDY, "split.kind=leave_one_subject_out", "data.subjects=[sub-02]", "name=one"),
            "study scenes_eeg: expected two subjects or more for split.kind=leave_one_subject_out, got ['sub-02']. "
            "Choose more with data.subjects=[...]")
