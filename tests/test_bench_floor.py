"""The floor of bench_train holds each matrix product and convolution of a step, at its size."""

from pathlib import Path
from runpy import run_path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

recorder = run_path(str(Path(__file__).parents[1] / "scripts" / "bench" / "train.py"))["recorder"]


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
