"""One reader a kind of file: what is wrong with a file, which one it is, and what makes it again."""

from __future__ import annotations

import logging
import os

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from brain2img.artifacts import (
    ArrayWriter,
    open_folder,
    read_array,
    read_arrays,
    read_begun,
    read_json,
    read_manifest,
    read_picture,
    read_table,
    read_tensors,
    write_array,
    write_json,
    write_table,
)
from brain2img.data.sessions import write_sessions
from brain2img.decoders.settings import read_checkpoint

PICTURE = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
READERS = {
    "x.json": (read_json, lambda p: write_json(p, {"a": list(range(50))}), "JSON file"),
    "x.parquet": (read_table, lambda p: write_table(p, pd.DataFrame({"a": range(50)})), "parquet table"),
    "x.npy": (read_array, lambda p: write_array(p, np.arange(50)), ".npy array"),
    "x.npz": (read_arrays, lambda p: np.savez(p, a=np.arange(50)), ".npz file"),
    "x.safetensors": (read_tensors, lambda p: save_file({"a": np.arange(50)}, p), "safetensors file"),
    "x.png": (read_picture, lambda p: Image.fromarray(PICTURE).save(p), "picture"),
    "x.ckpt": (read_checkpoint, lambda p: torch.save({"state_dict": {"a": torch.arange(50)}}, p),
               "(trained model|checkpoint)"),
}
ASKED = {"stage": "train", "config": {"lr": 0.1}, "inputs": {"prepared": "a"}}


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(("damage", "said"), [
    (empty, r"got (an empty one|one that cannot be read) \("),
    (truncated, r"got (a truncated or damaged file of \d+ bytes|one that cannot be read) \("),
    (folder, r"got a folder\. Remove it"), (os.unlink, "got nothing there"),
])
def test_what_is_wrong_with_a_file_is_said(tmp_path, name, damage, said):
    read, write, kind = READERS[name]
    path = tmp_path / "predictions" / "name" / "decoded" / name
    path.parent.mkdir(parents=True)
    write(path)
    read(path)
    damage(path)
    with pytest.raises(ValueError, match=f"{name}: expected a .*{kind}.*, {said}") as error:
        read(path)
    assert str(path) in str(error.value)
    if name != "x.ckpt" or damage in (folder, os.unlink):
        assert "Run the stage predict again with overwrite=true" in str(error.value)


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_this_user_may_not_read(tmp_path, monkeypatch, name):
    read, write, _ = READERS[name]
    write(tmp_path / name)

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(ValueError, match=rf"{name}: .* got 'Permission denied' from the system\. Let this user"):
        read(tmp_path / name)


def test_a_disk_that_fails_is_not_called_a_damaged_file(tmp_path, monkeypatch):
    write_json(tmp_path / "x.json", {})

    def fail(*args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.read_text", fail)
    with pytest.raises(ValueError, match=r"got 'Input/output error' from the system\. Look at the disk"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize(("text", "said"), [
    ("[1]", "expected an object of JSON, got a list"), ("3", "expected an object of JSON, got 3"),
    ("{}", r"expected the keys \['id', 'stage'\], got none of \['id', 'stage'\]"),
    ('{"id": 1}', r"got none of \['stage'\]"),
])
def test_json_of_another_kind(tmp_path, text, said):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=f"x.json: .*{said}"):
        read_json(tmp_path / "x.json", keys=("id", "stage"))
    (tmp_path / "y.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a list of JSON, got an object"):
        read_json(tmp_path / "y.json", kind=list)


def test_missing_columns_and_arrays(tmp_path):
    write_table(tmp_path / "x.parquet", pd.DataFrame({"a": [1]}))
    with pytest.raises(ValueError, match=r"x\.parquet: expected the columns \['a', 'b'\], got none of \['b'\]"):
        read_table(tmp_path / "x.parquet", columns=("a", "b"))
    np.savez(tmp_path / "x.npz", a=1)
    with pytest.raises(ValueError, match=r"x\.npz: expected the arrays \['b'\], got none of \['b'\]"):
        read_arrays(tmp_path / "x.npz", keys=("b",))


def make(path, **changes):
    stage = open_folder(path, **{**ASKED, **changes})
    if not stage.finished:
        (stage.work / "result.txt").write_text("result")
        stage.finish()
    return stage


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"id": "x"}'])
def test_a_damaged_manifest_is_named_and_cured_by_overwrite(tmp_path, text):
    path = tmp_path / "train" / "run"
    make(path)
    (path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json: expected .* Run the stage train again with overwrite=true"):
        make(path)
    if text != '{"id": "x"}':
        with pytest.raises(ValueError, match=r"manifest\.json: expected"):
            read_manifest(path)
    make(path, overwrite=True)
    assert read_manifest(path)["config"] == {"lr": 0.1}
    assert make(path).finished
    assert sorted(p.name for p in path.iterdir()) == ["contents.json", "manifest.json", "result.txt"]


@pytest.mark.parametrize("text", ["", '{"id": "', "[]"])
def test_damaged_notes_of_what_was_begun_begin_it_anew(tmp_path, caplog, text):
    path = tmp_path / "run"
    begun = open_folder(path, **ASKED)
    (begun.work / "half.txt").write_text("half")
    (path / "started.json").write_text(text)
    del begun
    again = make(path)
    assert again.finished
    assert "started.json: expected" in caplog.text
    assert "What was begun there is begun anew" in caplog.text
    assert sorted(p.name for p in path.iterdir()) == ["contents.json", "manifest.json", "result.txt"]


def test_damaged_progress_of_an_array_begins_it_anew(tmp_path, caplog):
    layout = {"x": ((6, 2), "float32")}
    ArrayWriter(tmp_path, layout).write({"x": np.ones((4, 2))})
    assert ArrayWriter(tmp_path, layout).done == 4
    (tmp_path / "rows_done.json").write_text('{"layout"')
    writer = ArrayWriter(tmp_path, layout)
    assert writer.done == 0
    assert "rows_done.json: expected a whole JSON file" in caplog.text
    writer.write({"x": np.full((6, 2), 2.0)})
    writer.close()
    np.testing.assert_array_equal(read_array(tmp_path / "x.npy"), np.full((6, 2), 2.0))


def test_damaged_progress_of_sessions_begins_them_anew(tmp_path, caplog):
    def write(value, broken=False):
        def second():
            if broken:
                raise KeyboardInterrupt
            yield np.full((1, 1, 1), value)

        write_sessions(tmp_path / "s.npy", shape=(2, 1, 1), names=["a", "b"], counts=[1, 1], identity="i", what="s",
                       sessions=[lambda: iter([np.full((1, 1, 1), value)]), second])

    with pytest.raises(KeyboardInterrupt):
        write(1.0, broken=True)
    (tmp_path / ".s.npy.sessions.json").write_text("")
    write(2.0)
    np.testing.assert_array_equal(read_array(tmp_path / "s.npy").ravel(), [2.0, 2.0])
    assert "sessions.json: expected a whole JSON file, got an empty one" in caplog.text


def test_a_note_that_is_not_there_is_no_warning(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    assert read_begun(tmp_path / "x.json") is None
    assert caplog.text == ""


def test_the_command_that_made_a_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["brain2img train", "name=my run"])
    make(tmp_path / "run")
    with pytest.raises(ValueError, match=r"Run the stage train again with overwrite=true \(it was made by: "
                                         r"brain2img train 'name=my run'\)\."):
        read_json(tmp_path / "run" / "gone.json")
