"""What a finished folder keeps of its files, and what is compared when they are read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest

import brain2img.artifacts.content as content
from brain2img.artifacts import (
    EmbeddingCache,
    StoredRows,
    check_content,
    compare_on_opening,
    keep_contents,
    open_folder,
    read_array,
    read_manifest,
    write_array,
    write_json,
    write_table,
)
from brain2img.records import EmbeddingSpec


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Return a finished folder with 100 rows of 64 bytes, hashed by ten rows (and the header with the first)."""
    monkeypatch.setattr(content, "CHUNK", 640)
    folder = open_folder(tmp_path / "outputs" / "run", stage="prepare", config={}, inputs={})
    write_array(folder.work / "x.npy", np.arange(1600, dtype="float32").reshape(100, 16))
    (folder.work / "deep").mkdir()
    write_json(folder.work / "deep" / "y.json", [1, 2])
    (folder.work / ".hidden").write_text("temporary")
    folder.finish()
    return folder.path


def change(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def test_every_file_is_kept_by_parts_and_the_manifest_keeps_them(finished):
    kept = json.loads((finished / "contents.json").read_text())
    assert sorted(kept["files"]) == ["deep/y.json", "x.npy"]
    size, *digests = kept["files"]["x.npy"].split()
    assert int(size) == (finished / "x.npy").stat().st_size == 6528
    assert len(digests) == 11
    data = (finished / "x.npy").read_bytes()
    assert digests[3] == hashlib.sha256(data[3 * 640:4 * 640]).hexdigest()[:16]
    assert read_manifest(finished)["contents"] == hashlib.sha256(
        (finished / "contents.json").read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize("place", [0, 127, 128, 640, 3000, 6527])
def test_any_changed_byte_of_a_mapped_array_is_found_and_the_place_named(finished, place):
    check_content(finished / "x.npy")
    change(finished / "x.npy", place)
    start = place // 640 * 640
    with pytest.raises(ValueError, match=rf"x\.npy: .* got other bytes between {start} and {min(start + 640, 6528)} of "
                                         "6528: .* Run the stage prepare again"):
        read_array(finished / "x.npy")


def test_stored_rows_are_compared_where_they_are_read(finished):
    change(finished / "x.npy", 128 + 64 * 50)  # row 50: hashed with rows 48 to 57
    rows = StoredRows(finished / "x.npy")
    np.testing.assert_array_equal(rows[np.array([0, 47, 58, 99])][:, 0], [0, 47 * 16, 58 * 16, 99 * 16])
    for row in (50, 55):
        with pytest.raises(ValueError, match=r"x\.npy: expected the content that was written, got other bytes between"):
            rows[np.array([row])]
    with pytest.raises(ValueError, match=r"x\.npy: expected the content that was written"):
        rows.columns(np.array([50]), start=0, stop=1)
    change(finished / "x.npy", 20)
    with pytest.raises(ValueError, match="got other bytes between 0 and 640"):
        StoredRows(finished / "x.npy")


def test_a_row_across_two_parts_is_compared_with_both(tmp_path, monkeypatch):
    monkeypatch.setattr(content, "CHUNK", 640)
    folder = open_folder(tmp_path / "run", stage="prepare", config={}, inputs={})
    write_array(folder.work / "x.npy", np.zeros((10, 100), "float32"))
    folder.finish()
    change(tmp_path / "run" / "x.npy", 1300)  # in part 2; row 2 is 928 to 1328
    with pytest.raises(ValueError, match="between 1280 and 1920"):
        StoredRows(tmp_path / "run" / "x.npy")[np.array([2])]


def test_a_file_is_hashed_once_a_process_until_it_changes(finished, monkeypatch):
    hashed = []
    once = content._digest
    monkeypatch.setattr(content, "_digest", lambda *args: hashed.append(args) or once(*args))
    for _ in range(3):
        read_array(finished / "x.npy")
        StoredRows(finished / "x.npy")[np.arange(100)]
    assert len(hashed) == 11
    os.utime(finished / "x.npy", ns=(1, 1))
    read_array(finished / "x.npy")
    assert len(hashed) == 22


def test_a_folder_that_was_moved_is_compared_where_it_is(finished):
    moved = finished.parents[1] / "elsewhere"
    shutil.move(finished, moved)
    read_array(moved / "x.npy")
    change(moved / "x.npy", 200)
    with pytest.raises(ValueError, match=r"elsewhere/x\.npy: expected the content"):
        read_array(moved / "x.npy")


def test_hashes_that_do_not_belong_to_the_manifest_are_refused(finished):
    change(finished / "contents.json", 40)
    with pytest.raises(ValueError, match=r"contents\.json: expected the hashes that belong to .*, got others"):
        read_array(finished / "x.npy")
    (finished / "contents.json").unlink()
    with pytest.raises(ValueError, match=r"contents\.json: expected the hashes that belong to .*, got nothing"):
        read_array(finished / "x.npy")
    keep_contents(finished)
    read_array(finished / "x.npy")


def test_a_changed_manifest_is_said_once(finished, caplog):
    path = finished / "manifest.json"
    path.write_text(path.read_text().replace('"stage": "prepare"', '"stage": "predict"'))
    for _ in range(2):
        read_manifest(finished)
    assert caplog.text.count("expected the manifest that was written, got one that was changed since") == 1


def test_files_of_no_stage_are_not_compared(tmp_path, caplog):
    write_json(tmp_path / "manifest.json", {"name": "of another program"})
    write_array(tmp_path / "x.npy", np.arange(3))
    read_array(tmp_path / "x.npy")
    assert caplog.text == ""


def test_comparing_can_be_left_out(finished):
    change(finished / "x.npy", 200)
    compare_on_opening(False)
    try:
        assert read_array(finished / "x.npy").shape == (100, 16)
        assert StoredRows(finished / "x.npy")[np.arange(100)].shape == (100, 16)
    finally:
        compare_on_opening(True)


def test_a_view_of_a_space_keeps_what_it_is_made_of(tmp_path):
    stage = open_folder(tmp_path / "cache", stage="embed", config={}, inputs={})
    write_array(stage.work / "embeddings.npy", np.eye(4, dtype="float32"))
    write_table(stage.work / "stimuli.parquet", pd.DataFrame({"stimulus_id": list("abcd")}))
    spec = EmbeddingSpec(name="code", shape=(4,), dtype="float32")
    write_json(stage.work / "spec.json", spec.to_json())
    stage.finish()
    run = open_folder(tmp_path / "run", stage="train", config={}, inputs={})
    EmbeddingCache.write_view(run.work / "learned", of=EmbeddingCache(tmp_path / "cache"), spec=spec, view=lambda x: -x)
    run.finish()
    view = EmbeddingCache(tmp_path / "run" / "learned")
    np.testing.assert_array_equal(view.array, -np.eye(4))
    change(view.folder / "embeddings.npy", 140)
    with pytest.raises(ValueError, match=r"learned/embeddings\.npy: expected the content .* Run the stage train again"):
        _ = view.array
