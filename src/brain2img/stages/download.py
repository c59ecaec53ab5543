"""The raw files of a study, from the services that hold them, in the folders that its study class reads."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from brain2img.artifacts import claim
from brain2img.stages.build import build, build_study, plain
from brain2img.stages.workspace import folder_of
from brain2img.studies.downloading.fetching import (
    PartialFile,
    RemoteFile,
    Source,
    check_free_disk,
    fetch,
    inside,
    mismatch,
    persistently,
    size_of,
    unpack,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """What belongs together of a study's files, as ``configs/download/<study>.yaml`` states it.

    Parameters
    ----------
    source
        Name of its source.
    files
        Patterns (see `brain2img.studies.downloading.services.Source.files`) with ``{subject}``, ``{session}`` or a
        setting of the study.
    to
        Folder below ``raw`` for the paths of the source.
    unpack
        Folder below ``raw`` into which the files, zip archives, are unpacked.
    forms
        Forms of the study (``study.form``) that need it; none: all.
    optional
        Whether the study can do without.
    encrypted
        Whether the archives need ``password``.
    """

    source: str
    files: Sequence[str]
    to: str = ""
    unpack: str | None = None
    forms: Sequence[str] = ()
    optional: bool = False
    encrypted: bool = False


@dataclass(frozen=True)
class Wanted:
    """One file: where it comes from, where it goes."""

    item: str
    source: Source
    file: RemoteFile
    target: Path
    unpack: Path | None

    @property
    def fetched(self) -> bool:
        """Whether the file is there."""
        return self.target.is_file() and self.target.stat().st_size == self.file.size

    @property
    def done(self) -> bool:
        """Whether nothing is left to do; of an archive that was unpacked a note remains."""
        if self.unpack is None:
            return self.fetched
        return self._note.is_file() and self._note.read_text() == self._identity

    @property
    def missing(self) -> int:
        """Bytes still to fetch."""
        return 0 if self.done or self.fetched else self.file.size - size_of(PartialFile.of(self.target, self.file))

    @property
    def _note(self) -> Path:
        return self.target.with_name(f"{self.target.name}.unpacked")

    @property
    def _identity(self) -> str:
        return f"{self.file.size} {self.file.checksum}\n"

    def get(self, *, arrived: Callable[[int], object], overwrite: bool, password: str | None) -> None:
        """Fetch it, and unpack it where it is an archive; the archive is then removed."""
        with claim(self.target):
            if self.done and not overwrite:
                return  # another command fetched it while this one waited
            if overwrite or not self.fetched:
                fetch(self.source, self.file, self.target, arrived=arrived)
            if self.unpack is not None:
                unpack(self.target, self.unpack, password=password)
                self._note.write_text(self._identity)
                self.target.unlink()


def download(cfg: DictConfig) -> Path:
    """Fetch the raw files of a study; returns the folder that ``raw=`` of its preparation takes.

    What is there already is left alone, what broke off is gone on with. With ``list=true`` it only says what it would
    fetch.

    Raises
    ------
    ValueError
        If terms are not accepted, something asked for is not offered, the disk has too little room, another file is
        where one belongs, or a file cannot be fetched whole. What is fetched by then stays.
    """
    study = build_study(cfg)[0]
    config = plain(cfg.get("download"))
    if not config:
        raise ValueError(f"study: expected one whose files a service holds, got {study.name!r}. docs/studies/*.md says "
                         "where its files are from, if it has any.")
    raw = Path(cfg.raw or folder_of(cfg, "raw", study.name)).expanduser().resolve()
    form = cfg.study.get("form")
    items = _items(config, form=form, only=cfg.only)
    terms = [f"{term['what']}: {term['url']}" for term in config["terms"] if set(term.get("items", items)) & set(items)]
    if not cfg.list:
        _check_accepted(cfg, items, terms, study=study.name)
    sources = {name: build(config["sources"][name], Source) for name in {item.source for item in items.values()}}
    wanted = list(_wanted(cfg, items, sources, raw))
    log.info("%s -> %s\n%s", study.name, raw, _table(wanted))
    if cfg.list:
        log.info("%s", "\n".join([*_lines(wanted, raw), *(f"terms to accept: {term}" for term in terms)]))
        return raw
    _check_others(wanted, overwrite=cfg.overwrite, verify=cfg.verify)
    get = [w for w in wanted if cfg.overwrite or not w.done]
    # an archive holds at least its own size; how much exactly is checked when it is there
    need = sum(w.file.size if cfg.overwrite else w.missing for w in get) + sum(
        w.file.size for w in get if w.unpack is not None)
    check_free_disk(raw, need, what=f"the {len(get)} files to fetch")
    password = None if cfg.password is None else str(cfg.password)  # YAML reads digits as a number
    with _bar(get) as arrived:
        for one in get:
            one.get(arrived=arrived, overwrite=cfg.overwrite, password=password)
    log.info("%s: all %d files are there. Next: brain2img prepare study=%s raw=%s study.form=%s study.subjects=[%s]",
             study.name, len(wanted), study.name, raw, form, ",".join(map(str, cfg.subjects)))
    return raw


def _items(config: Mapping[str, Any], *, form: str | None, only: Sequence[str] | None) -> dict[str, Item]:
    """Return what the form of the study needs, or of this what ``only`` names."""
    items = {name: Item(**values) for name, values in config["items"].items()}
    items = {name: item for name, item in items.items() if not item.forms or form in item.forms}
    unknown = sorted(set(only or ()) - set(items))
    if unknown:
        raise ValueError(f"only: expected some of {', '.join(items)} (form {form}), got {', '.join(unknown)}. Correct "
                         "only=[...], or study.form.")
    return {name: item for name, item in items.items() if only is None or name in only}


def _check_accepted(cfg: DictConfig, items: Mapping[str, Item], terms: Sequence[str], *, study: str) -> None:
    if terms and not cfg.accept_terms:
        raise ValueError(f"{study}: expected a person to have read and accepted the terms of its data, got "
                         f"accept_terms={str(cfg.accept_terms).lower()}. Read them, do what they ask for, then add "
                         "accept_terms=true:\n  " + "\n  ".join(terms))
    locked = [name for name, item in items.items() if item.encrypted]
    if locked and not cfg.password:
        others = ",".join(name for name in items if name not in locked)
        raise ValueError(f"{study}: expected the password of {', '.join(locked)}, got none. Who has read the terms "
                         f"finds it where they are; give password=..., or leave them out with only=[{others}].")


def _wanted(cfg: DictConfig, items: Mapping[str, Item], sources: Mapping[str, Source], raw: Path) -> Iterator[Wanted]:
    """Return every file, as its service lists it."""
    seen = set()
    for name, item in items.items():
        source = sources[item.source]
        for pattern in item.files:
            for filled in _filled(pattern, cfg):
                found = persistently(partial(source.files, filled))
                if not found and not item.optional:
                    raise ValueError(f"{source}: expected {filled} ({name}), got no such file. See what is there, and "
                                     "correct subjects=[...], sessions=[...] or configs/download/<study>.yaml.")
                for file in found:
                    target = inside(raw / item.to, file.path, of=str(source))
                    if target not in seen:
                        seen.add(target)
                        yield Wanted(name, source, file, target, None if item.unpack is None else raw / item.unpack)


def _filled(pattern: str, cfg: DictConfig) -> list[str]:
    """Return a pattern for every subject and session it speaks of; without a choice of sessions, for any."""

    def fill(match: re.Match[str]) -> str:
        value, width = values[match[1]], int(match[2] or 0)
        return str(value).zfill(width) if value is not None else "?" * width or "*"

    made = []
    for subject, session in product(cfg.subjects, cfg.sessions or [None]):
        values = {**plain(cfg.study), "subject": subject, "session": session}
        made.append(re.sub(r"\{(\w+)(?::0(\d)d)?\}", fill, pattern))
    return list(dict.fromkeys(made))


def _check_others(wanted: Iterable[Wanted], *, overwrite: bool, verify: bool) -> None:
    """Refuse to begin where something else has the name of a file, or, if asked to look, another content."""
    for one in wanted:
        if overwrite or not one.target.is_file():
            continue
        same_size = one.target.stat().st_size == one.file.size
        if wrong := mismatch(one.target, one.file) if verify or not same_size else "":
            raise ValueError(f"{one.target}: {wrong}. Move it away, or fetch it anew with overwrite=true.")


def _table(wanted: Sequence[Wanted]) -> str:
    """Return what is fetched, item by item, and how big it is."""
    rows = [("item", "files", "size", "to fetch", "from")]
    groups = {name: [w for w in wanted if w.item == name] for name in dict.fromkeys(w.item for w in wanted)}
    for name, some in {**groups, "all": list(wanted)}.items():
        rows.append((name, str(len(some)), _size(sum(w.file.size for w in some)), _size(sum(w.missing for w in some)),
                     "" if name == "all" else str(some[0].source)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}  {e}".rstrip()
                     for a, b, c, d, e in rows)


def _lines(wanted: Iterable[Wanted], raw: Path) -> Iterator[str]:
    for one in wanted:
        kind = one.file.checksum.partition(":")[0]
        state = "there" if one.done else "partly there" if one.missing < one.file.size else "missing"
        yield (f"  {one.target.relative_to(raw)}: {_size(one.file.size)}, {state}, checked by "
               f"{'size' if kind in ('', 'etag') else kind}")


def _size(n: int) -> str:
    unit, name = next(((u, s) for u, s in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if n >= u), (1.0, "B"))
    return f"{n / unit:.3g} {name}"


@contextmanager
def _bar(get: Sequence[Wanted]) -> Iterator[Callable[[int], object]]:
    """Give what moves a bar over all bytes on a terminal; elsewhere it does nothing."""
    total = sum(w.file.size for w in get)
    with tqdm(total=total, initial=total - sum(w.missing for w in get), unit="B", unit_scale=True, unit_divisor=1000,
              disable=not sys.stdout.isatty()) as bar:
        yield bar.update
