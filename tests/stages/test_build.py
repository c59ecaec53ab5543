"""What a configuration asks for is built, or refused before anything runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir

from brain2img.pretrained import FOLDER
from brain2img.records import EmbeddingSpec, SignalSpec
from brain2img.stages.build import build_decoder, plain


def test_every_head_has_a_space_and_every_space_a_head():
    """Else a deep decoder would be trained for hours and its predictions lack a space that was asked for."""
    with initialize_config_dir(str(FOLDER.parents[2] / "configs"), version_base="1.3"):
        config = plain(compose("base", overrides=["head=[pixels_linear]", "adapter.pool_size=8", "encoder.width=8"]))
    specs = {"sub-01": SignalSpec(subject="sub-01", modality="fmri", units="a.u.", n_channels=10, n_times=1)}
    spaces = {name: EmbeddingSpec(name=name, shape=(3,), uid=name) for name in ("pixels", "clip")}

    def built(*names):
        return build_decoder(config, seed=0, data=SimpleNamespace(
            specs=specs, target_specs={name: spaces[name] for name in names}))

    built("pixels")
    with pytest.raises(ValueError, match=r"expected a space of \['clip'\], got 'pixels'"):
        built("clip")
    with pytest.raises(ValueError, match=r"got none for \['clip'\]\. Add one with head=\[\.\.\.\]"):
        built("pixels", "clip")
