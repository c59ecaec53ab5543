"""Why a file could not be read: the reason that is true, and a cure that helps."""

from __future__ import annotations

import errno
import fcntl
import gzip
import io
import zipfile

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from brain2img.data.pickled import read_pickled
from brain2img.data.reading import ReadError, explain, reading


def hdf5(path, **attributes):
    with h5py.File(path, "w", **attributes) as file:
        file["betas"] = np.arange(2000).reshape(20, 100)
    return path


def read(path, *, name="betas"):
    with reading(path, what=f"HDF5 file with the data set {name!r}"), h5py.File(path, "r") as file:
        return file[name][()]


def test_a_whole_file_is_read(tmp_path):
    assert read(hdf5(tmp_path / "x.hdf5")).shape == (20, 100)


def test_a_lock_is_no_damage(tmp_path):
    path = hdf5(tmp_path / "x.hdf5")
    with path.open("rb+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"x.hdf5: expected a whole HDF5 file with .*, got a file that is locked.*"
                                             r"HDF5_USE_FILE_LOCKING=FALSE") as caught:
            read(path)
    assert "damaged" not in str(caught.value)
    assert read(path).shape == (20, 100)


@pytest.mark.parametrize(("error", "message"), [
    (OSError("Unable to open file (unable to lock file, errno = 37, error message = 'No locks available')"),
     "locked, or on a disk without locks"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "locked, or on a disk without locks"),
    (OSError(errno.EDEADLK, "Resource deadlock avoided"), "locked, or on a disk without locks"),
    (MemoryError("Unable to allocate 900. GiB"), r"too little memory to read its 3 bytes .*900.*SLURM: --mem"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "too little memory"),
    (PermissionError(errno.EACCES, "Permission denied", "/data/block_01/x"), r"no right to read it.*chmod"),
    (OSError(errno.EMFILE, "Too many open files"), r"no further file opened.*ulimit -n"),
    (OSError(errno.ESTALE, "Stale file handle"), r"an error of the disk or of the network.*Run the command again"),
    (OSError("Can't read data (file read failed: time = Mon, errno = 5, error message = 'Input/output error')"),
     r"an error of the disk or of the network.*Run the command again"),
])
def test_what_the_system_says_is_no_damage(tmp_path, error, message):
    path = tmp_path / "x.hdf5"
    path.write_bytes(b"\x89HD")
    for raised in (error, _caused_by(error)):
        text = str(explain(raised, path, what="HDF5 file"))
        assert "truncated" not in text
        with pytest.raises(ReadError, match=f"x.hdf5: expected a whole HDF5 file, got .*{message}"):
            raise explain(raised, path, what="HDF5 file")


def _caused_by(error):
    outer = RuntimeError("a library's own")
    outer.__cause__ = error
    return outer


def png():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.hdf5", b"content")
    return buffer.getvalue()


@pytest.mark.parametrize(("content", "message"), [
    (b"", "got an empty file"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "got a pointer of Git LFS.*git lfs"),
    (b"../../.git/annex/objects/Xk/4P/MD5E-s12.hdf5", "got a pointer of git-annex.*datalad get"),
    (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head>", r"got a web page .* \(Sign in\)"),
    (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", r"got .* server's message of 61 .*AccessDenied"),
    (zipped(), r"got a zip archive \(or npz\). Unpack it"),
    (gzip.compress(b"content", mtime=0), r"got a gzip file. Unpack it \(gunzip\)"),
    (png(), "got a PNG picture"),
    (b"\x93NUMPY\x01\x00", r"got a NumPy array \(npy\)"),
    (b"what it is nobody knows", "got a truncated or damaged file of 23 bytes .*Fetch it again"),
])
def test_other_content_is_said(tmp_path, content, message):
    path = tmp_path / "x.hdf5"
    path.write_bytes(content)
    with pytest.raises(ReadError, match=f"x.hdf5: expected a whole HDF5 file with the data set 'betas', {message}"):
        read(path)


def test_truncated_and_incomplete_hdf5(tmp_path):
    path = hdf5(tmp_path / "x.hdf5")
    with pytest.raises(ReadError, match=r"got one that does not hold it \(KeyError: .*'volumes' doesn't exist"):
        read(path, name="volumes")
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ReadError, match=r"got a truncated or damaged file of 1500 bytes \(OSError: .*truncated file"):
        read(path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ReadError, match=r"x.hdf5: expected .*, got no such file. Fetch it"):
        read(tmp_path / "x.hdf5")
    (tmp_path / "link.hdf5").symlink_to(".git/annex/objects/x")
    with pytest.raises(ReadError, match=r"link.hdf5: expected .*, got a link to .git/annex/objects/x, .*datalad get"):
        read(tmp_path / "link.hdf5")


@pytest.mark.parametrize(("content", "message"), [
    (bytes(344) + b"n+1\0" + bytes(1000), "got a NIfTI file that is not compressed, .* Rename it to x.nii"),
    (gzip.compress(b"<html>Log in</html>", mtime=0), r"got a web page .*\(Log in\)"),
    (gzip.compress(bytes(9) + b"no format that is known", mtime=0), r"got a truncated or damaged file of"),
    (gzip.compress(np.random.default_rng(0).bytes(9000), mtime=0)[:4000],
     r"got a truncated or damaged file of 4000 bytes"),
])
def test_what_is_behind_gzip(tmp_path, content, message):
    path = tmp_path / "x.nii.gz"
    path.write_bytes(content)
    with pytest.raises(ReadError, match=f"x.nii.gz: expected a whole volume, {message}"), reading(path, what="volume"):
        raise ValueError("whatever the library says")


def test_members_are_not_taken_for_their_archive(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(257) + b"ustar" + bytes(300))
    error = ValueError("Object arrays cannot be loaded when allow_pickle=False")
    assert "got pickled objects" in str(explain(error, path, what="plain array in a.npy", member=True))
    text = str(explain(EOFError("No data left"), path, what="plain array in a.npy", member=True))
    assert "got a truncated or damaged file" in text
    assert "tar" in str(explain(EOFError("No data left"), path, what="plain array"))


def test_inner_reasons_are_kept_and_what_is_no_reading_error_is_not_called_damage(tmp_path):
    path = hdf5(tmp_path / "x.hdf5")
    with (pytest.raises(ReadError, match="does not hold it"), reading(path, what="NIfTI volume"),
          reading(path, what="HDF5 file")):
        raise KeyError("x doesn't exist")
    with (pytest.raises(ReadError, match=r"got one of \d+ bytes that cannot be read \(TypeError: a bug\)"),
          reading(path, what="HDF5 file")):
        raise TypeError("a bug")
    with pytest.raises(KeyboardInterrupt), reading(path, what="HDF5 file"):
        raise KeyboardInterrupt


def test_matlab_in_place_of_a_pickle(tmp_path):
    savemat(tmp_path / "x.npy", {"data": np.zeros(3)}, appendmat=False)
    with pytest.raises(ReadError, match=r"x.npy: expected a whole pickled dictionary .*, got a MATLAB v5 file"):
        read_pickled(tmp_path / "x.npy", keys=("data",))
    hdf5(tmp_path / "x.npy", userblock_size=512)
    with (tmp_path / "x.npy").open("rb+") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))
    with pytest.raises(ReadError, match=r"x.npy: expected a whole pickled dictionary .*, got a MATLAB v7.3 file"):
        read_pickled(tmp_path / "x.npy", keys=("data",))
