"""Plug-ins of a group, the modules that its YAML files name, do not import each other, not even by others."""

from __future__ import annotations

import tomllib

import grimp
import pytest
from parts import CONFIGS, INTERFACES, parts

UNNAMED = {"utils", "helpers", "common", "misc", "util", "tools", "lib"}


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("brain2img", cache_dir=None)


def plug_ins(group):
    return {p.values[1]["_target_"].rpartition(".")[0] for p in parts(group)}


def siblings(graph, group, *, of=None):
    """Return the chains of imports that lead from a plug-in of a group to another one."""
    modules = of or plug_ins(group)
    chains = (graph.find_shortest_chain(importer=a, imported=b) for a in modules for b in modules if a != b)
    return [chain for chain in chains if chain]


@pytest.mark.parametrize("group", INTERFACES)
def test_plug_ins_do_not_import_each_other(group, graph):
    assert siblings(graph, group) == []


def test_an_import_of_a_sibling_is_caught(graph):
    graph = grimp.build_graph("brain2img", cache_dir=None)
    graph.add_import(importer="brain2img.metrics.retrieval", imported="brain2img.metrics.k_way")
    assert siblings(graph, "metric") == [("brain2img.metrics.retrieval", "brain2img.metrics.k_way")]
    graph.remove_import(importer="brain2img.metrics.retrieval", imported="brain2img.metrics.k_way")
    graph.add_import(importer="brain2img.metrics.tables", imported="brain2img.metrics.k_way")
    assert siblings(graph, "metric"), "by way of a module that they share, too"


def test_no_module_is_called_by_a_name_that_says_nothing(graph):
    assert {module for module in graph.modules if UNNAMED & set(module.split("."))} == set()


def test_every_module_stands_in_the_layers(graph):
    """As import-linter has it; here so that it is not forgotten to be exhaustive."""
    settings = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c for c in settings["contracts"] if c["type"] == "layers")
    assert layers["exhaustive"]
    listed = {name.strip() for layer in layers["layers"] for name in layer.replace(":", "|").split("|")}
    assert {module.split(".")[1] for module in graph.find_children("brain2img")} <= listed
