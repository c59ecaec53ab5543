"""ATM's low-level head: published layers counted from their shapes, transposed convolution written out."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from brain2img.heads.latent_upsampler import LatentUpsampler
from brain2img.records import EmbeddingSpec

WIDTHS = (8064, 1024, 512, 256, 128, 64, 32)


def made(shape, *, hidden=(63, 128), **options):
    return LatentUpsampler(hidden=hidden, spec=EmbeddingSpec(name="vae", shape=shape), space="vae", losses={},
                           **options)


@pytest.mark.parametrize(("options", "end"), [
    ({}, 32 * 16 + 16 + 2 * 16 + 16 * 4 + 4), ({"last": None, "dropout": 0.5}, 32 * 4 + 4)])
def test_sizes_follow_from_the_published_layers(options, end):
    with torch.device("meta"):
        head = made((4, 64, 64), **options)
    doubling = sum(16 * a * b + b + 2 * b for a, b in pairwise(WIDTHS))
    assert sum(p.numel() for p in head.parameters()) == doubling + end
    assert [m.in_channels for m in head.upsampler if isinstance(m, nn.ConvTranspose2d)][:6] == list(WIDTHS[:6])


def test_smaller_latents_take_the_last_widths_and_pixels_come_from_their_kernels():
    torch.manual_seed(0)
    head = made((4, 4, 4), hidden=(2, 3), widths=(7, 6, 5), last=None).double().eval()
    first, second = head.upsampler[0], head.upsampler[3]
    assert (first.out_channels, second.out_channels) == (6, 5)
    hidden = torch.randn(2, 2, 3).double()
    # kernel 4, stride 2, padding 1: the pixel of a 1 x 1 map reaches the inner 2 x 2 of its kernel
    x = torch.einsum("bi,iohw->bohw", hidden.flatten(1), first.weight[:, :, 1:3, 1:3]) + first.bias[:, None, None]
    x = (x / (1 + 1e-5) ** 0.5).clamp(min=0)
    spread = torch.zeros(2, 5, 6, 6).double()
    for i in range(2):
        for j in range(2):
            window = spread[:, :, 2 * i:2 * i + 4, 2 * j:2 * j + 4]
            window += torch.einsum("bi,iohw->bohw", x[:, :, i, j], second.weight)
    y = ((spread[:, :, 1:5, 1:5] + second.bias[:, None, None]) / (1 + 1e-5) ** 0.5).clamp(min=0)
    end = head.upsampler[-1]
    expected = torch.einsum("bihw,io->bohw", y, end.weight[:, :, 0, 0]) + end.bias[:, None, None]
    torch.testing.assert_close(head(hidden, {}), expected)


@pytest.mark.parametrize("shape", [(768,), (4, 48, 48), (4, 32, 64), (4, 128, 128)])
def test_what_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=r"head of 'vae': expected latents \(C, h, h\) with h a power of two up to 64"):
        made(shape)
