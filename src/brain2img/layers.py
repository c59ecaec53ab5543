"""Blocks that several networks share, and the check of their weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brain2img.records import SignalSpec

log = logging.getLogger(__name__)

ACTIVATIONS: dict[str, type[nn.Module]] = {"identity": nn.Identity, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def recomputed(function: Callable[..., Tensor], *arguments: Tensor | None, random: bool = False) -> Tensor:
    """Return ``function(*arguments)``; nothing of it is kept for the backward pass, which computes it anew.

    `random`: it draws random numbers, which must be the same again.
    """
    if not torch.is_grad_enabled():
        return function(*arguments)
    return cast(Tensor, checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=random))


class _ByteDropout(torch.autograd.Function):
    """Dropout by one random byte a value: on the CPU a mask of floats takes longer than the products around it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: int) -> Tensor:
        """Zero ``share / 256`` of the values of x, scale the others up."""
        n = x.numel()
        noise = torch.empty((n + 7) // 8, dtype=torch.int64).random_(-2**63, None).view(torch.uint8)
        keep, ctx.scale = noise[:n].view(x.shape) >= share, 256 / (256 - share)
        ctx.save_for_backward(keep)  # not an attribute, which would outlive what `recomputed` gives up
        return _ByteDropout._kept(x, keep, ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        keep, = ctx.saved_tensors
        return _ByteDropout._kept(gradient, keep, ctx.scale), None

    @staticmethod
    def _kept(x: Tensor, keep: Tensor, scale: float) -> Tensor:
        return keep.to(x.dtype).mul_(scale).mul_(x)


def dropout(x: Tensor, p: float, *, training: bool = True) -> Tensor:
    """Return what ``torch.nn.functional.dropout`` does; on the CPU faster, and in a quarter of the memory.

    On the CPU the random numbers are others. Shares that are no multiple of 1/256, and other devices, take PyTorch's.
    """
    share = p * 256
    if not training or p in (0.0, 1.0) or x.device.type != "cpu" or share != int(share):
        return F.dropout(x, p, training)
    return cast(Tensor, _ByteDropout.apply(x, int(share)))


class Dropout(nn.Dropout):
    """``torch.nn.Dropout`` by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x with a share p of its values zeroed in training, the others scaled up."""
        return dropout(x, self.p, training=self.training)


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


class TemporalSpatial(nn.Sequential):
    """Temporal convolution, average pooling, spatial convolution over all channels: ``tsconv`` of NICE and ATM.

    Song et al. (ICLR 2024, https://github.com/eeyhsong/NICE-EEG) and Li et al. (NeurIPS 2024,
    https://github.com/dongyangli-del/EEG_Image_decode). The layers stand in the published order, so that weights have
    the published names (0 temporal, 2 norm, 4 spatial, 5 norm); they are computed in another: convolution and pooling
    are exchanged, which is exact because both are linear, and saves most of the convolution; the norm is taken into the
    temporal filters, for the statistics of their outputs follow from those of the input. What lies between the two
    convolutions, by far the largest array, exists for `at_once` trials at a time, and is computed anew in the backward
    pass: at 1,024 trials of 63 x 250 it would take 0.37 GB several times over.

    Parameters
    ----------
    n_channels, n_times
        Size of the input.
    n_filters
        Filters H of both convolutions.
    kernel, pool, stride
        Samples of the temporal convolution, of the pooling window and of its step.
    dropout
        At the end.

    Attributes
    ----------
    n_steps
        Time steps L of the output.
    at_once
        Trials.

    Raises
    ------
    ValueError
        If there are too few samples for kernel and pool.
    """

    at_once = 128

    def __init__(self, n_channels: int, n_times: int, *, n_filters: int, kernel: int, pool: int, stride: int,
                 dropout: float) -> None:
        if n_times < kernel + pool - 1:
            raise ValueError(f"temporal-spatial convolution: expected at least {kernel + pool - 1} samples for kernel "
                             f"{kernel} and pool {pool}, got {n_times}. Use a longer window, a higher sampling rate "
                             "(or encoder.bin=1), or smaller encoder.kernel and encoder.pool.")
        super().__init__(
            nn.Conv2d(1, n_filters, (1, kernel)), nn.AvgPool2d((1, pool), (1, stride)), nn.BatchNorm2d(n_filters),
            nn.ELU(), nn.Conv2d(n_filters, n_filters, (n_channels, 1)), nn.BatchNorm2d(n_filters), nn.ELU(),
            Dropout(dropout))
        self.pool, self.stride = pool, stride
        self.n_steps = (n_times - kernel + 1 - pool) // stride + 1

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C, T)`` to ``(B, H, L, 1)``."""
        temporal, spatial = cast(nn.Conv2d, self[0]), cast(nn.Conv2d, self[4])
        kernel, n_filters = temporal.kernel_size[1], temporal.out_channels
        # matrix products on (time, channel, filter) instead of convolutions: in this order nothing is copied between
        pooled = F.avg_pool1d(x, self.pool, stride=1)
        filters = self._normed(pooled, temporal.weight.view(n_filters, kernel), temporal.bias)
        onto = spatial.weight.squeeze(-1).transpose(1, 2).flatten(1)
        y = torch.cat([recomputed(self._spatial, part, *filters, onto) for part in pooled.split(self.at_once)])
        y = y + cast(Tensor, spatial.bias)
        # contiguous: of transposed input the norm of PyTorch 2.11 gives wrong gradients on the CPU where the gradient
        # that comes in is not transposed alike
        y = y.view(len(x), self.n_steps, n_filters, 1).transpose(1, 2).contiguous()
        return self[7](F.elu(self[5](y)))


    def _patches(self, pooled: Tensor) -> Tensor:
        """Return what the temporal filters lie on, ``(B L C, kernel)``."""
        kernel = cast(nn.Conv2d, self[0]).kernel_size[1]
        return pooled.unfold(2, kernel, self.stride).transpose(1, 2).reshape(-1, kernel)

    def _moments(self, pooled: Tensor, shift: Tensor) -> Tensor:
        """Return sums, and below them sums of products, of what the filters lie on, ``(1 + kernel, kernel)``."""
        patches = self._patches(pooled) - shift  # near 0, where products lose no digits
        return torch.cat([patches.sum(dim=0, keepdim=True), patches.T @ patches])

    def _spatial(self, pooled: Tensor, weight: Tensor, bias: Tensor, onto: Tensor) -> Tensor:
        """Return the spatial products ``(B L, H)`` of some trials."""
        y = F.elu(F.linear(self._patches(pooled), weight, bias), inplace=True)
        return F.linear(y.view(len(pooled) * self.n_steps, -1), onto)

    def _normed(self, pooled: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return temporal filters and biases that give what the batch norm after the filters would.

        Mean and variance of a filter's output follow from mean and covariance of its input, kernel x kernel numbers:
        w m + b and w S w'.
        """
        norm = cast(nn.BatchNorm2d, self[2])
        bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
        if norm.training:
            n, shift = len(pooled) * pooled.shape[1] * self.n_steps, pooled.detach().mean()
            parts = [recomputed(self._moments, part, shift) for part in pooled.split(self.at_once)]
            moments = torch.stack(parts).sum(dim=0) / n
            centre = moments[0]
            covariance = moments[1:] - centre[:, None] * centre
            mean, variance = weight @ (centre + shift) + bias, ((weight @ covariance) * weight).sum(dim=1)
            with torch.no_grad():
                momentum = cast(float, norm.momentum)
                cast(Tensor, norm.running_mean).lerp_(mean, momentum)
                cast(Tensor, norm.running_var).lerp_(variance * n / (n - 1), momentum)
                cast(Tensor, norm.num_batches_tracked).add_(1)
        else:
            mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = norm.weight / (variance + norm.eps).sqrt()
        return weight * scale[:, None], (bias - mean) * scale + norm.bias


def common_size(specs: Mapping[str, SignalSpec], *, what: str, bin: int = 1) -> tuple[int, int]:
    """Return the channels, and the samples after averaging `bin` successive ones, that all subjects have.

    Raises
    ------
    ValueError
        If they differ between subjects.
    """
    sizes = {name: (spec.n_channels, spec.n_times) for name, spec in specs.items()}
    if len(set(sizes.values())) != 1:
        raise ValueError(f"{what}: expected the same channels and samples for all subjects, got {sizes}. "
                         "Select the same channels and window for all, or leave subjects out.")
    n_channels, n_times = next(iter(sizes.values()))
    return n_channels, n_times // bin


def normal_weights(module: nn.Module, *, std: float) -> None:
    """Draw weights of convolutions and linear layers from N(0, std), those of batch norms from N(1, std), as NICE."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(layer.weight, 0.0, std)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, std)
            nn.init.zeros_(layer.bias)


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
    dtype, x = x.dtype, x.double()
    x = x - x.mean(0)  # centred rows are so to the precision of their own type alone
    values, vectors = torch.linalg.eigh(x @ x.T if len(x) < x.shape[1] else x.T @ x)
    values, vectors = values.flip(0)[:n].clamp_min(0), vectors.flip(1)[:, :n]
    axes = vectors if len(x) >= x.shape[1] else x.T @ vectors / values.sqrt().clamp_min(1e-12)
    axes = axes * (values > 1e-9 * values[0])
    return F.pad(axes.to(dtype), (0, n - axes.shape[1]))


class Neighbours:
    """Which of the known embeddings is nearest to a decoded one, by cosine.

    Both sides are centred on the mean of the known ones, which all embeddings share and which would hide differences.

    Parameters
    ----------
    known
        ``(N, *shape)``.
    """

    def __init__(self, known: Any) -> None:
        flat = torch.as_tensor(known).float().flatten(1)
        self._mean = flat.mean(dim=0)
        self._known = F.normalize(flat - self._mean, dim=1)

    def nearest(self, decoded: Tensor) -> list[int]:
        """Return the row of the nearest one for each of ``(B, *shape)``."""
        return (F.normalize(decoded.float().flatten(1) - self._mean, dim=1) @ self._known.T).argmax(dim=1).tolist()
