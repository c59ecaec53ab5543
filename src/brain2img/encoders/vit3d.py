"""ViT3D: a transformer over 3-D patches of the volume."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from brain2img.interfaces import Encoder
from brain2img.records import Features, SignalSpec
from brain2img.volumes import VolumeGrid

OUTPUTS = ("class", "mean", "all")


class ViT3D(Encoder):
    """The fMRI extractor of Neuro-Vision to Language (Shen et al., NeurIPS 2024), arXiv:2404.19438.

    https://proceedings.neurips.cc/paper_files/paper/2024/file/b1c62bdeee97b38c34dcda152c829511-Paper-Conference.pdf:
    patches of 14^3 voxels, a transformer of 16 layers and width 768 with a class token, one for all subjects. What the
    paper does not say is our choice: 12 heads and feed-forward layers of 4 x width as in ViT-B, normalisation before
    each branch, GELU, dropout 0.1, and a learned position that is the sum of one vector for each axis, so that the
    weights depend on the common volume alone and not on which patches a set of subjects fills.

    Parameters
    ----------
    specs
        Subject -> its signals, with `ijk` and `volume_shape`.
    patch
        Side of a patch (voxels of the common volume).
    shape
        Shape of the common volume; None takes the first subject's, as published.
    align
        "shape", as published, or "affine"; see `brain2img.volumes.VolumeGrid`.
    width, n_layers, n_heads
        Of the transformer.
    feedforward
        Width of the feed-forward layers as a multiple of `width`.
    dropout
        In every layer.
    output
        "class" token, as published, the "mean" over patches, or "all" tokens, the class token first.

    Raises
    ------
    ValueError
        If a subject has no geometry, or a setting is impossible.
    """

    def __init__(self, *, specs: Mapping[str, SignalSpec], patch: int = 14, shape: tuple[int, int, int] | None = None,
                 align: str = "shape", width: int = 768, n_layers: int = 16, n_heads: int = 12, feedforward: int = 4,
                 dropout: float = 0.1, output: str = "class") -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ValueError(f"ViT3D encoder: expected output of {OUTPUTS}, got {output!r}. Correct encoder.output.")
        if width % n_heads:
            raise ValueError(f"ViT3D encoder: expected a width that {n_heads} heads can share, got {width}. "
                             "Correct encoder.width or encoder.n_heads.")
        self.grid: VolumeGrid = VolumeGrid.of(specs, patch=patch, shape=shape, align=align)
        self.output, self.hidden = output, (1 + self.grid.T if output == "all" else 1, width)
        self.patch_embedding = nn.Linear(self.grid.F, width)
        self.position = nn.ParameterList(nn.init.trunc_normal_(nn.Parameter(torch.empty(n, width)), std=0.02)
                                         for n in self.grid.n_patches)
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, n_heads, dim_feedforward=feedforward * width, dropout=dropout,
                                       activation="gelu", batch_first=True, norm_first=True) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("_coordinates", torch.from_numpy(self.grid.coordinates()), persistent=False)

    def forward(self, features: Features) -> Tensor:
        """Map a grid ``(B, patch^3, T)`` to ``(B, 1, width)``, or ``(B, 1 + T, width)`` with output "all"."""
        x = self.patch_embedding(features.grid.transpose(1, 2))
        for table, at in zip(self.position, cast(Tensor, self._coordinates).T, strict=True):
            x = x + table[at]
        x = self.dropout(torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1))
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        if self.output == "all":
            return x
        return x[:, :1] if self.output == "class" else x[:, 1:].mean(dim=1, keepdim=True)

    @classmethod
    def tiny(cls) -> Self:
        """Return two layers of width 16 over 20 voxels of a volume of 6 x 5 x 7, in patches of 3^3."""
        flat = np.random.default_rng(0).permutation(210)[:20]
        spec = SignalSpec(subject="sub-01", modality="fmri", units="a.u.", n_channels=20, n_times=1,
                          ijk=np.stack(np.unravel_index(flat, (6, 5, 7)), axis=1), volume_shape=(6, 5, 7))
        return cls(specs={"sub-01": spec}, patch=3, width=16, n_layers=2, n_heads=2)
