"""The stimuli and the channels of a person's own study: pictures by their names, tables where there are some."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brain2img.data.pictures import SUFFIXES, picture_size
from brain2img.studies.arrays_files import likely, numbers, read_table, table_named

#: Types of channels that a brain does not drive: they are left out.
_OTHER_TYPES = ("eog", "ecg", "emg", "stim", "misc", "ref_meg", "bio", "resp", "syst", "exci", "trig", "trigger")
_METRES = 1.0


def read_stimuli(raw: Path, shown: Sequence[str], *, image_size: int | None, trials: str
                 ) -> tuple[pd.DataFrame, list[str]]:
    """Return the stimuli that were shown, as `PreparedWriter.finish` takes them, and what was left out.

    Parameters
    ----------
    raw
        Folder with ``stimuli/`` and, where there is one, ``stimuli.csv|.tsv|.parquet`` in it or in ``stimuli/``:
        stimulus_id; file (relative to either), captions (several with | between them), concept (or class), category.
    shown
        Their ids.
    image_size
        Side (pixels) to which pictures are brought, or None where all are of one size.
    trials
        What messages call the table of trials.

    Raises
    ------
    ValueError
        If a stimulus has neither picture nor caption, a name is there twice, or sizes of pictures differ.
    """
    folder = raw / "stimuli"
    path = table_named(raw, "stimuli") or (table_named(folder, "stimuli") if folder.is_dir() else None)
    table = pd.DataFrame({"stimulus_id": list(shown)})
    notes: list[str] = []
    if path is not None:
        found = read_table(path, needs=["stimulus_id"],
                           known=("file", "captions", "caption", "concept", "class", "category"))
        twice = found["stimulus_id"][found["stimulus_id"].duplicated()]
        if len(twice):
            raise ValueError(f"{path}: expected every stimulus_id once, got {twice.iloc[0]!r} again in line "
                             f"{int(twice.index[0]) + 2}. Remove one of them; several captions go into one line with | "
                             "between them.")
        _refuse_unknown(shown, found["stimulus_id"].tolist(), what=str(path), of="lines for", trials=trials)
        if more := len(found) - len(shown):
            notes.append(f"{path.name}: {more} stimuli are in no trial and left out.")
        table = found.set_index("stimulus_id").loc[list(shown)].reset_index()
        table = table.rename(columns={"class": "concept", "caption": "captions"}, errors="ignore")
        if table.columns.duplicated().any():
            raise ValueError(f"{path}: expected one column of concept and class, and one of caption and captions, got "
                             "both. Remove one.")
    table["captions"] = [_captions(value) for value in table["captions"]] if "captions" in table else [
        [] for _ in range(len(table))]
    for name in ("concept", "category"):
        if name not in table:
            table[name] = None
    table["file"], said = _files(raw, folder, table, trials=trials)
    notes += said
    if table["file"].notna().all():
        _check_sizes([Path(file) for file in table["file"]], image_size=image_size)
    elif not all(table["captions"]):
        raise ValueError(f"{raw}: expected a picture in stimuli/ or a caption in stimuli.csv for every stimulus, got "
                         "neither. Put pictures named <stimulus_id>.png there.")
    else:
        notes.append("The stimuli have captions and no pictures.")
    kind = "image" if table["file"].notna().all() else "sentence"
    return table[["stimulus_id", "file", "concept", "category", "captions"]].assign(
        kind=kind, attributes=[{} for _ in range(len(table))]), notes


def _captions(value: Any) -> list[str]:
    words = value if isinstance(value, list) else (value or "").split("|")
    return [word.strip() for word in words if word and word.strip()]


def _refuse_unknown(shown: Sequence[str], known: Sequence[str], *, what: str, of: str, trials: str) -> None:
    lacking = sorted(set(shown) - set(known))
    if lacking:
        raise ValueError(f"{what}: expected {of} the {len(shown)} stimuli of {trials}, got none for {len(lacking)} of "
                         f"them ({', '.join(map(repr, lacking[:3]))}{', ...' if len(lacking) > 3 else ''})."
                         f"{likely(lacking[0], known)} Add them, or correct the names.")


def _files(raw: Path, folder: Path, table: pd.DataFrame, *, trials: str) -> tuple[list[str | None], list[str]]:
    """Return the absolute path of every stimulus' picture, None for all where there are none."""
    if "file" in table and table["file"].notna().any():
        paths: list[str | None] = []
        for stimulus, file in zip(table["stimulus_id"], table["file"], strict=True):
            if not file:
                raise ValueError(f"stimuli table of {raw}: expected the file of every stimulus, got none for "
                                 f"{stimulus!r}. Fill the column 'file'.")
            there = [place / file.replace("\\", "/") for place in (folder, raw)]
            path = next((place for place in there if place.is_file()), None)
            if path is None:
                raise ValueError(f"{there[0]}: expected the picture of stimulus {stimulus!r} there, by the stimuli "
                                 "table, got no such file. Put it there, or correct the column 'file'.")
            paths.append(str(path.resolve()))
        return paths, []
    if not folder.is_dir():
        return [None] * len(table), []
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
                      and not path.name.startswith("."))
    if not pictures:
        return [None] * len(table), []
    named = Counter(path.stem for path in pictures)
    twice = [path for path in pictures if named[path.stem] > 1 and path.stem in set(table["stimulus_id"])]
    if twice:
        raise ValueError(f"{folder}: expected one picture of stimulus {twice[0].stem!r}, got "
                         f"{' and '.join(str(p.relative_to(folder)) for p in twice if p.stem == twice[0].stem)}. Keep "
                         "one, or name files in stimuli.csv.")
    of = {path.stem: str(path.resolve()) for path in pictures}
    _refuse_unknown(table["stimulus_id"].tolist(), list(of), what=str(folder), of="pictures of", trials=trials)
    more = len(pictures) - len(table)
    return ([of[stimulus] for stimulus in table["stimulus_id"]],
            [f"stimuli/: {more} pictures are in no trial and left out."] if more else [])


def _check_sizes(paths: Sequence[Path], *, image_size: int | None) -> None:
    """Refuse pictures that cannot be opened, and where no size is asked for, those of several sizes."""
    sizes: Counter[tuple[int, int]] = Counter()
    for path in paths:
        height, width = picture_size(path)
        sizes[width, height] += 1
    if image_size is None and len(sizes) > 1:
        shown = ", ".join(f"{n} of {w} x {h}" for (w, h), n in sizes.most_common(3))
        raise ValueError(f"{paths[0].parent}: expected pictures of one size, got {len(sizes)} sizes ({shown}). Type "
                         "study.image_size=<pixels>, e.g. 256: the largest square in the middle of each is then read "
                         "in that size.")


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of an array, in its order, as a table names them.

    Parameters
    ----------
    path
        The table.
    names, types
        Of every channel; types "" where the table has none.
    positions
        ``(C, 3)`` in metres, or None.
    rois
        A label for every voxel, or ().
    ijk, affine, volume_shape
        Place of every voxel, and the grid of ``volume.nii.gz`` that it is in; None where they are not known.
    """

    path: Path
    names: tuple[str, ...]
    types: tuple[str, ...]
    positions: np.ndarray | None
    rois: tuple[str, ...]
    ijk: np.ndarray | None
    affine: np.ndarray | None
    volume_shape: tuple[int, int, int] | None

    def __len__(self) -> int:
        return len(self.types)

    @property
    def kept(self) -> np.ndarray:
        """``(C,)`` true for channels of the brain: those of other types are left out."""
        return np.array([kind not in _OTHER_TYPES for kind in self.types])

    def facts(self, places: np.ndarray, *, meeg: bool) -> dict[str, Any]:
        """Return the fields of `SignalSpec` for the channels `places`."""
        def of(values: Sequence[str]) -> tuple[str, ...]:
            return tuple(values[i] for i in places) if values else ()

        found: dict[str, Any] = {"rois": of(self.rois)}
        if meeg:
            found |= {"ch_names": of(self.names), "ch_types": of(self.types) if all(self.types) else (),
                      "positions": None if self.positions is None else self.positions[places]}
        elif self.ijk is not None:
            found |= {"ijk": self.ijk[places], "affine": self.affine, "volume_shape": self.volume_shape}
        return found


def read_channels(raw: Path, subject: str) -> Channels | None:
    """Read ``channels_<subject>.csv``, else ``channels.csv``; None where there is neither.

    Columns: name, type (of MNE: eeg, mag, grad; others such as eog and stim are left out), x, y, z (metres, head
    coordinates); for voxels roi, and i, j, k into the grid of ``volume.nii.gz`` (or ``volume_<subject>.nii.gz``).

    Raises
    ------
    ValueError
        If a name is there twice, positions are not in metres, or voxels lie outside the volume.
    """
    path = table_named(raw, f"channels_{subject}") or table_named(raw, "channels")
    if path is None:
        return None
    table = read_table(path, needs=[], known=("name", "type", "x", "y", "z", "roi", "i", "j", "k"))
    names = tuple(table["name"]) if "name" in table else ()
    twice = [name for name, n in Counter(names).items() if n > 1]
    if twice:
        raise ValueError(f"{path}: expected every channel once, got {twice[0]!r} {Counter(names)[twice[0]]} times. "
                         "Correct the column 'name'.")
    positions = _columns(table, ("x", "y", "z"), path=path)
    if positions is not None and np.abs(positions).max() > _METRES:
        raise ValueError(f"{path}: expected positions in metres, got up to {np.abs(positions).max():g} in x, y, z. "
                         "Divide millimetres by 1000.")
    types = tuple((kind or "").lower() for kind in table["type"]) if "type" in table else ("",) * len(table)
    ijk, grid = _columns(table, ("i", "j", "k"), path=path, whole=True), (None, None)
    if ijk is not None:
        grid = _grid(raw, subject, ijk, path=path)
        ijk = ijk.astype(int)
    label = "roi" if "roi" in table else "rois"
    return Channels(path, names, types, positions, tuple(roi or "" for roi in table[label]) if label in table else (),
                    ijk, *grid)


def _columns(table: pd.DataFrame, names: Sequence[str], *, path: Path, whole: bool = False) -> np.ndarray | None:
    there = [name for name in names if name in table and table[name].notna().any()]
    if not there:
        return None
    if len(there) < len(names) or any(table[name].isna().any() for name in names):
        raise ValueError(f"{path}: expected {', '.join(names)} of every channel or of none, got gaps. Fill the columns "
                         f"{', '.join(names)}, or remove them.")
    return np.stack([numbers(table, name, path=path, whole=whole).to_numpy(dtype=float) for name in names], axis=1)


def _grid(raw: Path, subject: str, ijk: np.ndarray, *, path: Path) -> tuple[Any, Any]:
    """Return affine and shape of the volume that i, j, k are places in; (None, None) where there is no volume."""
    found = [place for name in (f"volume_{subject}", "volume") for place in sorted(raw.glob(f"{name}.nii*"))
             if re.fullmatch(r"\.nii(\.gz)?", "".join(place.suffixes[-2:]) if place.suffix == ".gz" else place.suffix)]
    if not found:
        return None, None
    import nibabel as nib

    try:
        volume: Any = nib.load(found[0])
    except Exception as error:  # nibabel raises its own, and whatever a damaged file leads to
        raise ValueError(f"{found[0]}: expected a NIfTI volume, got a file that cannot be read ({error}). Write it "
                         "again.") from error
    shape = tuple(int(n) for n in volume.shape[:3])
    if (ijk < 0).any() or (ijk >= np.array(shape)).any():
        raise ValueError(f"{path}: expected i, j, k (from 0) within {shape}, the grid of {found[0].name}, got "
                         f"{ijk.min(axis=0).astype(int).tolist()} to {ijk.max(axis=0).astype(int).tolist()}. Give the "
                         "volume that the voxels come from.")
    return np.asarray(volume.affine), shape
