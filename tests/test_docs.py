"""Documentation: every link leads somewhere, every command that it names composes, and no page is left out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from brain2img.command_line.commands import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands_of(page: Path) -> list[list[str]]:
    """Return the words of every command of a page: in code between backticks, and in lines of code."""
    text = text_of(page).replace("\\\n", " ")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.S | re.M)
    indented = re.findall(r"^    (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), flags=re.M)
    lines = [line for block in blocks for line in block.splitlines()] + indented
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
    found = []
    for line in lines:
        line = re.sub(r"<[^>]*>", "placeholder", line.strip())
        if re.match(r"(\.venv/bin/)?brain2img \w|python (scripts|data_prep)/\w+\.py", line):
            found.append(shlex.split(line, comments=True))
    return found


@pytest.fixture(scope="module")
def composed():
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        yield lambda root, overrides: compose(root, overrides=overrides)
    GlobalHydra.instance().clear()


@pytest.mark.parametrize("page", [p for p in PAGES if p.stem != "adding_a_part"], ids=lambda p: p.stem)
def test_every_command_composes(page, composed):
    """Those of ``adding_a_part.md`` need the files that it lets a reader write: `contracts.test_adding_a_part`."""
    for words in commands_of(page):
        if "placeholder" in "".join(words[:2]):
            continue
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), words
            if words[1].startswith("scripts/bench/"):
                continue
            name = Path(words[1]).stem if words[1].startswith("scripts/") else "prepare"
        else:
            name = words[1]
        if name == "completion":
            continue
        assert name in COMMANDS, words
        overrides = []
        for word in words[2:]:
            if word.startswith("-") or word == "..." or word == "job" or word == "bash":
                continue
            parsed = OverridesParser.create().parse_override(word)
            overrides.append(f"{word.partition('=')[0]}={next(parsed.sweep_string_iterator())}"
                             if parsed.is_sweep_override() else word)
        if overrides:
            composed(COMMANDS[name].root or name, overrides)


@pytest.mark.parametrize("page", sorted((ROOT / "docs" / "systems").glob("*.md")), ids=lambda p: p.stem)
def test_every_switch_of_a_published_system_exists(page, composed):
    """In the configuration of at least one of the experiments that the page names."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)
    experiments = dict.fromkeys(re.findall(r"experiment=([\w/]+)", text_of(page)))
    configs = [composed("base", [f"experiment={name}"]) for name in experiments]
    switches = re.findall(r"(?<=[` ])([a-z_]+(?:\.[a-z_]\w*)+)(?:=[^` ]*)?(?=[` ])", text)
    for switch in (s for s in switches if not s.endswith((".py", ".json"))):
        parent, _, key = switch.rpartition(".")
        assert any(key in (OmegaConf.select(config, parent) or ()) for config in configs), switch


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_resolves(page):
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            path, _, anchor = target.partition("#")
            place = page.parent / path if path else page
            assert place.exists(), f"{page.name} -> {target}"
            if anchor:
                titles = re.findall(r"^#+ (.*)$", text_of(place), flags=re.M)
                assert anchor in {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}, target
    for folder in re.findall(r"`((?:src|configs|tests|scripts|data_prep|docs)/[\w./-]*)`", text):
        assert (ROOT / folder).exists(), f"{page.name} names {folder}"


def test_the_site_shows_every_page():
    def pages(node):
        if isinstance(node, str):
            return [node]
        return [page for part in (node.values() if isinstance(node, dict) else node) for page in pages(part)]

    shown = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(shown) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


def test_the_readme_is_short_and_names_commands():
    assert len(text_of(ROOT / "README.md").splitlines()) < 150
    assert sum(len(commands_of(page)) for page in PAGES) > 80
    assert len(commands_of(ROOT / "README.md")) >= 10


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_pages_describe_the_code_of_today(page):
    text = text_of(page).lower()
    for word in ("older version", "earlier version", "used to be", "no longer", "anew since", "not run again"):
        assert word not in text, word
