"""Published models: what deviates from the publication, why, and the setting that takes it back."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from brain2img.stages.build import plain

log = logging.getLogger(__name__)

BEGIN, END = "<!-- deviations -->", "<!-- end of deviations -->"
"""Lines of a page between which its table stands."""
KEYS = ("what", "published", "why", "switch")


@dataclass(frozen=True)
class Deviation:
    """One thing that a system does here in another way than its publication.

    Parameters
    ----------
    what
        What is done here.
    published
        What the publication does instead, or "not known".
    why
        The reason.
    switch
        Overrides as typed on a command line, separated by spaces, that set what was published (where that is not known:
        that set another choice); None where there are none.
    """

    what: str
    published: str
    why: str
    switch: str | None

    @property
    def overrides(self) -> list[str]:
        """The overrides of the switch, one by one."""
        return shlex.split(self.switch or "")


def deviations_of(published: Mapping[str, Any], *, name: str) -> dict[str, Deviation]:
    """Return key -> deviation of an experiment, from its ``published`` facts.

    A deviation that an experiment sets to null is one of its system that it does not share.

    Raises
    ------
    ValueError
        If one lacks a key, has another one, or says something else than text.
    """
    found = {}
    for key, said in (published.get("deviations") or {}).items():
        if said is None:
            continue
        what = f"experiment {name!r}, published.deviations.{key}"
        if not isinstance(said, Mapping) or sorted(said) != sorted(KEYS):
            raise ValueError(f"{what}: expected {', '.join(KEYS)}, got {said!r}. State them all; switch: null where "
                             "no setting takes it back.")
        asked = [k for k in KEYS if k != "switch" or said[k] is not None]
        empty = [k for k in asked if not isinstance(said[k], str) or not said[k].strip()]
        if empty:
            raise ValueError(f"{what}: expected text, got {said[empty[0]]!r} as {empty[0]}. Say it in words.")
        found[key] = Deviation(**said)
    return found


def deviations(cfg: DictConfig) -> dict[str, str]:
    """Make the table of deviations of every system of the ``models``; returns system -> table in Markdown.

    Logs them, or writes them between the marks of ``<pages>/<system>.md``.

    Raises
    ------
    ValueError
        If an experiment names no system or states a deviation in another form, or a page has no marks.
    """
    systems: dict[str, dict[str, dict[str, Deviation]]] = {}
    for name, model in plain(cfg.models).items():
        published = model.get("published") or {}
        if not published.get("system"):
            raise ValueError(f"experiment {name!r}: expected published.system, the name of its page, got none. "
                             "Choose one of configs/published in its defaults, or leave it out of models=[...].")
        systems.setdefault(published["system"], {})[name] = deviations_of(published, name=name)
    tables = {system: table(rows) for system, rows in systems.items()}
    for system, made in tables.items():
        if cfg.pages is None:
            log.info("%s\n\n%s\n", system, made)
        else:
            page = Path(cfg.pages) / f"{system}.md"
            page.write_text(with_table(page.read_text(encoding="utf-8"), made, page=page), encoding="utf-8")
            log.info("%s", page)
    return tables


def table(rows: Mapping[str, Mapping[str, Deviation]]) -> str:
    """Return one line a deviation, in Markdown; `rows` maps experiments of one system to what they state.

    What not all of them share names the experiments that have it.
    """
    shared: dict[Deviation, list[str]] = {}
    for name, stated in rows.items():
        for deviation in stated.values():
            shared.setdefault(deviation, []).append(name.rpartition("/")[2])
    lines = ["| here | published | why | switch | of |", "|---|---|---|---|---|"]
    for one, names in shared.items():
        switch = f"`{one.switch}`" if one.switch else "none"
        of = "all" if len(names) == len(rows) else ", ".join(f"`{name}`" for name in names)
        lines.append(f"| {one.what} | {one.published} | {one.why} | {switch} | {of} |")
    return "\n".join(lines)


def with_table(text: str, made: str, *, page: Path) -> str:
    """Return the text of a page with this table between its marks.

    Raises
    ------
    ValueError
        If the page does not have each mark once, in order.
    """
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not begin or not end or BEGIN in after:
        raise ValueError(f"{page}: expected the lines {BEGIN} and {END} once, got others. Put them where the table "
                         "belongs.")
    return f"{before}{begin}\n{made}\n\n{end}{after}"
