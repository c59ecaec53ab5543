"""Benchmarks find what they import; the floor of scripts/bench/train.py holds each product of a step, at its size."""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from runpy import run_path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
recorder = run_path(str(ROOT / "scripts" / "bench" / "train.py"))["recorder"]


def test_the_floor_is_the_work_of_the_step_without_the_rest():
    net = nn.Sequential(nn.Conv1d(3, 4, 5), nn.GELU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(24, 7))
    x = torch.randn(2, 3, 10)
    recorded = recorder()
    with recorded:
        (net(x).T @ net(x)).sum().backward()
    funcs = [func for func, _ in recorded.calls]
    assert len(funcs) == 2 * (1 + 1 + 1 + 2) + 1 + 2  # forward and backward, each network twice; the product of both
    assert sum("convolution" in str(func) for func in funcs) == 4
    alone = recorded.alone()
    with FlopCounterMode(display=False) as floor:
        alone()
    with FlopCounterMode(display=False) as step:
        (net(x).T @ net(x)).sum().backward()
    assert floor.get_total_flops() == step.get_total_flops() > 0


def test_products_are_repeated_where_their_operands_lie():
    a, b = torch.randn(4, 6).T, torch.randn(4, 5)
    recorded = recorder()
    with recorded:
        torch.addmm(torch.zeros(5), a, b)
    (_, (left, right)), = recorded.calls
    assert (left.shape, left.stride) == ((6, 4), (1, 6))
    assert (right.shape, right.stride) == ((4, 5), (5, 1))


@pytest.mark.parametrize("script", sorted((ROOT / "scripts" / "bench").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_benchmark_imports_is_there(script):
    """Also what it imports late, in the process of one measurement."""
    beside = {path.stem for path in script.parent.glob("*.py")}
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for module in [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]:
                assert module in beside or find_spec(module) is not None, module
                if module.startswith("brain2img.") and isinstance(node, ast.ImportFrom):
                    there = dir(import_module(module))
                    assert {name.name for name in node.names} <= set(there) | {m.name for m in iter_modules(
                        getattr(import_module(module), "__path__", []))}
