"""Blocks that several networks share, and the check of their weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)

ACTIVATIONS: dict[str, type[nn.Module]] = {"identity": nn.Identity, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class Bottleneck(nn.Module):
    """Linear down, ReLU, linear up, plus the input; the identity at the start.

    The adapter of MindBridge (Wang et al. 2024, https://github.com/littlepure2333/MindBridge), with its names of
    parameters and its initialisation (Kaiming-uniform down, zero up and biases).

    Parameters
    ----------
    size
        Width of input and output.
    bottleneck
        Width in between.
    """

    def __init__(self, size: int, *, bottleneck: int) -> None:
        super().__init__()
        self.down_proj = nn.Linear(size, bottleneck)
        self.up_proj = nn.Linear(bottleneck, size)
        nn.init.kaiming_uniform_(self.down_proj.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down_proj.bias)
        nn.init.zeros_(self.up_proj.weight)
        nn.init.zeros_(self.up_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., size)`` to ``(..., size)``."""
        return x + self.up_proj(F.relu(self.down_proj(x)))


class Residual(nn.Module):
    """``x + fn(x)``."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Map x to ``x + fn(x)``."""
        return x + self.fn(x)


def activation(name: str | None) -> nn.Module:
    """Return the output activation of a head.

    Parameters
    ----------
    name
        "sigmoid" (values in [0, 1]), "tanh" (values in [-1, 1]), or None for an unbounded output.

    Raises
    ------
    ValueError
        If the name is another one.
    """
    if (name or "identity") not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {sorted(ACTIVATIONS)} or null, got {name!r}. "
                         "Correct it in the YAML of the head.")
    return ACTIVATIONS[name or "identity"]()


def nonlinearity(name: str) -> nn.Module:
    """Return the activation between layers.

    Parameters
    ----------
    name
        "gelu" or "silu".

    Raises
    ------
    ValueError
        If the name is another one.
    """
    known: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "silu": nn.SiLU}
    if name not in known:
        raise ValueError(f"activation: expected one of {sorted(known)}, got {name!r}. Correct it in the YAML.")
    return known[name]()


def check_weights(expected: Mapping[str, Any], got: Mapping[str, Any], *, what: str, cure: str = (
        "Use the configuration the weights were trained with (subjects, adapter, encoder, heads), or train under "
        "another name=....")) -> None:
    """Compare the names and shapes of two sets of arrays or tensors.

    Raises
    ------
    ValueError
        If any is missing, unexpected or of another shape, with the full list.
    """
    matched = [k for k in expected if k in got and expected[k].shape == got[k].shape]
    lines = [f"missing: {k} {tuple(v.shape)}" for k, v in expected.items() if k not in got]
    lines += [f"unexpected: {k} {tuple(v.shape)}" for k, v in got.items() if k not in expected]
    lines += [f"shape of {k}: {tuple(expected[k].shape)} here, {tuple(got[k].shape)} there"
              for k in expected if k in got and expected[k].shape != got[k].shape]
    if lines:
        raise ValueError(f"{what}: expected the {len(expected)} weights of this model, got {len(matched)} of them and "
                         f"{len(lines)} differences:\n  " + "\n  ".join(lines) + f"\n{cure}")
    log.debug("%s: %d weights matched, none missing, none unexpected", what, len(matched))
