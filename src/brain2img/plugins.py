"""Parts in packages of other people: those of installed distributions that declare the entry point of this project.

::

    [project.entry-points."brain2img.plugins"]
    my_lab = "my_lab"

Who installs such a distribution trusts it, as any other library; a configuration cannot name one. Nothing of it is
imported before a ``_target_`` names it.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

GROUP = "brain2img.plugins"


def packages() -> tuple[str, ...]:
    """Return the names of these packages.

    Raises
    ------
    ValueError
        If a distribution declares something else.
    """
    found = sorted({entry.value for entry in entry_points(group=GROUP)})
    for name in found:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"entry point {GROUP}: expected the name of a package, got {name!r}. Correct the "
                             "pyproject.toml of the distribution that declares it, or uninstall it.")
    return tuple(found)


def config_folders() -> list[Path]:
    """Return the folders ``configs/`` in these packages: their files are choices beside ours, which count first."""
    folders = []
    for name in packages():
        top, *rest = name.split(".")  # a package inside another one would import that to be found
        spec = find_spec(top)
        places = (spec.submodule_search_locations if spec else None) or ()
        folders += [folder for place in places if (folder := Path(place, *rest, "configs")).is_dir()]
    return folders
