"""How much every channel contributes to what is decoded: gradients through a decoder, deep or linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from brain2img.decoders.deep import DeepDecoder
from brain2img.decoders.ridge import Ridge
from brain2img.records import BrainBatch

CHUNK = 64
"""Trials whose gradients are taken at once."""


def gradients(decoder: Any, batch: BrainBatch, *, space: str, directions: np.ndarray) -> dict[str, np.ndarray]:
    """Return the slope of each trial's decoded embedding along a direction, with respect to its signals.

    Parameters
    ----------
    decoder
        A `DeepDecoder`, or a `Ridge`, whose slope is the same everywhere: its coefficients.
    batch
        Trials, the B of them.
    space
        Decoded space.
    directions
        ``(B, *shape)`` one direction in the space for each trial.

    Returns
    -------
    dict of str to numpy.ndarray
        Subject -> ``(B_s, C, T)`` float32 of d <decoded, direction> / d signal, in units of the space per unit of the
        normalised signal.

    Raises
    ------
    ValueError
        If the decoder has no slope that is known here.
    """
    flat = directions.reshape(len(directions), -1)
    if isinstance(decoder, Ridge):
        return {subject: (flat[batch.rows[subject].numpy()] @ decoder.coefficients(subject, space).T).reshape(x.shape)
                for subject, x in batch.signals.items()}
    if isinstance(decoder, DeepDecoder):
        return _through(decoder, batch, space=space, directions=torch.from_numpy(flat))
    raise ValueError(f"importance.method=gradient: expected a deep decoder or ridge, got {type(decoder).__name__}. "
                     "Use importance.method=occlusion, which needs predictions alone.")


def _through(decoder: DeepDecoder, batch: BrainBatch, *, space: str, directions: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the gradients through a deep decoder in evaluation mode; a trial does not depend on those beside it."""
    device = torch.device("cuda" if torch.cuda.is_available() and decoder.settings.accelerator != "cpu" else "cpu")
    module = decoder.module.to(device).eval()
    head = next(name for name, h in module.named_heads() if h.space == space and h.prediction)
    found: Mapping[str, list[np.ndarray]] = {subject: [] for subject in batch.signals}
    for subject, signals in batch.signals.items():
        for start in range(0, len(signals), CHUNK):
            x = signals[start:start + CHUNK].to(device).requires_grad_()
            part = BrainBatch(signals={subject: x}, rows={subject: torch.arange(len(x), device=device)},
                              stimulus_ids=[""] * len(x))
            rows = batch.rows[subject][start:start + CHUNK].cpu()
            decoded = module(part)[0][head].flatten(1).float()
            slope, = torch.autograd.grad((decoded * directions[rows].to(device)).sum(), x)
            found[subject].append(slope.cpu().numpy())
    return {subject: np.concatenate(parts) for subject, parts in found.items()}
