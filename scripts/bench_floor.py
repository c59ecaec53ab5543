"""What a training step cannot do without: its matrix products and convolutions, recorded and repeated alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
#: Operation -> which of its arguments are multiplied; what is added to a product is not repeated.
PRODUCTS: Mapping[Any, slice] = {aten.mm.default: slice(0, 2), aten.addmm.default: slice(1, 3),
                                 aten.bmm.default: slice(0, 2), aten.baddbmm.default: slice(1, 3)}
CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)


class Recorded(TorchDispatchMode):
    """Records the matrix products and convolutions, forward and backward, between `__enter__` and `__exit__`.

    Sizes and places in memory are kept, values are not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS:
            multiplied = args[PRODUCTS[func]]
            self.calls.append((aten.mm.default if multiplied[0].ndim == 2 else aten.bmm.default,
                               [_described(a) for a in multiplied]))
        elif func in CONVOLUTIONS:
            self.calls.append((func, [_described(a) for a in args]))
        return func(*args, **(kwargs or {}))

    def alone(self) -> Callable[[], None]:
        """Return a function that repeats what was recorded on noise, and does nothing else."""
        memory: dict[tuple[int, int], Tensor] = {}

        def operand(place: int, value: Any) -> Any:
            if not isinstance(value, _Described):
                return value
            n = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride, strict=True))
            flat = memory.setdefault((place, n), torch.randn(n))  # operands of one call never share memory
            return flat.as_strided(value.shape, value.stride)

        calls = [(func, [operand(i, a) for i, a in enumerate(args)]) for func, args in self.calls]

        def run() -> None:
            for func, args in calls:
                func(*args)

        return run


class _Described:
    """Size of a tensor and its place in memory."""

    def __init__(self, x: Tensor) -> None:
        self.shape, self.stride = tuple(x.shape), x.stride()


def _described(value: Any) -> Any:
    return _Described(value) if isinstance(value, Tensor) else value
