"""Published models: our parameters at their size, beside the published totals."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from brain2img.analyses.counting import Counts, count, embeddings_of, signals_of
from brain2img.analyses.deviations import deviations_of
from brain2img.stages.build import plain
from brain2img.stages.workspace import training_config

log = logging.getLogger(__name__)

NEEDED = ("model", "parameters", "spaces", "source")


@dataclass(frozen=True)
class Compared:
    """One model beside its publication.

    Parameters
    ----------
    name
        Of the experiment.
    published
        What the experiment states: model, parameters (None where they were not published), dead and missing (module or
        description -> parameters), reason ("" or why the sum differs), source.
    counts
        What is built.
    subjects
        Whose signals it takes.
    """

    name: str
    published: Mapping[str, Any]
    counts: Counts
    subjects: tuple[str, ...]

    @property
    def dead(self) -> dict[str, int]:
        """Module or description -> parameters that were published and never reach the output."""
        return dict(self.published.get("dead") or {})

    @property
    def missing(self) -> dict[str, int]:
        """What our model leaves out or counts elsewhere -> parameters; negative for what only ours has."""
        return dict(self.published.get("missing") or {})

    @property
    def live(self) -> int:
        """Our parameters, without those that are dead: stated as dead, or not reached by a training step."""
        dead = {name for path in self.dead for name in self.counts.below(path)}
        return sum(n for name, n in self.counts.parameters.items()
                   if name not in dead and name not in self.counts.unreached)

    @property
    def total(self) -> int:
        """What should equal the published total: live, dead and missing."""
        return self.live + sum(self.dead.values()) + sum(self.missing.values())

    @property
    def problems(self) -> list[str]:
        """What is wrong with the counts, in words; none where all is equal or the difference has a stated reason."""
        found = []
        for path, stated in self.dead.items():
            built = sum(self.counts.below(path).values())
            if built and built != stated:
                found.append(f"dead module {path}: expected {stated:,} parameters, got {built:,}")
        named = {name for path in self.dead for name in self.counts.below(path)}
        for module, n in _modules({k: v for k, v in self.counts.unreached.items() if k not in named}).items():
            found.append(f"{module}: expected a gradient in a training step, got none for {n:,} parameters: they are "
                         "dead. Name them in published.dead, or mend the model")
        stated = self.published["parameters"]
        if stated is not None and self.total != stated and not self.published.get("reason"):
            found.append(f"expected {stated:,} parameters, got {self.total:,} ({self.total - stated:+,}). Correct the "
                         "sizes, or state published.dead, published.missing or published.reason")
        return found

    @property
    def verdict(self) -> str:
        """Whether the sum is the published total."""
        stated = self.published["parameters"]
        if stated is None:
            return "not published"
        if self.total == stated:
            return "equal"
        reason = self.published.get("reason")
        return f"{self.total - stated:+,}: {reason or 'no reason stated'}"


def parameters(cfg: DictConfig) -> list[Compared]:
    """Count the parameters of published models, log a table, and compare with the published totals.

    Raises
    ------
    ValueError
        If a total differs without a stated reason, or a parameter is dead and not named.
    """
    compared = []
    for name, model in plain(cfg.models).items():
        facts = model.get("published") or {}
        if facts.get("voxels", "") is None and facts.get("reason"):
            log.info("%s left out: %s", name, facts["reason"])
            continue
        compared.append(compare(OmegaConf.create(model), name=name))
    log.info("%s\n", table(compared))
    log.info("%s", module_table(compared))
    wrong = [f"{one.name}: {problem}." for one in compared for problem in one.problems]
    if wrong:
        raise ValueError("parameters of published models:\n  " + "\n  ".join(wrong))
    return compared


def compare(cfg: DictConfig, *, name: str) -> Compared:
    """Build the model of an experiment on the meta device and set it beside its ``published`` facts.

    Raises
    ------
    ValueError
        If the experiment states no such facts, or a deviation in another form.
    """
    published = plain(cfg.get("published")) or {}
    lacking = [key for key in NEEDED if key not in published]
    if lacking:
        raise ValueError(f"experiment {name!r}: expected `published` with {', '.join(NEEDED)}, got none of "
                         f"{', '.join(lacking)}. State them in its YAML, or leave it out of models=[...].")
    deviations_of(published, name=name)
    signals = signals_of(published)
    counts = count(training_config(cfg), signals=signals, embeddings=embeddings_of(published), seed=cfg.seed)
    return Compared(name, published, counts, tuple(signals))


def table(compared: Sequence[Compared]) -> str:
    """Return one line a model, in Markdown."""
    lines = ["| model | ours, live | dead | missing (negative: only ours) | published | sum | source |",
             "|---|---|---|---|---|---|---|"]
    for one in compared:
        stated = one.published["parameters"]
        lines.append(f"| {one.published['model']} | {one.live:,} | {_named(one.dead)} | {_named(one.missing)} "
                     f"| {'–' if stated is None else f'{stated:,}'} | {one.verdict} | {one.published['source']} |")
    return "\n".join(lines)


def module_table(compared: Sequence[Compared]) -> str:
    """Return one line a model and module, in Markdown."""
    lines = ["| model | module | parameters |", "|---|---|---|"]
    for one in compared:
        for module, n_subjects, n in one.counts.by_module(one.subjects):
            own = f" ({n_subjects} subject{'s' if n_subjects > 1 else ''})" if n_subjects else ""
            lines.append(f"| {one.name} | {module}{own} | {n:,} |")
        if one.counts.untraced:
            lines.append(f"| {one.name} | not traced: {one.counts.untraced} | |")
    return "\n".join(lines)


def _named(parts: Mapping[str, int]) -> str:
    return "; ".join(f"{name} {n:,}" for name, n in parts.items()) or "0"


def _modules(names: Mapping[str, int]) -> dict[str, int]:
    """Return the modules that hold these parameters -> parameters."""
    found: dict[str, int] = {}
    for name, n in names.items():
        module = name.rpartition(".")[0] or name
        found[module] = found.get(module, 0) + n
    return found
