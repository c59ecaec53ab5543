"""How the small backbones of the simulated study are trained: scenes_clip, scenes_dino and scenes_judge.

All are trained on scenes of the pool "backbone" alone, whose ids and concepts no test or validation stimulus shares.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from brain2img.artifacts import write_json
from brain2img.training import Plan, train

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
CLIP = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 128, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 28, "vocab_size": 0, "width": 128, "heads": 4, "layers": 2,
                 "hf_tokenizer_name": "local", "no_causal_mask": True},
}
"""Architecture of scenes_clip, in open_clip's terms; the vocabulary is counted."""


def as_input(images: np.ndarray) -> Tensor:
    """Return ``(n, h, w, 3)`` uint8 pictures as ``(n, 3, h, w)`` float32, standardised by MEAN and STD."""
    x = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def half(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights in half precision, contiguous, as they are stored."""
    return {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in weights.items()}


def write_tokenizer(folder: Path, *, captions: Sequence[str]) -> int:
    """Write a word-level tokenizer (transformers' ``tokenizer.json``) of all words of the captions.

    Sentences are wrapped in [BOS] and [EOS]; [EOS] has the highest number, which is how open_clip's text tower finds
    the end of a sentence.

    Parameters
    ----------
    folder
        Where it is written.
    captions
        Sentences that together hold every word.

    Returns
    -------
    int
        Size of the vocabulary.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    split = pre_tokenizers.Whitespace()
    words = sorted({word for text in captions for word, _ in split.pre_tokenize_str(text.lower())})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[BOS]", *words, "[EOS]"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[(t, vocabulary[t]) for t in ("[BOS]", "[EOS]")])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", bos_token="[BOS]",
                            eos_token="[EOS]").save_pretrained(folder)
    return len(vocabulary)


def train_clip(*, images: np.ndarray, captions: Sequence[Sequence[str]], plan: Plan, work: Path, out: Path) -> None:
    """Train scenes_clip contrastively and save it as open_clip's ``local-dir:`` folder.

    Parameters
    ----------
    images
        ``(N, 64, 64, 3)`` uint8.
    captions
        N lists of paraphrases; each step takes one of each scene by chance.
    plan
        Length and speed.
    work
        Holds the checkpoint.
    out
        Receives ``open_clip_config.json``, ``open_clip_model.safetensors`` (half precision) and the tokenizer.
    """
    import open_clip

    out.mkdir(parents=True, exist_ok=True)
    config = deepcopy(CLIP)
    config["text_cfg"]["vocab_size"] = write_tokenizer(out, captions=[text for texts in captions for text in texts])
    write_json(out / "open_clip_config.json",
               {"model_cfg": config, "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bicubic"}})
    tokenize = open_clip.get_tokenizer(f"local-dir:{out}")
    tokens = torch.stack([tokenize([texts[i % len(texts)] for texts in captions]) for i in range(len(captions[0]))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = open_clip.CLIP(**deepcopy(config))
    contrast = open_clip.ClipLoss()

    def loss(rows: np.ndarray, generator: Generator) -> dict[str, Tensor]:
        form = torch.randint(len(tokens), (len(rows),), generator=generator)
        image, text, scale = model(jitter(as_input(images[rows]), generator), tokens[form, torch.from_numpy(rows)])
        return {"clip": contrast(image, text, scale)}

    train(model, loss, n_items=len(images), plan=plan, folder=work, description="scenes_clip")
    save_file(half(model.state_dict()), out / "open_clip_model.safetensors")


def jitter(x: Tensor, generator: Generator, *, pixels: int = 2, noise: float = 0.1) -> Tensor:
    """Shift each picture ``(B, 3, h, w)`` by up to `pixels`, edges repeated, and add Gaussian noise (in STDs)."""
    padded = nnf.pad(x, [pixels] * 4, mode="replicate")
    shift = torch.randint(2 * pixels + 1, (len(x), 2), generator=generator).tolist()
    h, w = x.shape[-2:]
    moved = torch.stack([image[:, dy:dy + h, dx:dx + w] for image, (dy, dx) in zip(padded, shift, strict=True)])
    return moved + noise * torch.randn(x.shape, generator=generator)
