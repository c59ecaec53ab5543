"""What the priors share: checks of what they are given, and what they fitted on disk; no plug-in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from brain2img.artifacts import differences, read_json, read_tensors, write_json, writing
from brain2img.layers import check_weights

REFIT = "Fit the prior again (stage fit_prior with overwrite=true), or choose the settings it was fitted with."


def finite(values: np.ndarray, *, what: str) -> np.ndarray:
    """Return `values` as ``(n, D)`` float32, each row flat.

    Raises
    ------
    ValueError
        If a value is NaN or infinite.
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(len(values), -1)
    bad = np.flatnonzero(~np.isfinite(flat).all(axis=1))
    if len(bad):
        raise ValueError(f"{what}: expected finite embeddings, got NaN or infinity in {len(bad)} of {len(flat)} rows "
                         f"(first: row {bad[0]}). Look at the decoder that wrote them.")
    return flat


def pairs(predicted: np.ndarray, true: np.ndarray, *, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Return both as ``(n, D)`` float32.

    Raises
    ------
    ValueError
        If the shapes differ, there are fewer than two rows, or a value is not finite.
    """
    if predicted.shape != true.shape or len(predicted) < 2:
        raise ValueError(f"{what}: expected two or more predictions and as many true embeddings of their shape, got "
                         f"{predicted.shape} and {true.shape}. Fit it on the predictions of this space.")
    return finite(predicted, what=f"{what}, predictions"), finite(true, what=f"{what}, true embeddings")


def rows(predicted: np.ndarray, shape: tuple[int, ...] | None, *, what: str) -> np.ndarray:
    """Return predictions ``(n, *shape)`` as ``(n, D)`` float32.

    Raises
    ------
    ValueError
        If the prior was not fitted, was fitted on embeddings of another shape, or a value is not finite.
    """
    if shape is None:
        raise ValueError(f"{what}: expected a fitted prior, got one that was not. Call fit or load first.")
    if predicted.shape[1:] != shape:
        raise ValueError(f"{what}: expected embeddings of shape {shape}, on which it was fitted, got "
                         f"{predicted.shape[1:]}. Use it for its own space.")
    return finite(predicted, what=what)


def write_fitted(folder: Path, arrays: Mapping[str, np.ndarray], *, shape: tuple[int, ...],
                 settings: Mapping[str, Any]) -> None:
    """Write ``prior.safetensors`` and then ``prior.json``, whose presence says that the prior is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    with writing(folder / "prior.safetensors") as temporary:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, str(temporary))
    write_json(folder / "prior.json", {"shape": list(shape), "settings": dict(settings)})


def read_shape(folder: Path, *, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of the embeddings that the prior in `folder` was fitted on.

    Raises
    ------
    ValueError
        If there is none, or one of other settings, with the differences.
    """
    path = folder / "prior.json"
    stored = read_json(path, keys=("settings", "shape"), advice=REFIT)
    lines = differences(stored["settings"], json.loads(json.dumps(dict(settings))))
    if lines:
        raise ValueError(f"prior {folder}: expected one of these settings, got one of others:\n  "
                         + "\n  ".join(lines) + f"\n{REFIT}")
    return tuple(stored["shape"])


def read_arrays(folder: Path, expected: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the fitted arrays.

    Parameters
    ----------
    folder
        Where `write_fitted` wrote them.
    expected
        Name -> anything of the shape that the array must have.

    Raises
    ------
    ValueError
        If the file is damaged, or an array is missing, unexpected or of another shape, with the full list.
    """
    path = folder / "prior.safetensors"
    arrays = read_tensors(path, advice=REFIT)
    check_weights(expected, arrays, what=f"prior {path}", cure=REFIT)
    return arrays
