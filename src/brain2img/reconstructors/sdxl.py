"""Stable Diffusion XL conditioned on a decoded image embedding through an IP-Adapter."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Generator, Tensor

from brain2img.artifacts import digest, file_digest, is_of_the_system
from brain2img.devices import device_of
from brain2img.interfaces import Captioner, Reconstructor
from brain2img.pretrained import check_condition, identity, locate
from brain2img.pretrained.loading import load_diffusers, tiny_clip_text, tiny_clip_tokenizer
from brain2img.records import EmbeddingSpec, Stimuli

_FIRST = "image_proj.proj.weight"  # of the adapters that read one embedding; those for tokens ("plus") have another


class SDXL(Reconstructor):
    """``StableDiffusionXLPipeline`` of diffusers with an IP-Adapter: the generator of ATM (Li et al. 2024).

    SDXL-Turbo runs four steps without guidance under an empty prompt, and the decoded CLIP embedding stands where the
    IP-Adapter (https://arxiv.org/abs/2308.06721) would put that of a picture
    (https://arxiv.org/abs/2403.07721, Generation/custom_pipeline.py). With `low_level_space`, decoded latents of the
    same autoencoder are noised and the last `strength` of the steps is run (``StableDiffusionXLImg2ImgPipeline``, the
    low-level pipeline of May 2024); with `condition`, a decoded caption is the prompt. Half precision on a GPU, the
    autoencoder in single precision where its configuration asks for it, as the pipelines do.

    Parameters
    ----------
    model
        Folder or hub id of a Stable Diffusion XL pipeline of diffusers; safetensors only.
    adapter
        Weights of the IP-Adapter: a safetensors file, or hub id and path in it
        ("h94/IP-Adapter/sdxl_models/ip-adapter_sdxl_vit-h.safetensors").
    space
        Space of the embeddings ``(D,)`` that the adapter reads, not normalised.
    low_level_space
        Space of latents ``(4, h, w)`` to start from, times the scaling factor; None starts from noise.
    condition
        Captioner whose captions are the prompts; None is the empty prompt.
    strength
        How much of the start is replaced, in (0, 1]: the share of the steps that is run. Only with `low_level_space`.
    n_steps
        Steps of the model's own sampler.
    guidance
        Classifier-free guidance scale; up to 1 is without.
    size
        Height and width of the images (pixels).
    device
        Where the model runs; "auto" takes a GPU if there is one.

    Raises
    ------
    ValueError
        If a setting is out of range.
    """

    tiny_shapes = {"clip": (12,)}

    def __init__(self, *, model: str, adapter: str, space: str = "clip", low_level_space: str | None = None,
                 condition: Captioner | None = None, strength: float = 0.85, n_steps: int = 4, guidance: float = 0.0,
                 size: int = 512, device: str = "auto") -> None:
        self.model, self.adapter, self.space, self.low_level_space = model, adapter, space, low_level_space
        self.condition, self.strength, self.n_steps, self.guidance = condition, strength, n_steps, guidance
        self.size, self.device = size, device_of(device)
        self.needs = tuple(dict.fromkeys([space, *([low_level_space] if low_level_space else []),
                                          *(condition.needs if condition else ())]))
        if n_steps < 1 or not 0 < strength <= 1 or (low_level_space and int(n_steps * strength) < 1):
            raise ValueError(f"reconstructor.strength: expected a share in (0, 1] that leaves at least one step, got "
                             f"{strength} of {n_steps} steps. Raise strength or n_steps.")

    @cached_property
    def _configs(self) -> dict[str, Mapping[str, Any]]:
        """The configurations of UNet and autoencoder, read without their weights."""
        from diffusers import AutoencoderKL, UNet2DConditionModel

        try:
            return {"unet": UNet2DConditionModel.load_config(locate(self.model), subfolder="unet"),
                    "vae": AutoencoderKL.load_config(locate(self.model), subfolder="vae")}
        except (OSError, ValueError) as error:
            if is_of_the_system(error):
                raise
            raise ValueError(f"reconstructor.model: expected the folder of a Stable Diffusion XL pipeline "
                             f"(safetensors), got {type(error).__name__} for {self.model!r}: "
                             f"{str(error).splitlines()[0]} Give such a folder or hub id, or download it on a machine "
                             "with network access first.") from error

    @cached_property
    def _adapter_file(self) -> Path:
        """The adapter's weights on this machine."""
        path = Path(self.adapter).expanduser()
        if path.is_file():
            return path
        from huggingface_hub import hf_hub_download

        owner, _, rest = self.adapter.partition("/")
        name, _, file = rest.partition("/")
        try:
            if not self.adapter.endswith(".safetensors") or not file:
                raise ValueError("no such file, and no hub id followed by the path of a safetensors file.")
            return Path(hf_hub_download(f"{owner}/{name}", file))
        except (OSError, ValueError) as error:
            if is_of_the_system(error):
                raise
            raise ValueError(f"reconstructor.adapter: expected a safetensors file of an IP-Adapter, got "
                             f"{type(error).__name__} for {self.adapter!r}: {str(error).splitlines()[0]} Give a file, "
                             "or hub id and path, or download it on a machine with network access first.") from error

    @cached_property
    def _adapter_width(self) -> int:
        """Width of the embeddings that the adapter reads, from the header of its file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._adapter_file, framework="pt") as file:
                if _FIRST in file.keys():  # noqa: SIM118 - no mapping
                    return int(file.get_slice(_FIRST).get_shape()[1])
                got = f"keys like {sorted(file.keys())[:3]}"
        except SafetensorError as error:
            got = f"{type(error).__name__} ({error})"
        raise ValueError(f"reconstructor.adapter: expected an IP-Adapter that reads one embedding ({_FIRST}), got "
                         f"{got} in {self._adapter_file}. Give one of that kind (not \"plus\", which reads tokens).")

    @cached_property
    def _pipeline(self) -> Any:
        import diffusers

        pipeline = load_diffusers(
            diffusers.StableDiffusionXLPipeline, self.model, what="reconstructor.model",
            kind="the folder of a Stable Diffusion XL pipeline", add_watermarker=False, image_encoder=None,
            feature_extractor=None, dtype=torch.float16 if self.device.startswith("cuda") else torch.float32)
        return self._ready(pipeline.to(self.device))

    def _ready(self, pipeline: Any) -> Any:
        """Add the adapter, and silence."""
        file = self._adapter_file
        try:
            with _without_the_image_encoder():
                pipeline.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name,
                                         image_encoder_folder=None, low_cpu_mem_usage=False)
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"reconstructor.adapter: expected an IP-Adapter for {self.model}, got {file}, which does "
                             f"not fit its UNet ({str(error).splitlines()[0]}). Choose the one for it.") from error
        pipeline.set_ip_adapter_scale(1.0)
        pipeline.set_progress_bar_config(disable=True)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2):
            part.eval().requires_grad_(False)
        return pipeline

    @cached_property
    def _image_to_image(self) -> Any:
        from diffusers import StableDiffusionXLImg2ImgPipeline

        pipeline = StableDiffusionXLImg2ImgPipeline(**self._pipeline.components, add_watermarker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def uid(self) -> str:
        """Return the identity of all weights."""
        file = Path(self.adapter).expanduser()
        return digest([identity(self.model), file_digest(file) if file.is_file() else self.adapter,
                       *([self.condition.uid()] if self.condition else [])])

    def check(self, specs: Mapping[str, EmbeddingSpec]) -> None:
        """Refuse embeddings that adapter or model do not read, by their shapes.

        Raises
        ------
        ValueError
            If the model is no Stable Diffusion XL, or a shape, a uid or the image size does not fit.
        """
        unet, vae = self._configs["unet"], self._configs["vae"]
        if unet.get("addition_embed_type") != "text_time":
            raise ValueError(f"{self.model}: expected the UNet of a Stable Diffusion XL pipeline, got another kind. "
                             "Choose such a model, or another reconstructor for this one.")
        got = specs[self.space].shape
        if got != (self._adapter_width,):
            raise ValueError(f"reconstructor.adapter: expected embeddings of shape {(self._adapter_width,)} for "
                             f"{self.adapter}, got {got} in space {self.space!r}. Decode the space that it reads, or "
                             "choose the adapter for this one.")
        check_condition(self.model, condition=specs[self.space],
                        **({"latents": specs[self.low_level_space]} if self.low_level_space else {}))
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        if self.size % factor:
            raise ValueError(f"reconstructor.size: expected a multiple of {factor} for {self.model}, got {self.size}. "
                             "Choose another size.")
        expected = (vae["latent_channels"], self.size // factor, self.size // factor)
        if self.low_level_space and specs[self.low_level_space].shape != expected:
            raise ValueError(f"{self.model}: expected latents of shape {expected} for images of {self.size} pixels, "
                             f"got {specs[self.low_level_space].shape} in space {self.low_level_space!r}. Choose the "
                             "latents of this model's autoencoder at the same size.")
        if self.condition:
            self.condition.check(specs)

    @property
    def fits(self) -> bool:
        """Whether the captioner looks at training stimuli."""
        return self.condition is not None and self.condition.fits

    def fit(self, embeddings: Mapping[str, np.ndarray], stimuli: Stimuli) -> None:
        """Show the captions of the training stimuli to the captioner; see `interfaces.Reconstructor.fit`."""
        if self.condition is not None and self.condition.fits:
            self.condition.fit(embeddings, [list(texts) for texts in stimuli.table["captions"]])

    @torch.no_grad()
    def reconstruct(self, embeddings: Mapping[str, Tensor], *, generators: Sequence[Generator]) -> Tensor:
        """Return ``(B, 3, size, size)`` in [0, 1] on the CPU; see `interfaces.Reconstructor.reconstruct`."""
        unet = self._pipeline.unet
        image = embeddings[self.space].to(device=unet.device, dtype=unet.dtype)[:, None]
        if self.guidance > 1:
            image = torch.cat([torch.zeros_like(image), image])  # what an adapter was trained to lead away from
        settings: dict[str, Any] = {
            "prompt": self.condition.caption(embeddings) if self.condition else [""] * len(generators),
            "ip_adapter_image_embeds": [image], "num_inference_steps": self.n_steps, "guidance_scale": self.guidance,
            "generator": list(generators), "output_type": "pt"}
        start: dict[str, Any] = {"height": self.size, "width": self.size}
        if self.low_level_space is None:
            pipeline = self._pipeline
        else:
            pipeline = self._image_to_image
            start = {"image": embeddings[self.low_level_space], "strength": self.strength,
                     "original_size": (self.size, self.size), "target_size": (self.size, self.size)}
        # the pipelines would show the embeddings of all rows to every row
        pipeline.prepare_ip_adapter_image_embeds = lambda *args, **named: [image]
        return pipeline(**start, **settings).images.float().cpu()

    @classmethod
    def tiny(cls) -> Self:
        """Return untrained networks: 32 x 32 pixels in two steps from embeddings ``(12,)``."""
        import tempfile

        tiny = cls(model="tiny", adapter="tiny", n_steps=2, size=32, device="cpu")
        pipeline = tiny_pipeline()
        tiny._configs, tiny._adapter_width = {"unet": pipeline.unet.config, "vae": pipeline.vae.config}, 12
        with tempfile.TemporaryDirectory() as folder:
            tiny._adapter_file = write_tiny_adapter(pipeline.unet, Path(folder) / "adapter.safetensors", width=12)
            tiny._pipeline = tiny._ready(pipeline)
        return tiny


@contextmanager
def _without_the_image_encoder() -> Iterator[None]:
    """Leave out the library's warnings that it has none (embeddings come from the brain) and of no modules at all."""
    loggers = [logging.getLogger(f"diffusers.{name}") for name in ("loaders.ip_adapter", "models.modeling_utils")]

    def wanted(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in ("image_encoder is not loaded", "kept in float32: []"))

    for logger in loggers:
        logger.addFilter(wanted)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(wanted)


def tiny_pipeline() -> Any:
    """Return an untrained pipeline of the published kinds of blocks, whose text encoders read 12 letters."""
    import diffusers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.StableDiffusionXLPipeline(
            tokenizer=tiny_clip_tokenizer(), tokenizer_2=tiny_clip_tokenizer(), text_encoder=tiny_clip_text(width=8),
            text_encoder_2=tiny_clip_text(width=8, projection=8),
            vae=diffusers.AutoencoderKL(
                block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4,
                up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4),
            unet=diffusers.UNet2DConditionModel(
                sample_size=16, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
                attention_head_dim=(2, 4), cross_attention_dim=16, transformer_layers_per_block=(1, 2),
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4,
                projection_class_embeddings_input_dim=6 * 4 + 8),
            # the sampler that the published weights come with
            scheduler=diffusers.EulerAncestralDiscreteScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"),
            add_watermarker=False)


def write_tiny_adapter(unet: Any, path: Path, *, width: int, tokens: int = 4) -> Path:
    """Write random weights of an IP-Adapter for a UNet in the format of the published ones; returns the file."""
    from safetensors.torch import save_file

    deep = unet.config.cross_attention_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        weights = {"image_proj.proj.weight": torch.randn(tokens * deep, width) / width**0.5,
                   "image_proj.proj.bias": torch.zeros(tokens * deep),
                   "image_proj.norm.weight": torch.ones(deep), "image_proj.norm.bias": torch.zeros(deep)}
        for number, name in enumerate(unet.attn_processors):
            if name.endswith("attn2.processor"):
                keys = unet.get_submodule(name.removesuffix(".processor")).to_k.weight
                for part in ("to_k_ip", "to_v_ip"):
                    weights[f"ip_adapter.{number}.{part}.weight"] = torch.randn(keys.shape) / deep**0.5
    save_file(weights, path)
    return path
