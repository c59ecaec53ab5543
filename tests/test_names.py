from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from omegaconf import OmegaConf

from brain2img.artifacts import (
    ArrayWriter,
    below,
    check_name,
    open_folder,
    read_json,
    read_manifest,
    replace_folder,
    stored_at,
)
from brain2img.artifacts.names import LENGTH
from brain2img.command_line.resolve import Request, adopt_run
from brain2img.stages.runs import FoldRun, RunManifest, run_folder
from brain2img.stages.workspace import folder_of

ASKED = {"stage": "train", "config": {"lr": 0.1}, "inputs": {"prepared": "a"}}
BAD = ["", ".", "..", "../x", "../../x", "/etc/x", "a/../b", "a//b", "a/", "/a", ".hidden", "a/.b", "a b", "a\\b",
       "c:x", "a\n", "é", "con", "LPT1.txt", "a.", "a" * (LENGTH + 1)]


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"name: expected letters \(a-z\), digits, .*, got '.*name=\.\.\. replaces it"):
        check_name(name)
    with pytest.raises(ValueError, match="name: expected letters"):
        below(tmp_path, "predictions", name)


def test_names_are_left_as_they_are():
    for name in ("demo", "demo/fmri_ridge", "nsd_subj01-x/regions/mask_V1.2", "0.5_draw-0", "sub-01", "_x", "-x"):
        assert check_name(name) == name


def test_links_may_not_lead_away(tmp_path):
    root, disk = tmp_path / "outputs", tmp_path / "disk"
    (disk / "root").mkdir(parents=True)
    root.symlink_to(disk / "root")
    assert below(root, "train", "x") == root / "train" / "x"
    (disk / "cache").mkdir()
    (root / "cache").symlink_to(disk / "cache")
    assert below(root, "cache", "s", "clip-0") == root / "cache" / "s" / "clip-0", "a larger disk"
    (root / "train").mkdir()
    (root / "train" / "x").symlink_to(disk / "cache")
    with pytest.raises(ValueError, match=r"outputs: expected a place below .*train, got .*train/x/fold-0, where a link "
                                         r"leads to .*disk/cache/fold-0"):
        below(root, "train", "x", "fold-0")
    with pytest.raises(ValueError, match="run r: expected a place below"):
        stored_at(root, "train/x", of="run r")


def configured(root, **more):
    return OmegaConf.create({"name": "first", "run": None, "paths": {"outputs": str(root)}} | more)


def written_run(root, **facts):
    """Write the folder of a run, whose manifest may say anything."""
    folder = open_folder(root / "train" / "x" / "fold-0_seed-0", stage="train", config={}, inputs={})
    facts = {"paths": {}, **facts}
    folder.finish(name="x", label="x", later={}, study={}, study_name="s", subjects=[], n_fold_runs=1, fold=0, seed=0,
                  split_seed=0, **facts)
    manifest = read_manifest(folder.path)
    (folder.path / "manifest.json").write_text(json.dumps({**manifest, **facts}))
    return FoldRun(folder.path, root)


@pytest.mark.parametrize("name", ["../../victim", "/victim"])
def test_the_name_in_a_manifest_cannot_replace_a_foreign_folder(tmp_path, name):
    root = tmp_path / "outputs"
    name = name if name.startswith("..") else str(tmp_path / "victim")
    run = written_run(root)
    manifest = read_manifest(run.folder)
    (run.folder / "manifest.json").write_text(json.dumps({**manifest, "name": name}))
    cfg = adopt_run(configured(root, name=None, run=str(run.folder.parent), study=None),
                    request=Request("base", (), None, ()))
    assert cfg.name == name
    with pytest.raises(ValueError, match=r"name: expected letters .* that of a run is in its manifest\.json"):
        folder_of(cfg, "predictions", cfg.name)


@pytest.mark.parametrize("path", ["../elsewhere", "/elsewhere", "prepared/../../x", None])
def test_paths_in_a_manifest_stay_below_the_root(tmp_path, path):
    run = written_run(tmp_path, paths={"prepared": path, "caches": {"clip": path}, "learned": {}}, inputs={})
    for read in (lambda: run.prepared, run.caches):
        with pytest.raises(ValueError, match=r"run .*fold-0_seed-0: expected paths relative to .*, got "):
            read()


def test_spaces_of_a_manifest_have_names(tmp_path):
    run = written_run(tmp_path, paths={"prepared": "prepared/s", "caches": {"../../clip": "cache/clip"}, "learned": {}})
    with pytest.raises(ValueError, match=r"run .*: space: expected letters .* got '\.\./\.\./clip'"):
        run.caches()
    with pytest.raises(ValueError, match=r"array: expected letters .* got '\.\./clip'"):
        ArrayWriter(tmp_path, {"../clip": ((1, 1), "float32")})


def test_a_run_is_one_of_these_outputs(tmp_path, monkeypatch):
    disk, root = tmp_path / "disk", tmp_path / "outputs"
    (disk / "train" / "x").mkdir(parents=True)
    root.symlink_to(disk)
    monkeypatch.chdir(tmp_path)
    for typed in (root / "train" / "x", disk / "train" / "x", "outputs/train/x", "outputs/../outputs/train/x"):
        assert run_folder(configured(root, run=str(typed))) == disk / "train" / "x"
    with pytest.raises(ValueError, match=r"run .*other: expected one below .*disk, got one elsewhere .*outputs="):
        run_folder(configured(root, run=str(tmp_path / "other")))


def test_overwriting_moves_a_foreign_folder_aside(tmp_path, caplog):
    path = tmp_path / "run"
    (path / "deep").mkdir(parents=True)
    (path / "deep" / "thesis.tex").write_text("mine")
    (path / "manifest.json").write_text('{"name": "of another program"}')
    folder = open_folder(path, **ASKED, overwrite=True)
    (folder.work / "result.txt").write_text("ours")
    with caplog.at_level(logging.WARNING):
        folder.finish()
    (kept,) = tmp_path.glob("kept_run_*")
    assert (kept / "deep" / "thesis.tex").read_text() == "mine"
    assert f"{path}: was not written by brain2img; it is moved to {kept}" in caplog.text
    assert (path / "result.txt").read_text() == "ours"
    assert sorted(p.name for p in tmp_path.iterdir()) == [kept.name, "run"]


@pytest.mark.parametrize("state", ["finished", "of an older version", "unfinished", "emptied"])
def test_overwriting_moves_files_of_the_user_aside(tmp_path, caplog, state):
    path = tmp_path / "run"
    folder = open_folder(path, **ASKED)
    (folder.work / "deep").mkdir()
    (folder.work / "deep" / "result.txt").write_text("first")
    if state != "unfinished":
        (folder.work / "extra.txt").write_text("of these settings only" * (state == "finished"))
        folder.finish()
        assert sorted(read_json(path / "contents.json")["files"]) == ["deep/result.txt", "extra.txt"]
    else:
        (folder.work / ".big.npy.part").touch()
        folder.release()
    if state == "of an older version":
        manifest = read_manifest(path)
        (path / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if k != "contents"}))
    (path / "deep" / "notes.md").write_text("mine")
    (path / ".DS_Store").touch()
    folder = open_folder(path, **{**ASKED, "config": {"lr": 9}}, overwrite=True)
    if state == "emptied":
        (path / "manifest.json").write_text("")
    (folder.work / "deep").mkdir()
    (folder.work / "deep" / "result.txt").write_text("second")
    with caplog.at_level(logging.WARNING):
        folder.finish()
    (kept,) = tmp_path.glob("kept_run_*")
    assert (kept / "deep" / "notes.md").read_text() == "mine"
    assert (kept / "extra.txt").exists() == (state in ("of an older version", "emptied"))
    assert "deep/notes.md" in caplog.text
    assert str(kept) in caplog.text
    assert sorted(p.name for p in path.rglob("*") if p.is_file()) == [
        "contents.json", "manifest.json", "result.txt"]
    assert (path / "deep" / "result.txt").read_text() == "second"


def test_a_simulated_raw_folder_is_replaced_and_others_kept(tmp_path):
    for name, files in (("raw", ["NOTE", "a.edf", "mine.txt"]), ("new", ["NOTE", "a.edf"])):
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text(name)
    replace_folder(tmp_path / "raw", tmp_path / "new", marks=["NOTE"])
    (kept,) = tmp_path.glob("kept_raw_*")
    assert [p.name for p in kept.iterdir()] == ["mine.txt"]
    assert (tmp_path / "raw" / "a.edf").read_text() == "new"


def test_finished_folders_inside_a_run_are_no_files_of_the_user(tmp_path, caplog):
    folder = open_folder(tmp_path / "run", **ASKED)
    (folder.work / "learned" / "clip").mkdir(parents=True)
    np.save(folder.work / "learned" / "clip" / "embeddings.npy", np.zeros(3))
    (folder.work / "learned" / "clip" / "manifest.json").write_text("{}")
    folder.finish()
    open_folder(tmp_path / "run", **ASKED, overwrite=True).finish()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert "moved" not in caplog.text


def test_a_manifest_that_is_no_runs_is_refused(tmp_path):
    run = written_run(tmp_path)
    assert run.manifest.place == {"fold": 0, "split_seed": 0, "decoder_seed": 0}
    path = run.folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in manifest.items() if key != "subjects"}))
    with pytest.raises(ValueError, match=r"run .*: expected id, stage, .* got none of subjects: it is no run"):
        RunManifest.read(run.folder)
