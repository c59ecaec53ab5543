"""Every YAML of every group is one part, whose keys its class takes."""

from __future__ import annotations

import inspect

import pytest
from parts import CONFIGS, INTERFACES, content, parts

import brain2img.interfaces as interfaces
from brain2img.stages.build import class_of, constructor

GIVEN = {"adapter": {"specs", "grid"}, "encoder": {"specs"}, "head": {"hidden", "spec"},
         "decoder": {"specs", "targets", "seed", "adapter", "encoder", "heads", "augmentation", "training"}}
"""What stages/build.py passes beside the YAML."""
KEYED = ("space", "head", "metric", "reconstructor", "captioner")
"""Groups of which several can be chosen: a file holds its part under its own key."""


@pytest.mark.parametrize(("group", "key", "config"), [
    pytest.param(group, *p.values, id=f"{group}/{p.id}") for group in INTERFACES for p in parts(group)])
def test_the_keys_of_a_file_are_arguments_of_its_class(group, key, config):
    cls = class_of(config, getattr(interfaces, INTERFACES[group]))
    assert bool(key) == (group in KEYED)
    parameters, given = constructor(cls).parameters, GIVEN.get(group, set())
    keys = set(config) - {"_target_", "raw"}
    assert keys <= set(parameters), f"unknown keys {keys - set(parameters)}"
    needed = {n for n, p in parameters.items() if p.default is p.empty}
    assert needed <= keys | given, f"missing keys {needed - keys}"
    assert len(parameters) <= 10 + len(given), "a constructor has 10 arguments at most"
    assert not inspect.isabstract(cls)


@pytest.mark.parametrize("path", sorted(p for group in KEYED for p in (CONFIGS / group).rglob("*.yaml")),
                         ids=lambda p: str(p.relative_to(CONFIGS)))
def test_a_file_holds_one_part(path):
    assert len(content(path)) == 1, "one key per file"
