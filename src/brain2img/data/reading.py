"""What went wrong when a file could not be read: the true reason, and a cure that helps.

A library that fails to read a file rarely knows why. The system's error number, the first bytes and the size of the
file do: a lock, a lack of memory or of rights, a disk that fails, a web page saved under the name of the data, a format
of another version. Only what is none of these is called truncated or damaged.
"""

from __future__ import annotations

import errno
import gzip
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SAVE, _NO_DATA = "Save it in the format that is expected", "Give the data in its place"
#: First bytes -> format, words by which an expected file is known to be in it, and what helps where it is not expected.
_FORMATS = {
    b"\x89HDF\r\n\x1a\n": ("HDF5 file", "hdf5|recording", _SAVE),
    b"MATLAB 7.3": ("MATLAB v7.3 file (HDF5)", "hdf5|matlab|recording", _SAVE),
    b"MATLAB 5.0": ("MATLAB v5 file", "matlab|recording", _SAVE),
    b"\x1f\x8b": ("gzip file", "gzip", "Unpack it (gunzip)"),
    b"BZh": ("bzip2 file", "bzip2", "Unpack it (bunzip2)"),
    b"\xfd7zXZ\x00": ("xz file", "xz", "Unpack it (unxz)"),
    b"7z\xbc\xaf\x27\x1c": ("7-Zip archive", "7-zip", "Unpack it"),
    b"PK\x03\x04": ("zip archive (or npz)", "zip|npz|archive", "Unpack it"),
    b"\x93NUMPY": ("NumPy array (npy)", "array|npy|pickled", _SAVE),
    b"\x89PNG": ("PNG picture", "picture", _NO_DATA),
    b"\xff\xd8\xff": ("JPEG picture", "picture", _NO_DATA),
    b"%PDF": ("PDF document", "pdf", _NO_DATA),
    b"PAR1": ("parquet table", "parquet|table", _SAVE),
}
_GONE = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO, errno.ECONNRESET,
         errno.EHOSTDOWN, errno.ENETDOWN, errno.ENETUNREACH, errno.ENOTCONN}
_LOCKS = {errno.EAGAIN, errno.EDEADLK, errno.ENOLCK}
_FEW_FILES = {errno.EMFILE, errno.ENFILE}
_TEXT = {".csv", ".tsv", ".json", ".txt", ".ctab"}
#: Errors that formats raise of what they find in the file.
_OF_CONTENT = (OSError, EOFError, ValueError, zlib.error, tarfile.TarError, RuntimeError, SyntaxError, LookupError)


class ReadError(ValueError):
    """A file could not be read; the message says why."""


@contextmanager
def reading(path: Path, *, what: str, cure: str = "Fetch it again.", member: bool = False) -> Iterator[None]:
    """Turn whatever a library raises while it reads a file into the message of `explain`."""
    try:
        yield
    except ReadError:
        raise
    except Exception as error:  # libraries raise whatever they stumble over, bare assertions too
        raise explain(error, path, what=what, cure=cure, member=member) from error


def explain(error: BaseException, path: Path, *, what: str, cure: str = "Fetch it again.", member: bool = False
            ) -> ReadError:
    """Return an error whose message says why a file could not be read.

    Parameters
    ----------
    error
        What was raised.
    path
        The file.
    what
        What was expected, naming the format: "NIfTI volume", "HDF5 file with the data set 'betas'".
    cure
        What helps if the content is truncated or damaged.
    member
        Whether `what` is a member of an archive: the first bytes of the file then say nothing about it.
    """
    got, helps = (_of_system(error, path) or (None if member else _of_content(path, what=what))
                  or _of_damage(error, path, cure=cure))
    return ReadError(f"{path}: expected a whole {what}, got {got}. {helps}")


def _of_system(error: BaseException, path: Path) -> tuple[str, str] | None:
    """Return reason and cure where the content of the file is not to blame."""
    cause = next((e for e in _chain(error) if isinstance(e, MemoryError | ImportError) or _number(e) is not None),
                 error)
    number, text = _number(cause), _text(cause)
    if isinstance(cause, MemoryError) or number == errno.ENOMEM:
        return (f"too little memory to read its {_size(path)} ({text})",
                "Free memory or ask for more (SLURM: --mem), or lower study.jobs. If it asks for far more than the "
                "file's size, the file is damaged: fetch it again.")
    if number in _LOCKS or "lock file" in text or isinstance(cause, BlockingIOError):
        return (f"a file that is locked, or on a disk without locks ({text})",
                "Close the program that has it open for writing (a notebook, MATLAB, another job). If there is none, "
                "the disk knows no locks: set the environment variable HDF5_USE_FILE_LOCKING=FALSE and run again.")
    if isinstance(cause, ImportError):
        return f"no package that reads it ({text})", "Install the package."
    if number in (errno.EACCES, errno.EPERM):
        return f"no right to read it ({text})", "Ask its owner, or change its rights (chmod +r)."
    if number in _FEW_FILES:
        return f"no further file opened ({text})", "Close files, raise the limit (ulimit -n), or lower study.jobs."
    if number in _GONE:
        return (f"an error of the disk or of the network it is reached by ({text})",
                "Run the command again; if it stays, ask those who run the disk.")
    if number == errno.ENOSPC:
        return f"no room on the disk for what is unpacked on the way ({text})", "Free space."
    if not path.exists():
        if path.is_symlink():
            return (f"a link to {os.readlink(path)}, which is not there",
                    "Fetch its content (datalad get, git annex get), or copy the files instead of their links.")
        return "no such file", "Fetch it, or correct the path."
    if isinstance(cause, FileNotFoundError):  # of a recording in several files
        return f"a part of it missing ({text})", "Fetch all its parts into one folder."
    return None


def _of_content(path: Path, *, what: str) -> tuple[str, str] | None:
    """Return what the file, or what is packed in it, is by its first bytes, and a cure, unless that was expected."""
    if path.is_dir():
        return None
    size, head = path.stat().st_size, _head(path)
    if size == 0:
        return "an empty file", "Fetch it again."
    packed = head.startswith(b"\x1f\x8b") and path.suffix in (".gz", ".mgz")
    if packed:
        with suppress(OSError, EOFError, zlib.error), gzip.open(path) as file:
            head = file.read(512)
    if packed and head.startswith(b"\x1f\x8b"):
        return None  # damaged behind its first bytes
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself", "Fetch the content: git lfs pull."
    if b"/annex/objects/" in head[:400]:
        return "a pointer of git-annex, not the file itself", "Fetch the content: datalad get, or git annex get."
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:300]
    if re.match(rb"(?i)<(!doctype html|html|head|body|\?xml|error)", start):
        text = " ".join(re.sub(r"<[^>]*>", " ", start.decode("utf8", "replace")).split())
        return (f"a web page or a server's message of {size} bytes under its name ({text[:100]})",
                "Fetch it anew; where terms have to be accepted or a login is asked for, do so in a browser first.")
    name, words, cure = _format(head)
    if not name or re.search(rf"\b({words})", what.lower()):
        return None
    if path.suffix in (".gz", ".mgz") and not packed:
        return f"a {name} that is not compressed, despite its name", f"Rename it to {path.stem}, or compress it (gzip)."
    return f"a {name}", f"{cure}."


def _of_damage(error: BaseException, path: Path, *, cure: str) -> tuple[str, str]:
    text = _text(error)
    # of a whole HDF5 file h5py says so; of a damaged one it says that it is "unable to" and why
    if isinstance(error, KeyError) and ("doesn't exist" in text or "Unable to" not in text):
        return f"one that does not hold it ({text})", "Give the file that does."
    if "allow_pickle" in text or "Python objects in dtype" in text:  # NumPy, of an array of objects
        return ("pickled objects, which could run anything",
                "Save them as plain arrays of numbers or text, or fetch the file of its authors.")
    if isinstance(error, UnicodeDecodeError) and path.suffix.lower() in _TEXT:
        return f"text that is not in UTF-8 ({text})", "Save it as UTF-8."
    if isinstance(error, (*_OF_CONTENT, AssertionError)) or type(error).__module__ != "builtins":
        return f"a truncated or damaged file of {_size(path)} ({text})", cure
    return f"one of {_size(path)} that cannot be read ({text})", f"Compare its size with the published one. {cure}"


def _format(head: bytes) -> tuple[str, str, str]:
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return "NIfTI file", "nifti", _SAVE
    if head[257:262] == b"ustar":
        return "tar archive", "tar", "Unpack it"
    return next((found for start, found in _FORMATS.items() if head.startswith(start)), ("", "", ""))


def _head(path: Path) -> bytes:
    """Return the first 512 bytes, or none where the file cannot be opened."""
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError:
        return b""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those it was raised for."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _number(error: BaseException) -> int | None:
    """Return the system's error number, which HDF5 tells in its text alone."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    match = re.search(r"errno = (\d+)", str(error))
    return int(match[1]) if match else None


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _size(path: Path) -> str:
    return f"{path.stat().st_size} bytes" if path.is_file() else "content"
