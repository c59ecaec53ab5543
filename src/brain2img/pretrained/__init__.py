"""Weights of the small backbones of the simulated study, in the formats of the libraries that load them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from brain2img.artifacts import digest, file_digest, read_json, write_json
from brain2img.records import EmbeddingSpec

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
CONDITION = "brain2img.json"
OWN = ("scenes_clip", "scenes_dino", "scenes_judge", "scenes_decoder", "scenes_captioner")


def locate(model: str) -> str:
    """Return the folder of one of our small backbones for its name; any other name, path or hub id as it is.

    Parameters
    ----------
    model
        One of `OWN`; or a path, or the id of published weights ("kandinsky-community/kandinsky-2-2-decoder").

    Raises
    ------
    ValueError
        If it is one of our own that is not there: a library would ask the network for it.
    """
    own = FOLDER / model
    if model in OWN and not own.is_dir():
        raise ValueError(f"weights {model!r}: expected them in {FOLDER}, got none: not shipped yet. Train them "
                         "with brain2img train_small_backbones install=true, or choose published weights.")
    return str(own) if "/" not in model and own.is_dir() else str(Path(model).expanduser() if "~" in model else model)


def identity(model: str, *, subfolder: str = "") -> str:
    """Return an identity of weights: of a local folder its content, wherever it lies; of others their hub id."""
    folder = Path(locate(model)) / subfolder
    if not folder.is_dir():
        return model
    files = [path for kind in ("*.safetensors", "*.json") for path in folder.rglob(kind) if path.name != CONDITION]
    return digest({path.relative_to(folder).as_posix(): file_digest(path) for path in files})


def write_condition(folder: Path, **spaces: EmbeddingSpec) -> None:
    """Note beside the weights in `folder` on which embeddings they were trained.

    Parameters
    ----------
    folder
        Where the weights lie.
    spaces
        Role -> space: "condition" for what a generator is conditioned on, "latents" for what it starts from.
    """
    write_json(folder / CONDITION, {role: {"space": spec.name, "uid": spec.uid, "shape": list(spec.shape)}
                                    for role, spec in spaces.items()})


def read_condition(model: str) -> dict[str, dict[str, Any]]:
    """Return what `write_condition` noted beside the weights; empty for weights that others published."""
    path = Path(locate(model)) / CONDITION
    return read_json(path, advice="Train or fetch these weights again.") if path.exists() else {}


def check_condition(model: str, **spaces: EmbeddingSpec) -> None:
    """Refuse embeddings that the weights were not trained on.

    Weights without a note can only be asked for their sizes, which their class does.

    Parameters
    ----------
    model
        Name, path or hub id of the weights.
    spaces
        Role -> space that is to be used, as in `write_condition`.

    Raises
    ------
    ValueError
        If shape or uid of a space is another one than in training.
    """
    noted = read_condition(model)
    for role, spec in spaces.items():
        if role not in noted:
            log.info("%s: no note of the space it was trained on (%s): only the sizes of %r are checked", model,
                     CONDITION, spec.name)
            continue
        trained = noted[role]
        for what, expected, got in (("shape", tuple(trained["shape"]), spec.shape), ("uid", trained["uid"], spec.uid)):
            if expected != got:
                raise ValueError(
                    f"{model}: expected as {role} the embeddings it was trained on (space {trained['space']!r}, {what} "
                    f"{expected}), got space {spec.name!r} with {what} {got}. Decode the space these weights know "
                    "(space=[...], then embed and train again), or choose weights trained on this one.")
