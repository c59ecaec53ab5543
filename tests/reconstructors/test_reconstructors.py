from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from brain2img.reconstructors.pixels import PixelDecoding
from brain2img.reconstructors.retrieval import NearestTrainingImage
from brain2img.records import Stimuli

GENERATORS = [torch.Generator().manual_seed(i) for i in range(7)]


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_decoding_is_the_clipped_image_at_its_own_size(channels):
    x = torch.randn(2, channels, 8, 8)
    got = PixelDecoding(size=8).reconstruct({"pixels": x}, generators=GENERATORS)
    torch.testing.assert_close(got, x.clamp(0, 1).expand(-1, 3, -1, -1))
    assert PixelDecoding(size=32).reconstruct({"pixels": x}, generators=GENERATORS).shape == (2, 3, 32, 32)


def test_pixel_decoding_refuses_vectors():
    with pytest.raises(ValueError, match=r"expected images \(B, 3 or 1, s, s\), got \(2, 5\)"):
        PixelDecoding().reconstruct({"pixels": torch.zeros(2, 5)}, generators=GENERATORS)


def test_nearest_training_image_equals_brute_force():
    rng = np.random.default_rng(0)
    known, images = rng.standard_normal((20, 5)), rng.integers(0, 255, (20, 8, 8, 3), dtype=np.uint8)
    made = NearestTrainingImage(size=8)
    read = []
    made.fit({"clip": known}, Stimuli(pd.DataFrame(index=range(20)), lambda rows: (read.extend(rows), images[rows])[1]))
    asked = rng.standard_normal((7, 5))
    a, b = asked - known.mean(axis=0), known - known.mean(axis=0)
    best = [max(range(20), key=lambda j: a[i] @ b[j] / np.linalg.norm(b[j])) for i in range(7)]
    got = made.reconstruct({"clip": torch.from_numpy(asked)}, generators=GENERATORS)
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy() * 255, images[best], atol=1e-3)
    assert read == best  # and no other picture
