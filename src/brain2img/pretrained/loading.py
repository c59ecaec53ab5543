"""What the plug-ins around models of transformers share: loading with a full report, and pictures as they take them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brain2img.artifacts import is_of_the_system
from brain2img.pretrained import locate
from brain2img.records import Stimuli

log = logging.getLogger(__name__)

#: Mean and s.d. of the colours of what CLIP was trained on, by which BLIP and GIT normalise, too.
CLIP_COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def load_config(cls: Any, model: str, *, what: str, subfolder: str = "", file: str = "config.json") -> Any:
    """Return the configuration of a model of transformers without its weights, or another part that has none.

    Parameters
    ----------
    cls
        A configuration class of the library, or ``AutoConfig``; a sampler or an image processor.
    model
        Folder or hub id.
    what
        What messages call it: "space 'blip'".
    subfolder
        Folder in it.
    file
        What it is read from.

    Raises
    ------
    ValueError
        If there is none.
    """
    folder = Path(locate(model), subfolder)
    try:
        if folder.is_dir() and not (folder / file).exists():  # transformers would take its defaults
            raise FileNotFoundError(f"no {file} in {folder}.")
        return cls.from_pretrained(locate(model), subfolder=subfolder)
    except (OSError, ValueError) as error:
        if is_of_the_system(error):
            raise
        raise _missing(what, model, error) from error


def load_model(cls: Any, model: str, *, what: str, device: str, dtype: torch.dtype = torch.float32,
               **settings: Any) -> Any:
    """Return a frozen model of transformers, every weight of which was found.

    Parameters
    ----------
    cls
        Model class of the library.
    model
        Folder or hub id; safetensors only.
    what
        What messages call it.
    device
        Where it runs.
    dtype
        Of its weights there.
    **settings
        Further arguments of ``from_pretrained``.

    Raises
    ------
    ValueError
        If there is none, or weights are missing or of another shape, with the full list.
    """
    try:
        with without_bars():
            made, found = cls.from_pretrained(locate(model), dtype=dtype, use_safetensors=True,
                                              output_loading_info=True, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        if is_of_the_system(error):
            raise
        raise _missing(what, model, error) from error
    wrong = {kind: sorted(map(str, found[f"{kind}_keys"])) for kind in ("missing", "mismatched", "unexpected")}
    bad = len(wrong["missing"]) + len(wrong["mismatched"])
    log.info("%s: %d weights matched, %d missing, %d mismatched, %d unexpected", what, len(made.state_dict()) - bad,
             *(len(keys) for keys in wrong.values()))
    if bad:
        raise ValueError(f"{what}: expected every weight of {type(made).__name__} in {model}, got missing: "
                         f"{wrong['missing']}, of another shape: {wrong['mismatched']}, unexpected: "
                         f"{wrong['unexpected']}. Give a folder whose config.json belongs to its weights.")
    return made.eval().requires_grad_(False).to(device)


@contextmanager
def without_bars() -> Iterator[None]:
    """Silence the progress bars of transformers: ours is on."""
    from transformers.utils import logging as library

    bars = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            library.enable_progress_bar()


def load_timm(model: str, *, pretrained: bool, what: str, device: str, **settings: Any) -> Any:
    """Return a frozen model of timm in single precision; without weights it is always the same.

    Parameters
    ----------
    model
        Name in timm, or a folder in its format.
    pretrained
        Whether it comes with weights.
    what
        What messages call it.
    device
        Where it runs.
    **settings
        Further arguments of ``timm.create_model``.

    Raises
    ------
    ValueError
        If there is none.
    """
    import timm

    folder = Path(locate(model))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = timm.create_model(f"local-dir:{folder}" if folder.is_dir() else model, pretrained=pretrained,
                                     **settings)
    except (RuntimeError, OSError, ValueError) as error:
        if is_of_the_system(error):
            raise
        said = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{what}: expected a timm model, got {type(error).__name__} for {model!r}: {said} Give a name "
                         "of timm.list_pretrained(), a folder with config.json and model.safetensors, or download the "
                         "weights on a machine with network access first.") from error
    return made.eval().requires_grad_(False).float().to(device)


def load_diffusers(cls: Any, model: str, *, what: str, kind: str = "a model of diffusers", **settings: Any) -> Any:
    """Return a model or pipeline of diffusers, every weight of which was found in safetensors.

    Parameters
    ----------
    cls
        Class of the library.
    model
        Folder or hub id.
    what
        What messages call it.
    kind
        What messages call the class: "an autoencoder of diffusers".
    **settings
        Further arguments of ``from_pretrained``.

    Raises
    ------
    ValueError
        If there is none, it is put together of parts of other libraries, or weights are missing.
    """
    import diffusers

    place = locate(model)
    bars = diffusers.utils.logging.is_progress_bar_enabled()
    diffusers.utils.logging.disable_progress_bar()  # ours is on
    try:
        if "subfolder" not in settings:  # a pipeline
            _check_libraries(Path(place) / "model_index.json", what=what)
        with every_weight(what):
            return cls.from_pretrained(place, use_safetensors=True, low_cpu_mem_usage=False, **settings)
    except (OSError, RuntimeError, ValueError) as error:
        if is_of_the_system(error) or str(error).startswith(f"{what}: expected"):
            raise
        raise ValueError(f"{what}: expected {kind} (safetensors), got {type(error).__name__} for {model!r}: "
                         f"{(str(error).splitlines() or [''])[0]} Give a folder or hub id that holds one, or download "
                         "it on a machine with network access first.") from error
    finally:
        if bars:
            diffusers.utils.logging.enable_progress_bar()


def _check_libraries(index: Path, *, what: str) -> None:
    """Refuse a pipeline whose index names parts of other libraries: diffusers would import these."""
    import diffusers

    for name, part in (json.loads(index.read_text()) if index.is_file() else {}).items():
        library = part[0] if isinstance(part, list) and part else None
        if library not in (None, "diffusers", "transformers") and not hasattr(diffusers.pipelines, str(library)):
            raise ValueError(f"{what}: expected parts of diffusers and transformers, got {library!r} for {name!r} in "
                             f"{index}, whose code would be imported. Fetch the pipeline from its authors.")


@contextmanager
def every_weight(what: str) -> Iterator[None]:
    """Refuse a model for which diffusers or transformers make up weights that its file lacks: they warn alone.

    Raises
    ------
    ValueError
        With what they said.
    """
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "newly initialized" in record.getMessage():
                said.append(" ".join(record.getMessage().split()))

    listener, loggers = Listener(), [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(listener)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(listener)
    if said:
        raise ValueError(f"{what}: expected every weight in its file, got some that would be made up: {said[0]} Give a "
                         "folder whose config.json belongs to its weights.")


def load_tokenizer(model: str, *, what: str, **settings: Any) -> Any:
    """Return the tokenizer that lies with a model; `settings` as of ``from_pretrained``.

    Raises
    ------
    ValueError
        If there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(locate(model), trust_remote_code=False, **settings)
    except (OSError, ValueError) as error:
        if is_of_the_system(error):
            raise
        raise _missing(what, model, error) from error


def tiny_tokenizer(**special: str) -> Any:
    """Return a tokenizer of "[PAD]", "[UNK]", further `special` tokens (``eos_token="[EOS]"``), then eight words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    roles = {"pad_token": "[PAD]", "unk_token": "[UNK]", **special}
    words = {word: i for i, word in enumerate([*roles.values(), *"a red blue cat dog on at night".split()])}
    vocabulary = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    vocabulary.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=vocabulary, **roles)


def tiny_clip_tokenizer(length: int = 12) -> Any:
    """Return a tokenizer of CLIP's kind that knows single letters, for texts of `length` tokens."""
    from string import ascii_lowercase

    from transformers import CLIPTokenizer

    vocabulary = ["<|startoftext|>", "<|endoftext|>", *ascii_lowercase, *(f"{x}</w>" for x in ascii_lowercase)]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}, merges=[], model_max_length=length)


def tiny_clip_text(*, width: int, projection: int | None = None, length: int = 12) -> Any:
    """Return an untrained text encoder of CLIP's kind for `tiny_clip_tokenizer`; with a projection to that width."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(vocab_size=54, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
                            num_attention_heads=2, max_position_embeddings=length, bos_token_id=0, eos_token_id=1,
                            pad_token_id=1, projection_dim=projection or width)
    return CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)


def _missing(what: str, model: str, error: Exception) -> ValueError:
    said = (str(error).splitlines() or [""])[0]
    return ValueError(f"{what}: expected a model of transformers in {model!r} (safetensors), got "
                      f"{type(error).__name__}: {said} Give a folder or hub id that holds one, or download it on a "
                      "machine with network access first.")


def pictures(stimuli: Stimuli, rows: Sequence[int], *, size: int | None = None) -> Tensor:
    """Return pictures ``(n, 3, size, size)`` in [0, 1], resized (bicubic, antialiased); None leaves their own size."""
    images = torch.from_numpy(np.ascontiguousarray(stimuli.images(rows))).permute(0, 3, 1, 2).float() / 255
    return images if size is None else resized(images, (size, size))


def resized(images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return pictures ``(n, 3, h, w)`` in [0, 1] at another size (bicubic, antialiased)."""
    if images.shape[-2:] == size:
        return images
    return torch.nn.functional.interpolate(images, size=size, mode="bicubic", align_corners=False,
                                           antialias=True).clamp(0, 1)


def pixels(stimuli: Stimuli, rows: Sequence[int], *, size: int,
           colours: tuple[Sequence[float], Sequence[float]] = CLIP_COLOURS) -> Tensor:
    """Return pictures ``(n, 3, size, size)``, resized (bicubic, antialiased) and normalised by mean and s.d."""
    mean, std = (torch.tensor(values)[:, None, None] for values in colours)
    return (pictures(stimuli, rows, size=size) - mean) / std
