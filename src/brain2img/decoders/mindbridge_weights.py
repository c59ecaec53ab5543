"""Published checkpoints of MindBridge: how their weights are named, and the way into a decoder of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from torch import Tensor

from brain2img.decoders.deep import DeepDecoder
from brain2img.decoders.published_weights import (
    PublishedWeights,
    fill,
    is_state,
    number_of,
    read_file,
    without_wrappers,
)

STATE = "model_state_dict"
BESIDE = {"epoch", "optimizer_state_dict", "lr_scheduler", "train_losses", "val_losses", "lrs"}
"""What the files hold beside the weights: the epoch alone since July 2024, all of it before."""
PER_SUBJECT = ("embedder", "builder")


class MindBridgeWeights(PublishedWeights):
    """The key map of MindSingle and MindBridge (Wang et al. 2024, https://github.com/littlepure2333/MindBridge).

    Both layouts of file are read: a dictionary with ``epoch`` and ``model_state_dict``, and the older one with
    optimizer, scheduler and losses beside them; of either the weights alone, without running code of the file. A
    prefix ``module.`` of every key is taken off.

    ===============================  =================================
    published                        here
    ===============================  =================================
    ``embedder.<number>.*``          ``adapter.embedder.<subject>.*``
    ``builder.<number>.*``           ``adapter.builder.<subject>.*``
    ``translator.mlp.<block>.*``     ``encoder.mlp.<block>.*``
    ``head_image.*``, ``head_text.*``  ``heads.<head>.linear.*``
    ===============================  =================================

    Parameters
    ----------
    heads
        Our head -> its name in the file.
    subjects
        Subject -> its key in the file; those not named have the number that their name ends with ("subj01": "1").
    leave_out
        Beginnings of keys of the file that this model is known to have no place for: "builder" for a decoder without
        the auxiliary losses, "embedder.2" for a subject that is not wanted. Nothing else may be left over.
    """

    def __init__(self, *, heads: Mapping[str, str], subjects: Mapping[str, str] | None = None,
                 leave_out: Sequence[str] = ()) -> None:
        self.heads, self.subjects, self.leave_out = dict(heads), dict(subjects or {}), list(leave_out)

    def load(self, decoder: DeepDecoder, path: Path) -> dict[str, Any]:
        """Load the weights of a file into `decoder` and return the report.

        Returns
        -------
        dict
            ``file``, ``layout`` ("current" or "before July 2024"), ``epoch``, ``subjects`` (ours -> theirs),
            ``matched`` (our key -> theirs), ``left_out``, ``missing``, ``unexpected`` and ``shapes``; the last three
            are empty, or this would have raised.

        Raises
        ------
        ValueError
            If the file is not such a checkpoint, lacks a subject, or a weight is missing, unexpected, of another shape
            or not finite; with the full list.
        """
        stored = self._read(path)
        epoch = stored.get("epoch")
        epoch = epoch.item() if isinstance(epoch, np.generic | Tensor) else epoch  # as scripts happen to count
        state = without_wrappers(stored[STATE], path=path)
        subjects = self._of_file(list(decoder.module.adapter.specs), state, path)
        places = {key: self._published(key, subjects) for key in decoder.module.state_dict()}
        report = fill(decoder, state, places=places, leave_out=self.leave_out, path=path, cure=self._cure)
        return {**report, "epoch": epoch, "subjects": subjects,
                "layout": "before July 2024" if "optimizer_state_dict" in stored else "current"}

    def _read(self, path: Path) -> dict[str, Any]:
        stored = read_file(path)
        keys = sorted(map(str, stored)) if isinstance(stored, dict) else []
        if STATE not in keys or set(keys) - BESIDE - {STATE} or not is_state(stored[STATE]):
            raise ValueError(f"weights {path}: expected a dictionary with {STATE!r} and none but {sorted(BESIDE)} "
                             f"beside it, got {f'the keys {keys[:8]}' if keys else type(stored).__name__}. "
                             "Give a file as MindBridge's trainer saves it.")
        return stored

    def _of_file(self, asked: Sequence[str], state: Mapping[str, Tensor], path: Path) -> dict[str, str]:
        """Return subject -> its key in the file."""
        held = sorted({key.split(".")[1] for key in state if key.startswith("embedder.")})
        keys = {}
        for subject in asked:
            number = number_of(subject)
            key = str(self.subjects.get(subject, subject if number is None else number))
            if key not in held:
                raise ValueError(f"weights {path}: expected subject {subject!r} as number {key!r} in the file, got "
                                 f"a file with {held}. Choose among these with data.subjects=[...], name it in "
                                 "layout.subjects, or adapt the run to the new subject.")
            keys[subject] = key
        return keys

    def _published(self, key: str, subjects: Mapping[str, str]) -> str:
        """Return the published name of one of our weights; of one that has none, our own."""
        parts = key.split(".")
        if parts[0] == "adapter" and parts[1] in PER_SUBJECT and parts[2] in subjects:
            return ".".join([parts[1], subjects[parts[2]], *parts[3:]])
        if parts[:2] == ["encoder", "mlp"]:
            return ".".join(["translator", *parts[1:]])
        if parts[0] == "heads" and parts[1] in self.heads and parts[2] == "linear":
            return ".".join([self.heads[parts[1]], *parts[3:]])
        return key

    @staticmethod
    def _cure(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
        """Return what to set so that the model becomes that of the file, as far as their keys and shapes say."""
        cures, (here, published) = [], (_sizes(expected), _sizes(got))
        cures += [f"{setting}={value} (here {here.get(setting, 'none')})" for setting, value in published.items()
                  if here.get(setting) != value]
        if ("builder" in {k.split(".")[0] for k in got}) and not any(k.startswith("builder.") for k in expected):
            cures.append("adapter.reconstruction=1 adapter.cycle=1, or layout.leave_out=[builder]")
        known = {tuple(key.split(".")[:2]) for key in expected if key.split(".")[0] in PER_SUBJECT}
        subjects = {key.split(".")[1] for key in got if key.startswith("embedder.")} - {s for _, s in known}
        if subjects:
            parts = [f"{part}.{s}" for s in sorted(subjects) for part in PER_SUBJECT]
            cures.append(f"layout.leave_out=[{','.join(parts)}] for subjects of the file that are not wanted")
        return "The file was written with: " + "; ".join(cures) if cures else (
            "Use the configuration and the layout of the published model; no weight is left out unless "
            "layout.leave_out names it.")

    @classmethod
    def tiny(cls) -> Self:
        """Return the key map of the published heads."""
        return cls(heads={"clip_linear": "head_image", "clip_text_linear": "head_text"})


def _sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the settings that the names and shapes of published weights tell, those of the first subject."""
    sizes = {}
    blocks = {key.split(".")[2] for key in state if key.startswith("translator.mlp.")}
    if blocks:
        sizes["encoder.n_blocks"] = len(blocks)
    for key, value in state.items():
        if re.fullmatch(r"embedder\.[^.]+\.1\.weight", key) and value.ndim == 2:
            sizes["encoder.width"], sizes["adapter.pool_size"] = value.shape
        if re.fullmatch(r"embedder\.[^.]+\.0\.down_proj\.weight", key):
            sizes["adapter.bottleneck"] = value.shape[0]
    return {key: int(value) for key, value in sizes.items()}
