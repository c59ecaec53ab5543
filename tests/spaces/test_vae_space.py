from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from brain2img.records import Stimuli
from brain2img.spaces.vae import VAELatents

BLOCKS = {"block_out_channels": (8, 8), "norm_num_groups": 4, "latent_channels": 4,
          "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


@pytest.fixture
def movq(tmp_path):
    from diffusers import VQModel

    torch.manual_seed(0)
    made = VQModel(**BLOCKS, num_vq_embeddings=8, vq_embed_dim=4).eval()
    made.save_pretrained(tmp_path / "decoder" / "movq", max_shard_size="8KB")
    return made


def stimuli(size: int = 16, n: int = 3) -> Stimuli:
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return Stimuli(pd.DataFrame({"stimulus_id": [str(i) for i in range(n)]}), lambda rows: images[list(rows)])


def scaled(seen: Stimuli) -> torch.Tensor:
    return torch.from_numpy(seen.images()).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_latents_of_a_movq_are_those_of_diffusers_unscaled(tmp_path, movq):
    space, seen = VAELatents(model=str(tmp_path / "decoder"), size=16, device="cpu"), stimuli()
    got = space.embed(seen, [2, 0])
    with torch.no_grad():
        expected = movq.encode(scaled(seen)[[2, 0]]).latents.numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)
    spec = space.spec(seen)
    assert (spec.shape, spec.dtype, spec.name) == ((4, 8, 8), "float32", "vae")
    assert got.shape[1:] == spec.shape
    assert got.dtype == np.float32


def test_latents_of_an_autoencoder_kl_are_the_scaled_mean(tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    made = AutoencoderKL(**BLOCKS, scaling_factor=0.3, shift_factor=0.1).eval()
    made.save_pretrained(tmp_path / "kl")
    seen = stimuli()
    with torch.no_grad():
        expected = (made.encode(scaled(seen)).latent_dist.mean - 0.1) * 0.3
    got = VAELatents(model=str(tmp_path / "kl"), subfolder="", size=16, device="cpu").embed(seen, range(3))
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


def test_images_of_another_size_are_resized_and_batches_do_not_matter(tmp_path, movq):
    space, seen = VAELatents(model=str(tmp_path / "decoder"), size=16, device="cpu"), stimuli(size=40)
    together = space.embed(seen, range(3))
    assert together.shape == (3, 4, 8, 8)
    np.testing.assert_allclose(np.concatenate([space.embed(seen, [i]) for i in range(3)]), together, atol=1e-5)


def test_uid_is_that_of_weights_and_size_wherever_they_lie(tmp_path, movq):
    def uid(folder: str, **changes) -> str:
        return VAELatents(model=str(tmp_path / folder), **{"size": 16, **changes}).uid()

    shutil.copytree(tmp_path / "decoder", tmp_path / "elsewhere")
    assert uid("elsewhere") == uid("decoder")
    assert uid("decoder", size=32) != uid("decoder")
    movq.quant_conv.weight.data += 1
    movq.save_pretrained(tmp_path / "elsewhere" / "movq", max_shard_size="8KB")
    assert uid("elsewhere") != uid("decoder")


def test_what_is_no_autoencoder_in_safetensors_is_refused(tmp_path, movq):
    seen = stimuli()
    with pytest.raises(ValueError, match=r"expected the weights of an autoencoder in .*nowhere"):
        VAELatents(model=str(tmp_path / "nowhere")).spec(seen)
    with pytest.raises(ValueError, match=r"expected a size divisible by 2, .* got 15"):
        VAELatents(model=str(tmp_path / "decoder"), size=15).spec(seen)
    movq.save_pretrained(tmp_path / "pickled" / "movq", safe_serialization=False)
    with pytest.raises(ValueError, match="safetensors"):
        VAELatents(model=str(tmp_path / "pickled"), size=16).embed(seen, [0])
    from diffusers import UNet2DModel

    UNet2DModel(sample_size=8, block_out_channels=(8,), norm_num_groups=4, down_block_types=("DownBlock2D",),
                up_block_types=("UpBlock2D",), layers_per_block=1).save_pretrained(tmp_path / "unet" / "movq")
    with pytest.raises(ValueError, match=r"expected an autoencoder of .* got UNet2DModel"):
        VAELatents(model=str(tmp_path / "unet")).spec(seen)
