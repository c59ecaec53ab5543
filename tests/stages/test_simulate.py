"""Raw files of every study and form from the command, prepared by the study they imitate; the whole chain on each."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from brain2img.data.prepared import PreparedStudy
from brain2img.simulate import NOTE
from brain2img.stages.simulate import simulate

ROOT = Path(__file__).parents[2]
STUDIES = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "configs" / "simulate").glob("*.yaml")}
SMALL = {
    "nsd": ["simulate.source.n_sessions=5", "simulate.source.trials_per_session=60", "simulate.source.n_shared=12",
            "simulate.source.n_voxels=60", "simulate.source.subjects=[1,2]"],
    "things_eeg2": ["simulate.source.n_train=30", "simulate.source.n_val=4", "simulate.source.repetitions.test=2",
                    "simulate.settings.study.repetitions.test=2"],
    "things_meg": ["simulate.source.n_train=30", "simulate.source.n_val=4", "simulate.source.n_subjects=1",
                   "simulate.source.n_sessions=2", "simulate.source.repetitions.test=2",
                   "simulate.settings.study.subjects=[1]", "simulate.settings.study.n_sessions=2"],
    "alljoined": ["simulate.source.n_train=30", "simulate.source.n_val=4", "simulate.source.repetitions.test=2",
                  "simulate.settings.study.n_blocks=3"],
}
FORMS = [(name, form) for name, settings in STUDIES.items() for form in settings["forms"]]


def test_every_study_that_reads_raw_files_by_form_can_be_simulated():
    with_forms = {path.stem for path in (ROOT / "configs" / "study").glob("*.yaml")
                  if "form" in yaml.safe_load(path.read_text())}
    assert with_forms == set(STUDIES) == set(SMALL)
    for name, settings in STUDIES.items():
        assert set(settings["forms"]) == set(import_module(f"brain2img.studies.{name}").FORMS)


def written(composed, caplog, name: str, form: str) -> tuple[Path, list[str]]:
    """Write the raw files; returns the folder, and the command that the stage gives for it, in words."""
    with caplog.at_level("INFO"):
        held_out = "val_fraction=0.2" if name == "nsd" else "n_val_concepts=4"
        raw = simulate(composed("simulate", f"study={name}", f"study.form={form}", *SMALL[name],
                                f"simulate.settings.study.{held_out}"))
    return raw, shlex.split(caplog.messages[-1].splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "form"), FORMS)
def test_the_pipeline_runs_with_the_command_given(composed, caplog, tmp_path, name, form):
    raw, command = written(composed, caplog, name, form)
    assert "nobody was recorded" in (raw / NOTE).read_text()
    small = ["trainer.max_epochs=1", "reconstruct.n_stimuli=4", f"paths.outputs={tmp_path / 'outputs'}"]
    program = str(Path(sys.executable).parent / command[0])
    done = subprocess.run([program, *command[1:], *small], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder,) = (tmp_path / "outputs" / "prepared" / name).iterdir()
    prepared = PreparedStudy(folder)
    assert prepared.manifest["simulated"] is True
    assert {"train", "val", "test"} == set(prepared.trials["split"])
    assert len(prepared.subjects) == len(yaml.safe_load(next(w for w in command if "subjects=" in w).split("=")[1]))
    assert f"{name} (simulated)" in (tmp_path / "outputs" / "scores" / f"demo_{name}" / "report.html").read_text()


def test_what_is_there_is_not_written_over(composed, caplog, tmp_path):
    raw, _ = written(composed, caplog, "nsd", "averaged")
    before = {path.relative_to(raw) for path in raw.rglob("*")}
    with pytest.raises(ValueError, match=r"expected a folder that is not there yet.*overwrite=true"):
        written(composed, caplog, "nsd", "averaged")
    (raw / NOTE).unlink()
    with pytest.raises(ValueError, match=r"expected a folder that is not there yet.*another raw="):
        simulate(composed("simulate", "study=nsd", "study.form=averaged", "overwrite=true"))
    assert {path.relative_to(raw) for path in raw.rglob("*")} == before - {Path(NOTE)}
    assert not list(raw.parent.glob(".*")), "nothing half-written is left"


def test_an_unknown_form_is_refused(composed):
    with pytest.raises(ValueError, match=r"study.form: expected one of \('raw', 'preprocessed'\), got 'fif'"):
        simulate(composed("simulate", "study=things_eeg2", "study.form=fif"))
