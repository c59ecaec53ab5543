"""How every page is made: one layout and style, filled with scores or with sections of text, figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brain2img.artifacts import writing
from brain2img.report.figures import Picture


@dataclass(frozen=True)
class Table:
    """A table of text; a cell in ``**`` is bold.

    Parameters
    ----------
    head
        Heads of the columns.
    lines
        As many cells each.
    title, note
        What stands above and below it.
    """

    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page, shown in this order: title, text, warnings, a command, a list, pictures, tables, a note."""

    title: str = ""
    text: str = ""
    warnings: Sequence[str] = ()
    code: str = ""
    points: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    note: str = ""


def write_sections(path: Path, *, title: str, sections: Sequence[Section], subtitle: str = "") -> None:
    """Write a self-contained HTML page of sections."""
    write_page(path, "sections.html", title=title, subtitle=subtitle, sections=sections)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a self-contained HTML page from a template of this folder.

    Parameters
    ----------
    path
        The page.
    template
        Name of the file; it fills ``page.html``, which needs a title and a subtitle.
    **values
        What the template asks for; one that is missing is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                              loader=FileSystemLoader(Path(__file__).parent))
    environment.filters["tied"] = lambda text: text.replace(" %", "\u00a0%").replace(" ms", "\u00a0ms")
    with writing(path) as temporary:
        temporary.write_text(environment.get_template(template).render(**values), encoding="utf-8")
