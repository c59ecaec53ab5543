"""Every YAML of the group ``encoder`` keeps what `brain2img.interfaces.Encoder` promises."""

from __future__ import annotations

import pytest
import torch
from parts import SIGNALS, parts
from promises import check_encoder, check_encoder_shapes

from brain2img.interfaces import Encoder
from brain2img.stages.build import build, class_of

N_SMALL = 3_000_000
"""Weights from which on a published size is only run on the meta device."""


def built(config, device="cpu"):
    """Return the encoder on signals that it takes, EEG or fMRI."""
    errors = []
    for specs in SIGNALS.values():
        try:
            with torch.device(device):
                return build(config, Encoder, specs=specs)
        except ValueError as error:
            errors.append(str(error))
    raise AssertionError(f"encoder: takes neither EEG nor fMRI: {errors}")


@pytest.mark.parametrize(("key", "config"), parts("encoder"))
def test_as_built(key, config):
    if "as_published" in config:  # with the fault that trials of a batch know each other
        config = {**config, "as_published": False}
    on_meta = built(config, "meta").to("meta")
    check_encoder_shapes(on_meta)
    if sum(p.numel() for p in on_meta.parameters()) < N_SMALL:
        check_encoder(built(config), again=lambda: built(config))


@pytest.mark.parametrize("cls", sorted({class_of(p.values[1], Encoder) for p in parts("encoder")}, key=str))
def test_tiny(cls):
    check_encoder(cls.tiny(), again=cls.tiny)
