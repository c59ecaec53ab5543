"""Names without case, what systems leave in folders, and the list of what was not read."""

from __future__ import annotations

import logging
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from brain2img.studies.folder_listing import matching, spelled, write_not_read


def make(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"12345")
    return folder


def names(paths, folder):
    return [path.relative_to(folder).as_posix() for path in paths]


def test_names_match_whatever_their_case_and_clutter_never_does(tmp_path):
    make(tmp_path, "SUB-01/Session_01/a.EDF", "SUB-01/session_02/b.edf", "SUB-01/session_02/._b.edf",
         "SUB-01/.DS_Store", "SUB-01/Thumbs.db", "sub-02/session_01/c.Edf", "sub-02/c.txt")
    assert names(matching(tmp_path, "sub-01/session_*/*.edf"), tmp_path) == [
        "SUB-01/Session_01/a.EDF", "SUB-01/session_02/b.edf"]
    assert names(matching(tmp_path, "**/*.EDF"), tmp_path) == [
        "SUB-01/Session_01/a.EDF", "SUB-01/session_02/b.edf", "sub-02/session_01/c.Edf"]
    assert names(matching(tmp_path, "Sub-*"), tmp_path) == ["SUB-01", "sub-02"]
    assert names(matching(tmp_path / "sub-02", "*"), tmp_path) == ["sub-02/c.txt", "sub-02/session_01"]
    assert matching(tmp_path / "nowhere", "*") == matching(tmp_path, "sub-03/*") == []


def test_accents_as_macos_writes_them_match(tmp_path):
    make(tmp_path, unicodedata.normalize("NFD", "bébé.edf"))
    assert len(matching(tmp_path, unicodedata.normalize("NFC", "bébé.edf"))) == 1


def test_two_names_that_differ_in_capitals_alone_are_refused_where_they_are_asked_for(tmp_path):
    make(tmp_path, "a/x.edf", "a/X.EDF", "a/y.txt")
    with pytest.raises(ValueError, match=r"a: expected names that differ in more than capitals, got 'X.EDF' and "
                                         r"'x.edf'\. Remove"):
        matching(tmp_path, "a/*.edf")
    assert names(matching(tmp_path, "a/*.txt"), tmp_path) == ["a/y.txt"]


def test_a_path_is_returned_as_it_is_spelled_on_the_disk(tmp_path):
    make(tmp_path, "SUB-01/Stim_Order.PARQUET", "sub-02/x")
    assert spelled(tmp_path / "sub-01" / "stim_order.parquet", under=tmp_path) == (
        tmp_path / "SUB-01" / "Stim_Order.PARQUET")
    for same in ("sub-02/x", "sub-02/y", "sub-03/x", "sub-02/x/z"):
        assert spelled(tmp_path / same, under=tmp_path) == tmp_path / same


def test_what_was_not_read_is_listed_and_whole_folders_are_one_line(tmp_path, caplog):
    raw = make(tmp_path / "raw", "sub-01/a.edf", "sub-01/block_2/b.edfx", "sub-01/note.txt", "sub-02/s/a.edf",
               "sub-02/s/b.edf", "x.ds/x.meg4", "x.ds/x.res4", ".DS_Store", "sub-01/._a.edf", "sub-01/desktop.ini")
    out = tmp_path / "out"
    out.mkdir()
    with caplog.at_level(logging.WARNING):
        table = write_not_read(out, raw, read=[raw / "sub-01" / "a.edf", raw / "x.ds", tmp_path / "elsewhere"])
    assert table.to_numpy().tolist() == [["sub-01/block_2/", 1, 5], ["sub-01/note.txt", 1, 5], ["sub-02/", 2, 10]]
    assert pd.read_parquet(out / "not_read.parquet").equals(table)
    assert "4 files there were not read (sub-02/ (2 files), sub-01/block_2/ (1 files), sub-01/note.txt)" in caplog.text


def test_nothing_is_said_where_everything_was_read(tmp_path, caplog):
    raw = make(tmp_path / "raw", "a.edf", "Thumbs.db")
    (raw / "linked").symlink_to(raw, target_is_directory=True)
    assert write_not_read(tmp_path, raw, read=[raw / "a.edf"]).empty
    assert not caplog.text
