"""Raw files are known by all of their content, and read once."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from brain2img.data import raw_identity
from brain2img.data.raw_identity import content_of_files, remembered


@pytest.fixture
def read(monkeypatch):
    """Return the list of the files that are read; all may be kept, as if they had not been changed just now."""
    files, digest = [], raw_identity.file_digest
    monkeypatch.setattr(raw_identity, "file_digest", lambda path: files.append(path.name) or digest(path))
    monkeypatch.setattr(raw_identity, "_SETTLED", -1e9)
    return files


@pytest.fixture
def raw(tmp_path):
    """Return the files of a small study, one of several megabytes."""
    folder = tmp_path / "raw"
    folder.mkdir()
    (folder / "a.eeg").write_bytes(bytes(range(256)) * 20_000)
    (folder / "b.tsv").write_text("onset\n1\n")
    return {path.name: path for path in folder.iterdir()}


def test_a_changed_byte_in_the_middle_is_seen_at_equal_size_and_time(raw, tmp_path, repair):
    with remembered(tmp_path / "cache" / "raw_files.json"):
        before = content_of_files(raw)
        repair(raw["a.eeg"])
        after = content_of_files(raw)
    assert after["a.eeg"] != before["a.eeg"]
    assert after["b.tsv"] == before["b.tsv"]


def test_it_is_seen_although_the_hash_was_kept(raw, tmp_path, read, repair):
    with remembered(tmp_path / "raw_files.json"):
        before = content_of_files(raw)
        assert content_of_files(raw) == before
        assert sorted(read) == ["a.eeg", "b.tsv"]  # once
        repair(raw["a.eeg"])
        assert content_of_files(raw)["a.eeg"] != before["a.eeg"]
    assert sorted(read) == ["a.eeg", "a.eeg", "b.tsv"]


def test_copies_elsewhere_with_another_time_are_the_same(raw, tmp_path):
    copies = {name: shutil.copyfile(path, tmp_path / name) for name, path in raw.items()}
    os.utime(copies["a.eeg"], (1, 1))
    assert content_of_files(dict(reversed(copies.items()))) == content_of_files(raw)
    assert list(content_of_files(copies)) == ["a.eeg", "b.tsv"]


def test_files_that_changed_just_now_are_not_kept(raw, tmp_path, read, monkeypatch):
    monkeypatch.setattr(raw_identity, "_SETTLED", 1e9)
    with remembered(tmp_path / "raw_files.json"):
        content_of_files(raw)
        content_of_files(raw)
    assert sorted(read) == ["a.eeg", "a.eeg", "b.tsv", "b.tsv"]


def test_what_is_kept_may_be_damaged_or_of_others(raw, tmp_path, read, caplog):
    file = tmp_path / "raw_files.json"
    file.write_text("{")
    with remembered(file):
        found = content_of_files(raw)
        assert set(json.loads(file.read_text())) == {str(path) for path in raw.values()}
        other = tmp_path / "c"
        other.write_bytes(b"c")
        content_of_files({"c": other})
        assert content_of_files(raw) == found
    assert len(json.loads(file.read_text())) == 3
    assert sorted(read) == ["a.eeg", "b.tsv", "c"]
    (tmp_path / "file").write_text("no folder")
    with remembered(tmp_path / "file" / "raw_files.json"):
        assert content_of_files(raw) == found
    assert "hashes of raw files cannot be kept there" in caplog.text


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"gone.npy: expected a whole file, got no such file\. Fetch it"):
        content_of_files({"gone": tmp_path / "gone.npy"})
