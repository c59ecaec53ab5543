"""What is installed can be used, the lock fits ``pyproject.toml``, and a failed installation says what to do."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import namedtuple
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from brain2img import installation

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_library_that_is_installed_for_us_can_be_imported():
    assert installation.broken_libraries() == []


@pytest.mark.parametrize("fault", ["raise OSError('undefined symbol: torch_exception')", "import os\nos.abort()"])
def test_a_broken_library_is_named_with_its_release_and_a_cure(tmp_path, monkeypatch, fault):
    (tmp_path / "torchaudio").mkdir()
    (tmp_path / "torchaudio" / "__init__.py").write_text(fault)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    lines = installation.broken_libraries(only=("torchaudio", "packaging"))
    assert len(lines) == 1
    assert re.match(r"torchaudio 2\.[\d.+a-z]+: expected a library that can be imported, got (OSError undefined symbol|"
                    r"the process ended with code -6).* make install brings back", lines[0])


def test_a_release_outside_the_range_is_named(monkeypatch):
    real = installation.requirements()
    assert real["torch"] == (real["torch"][0], "")
    from importlib import metadata

    ours = metadata.distribution("brain2img").requires
    monkeypatch.setattr(metadata.PathDistribution, "requires", property(
        lambda self: [*ours, "torch<1"] if self.metadata["Name"] == "brain2img" else []))
    assert installation.requirements()["torch"][1] == "<1 was asked for"


def test_the_lock_holds_a_fitting_release_of_everything_asked_for():
    lock = {canonicalize_name(name): release for name, release in
            re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)}
    asked = [Requirement(line) for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
             for line in lines]
    wrong = [str(r) for r in asked if r.name != "brain2img"
             and not r.specifier.contains(lock.get(canonicalize_name(r.name), "0"))]
    assert not wrong, "run make lock"


def test_the_lock_names_no_package_host():
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert "--hash=sha256:" in text


def test_all_extras_are_installed_by_make_install():
    extras = set(PROJECT["optional-dependencies"]) - {"all", "dev", "docs"}
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(everything).extras == extras


def test_what_one_command_needs_is_in_an_extra():
    core = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert not core & {"boto3", "pooch", "requests", "braindecode", "torchaudio", "submitit"}
    assert {"torch", "braindecode", "pooch"} <= set(packages_distributions())  # make install has them all


def test_the_installer_is_understood_by_old_pythons():
    ast.parse((ROOT / "src/brain2img/installation.py").read_text(), feature_version=(3, 6))


def test_an_old_python_is_refused_or_another_taken(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "version_info", namedtuple("V", "major minor micro")(3, 8, 1))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(installation.Refusal, match=r"expected 3\.11 or newer, got 3\.8 .* make install PYTHON="):
        installation.usable_python()
    for name, code in (("python3.13", 1), ("python3.12", 0)):  # the first is a shim that does not run
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    assert installation.usable_python() == str(tmp_path / "python3.12")
    assert "is taken" in capsys.readouterr().out


def test_a_python_without_venv_says_which_package_has_it(monkeypatch, tmp_path):
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho 'The virtual environment was not created successfully because ensurepip is not "
                      "available.'\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(installation.shutil, "which", lambda name: None)
    with pytest.raises(installation.Refusal, match="apt install python3-venv"):
        installation.make_environment(str(tmp_path / "venv"))


def test_a_full_disk_is_noticed_before_anything_is_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda path: namedtuple("U", "free")(1_500_000_000))
    with pytest.raises(installation.Refusal, match=r"expected 8 GB free for .*, got 1\.5 GB.* VENV="):
        installation.make_environment(str(tmp_path / "venv"))


def test_what_an_interrupted_installation_left_is_made_anew(monkeypatch, tmp_path):
    venv = tmp_path / "venv"
    (venv / "lib").mkdir(parents=True)
    (venv / "lib" / "half.py").write_text("")
    with pytest.raises(installation.Refusal, match="a folder with other files"):  # nobody's files are deleted
        installation.make_environment(str(venv))
    assert (venv / "lib" / "half.py").exists()
    (venv / "pyvenv.cfg").write_text("")
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda path: namedtuple("U", "free")(1e12))
    installation.make_environment(str(venv))
    assert not (venv / "lib" / "half.py").exists()
    assert installation.runs(str(venv / "bin" / "python"))


@pytest.mark.parametrize(("said", "message"), [
    ("error: failed to write: No space left on device (os error 28)", "room on the disk.*UV_CACHE_DIR"),
    ("dns error: failed to lookup address information", "to reach a package index.*HTTPS_PROXY"),
    ("ERROR: Could not find a version: Connection refused", "to reach a package index"),
    ("invalid peer certificate: UnknownIssuer", "SSL_CERT_FILE"),
    ("Hash mismatch for `torch==2.15.0`", "files whose hashes the lock holds"),
    ("torch has no wheels with a matching Python ABI tag", "Take another Python"),
    ("something else", "got exit code 3. What it said stands above"),
])
def test_a_failed_command_says_the_likely_cause_and_shows_what_it_said(said, message, capsys):
    with pytest.raises(installation.Refusal, match=rf"uv: expected .*{message}.*make install again"):
        installation.call(["sh", "-c", f"echo '{said}' >&2; exit 3"], what="uv")
    assert said in capsys.readouterr().out


def test_make_says_how_to_name_a_python_that_is_not_there():
    run = subprocess.run(["make", "install", "PYTHON=python9.9"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "expected python9.9 on the PATH, got none" in run.stdout
