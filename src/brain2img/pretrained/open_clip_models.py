"""Loading models of open_clip, for the spaces that look at them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from brain2img.artifacts import is_of_the_system

log = logging.getLogger(__name__)


def load_open_clip(model: str, *, pretrained: str | None, what: str) -> tuple[Any, Any]:
    """Return a model and its evaluation transform.

    Parameters
    ----------
    model
        Name of an architecture, or ``local-dir:<folder>``.
    pretrained
        Tag of published weights, path of a checkpoint, or None.
    what
        What messages call it: "space 'clip'".

    Raises
    ------
    ValueError
        If there is none, or the weights were trained with another activation than the architecture has.
    """
    import open_clip

    _check_activation(model, pretrained, what=what)
    try:
        made, _, transform = open_clip.create_model_and_transforms(model, pretrained=pretrained, weights_only=True)
    except (RuntimeError, OSError, ValueError) as error:
        if is_of_the_system(error):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{what}: expected weights {pretrained!r} for {model}, got {type(error).__name__}: {said}. Give a tag of "
            "open_clip.list_pretrained(), a checkpoint path, or download the weights on a machine with network access "
            "first.") from error
    return made, transform


def _check_activation(model: str, pretrained: str | None, *, what: str) -> None:
    """Refuse weights trained with QuickGELU in a model without it, and the other way round.

    open_clip warns of it alone: the model runs, and its embeddings are others.
    """
    import open_clip

    config = open_clip.get_model_config(model)
    if config is None or not pretrained:
        return
    here = bool(config.get("quick_gelu", False))
    tag = open_clip.get_pretrained_cfg(model, pretrained)
    if not tag:
        if Path(pretrained).is_file():
            log.info("%s: %s is taken for weights that were trained %s QuickGELU, as %s is", what, pretrained,
                     "with" if here else "without", model)
        return
    if bool(tag.get("quick_gelu", False)) != here:
        other = model.removesuffix("-quickgelu") if here else f"{model}-quickgelu"
        cure = f"Set model: {other}" if open_clip.get_model_config(other) else "Choose another tag"
        raise ValueError(f"{what}: expected an architecture {'without' if here else 'with'} QuickGELU, with the "
                         f"activation of the weights {pretrained!r}, got {model}: its embeddings would be others. "
                         f"{cure}.")
