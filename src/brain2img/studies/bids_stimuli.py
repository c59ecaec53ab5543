"""Pictures and splits of a BIDS dataset: where what was shown lies, what is known of it, and what is held out."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from brain2img.data.pictures import picture_files
from brain2img.data.prepared import check_splits
from brain2img.data.units import UNITS, divided, units
from brain2img.studies.bids_files import read_table

log = logging.getLogger(__name__)

#: Endings of pictures, and names that people give to columns and splits.
_ID_COLUMNS = ("stimulus_id", "stim_id", "stim_file", "file", "filename")
_FILE_COLUMNS = ("stim_file", "file", "filename")
_SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
                "test": "test", "testing": "test"}


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Where the pictures are, and what is known of them.

    Parameters
    ----------
    folder
        Relative to the dataset, or absolute.
    table
        Table of the pictures in this folder, a line each: its id or file in the first of `stimulus_id`, `stim_id`,
        `stim_file`, `file`, `filename` that is there; `concept`, `category` and any number of `caption...` are
        optional. None: ``stimuli.tsv`` where that is there.
    concept
        "folder": the folder that a picture lies in names its concept, as in THINGS; else a column of the events
        ("trial_type"). None: by the table alone.
    image_size
        Side (pixels) in which pictures are read; None leaves them as they are, which needs them to be of one size.
    """

    folder: str = "stimuli"
    table: str | None = None
    concept: str | None = None
    image_size: int | None = 256

    def table_path(self, root: Path) -> Path | None:
        """Return the table of the pictures, or None where there is none.

        Raises
        ------
        ValueError
            If one was named that is not there.
        """
        path = root / self.folder / (self.table or "stimuli.tsv")
        if self.table is not None and not path.is_file():
            raise ValueError(f"{path}: expected the table of the pictures, by study.stimuli.table, got no such file. "
                             "Correct study.stimuli.table.")
        return path if path.is_file() else None

    def files(self, root: Path) -> list[Path]:
        """Return the files that pictures, or what is said of them, may be read from."""
        folder = root / self.folder
        table = self.table_path(root)
        return ([] if table is None else [table]) + (picture_files(folder) if folder.is_dir() else [])

    def described(self, root: Path) -> pd.DataFrame:
        """Return the table of the pictures with its ids as index, empty where there is none."""
        path = self.table_path(root)
        if path is None:
            return pd.DataFrame()
        table = read_table(path)
        column = next((name for name in _ID_COLUMNS if name in table), None)
        if column is None:
            raise ValueError(f"{path}: expected a column of {_ID_COLUMNS}, got {', '.join(table.columns)}. Rename the "
                             "one that names the pictures.")
        table = table[table[column].notna()]
        table.index = pd.Index([_plain(value, self.folder) for value in table[column]])
        if table.index.has_duplicates:
            raise ValueError(f"{path}: expected every picture once, got {table.index[table.index.duplicated()][0]!r} "
                             "twice. Correct the table.")
        return table

    def found(self, root: Path, shown: Mapping[str, str]) -> dict[str, Path]:
        """Return what the events say -> the picture, looked for without case, with or without ending and folder.

        Parameters
        ----------
        root
            Root of the dataset.
        shown
            Value of the stimulus column -> the events file that has it, for messages.

        Raises
        ------
        ValueError
            If there is no folder, or pictures are missing or cannot be told apart.
        """
        folder = (root / self.folder).resolve()
        if not folder.is_dir():
            raise ValueError(f"{folder}: expected the folder of the pictures, got no such folder. Put them there, or "
                             "set study.stimuli.folder.")
        files = picture_files(folder)
        places: dict[str, list[Path]] = {}
        for path in files:
            place = path.relative_to(folder).as_posix().lower()
            keys = {place, place.rpartition(".")[0], path.name.lower(), path.stem.lower()}
            for key in keys:
                places.setdefault(key, []).append(path)
        table = self.described(root)
        column = next((name for name in _FILE_COLUMNS if name in table), None)
        found, missing = {}, []
        for value in shown:
            name = _plain(value, self.folder)
            if column is not None and name in table.index and pd.notna(table.loc[name, column]):
                name = _plain(str(table.loc[name, column]), self.folder)
            exact = [path for path in places.get(name.lower(), [])
                     if path.relative_to(folder).as_posix().lower() == name.lower()]
            matches = exact or places.get(name.lower(), [])
            if len(matches) > 1:
                raise ValueError(f"{shown[value]}: expected one picture named {value!r}, got "
                                 f"{' and '.join(str(p.relative_to(folder)) for p in matches[:3])}. Name it with its "
                                 "folder and ending.")
            if matches:
                found[value] = matches[0]
            else:
                missing.append(value)
        if missing:
            raise ValueError(
                f"{folder}: expected the pictures of all events, got none for {len(missing)} of {len(shown)} names "
                f"({', '.join(map(repr, missing[:4]))}{', ...' if len(missing) > 4 else ''}; the first in "
                f"{shown[missing[0]]}); {len(files)} pictures are there. Put them there, set study.stimuli.folder or "
                "study.events.stimulus_column, or leave these events out with study.events.where.")
        return found


def _plain(value: str, folder: str) -> str:
    """Return a name relative to the folder of pictures: BIDS leaves the folder out, people often do not."""
    name = re.sub(r"/+", "/", str(value).strip().replace("\\", "/")).removeprefix("./").lstrip("/")
    name = name.removeprefix("bids::")
    return name.removeprefix(f"{folder.strip('/')}/")


@dataclass(frozen=True, kw_only=True)
class Holdout:
    """Which stimuli are tested: as a column says, or drawn; for all subjects together.

    Parameters
    ----------
    column
        Column of the events or of the table of pictures with train, val(idation) and test; None: drawn.
    by
        What is never divided: a "stimulus", a "concept" or a "session".
    test_fraction, val_fraction
        Shares of the stimuli (concepts, sessions) that are drawn; where a column names no validation, `val_fraction` of
        its training part is drawn.
    seed
        Seed of the draw.
    """

    column: str | None = None
    by: str = "stimulus"
    test_fraction: float = 0.2
    val_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.by not in UNITS:
            raise ValueError(f"study.split.by: expected one of {UNITS}, got {self.by!r}. Choose one of these.")
        for name in ("test_fraction", "val_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"study.split.{name}: expected a share from 0 to below 1, got {getattr(self, name)}. "
                                 "Correct it.")

    def assign(self, trials: pd.DataFrame, *, concepts: Mapping[str, str | None], what: str) -> pd.Series:
        """Return the split of every trial.

        Parameters
        ----------
        trials
            Trials of all subjects: subject, stimulus_id, session, and `said`, what the column says.
        concepts
            Stimulus id -> concept.
        what
            What messages call the study.

        Raises
        ------
        ValueError
            If a name of a split is unknown, or a stimulus would be in several.
        """
        if self.column is None:
            unit = units(trials, by=self.by, concepts=concepts, what=what)
            split = divided(unit, n_folds=1, fold=0, test_fraction=self.test_fraction, val_fraction=self.val_fraction,
                            seed=self.seed, what=what)
            return trials["stimulus_id"].map(split)
        known = trials["said"].map(lambda name: _SPLIT_NAMES.get(str(name).lower()))
        if known.isna().any():
            raise ValueError(f"{what}: expected train, val or test in column {self.column!r}, got "
                             f"{trials.loc[known.isna(), 'said'].iloc[0]!r} for "
                             f"{trials.loc[known.isna(), 'stimulus_id'].iloc[0]!r} ({int(known.isna().sum())} trials "
                             "in all). Correct the column, or leave these events out with study.events.where.")
        check_splits(trials.assign(split=known), what=what)
        if not (known == "test").any():
            raise ValueError(f"{what}: expected stimuli of the split test in column {self.column!r}, got none. Correct "
                             "the column, or draw the split with study.split.column=null.")
        if (known == "val").any() or not self.val_fraction:
            return known
        rest = trials[known == "train"]
        unit = units(rest, by=self.by, concepts=concepts, what=what)
        drawn = divided(unit, n_folds=1, fold=0, test_fraction=self.val_fraction, val_fraction=0.0, seed=self.seed,
                        what=what)
        log.info("%s: column %r names no validation; %g of the training stimuli are drawn for it", what, self.column,
                 self.val_fraction)
        held = {stimulus for stimulus, split in drawn.items() if split == "test"}
        return known.mask(trials["stimulus_id"].isin(held), "val")


@dataclass
class Shown:
    """What all subjects were shown: tables of trials, subject by subject, made into trials and stimuli of the study."""

    root: Path
    pictures: Pictures
    split: Holdout
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, subject: str, parts: Iterable[pd.DataFrame]) -> None:
        """Add the trials of a subject, in the order of its files: stimulus, session, run, onset, ..., `path`."""
        self.tables[subject] = pd.concat(list(parts), ignore_index=True)

    def finish(self, *, what: str) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
        """Return subject -> trials (stimulus_id, repetition and split filled in), and the stimuli.

        Raises
        ------
        ValueError
            If pictures are missing, or the split cannot be.
        """
        every = pd.concat([table.assign(subject=name) for name, table in self.tables.items()], ignore_index=True)
        shown = dict(zip(every["stimulus"][::-1], every["path"][::-1], strict=True))
        files = self.pictures.found(self.root, shown)
        folder = (self.root / self.pictures.folder).resolve()
        ids = {value: path.relative_to(folder).as_posix() for value, path in files.items()}
        every["stimulus_id"] = every["stimulus"].map(ids)
        stimuli = self._stimuli(every, files, ids)
        concepts = dict(zip(stimuli["stimulus_id"], stimuli["concept"], strict=True))
        if self.split.column is not None:
            every["said"] = self._said(every)
        every["split"] = self.split.assign(every, concepts=concepts, what=what)
        check_splits(every, what=what)
        every["repetition"] = every.groupby(["subject", "stimulus_id"]).cumcount()
        trials = {name: every[every["subject"] == name].reset_index(drop=True) for name in self.tables}
        counts = every.drop_duplicates("stimulus_id")["split"].value_counts()
        shares = ", ".join(f"{counts.get(name, 0)} {name}" for name in ("train", "val", "test"))
        how = f"by column {self.split.column!r}" if self.split.column else (
            f"drawn by {self.split.by}, study.split.seed={self.split.seed}")
        self.notes += [f"{len(every)} trials of {len(stimuli)} pictures ({shares}: {how}), each shown "
                       f"{every.groupby(['subject', 'stimulus_id']).size().median():g} times to a subject (median)."]
        log.info("%s: %s", what, self.notes[-1])
        return trials, stimuli

    def _said(self, every: pd.DataFrame) -> pd.Series:
        column = self.split.column
        if column in every:
            return every[column]
        table = self.pictures.described(self.root)
        if column not in table:
            some = Path(every["path"].iloc[0])
            raise ValueError(f"study.split.column: expected a column of {some.name} or of the table of pictures, got "
                             f"{column!r}. There are {', '.join(read_table(some).columns)}"
                             f"{'; ' + ', '.join(table.columns) if len(table) else ''}. Correct study.split.column.")
        names = every["stimulus"].map(lambda value: _plain(value, self.pictures.folder))
        return names.where(~names.isin(table.index), names.map(table[column])).where(names.isin(table.index))

    def _stimuli(self, every: pd.DataFrame, files: Mapping[str, Path], ids: Mapping[str, str]) -> pd.DataFrame:
        """Return the stimuli in alphabetical order, with what the table says of them."""
        of = {ids[value]: (value, path) for value, path in sorted(files.items(), reverse=True)}
        lines = sorted(of)
        table = self.pictures.described(self.root)
        names = [_plain(of[line][0], self.pictures.folder) for line in lines]
        keys = [name if name in table.index else line for name, line in zip(names, lines, strict=True)]
        known = table.reindex(keys) if len(table) else pd.DataFrame(index=keys)
        concepts = self._concepts(every, lines, known)
        columns = [column for column in known if str(column).startswith("caption")]
        captions = [[text for column in columns if (text := _text(known[column].iloc[i]))] for i in range(len(lines))]
        return pd.DataFrame({
            "stimulus_id": lines, "kind": "image", "file": [str(of[line][1]) for line in lines],
            "concept": concepts, "category": _texts(known.get("category"), len(lines)),
            "captions": [texts or ([concept.replace("_", " ")] if concept else [])
                         for texts, concept in zip(captions, concepts, strict=True)],
            "attributes": [{} for _ in lines]})

    def _concepts(self, every: pd.DataFrame, lines: Sequence[str], known: pd.DataFrame) -> list[str | None]:
        source = self.pictures.concept
        if source == "folder":
            return [line.rpartition("/")[0] or None for line in lines]
        if source is None:
            return _texts(known.get("concept"), len(lines))
        if source not in every:
            raise ValueError(f"study.stimuli.concept: expected 'folder' or a column of the events, got {source!r}. "
                             f"There are {', '.join(map(str, every.columns))}. Correct study.stimuli.concept.")
        several = every.groupby("stimulus_id")[source].nunique()
        if (several > 1).any():
            raise ValueError(f"study.stimuli.concept: expected one {source} for every picture, got several for "
                             f"{several.index[several > 1][0]!r}. Choose another column, or null.")
        of = every.dropna(subset=[source]).drop_duplicates("stimulus_id").set_index("stimulus_id")[source]
        return [_text(of.get(line)) for line in lines]


def _text(value: Any) -> str | None:
    return None if value is None or pd.isna(value) else str(value)


def _texts(column: pd.Series | None, n: int) -> list[str | None]:
    return [None] * n if column is None else [_text(value) for value in column]
