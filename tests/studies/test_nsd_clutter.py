"""NSD: files that systems leave among others change nothing, and what keeps a file from being read is said."""

from __future__ import annotations

import fcntl
import io
import tarfile

import numpy as np
import pytest
from nsd_raw import prepare, refused, session_file

from brain2img.studies.nsd import NSD

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


def same(one, other):
    assert one.trials.equals(other.trials)
    for subject in one.subjects:
        np.testing.assert_array_equal(one.signals(subject), other.signals(subject))
    np.testing.assert_array_equal(one.stimuli.images(), other.stimuli.images())


def clutter_tar(path):
    """Write a tar anew as macOS does: every member has a "._" file before it, and Finder's and Windows' are there."""
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]
    path.unlink()
    with tarfile.open(path, "w") as tar:
        doubled = [pair for name, data in members for pair in ((f"._{name}", APPLE_DOUBLE), (name, data))]
        for name, content in [(".DS_Store", b"Bud1"), ("Thumbs.db", b"x"), ("__MACOSX/._x.jpg", APPLE_DOUBLE), *doubled,
                              ("desktop.ini", b"[x]")]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(("form", "shared"), [("averaged", 982), ("all_betas", 1000)])
def test_webdatasets_with_clutter(nsd_folder, nsd_copy, tmp_path, form, shared):
    before = prepare(nsd_folder(form), tmp_path / "before", shared=shared)
    raw = nsd_copy(form)
    for path in list(raw.rglob("*.tar")):
        clutter_tar(path)
        path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
    for folder in [raw, *(path for path in raw.rglob("*") if path.is_dir())]:
        (folder / ".DS_Store").write_bytes(b"Bud1")
        (folder / "Thumbs.db").write_bytes(b"x")
    for path in [*raw.glob("betas_all*"), *raw.rglob("metadata*.json")]:
        path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
    same(prepare(raw, tmp_path / "after", shared=shared), before)


def test_unpacked_webdatasets_with_clutter(nsd_folder, nsd_copy, tmp_path):
    before = prepare(nsd_folder("unpacked"), tmp_path / "before", shared=982)
    raw = nsd_copy("unpacked")
    identity = NSD(subjects=(1, 4), shared=982).raw_id(raw)
    for folder in [path for path in raw.rglob("*") if path.is_dir()]:
        for path in list(folder.glob("sample*"))[:3]:
            path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (folder / name).write_bytes(b"x")
        if folder.name.startswith("subj"):
            (folder / "__MACOSX").mkdir()
    assert NSD(subjects=(1, 4), shared=982).raw_id(raw) == identity
    same(prepare(raw, tmp_path / "after", shared=982), before)


@pytest.mark.parametrize("form", [".nii.gz", ".hdf5"])
def test_published_files_with_clutter(nsd_folder, nsd_copy, tmp_path, form):
    before = prepare(nsd_folder(form), tmp_path / "before", voxels="brain", subjects=[1])
    raw = nsd_copy(form)
    for folder in [path for path in raw.rglob("*") if path.is_dir()]:
        for path in [path for path in folder.iterdir() if path.is_file()]:
            path.with_name(f"._{path.name}").write_bytes(APPLE_DOUBLE)
        (folder / ".DS_Store").write_bytes(b"Bud1")
    (raw / "nsddata/ppdata/subj01/func1pt8mm/._valid_session01.nii.gz").write_bytes(APPLE_DOUBLE)
    same(prepare(raw, tmp_path / "after", voxels="brain", subjects=[1]), before)


def test_a_locked_session_is_not_called_damaged(nsd_copy, tmp_path):
    raw = nsd_copy(".hdf5")
    path = session_file(raw, suffix=".hdf5")
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)  # a file of its own, not a link to that of other tests
    with path.open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        refused(raw, tmp_path / "out", r"betas_session02.hdf5: expected a whole HDF5 file, got a file that is locked.*"
                                       "HDF5_USE_FILE_LOCKING=FALSE")


@pytest.mark.parametrize(("content", "message"), [
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n", "got a pointer of Git LFS"),
    (b"\x89HDF\r\n\x1a\n" + bytes(600), r"got a HDF5 file that is not compressed, despite its name"),
])
def test_volumes_that_are_something_else(nsd_copy, tmp_path, content, message):
    raw = nsd_copy(".hdf5")
    path = raw / "nsddata/ppdata/subj01/func1pt8mm/roi/nsdgeneral.nii.gz"
    path.unlink()
    path.write_bytes(content)
    refused(raw, tmp_path / "out", f"nsdgeneral.nii.gz: expected a whole NIfTI volume, {message}")


def test_pickled_numbers_in_webdatasets_are_not_called_damaged(nsd_copy, tmp_path):
    raw = nsd_copy("averaged")
    path = raw / "webdataset_avg_split/train/train_subj01_0.tar"
    with tarfile.open(path) as tar:
        members = [(member.name, tar.extractfile(member).read()) for member in tar.getmembers()]

    def rewrite(change):
        path.unlink()
        with tarfile.open(path, "w") as tar:
            for name, content in members:
                if name.endswith("coco73k.npy"):
                    buffer = io.BytesIO()
                    np.save(buffer, change(np.load(io.BytesIO(content))), allow_pickle=True)
                    content = buffer.getvalue()
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    rewrite(lambda number: number.astype(object))
    refused(raw, tmp_path / "out", r"train_subj01_0.tar: expected a whole plain array in sample\d+.coco73k.npy, got "
                                   r"pickled objects.*Save them as plain arrays", shared=982)
    rewrite(lambda number: number[0])  # a scalar
    assert len(prepare(raw, tmp_path / "scalar", shared=982).trials)
