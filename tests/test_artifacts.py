from __future__ import annotations

import errno
import json
import os
import pickle

import numpy as np
import pandas as pd
import pytest

from brain2img.artifacts import (
    ArrayWriter,
    Predictions,
    StoredRows,
    digest,
    open_folder,
    read_array,
    safe_name,
    write_array,
    writing,
)
from brain2img.records import EmbeddingSpec

ASKED = {"stage": "train", "config": {"lr": 0.1, "deep": {"width": 8}}, "inputs": {"prepared": "a"}}


def make(path, *, content="first", **changes):
    folder = open_folder(path, **{**ASKED, **changes})
    if not folder.finished:
        (folder.work / "result.txt").write_text(content)
        folder.finish(extra=1)
    return folder


def test_finished_folder_is_recognised_and_not_redone(tmp_path):
    make(tmp_path / "run")
    again = make(tmp_path / "run", content="second")
    assert again.finished
    assert (tmp_path / "run" / "result.txt").read_text() == "first"
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["extra"] == 1
    assert manifest["config"] == ASKED["config"]
    assert manifest["versions"]["numpy"] == np.__version__


@pytest.mark.parametrize(("change", "named"), [
    ({"config": {"lr": 0.2, "deep": {"width": 8}}}, "config.lr: 0.1 there, 0.2 asked for"),
    ({"config": {"lr": 0.1, "deep": {"width": 9}}}, "config.deep.width: 8 there, 9 asked for"),
    ({"inputs": {"prepared": "b"}}, "inputs.prepared: 'a' there, 'b' asked for"),
])
def test_other_settings_are_refused_and_the_difference_named(tmp_path, change, named):
    make(tmp_path / "run")
    with pytest.raises(ValueError, match="overwrite=true") as error:
        make(tmp_path / "run", **change)
    assert named in str(error.value)
    assert (tmp_path / "run" / "result.txt").read_text() == "first"


def test_overwrite_swaps_only_when_the_new_one_is_whole(tmp_path):
    path = tmp_path / "run"
    make(path)
    folder = open_folder(path, **{**ASKED, "config": {"lr": 9}}, overwrite=True)
    (folder.work / "result.txt").write_text("second")
    assert (path / "result.txt").read_text() == "first", "the old result stands until the new one is whole"
    folder.finish()
    assert (path / "result.txt").read_text() == "second"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_killed_between_manifest_and_swap_is_mended(tmp_path):
    path = tmp_path / "run"
    make(path)
    folder = open_folder(path, **{**ASKED, "config": {"lr": 9}}, overwrite=True)
    (folder.work / "result.txt").write_text("second")
    (folder.work / "manifest.json").write_text(json.dumps(folder.head))
    assert open_folder(path, **{**ASKED, "config": {"lr": 9}}).finished
    assert (path / "result.txt").read_text() == "second"


def test_killed_during_the_swap_is_mended(tmp_path):
    path = tmp_path / "run"
    make(path)
    os.replace(path, tmp_path / ".run.old")
    assert open_folder(path, **ASKED).finished


def test_unfinished_folder_goes_on(tmp_path):
    folder = open_folder(tmp_path / "run", **ASKED)
    (folder.work / "half.txt").write_text("half")
    again = open_folder(tmp_path / "run", **ASKED)
    assert not again.finished
    assert (again.work / "half.txt").exists()
    with pytest.raises(ValueError, match=r"config\.lr"):
        open_folder(tmp_path / "run", **{**ASKED, "config": {"lr": 1}})


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="got other files"):
        open_folder(tmp_path / "run", **ASKED)


def test_full_disk_is_one_message_and_leaves_nothing(tmp_path):
    def fill():
        with writing(tmp_path / "x.npy") as temporary:
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ValueError, match="got a full disk"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_array_that_cannot_fit_is_refused_before_any_work(tmp_path):
    with pytest.raises(ValueError, match=r"expected \d+ MB free"):
        ArrayWriter(tmp_path, {"x": ((10**9, 10**6), "float32")})
    assert list(tmp_path.iterdir()) == []


def test_truncated_array_is_named(tmp_path):
    write_array(tmp_path / "x.npy", np.arange(1000.0))
    data = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(data[:500])
    with pytest.raises(ValueError, match=r"x\.npy: expected a whole \.npy array"):
        read_array(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="got nothing"):
        read_array(tmp_path / "y.npy")


def test_stored_rows_are_those_of_the_file_in_any_order(tmp_path):
    values = np.random.default_rng(0).standard_normal((7, 3, 2)).astype("float32")
    write_array(tmp_path / "x.npy", values)
    for rows in (StoredRows(tmp_path / "x.npy"), pickle.loads(pickle.dumps(StoredRows(tmp_path / "x.npy")))):
        assert (len(rows), rows.shape, rows.dtype) == (7, (7, 3, 2), np.float32)
        for chosen in ([6, 0, 0, 3], [], range(7)):
            chosen = np.array(chosen, dtype=int)
            np.testing.assert_array_equal(rows[chosen], values[chosen])


def test_stored_rows_stay_those_of_the_file_that_was_opened(tmp_path):
    write_array(tmp_path / "x.npy", np.zeros((2, 3), "float32"))
    rows = StoredRows(tmp_path / "x.npy")
    write_array(tmp_path / "x.npy", np.ones((2, 3), "float32"))  # as overwrite=true does
    assert (rows[np.array([0, 1])] == 0).all()


def test_stored_rows_that_are_not_there_are_refused(tmp_path):
    write_array(tmp_path / "x.npy", np.zeros((2, 300), "float32"))
    rows = StoredRows(tmp_path / "x.npy")
    for row in (2, -1):
        with pytest.raises(IndexError, match=r"x\.npy: expected rows of 2, got "):
            rows[np.array([row])]
    os.truncate(tmp_path / "x.npy", (tmp_path / "x.npy").stat().st_size - 4)
    with pytest.raises(ValueError, match=r"x\.npy: expected 2 rows, got a file that ends in row 1: it was cut short"):
        rows[np.array([0, 1])]
    with pytest.raises(ValueError, match="truncated or damaged"):
        StoredRows(tmp_path / "x.npy")


def test_pickled_array_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{"evil": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"expected a whole \.npy array"):
        read_array(tmp_path / "x.npy")


@pytest.mark.parametrize("chunk", [1, 3, 10])
def test_array_writer_continues_and_equals_one_pass(tmp_path, chunk):
    values = np.random.default_rng(0).standard_normal((10, 4)).astype("float32")
    layout = {"x": ((10, 4), "float32")}
    writer = ArrayWriter(tmp_path, layout)
    writer.write({"x": values[:2]})
    del writer  # killed
    writer = ArrayWriter(tmp_path, layout)
    assert writer.done == 2
    while writer.done < 10:
        writer.write({"x": values[writer.done:writer.done + chunk]})
    writer.close()
    np.testing.assert_array_equal(read_array(tmp_path / "x.npy"), values)
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


def test_array_writer_of_another_layout_starts_anew(tmp_path):
    writer = ArrayWriter(tmp_path, {"x": ((10, 4), "float32")})
    writer.write({"x": np.ones((2, 4))})
    assert ArrayWriter(tmp_path, {"x": ((10, 5), "float32")}).done == 0


def test_a_condition_is_a_view_and_not_a_copy(tmp_path):
    spec = {"clip": EmbeddingSpec(name="clip", shape=(2,))}
    rows = pd.DataFrame({"subject": "s", "stimulus_id": list("abc"), "n_averaged": 1, "draw": 0,
                         "trial_ids": [[0]] * 3})
    base = open_folder(tmp_path / "decoded", **ASKED)
    write_array(base.work / "clip.npy", np.arange(6.0).reshape(3, 2))
    Predictions.write(base.work, rows=rows, specs=spec)
    base.finish()
    decoded = Predictions(tmp_path / "decoded")
    view = open_folder(tmp_path / "shuffled", **ASKED)
    Predictions.write(view.work, rows=rows.assign(array_row=[1, 2, 0]), specs=spec,
                      paths={"clip": decoded.array("clip")[0]})
    view.finish()
    shuffled = Predictions(tmp_path / "shuffled")
    np.testing.assert_array_equal(shuffled.embeddings("clip"), [[2, 3], [4, 5], [0, 1]])
    assert not (tmp_path / "shuffled" / "clip.npy").exists()
    with pytest.raises(ValueError, match=r"expected space 'dino', got \['clip'\]"):
        shuffled.array("dino")


def test_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})


@pytest.mark.parametrize("text", ["a/../../b", "a b", "ä", "x" * 100])
def test_safe_names_stay_in_their_folder_and_apart(text):
    name = safe_name(text)
    assert "/" not in name
    assert "." not in name
    assert name != safe_name(text + "?")
