"""What the plug-ins around models of transformers share: loading with a full report, and pictures as they take them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brain2img.pretrained import locate
from brain2img.records import Stimuli

log = logging.getLogger(__name__)

#: Mean and s.d. of the colours of what CLIP was trained on, by which BLIP and GIT normalise, too.
CLIP_COLOURS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def load_config(cls: Any, model: str, *, what: str, subfolder: str = "") -> Any:
    """Return the configuration of a model of transformers, without its weights.

    Parameters
    ----------
    cls
        A configuration class of the library, or ``AutoConfig``.
    model
        Folder or hub id.
    what
        What messages call it: "space 'blip'".
    subfolder
        Folder in it.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        return cls.from_pretrained(locate(model), subfolder=subfolder)
    except (OSError, ValueError) as error:
        raise _missing(what, model, error) from error


def load_model(cls: Any, model: str, *, what: str, device: str, subfolder: str = "") -> Any:
    """Return a frozen model of transformers in single precision, every weight of which was found.

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
    subfolder
        Folder in it.

    Raises
    ------
    ValueError
        If there is none, or weights are missing or of another shape, with the full list.
    """
    try:
        made, found = cls.from_pretrained(locate(model), subfolder=subfolder, dtype=torch.float32,
                                          use_safetensors=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise _missing(what, model, error) from error
    wrong = {kind: sorted(map(str, found[f"{kind}_keys"])) for kind in ("missing", "mismatched", "unexpected")}
    bad = len(wrong["missing"]) + len(wrong["mismatched"])
    log.info("%s: %d weights matched, %d missing, %d mismatched, %d unexpected", what, len(made.state_dict()) - bad,
             *(len(keys) for keys in wrong.values()))
    if bad:
        raise ValueError(f"{what}: expected every weight of {cls.__name__} in {model}, got missing: "
                         f"{wrong['missing']}, of another shape: {wrong['mismatched']}, unexpected: "
                         f"{wrong['unexpected']}. Give a folder whose config.json belongs to its weights.")
    return made.eval().requires_grad_(False).to(device)


def load_tokenizer(model: str, *, what: str, subfolder: str = "") -> Any:
    """Return the tokenizer that lies with a model.

    Raises
    ------
    ValueError
        If there is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(locate(model), subfolder=subfolder)
    except (OSError, ValueError) as error:
        raise _missing(what, model, error) from error


def _missing(what: str, model: str, error: Exception) -> ValueError:
    said = (str(error).splitlines() or [""])[0]
    return ValueError(f"{what}: expected a model of transformers in {model!r} (safetensors), got "
                      f"{type(error).__name__}: {said} Give a folder or hub id that holds one, or download it on a "
                      "machine with network access first.")


def pixels(stimuli: Stimuli, rows: Sequence[int], *, size: int,
           colours: tuple[Sequence[float], Sequence[float]] = CLIP_COLOURS) -> Tensor:
    """Return pictures ``(n, 3, size, size)``, resized (bicubic, antialiased) and normalised by mean and s.d."""
    images = torch.from_numpy(np.ascontiguousarray(stimuli.images(rows))).permute(0, 3, 1, 2).float() / 255
    if images.shape[-2:] != (size, size):
        images = torch.nn.functional.interpolate(images, size=(size, size), mode="bicubic", align_corners=False,
                                                 antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values)[:, None, None] for values in colours)
    return (images - mean) / std


def device_of(name: str) -> str:
    """Return the device: "auto" takes a GPU if there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
