"""Blocks that several networks share, and the check of their weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
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


class StandardParts(nn.Module):
    """Brings each part of flat vectors (a layer of a backbone) to standard values, or to its principal components.

    Parameters
    ----------
    sizes
        Name of the part -> its values, in the order in which they stand in the vector.
    n_components
        Principal components of each part, at most, scaled to a unit mean square; None leaves the standardised values.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, sizes: Mapping[str, int], *, n_components: int | None) -> None:
        super().__init__()
        self.sizes = list(sizes.values())
        self.kept = [size if n_components is None else min(size, n_components) for size in self.sizes]
        self.register_buffer("mean", torch.zeros(sum(self.sizes)))
        self.register_buffer("scale", torch.ones(sum(self.sizes)))
        for i, (size, kept) in enumerate(zip(self.sizes, self.kept, strict=True)):
            self.register_buffer(f"components_{i}", torch.eye(size)[:, :kept] if kept < size else torch.empty(0))

    def fit(self, x: Tensor) -> None:
        """Take means, deviations and components from vectors ``(n, sum of sizes)``."""
        self.mean.copy_(x.mean(0))
        self.scale.copy_(x.std(0).clamp_min(1e-6) if len(x) > 1 else torch.ones_like(self.scale))
        for i, part in enumerate(((x - self.mean) / self.scale).split(self.sizes, dim=1)):
            if self.kept[i] < self.sizes[i]:
                components = principal_axes(part, self.kept[i])
                # unit mean square of what is kept, so that parts of any size count alike
                components /= (part @ components).square().mean().sqrt().clamp_min(1e-12)
                self.get_buffer(f"components_{i}").copy_(components)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map vectors ``(n, sum of sizes)`` to the parts, each ``(n, kept)``."""
        found = []
        for i, part in enumerate(((x.float() - self.mean) / self.scale).split(self.sizes, dim=1)):
            components = self.get_buffer(f"components_{i}")
            found.append(part @ components if len(components) else part)
        return found


def principal_axes(x: Tensor, n: int) -> Tensor:
    """Return the first `n` principal axes ``(size, n)`` of centred rows ``(m, size)``; zeros beyond their rank."""
    smaller = (x @ x.T if len(x) < x.shape[1] else x.T @ x).double()
    values, vectors = torch.linalg.eigh(smaller)
    values, vectors = values.flip(0)[:n].clamp_min(0), vectors.flip(1)[:, :n]
    axes = vectors if len(x) >= x.shape[1] else x.T.double() @ vectors / values.sqrt().clamp_min(1e-12)
    axes = axes * (values > 1e-9 * values[0])
    return F.pad(axes.to(x.dtype), (0, n - axes.shape[1]))
