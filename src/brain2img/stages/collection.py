"""A collection: several experiments under one name, each with a complete configuration of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf

Result = TypeVar("Result")


def members(cfg: DictConfig) -> list[DictConfig]:
    """Return the configuration of every member of a collection, or `cfg` itself where it is none.

    Raises
    ------
    ValueError
        If it is a collection whose members are named only: Hydra composed it, and nothing completed it.
    """
    listed = cfg.get("members") or []
    if cfg.get("by_modality") or any(not OmegaConf.is_dict(member) for member in listed):
        raise ValueError(f"collection {cfg.get('name')!r}: expected a complete configuration, got one that names its "
                         "members. Compose it with brain2img.compose(command, *overrides).")
    return [member.copy() for member in listed] or [cfg]


def for_each_member(stage: Callable[[DictConfig], Result]) -> Callable[[DictConfig], Result]:
    """Let a function of one experiment take a collection, too: its members in turn; it returns what the last gave."""
    @functools.wraps(stage)
    def of_all(cfg: DictConfig) -> Result:
        return [stage(member) for member in members(cfg)][-1]

    return of_all
