"""Files of a BIDS dataset: names, entities, subjects, and the tables that belong to a file.

The grammar of names is that of https://bids-specification.readthedocs.io: ``sub-01_ses-02_task-x_run-1_eeg.vhdr``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

log = logging.getLogger(__name__)

_NAME = re.compile(r"((?:[a-zA-Z]+-[a-zA-Z0-9+.]+_)+)([a-zA-Z0-9]+)(\..+)?")
#: What tells the runs of a session apart, in the order in which they are sorted.
RUN_ENTITIES = ("task", "acq", "run")
#: What BIDS writes, and what people write, where there is no value.
NO_VALUE = ("n/a", "N/A", "", "NaN", "nan", "null")


@dataclass(frozen=True, eq=False)
class BIDSFile:
    """A file (or a folder that counts as one, as ``*.ds``) with its entities, e.g. {"sub": "01", "task": "x"}."""

    path: Path
    entities: Mapping[str, str]
    suffix: str
    extension: str

    @classmethod
    def of(cls, path: Path) -> Self | None:
        """Return the parts of a name, or None where it is no name of BIDS."""
        match = _NAME.fullmatch(path.name)
        if match is None:
            return None
        pairs = (part.partition("-") for part in match[1].rstrip("_").split("_"))
        return cls(path, {key: value for key, _, value in pairs}, match[2], match[3] or "")

    @property
    def session(self) -> str | None:
        """Label of the session, or None where the dataset has none."""
        return self.entities.get("ses")

    def run_name(self, among: Sequence[BIDSFile]) -> str | None:
        """Return the label of the run, with task and acquisition where `among` differ in these."""
        several = [key for key in RUN_ENTITIES[:-1] if len({other.entities.get(key) for other in among}) > 1]
        parts = [f"{key}-{self.entities[key]}" for key in several if key in self.entities]
        run = self.entities.get("run")
        return "_".join([*parts, *([f"run-{run}" if parts else run] if run else [])]) or None

    def order(self) -> tuple[Any, ...]:
        """Return what files are sorted by: session, then task, acquisition and run, numbers as numbers."""
        return tuple(_natural(self.entities.get(key, "")) for key in ("ses", *RUN_ENTITIES, "split", "desc"))


def _natural(label: str) -> tuple[Any, ...]:
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.findall(r"\d+|\D+", label))


def same_label(one: Any, other: Any) -> bool:
    """Tell whether two labels are the same; numbers are compared as numbers ("01" is 1), and "sub-" does not count."""
    a, b = (str(label).rpartition("-")[2] for label in (one, other))
    return a == b or (a.isdigit() and b.isdigit() and int(a) == int(b))


def wanted_values(value: Any) -> list[Any]:
    """Return a setting that is one value or several as a list."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def dataset_folder(raw: Path | None) -> Path:
    """Return the root of the dataset that was given, absolute.

    Raises
    ------
    ValueError
        If there is none, or it holds no subjects.
    """
    if raw is None or not Path(raw).is_dir():
        raise ValueError(f"raw: expected the folder of a BIDS dataset, got "
                         f"{'nothing' if raw is None else f'{raw}, which is no folder'}. Give raw=<folder>; "
                         "docs/studies/bids.md says what belongs into it.")
    raw = Path(raw).resolve()
    if not subjects_of(raw):
        above = next((folder for folder in raw.parents if (folder / "dataset_description.json").is_file()), None)
        raise ValueError(f"{raw}: expected folders sub-<label> in it, as BIDS has them, got "
                         f"{', '.join(sorted(p.name for p in raw.iterdir())[:6]) or 'an empty folder'}. Give raw=<root "
                         f"of the dataset>{f', perhaps {above}' if above else ''}.")
    return raw


def subjects_of(root: Path) -> list[str]:
    """Return the labels of the subjects that have a folder, an empty room apart."""
    found = (path.name.removeprefix("sub-") for path in root.glob("sub-*") if path.is_dir())
    return sorted((label for label in found if label != "emptyroom"), key=_natural)


def chosen_subjects(root: Path, wanted: Sequence[Any] | None, *, files: Callable[[str], list[BIDSFile]],
                    what: str) -> dict[str, list[BIDSFile]]:
    """Return label of a subject -> its files, in the order asked for.

    Parameters
    ----------
    root
        Root of the dataset.
    wanted
        Labels ("01", 1 and "sub-01" are one); None for all subjects that have such files.
    files
        Returns the files of a subject.
    what
        What messages call these files.

    Raises
    ------
    ValueError
        If a subject that was asked for is not there or has none of these files, or nobody has any.
    """
    there = subjects_of(root)
    if wanted is None:
        found = {subject: files(subject) for subject in there}
        without = [subject for subject in _participants(root, there) if not found.get(subject)]
        found = {subject: some for subject, some in found.items() if some}
        if not found:
            raise ValueError(f"{root}: expected {what}, got none of its {len(there)} subjects. {_there_are(root)}")
        if without:
            log.warning("%s: %d subjects have no %s and are left out (%s)", root, len(without), what,
                        ", ".join(f"sub-{label}" for label in without[:8]))
        return found
    labels = []
    for label in wanted:
        match = [subject for subject in there if same_label(subject, label)]
        if len(match) != 1 or match[0] in labels:
            raise ValueError(f"study.subjects: expected different subjects of {there}, got {list(wanted)}. "
                             "Correct study.subjects; null takes all.")
        labels += match
    chosen = {label: files(label) for label in labels}
    for label, some in chosen.items():
        if not some:
            raise ValueError(f"{root / f'sub-{label}'}: expected {what}, got none. {_there_are(root / f'sub-{label}')}")
    return chosen


def _participants(root: Path, there: Sequence[str]) -> list[str]:
    """Return the labels in ``participants.tsv`` and those that have folders."""
    path = root / "participants.tsv"
    named = read_table(path).get("participant_id") if path.is_file() else None
    listed = [] if named is None else [str(label).removeprefix("sub-") for label in named.dropna()]
    return [*there, *(label for label in dict.fromkeys(listed) if label not in there and label != "emptyroom")]


def _there_are(folder: Path) -> str:
    """Say which kinds of files a folder holds: datatype, suffix and ending, and the values of every entity."""
    files = [file for path in sorted(folder.rglob("*_*"))[:20000] if (file := BIDSFile.of(path))]
    kinds = sorted({f"{file.path.parent.name}/*_{file.suffix}{file.extension}" for file in files
                    if file.extension not in (".json", ".tsv")})
    values = {key: sorted({file.entities[key] for file in files if key in file.entities})
              for key in (*RUN_ENTITIES, "space", "desc")}
    shown = "; ".join(f"{key}: {', '.join(some[:8])}" for key, some in values.items() if some)
    return (f"There are {', '.join(kinds[:8]) or 'no files'}{f' ({shown})' if shown else ''}: correct raw, "
            "study.datatype, study.subjects or study.entities.")


def matching_files(folder: Path, *, entities: Mapping[str, Any]) -> list[BIDSFile]:
    """Return the files in a folder that are named by BIDS and have the values asked for.

    Parameters
    ----------
    folder
        Where to look, not below.
    entities
        Entity ("ses", "task", "run", ...) -> a value or several; None for any.
    """
    asked = {key: wanted_values(value) for key, value in entities.items() if value is not None}
    found = [file for path in (sorted(folder.iterdir()) if folder.is_dir() else ()) if (file := BIDSFile.of(path))]
    return [file for file in found if all(
        key in file.entities and any(same_label(file.entities[key], value) for value in values)
        for key, values in asked.items())]


def path_in(root: Path, path: Path) -> str:
    """Return what of a path stays when the dataset is moved."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def datatype_folders(root: Path, subject: str, datatype: str) -> list[Path]:
    """Return the folders of a subject that hold a datatype, session by session."""
    here = root / f"sub-{subject}"
    return [folder for folder in (here / datatype, *sorted(here.glob(f"ses-*/{datatype}"))) if folder.is_dir()]


def check_entities(entities: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the entities asked for by their short keys.

    Raises
    ------
    ValueError
        If one is none of BIDS.
    """
    long = {"session": "ses", "acquisition": "acq", "description": "desc", "processing": "proc", "resolution": "res"}
    known = ("ses", "task", "acq", "run", "proc", "space", "desc", "res", "recording", "stat", "dir", "echo", "den",
             "label", "model", "contrast")
    found = {long.get(key, key): value for key, value in (entities or {}).items()}
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ValueError(f"study.entities: expected entities of {known}, got {unknown}. Correct study.entities; "
                         "subjects have study.subjects.")
    return found


def table_of(file: BIDSFile, *, root: Path, suffix: str, folder: Path | None = None) -> Path | None:
    """Return the table that belongs to a file: nearest to it, else nearest to the root (the inheritance principle).

    Parameters
    ----------
    file
        The recording or map.
    root
        Root of the dataset, where the search ends.
    suffix
        "events", "channels", ...
    folder
        Where to begin; None for the folder of the file.
    """
    start = file.path.parent if folder is None else folder
    for place in (start, *start.parents):
        found = [other for other in matching_files(place, entities={}) if other.suffix == suffix
                 and other.extension == ".tsv" and other.entities.items() <= file.entities.items()]
        if found:
            return max(found, key=lambda other: len(other.entities)).path
        if place == root:
            break
    return None


def read_table(path: Path) -> pd.DataFrame:
    """Return a tab-separated table as strings, None where there is no value.

    Raises
    ------
    ValueError
        If it cannot be read, or is not separated by tabs.
    """
    try:
        table = pd.read_csv(path, sep="," if path.suffix.lower() == ".csv" else "\t", dtype=str, keep_default_na=False,
                            encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{path}: expected a table of UTF-8 text, columns separated by tabs, got none ({error}). "
                         "Correct the file.") from error
    table.columns = [str(column).strip() for column in table.columns]
    if len(table.columns) == 1 and "," in table.columns[0]:
        raise ValueError(f"{path}: expected columns separated by tabs, as BIDS wants, got commas. Save it with tabs.")
    table = table.apply(lambda column: column.str.strip())
    return table.mask(table.isin(NO_VALUE), None)
