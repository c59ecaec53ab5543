"""Published checkpoints of ATM-S in both layouts: how their weights are named, and the way into a decoder of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

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
from brain2img.encoders.atm import ATM
from brain2img.encoders.atm_time import ATMTime
from brain2img.records import SignalSpec

EMBEDDING, LAYER = "encoder.enc_embedding", "encoder.encoder.attn_layers.0"
TABLE, SHARED = f"{EMBEDDING}.subject_embedding.subject_embedding.weight", (
    f"{EMBEDDING}.subject_embedding.shared_embedding")
CODE = "attention_model.pos_encoder.pe"
UPSTREAM = {"encoder.value_embedding": f"{EMBEDDING}.value_embedding", "encoder.attn_layer": LAYER,
            "encoder.norm": "encoder.encoder.norm", "adapter.shared": SHARED}
EARLIER = {"encoder.positions": CODE, "encoder.attn_layer": "attention_model.transformer_encoder.layers.0",
           "encoder.subject_wise_linear": "subject_wise_linear.0"}
BOTH = {"encoder.tsconv": "enc_eeg.0.tsconv", "encoder.projection": "enc_eeg.0.projection"}
DEAD = {ATM: ("subject_wise_linear", f"{EMBEDDING}.position_embedding", f"{EMBEDDING}.temporal_embedding",
              f"{EMBEDDING}.mask_token", f"{EMBEDDING}.subject_embedding.mask_embedding"),
        ATMTime: ("attention_model.encoder_layer",)}
"""What the files hold and no forward pass reaches."""


class ATMWeights(PublishedWeights):
    """The key map of ATM-S (Li et al. 2024, https://github.com/dongyangli-del/EEG_Image_decode).

    The files are bare state dicts. The upstream layout (``encoder=atm``, weights on huggingface.co/datasets/
    LidongYang/EEG_Image_decode) and the earlier one (``encoder=atm_time``, ``ATMS_50``) are told apart by their keys.
    Names of wrappers (``module.``, ``_orig_mod.``) are taken out; ``conv1`` and ``conv2`` with a trailing axis are
    ``linear1`` and ``linear2``. Of the subject table the rows of our subjects are taken: row i is subject i, counted
    from 1, since
    upstream a subject's id is the number in its name (row 0 was never trained), and one beyond the table has the shared
    token, as there. Parts that no forward pass reaches are left out, by name, and listed in the report.

    What a file does not say is stated here and compared with the signals: channels, rate, start of the window.

    Parameters
    ----------
    channels
        Names of the channels in the order of the weights.
    sfreq
        Samples per second (Hz).
    tmin
        Time of the first sample (s).
    published_slice
        Whether the file was trained with the first C tokens after attention (2024) or without the subject token (2026):
        ``encoder.published_slice`` must say the same. Upstream layout only.
    subjects
        Subject -> its row or key in the file; those not named have the number that their name ends with.
    head
        Our head that is ``proj_eeg``.
    """

    def __init__(self, *, channels: Sequence[str], sfreq: float = 250.0, tmin: float = 0.0,
                 published_slice: bool = True, subjects: Mapping[str, int] | None = None,
                 head: str = "clip_projector") -> None:
        self.channels, self.sfreq, self.tmin = tuple(channels), float(sfreq), float(tmin)
        self.published_slice, self.subjects, self.head = published_slice, dict(subjects or {}), head

    def load(self, decoder: DeepDecoder, path: Path) -> dict[str, Any]:
        """Load the weights of a file into `decoder` and return the report.

        Returns
        -------
        dict
            That of `brain2img.decoders.published_weights.fill`, with ``layout`` ("upstream" or "earlier") and
            ``subjects`` (ours -> row of the table, or "shared").

        Raises
        ------
        ValueError
            If the file is no such checkpoint or one of the other layout, the signals or the slice are not those of the
            weights, or a weight is missing, unexpected, of another shape or not finite; with the full list.
        """
        stored = read_file(path)
        if not is_state(stored):
            raise ValueError(f"weights {path}: expected a bare state dict, names -> tensors, got "
                             f"{type(stored).__name__}. Give a file as ATM's scripts save it.")
        state, encoder = without_wrappers(stored, path=path), decoder.module.encoder
        layout = "earlier" if any(key.startswith("attention_model.") for key in state) else "upstream"
        if not isinstance(encoder, ATMTime if layout == "earlier" else ATM):
            raise ValueError(f"weights {path}: expected a decoder of the {layout} layout, which the keys of the file "
                             f"are of, got {type(encoder).__name__}. Choose encoder="
                             f"{'atm_time' if layout == 'earlier' else 'atm'}.")
        for spec in decoder.module.adapter.specs.values():
            self._check_signals(spec, _n_samples(state), path)
        if isinstance(encoder, ATM) and encoder.published_slice != self.published_slice:
            raise ValueError(f"weights {path}: expected encoder.published_slice={self.published_slice} as "
                             f"layout.published_slice, got {encoder.published_slice}. Set both to true for weights of "
                             "2024, to false for those trained with the slice of 2026.")
        state, rows = self._unfold(state, list(decoder.module.adapter.specs), encoder.grid.T)
        names = {**(EARLIER if layout == "earlier" else UPSTREAM), **BOTH, f"heads.{self.head}.proj": "proj_eeg"}
        places = {key: self._published(key, rows, names) for key in decoder.module.state_dict()}
        taken = {str(row) for row in rows.values()}
        others = [key for key in _of_subjects(state) if re.findall(r"\d+", key)[-1] not in taken]
        report = fill(decoder, state, places=places, leave_out=[*DEAD[type(encoder)], *others], path=path, cure=_cure)
        return {**report, "layout": layout, "subjects": rows}

    def _check_signals(self, spec: SignalSpec, n_times: int | None, path: Path) -> None:
        """Compare channels, rate and window of one subject with those of the weights."""
        what = f"weights {path}, subject {spec.subject!r}"
        if spec.ch_names != self.channels:
            lacking = [name for name in self.channels if name not in spec.ch_names]
            more = [name for name in spec.ch_names if name not in self.channels]
            moved = [(a, b) for a, b in zip(self.channels, spec.ch_names, strict=False) if a != b][:3]
            got = f"missing {lacking}, other {more}" if lacking or more else f"another order: {moved}"
            raise ValueError(f"{what}: expected the {len(self.channels)} channels of the weights in their order, got "
                             f"{len(spec.ch_names)} ({got}). Select the same ones with data.channels, or state those "
                             "of the file in layout.channels.")
        if spec.sfreq is None or abs(spec.sfreq - self.sfreq) > 1e-6:
            raise ValueError(f"{what}: expected {self.sfreq:g} Hz, got {spec.sfreq}. Prepare the study at this rate.")
        if abs(spec.tmin - self.tmin) > 0.5 / self.sfreq or n_times not in (None, spec.n_times):
            raise ValueError(f"{what}: expected {n_times} samples from {self.tmin:g} s on, got {spec.n_times} from "
                             f"{spec.tmin:g} s on. Set data.window to that of the weights.")

    def _unfold(self, state: dict[str, Tensor], subjects: Sequence[str],
                n_times: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the weights with one entry for each of our subjects, and subject -> its row, or "shared"."""
        out = {}
        for key, value in state.items():
            name = key.replace(f"{LAYER}.conv", f"{LAYER}.linear")
            out[name] = value.squeeze(-1) if name != key and value.ndim == 3 else value
        if CODE in out:
            out[CODE] = out[CODE][:n_times]
        numbers: dict[str, Any] = {s: self.subjects.get(s, number_of(s)) for s in subjects}
        if TABLE not in out:
            return out, numbers
        table = out.pop(TABLE)
        rows: dict[str, Any] = {s: "shared" if number is None or number >= len(table) else number
                                for s, number in numbers.items()}
        return out | {f"{TABLE}[{row}]": token[None] for row, token in enumerate(table)}, rows

    def _published(self, key: str, rows: Mapping[str, Any], names: Mapping[str, str]) -> str:
        """Return the published name of one of our weights; of one that has none, our own."""
        if key == f"heads.{self.head}.losses.info_nce.scale":
            return "logit_scale"
        parts = key.split(".")
        if parts[:2] == ["adapter", "tokens"]:
            return SHARED if rows[parts[2]] == "shared" else f"{TABLE}[{rows[parts[2]]}]"
        if parts[:2] == ["adapter", "linears"]:
            return ".".join([f"{EMBEDDING}.value_embedding", str(rows[parts[2]]), *parts[3:]])
        for here, published in names.items():
            if f"{key}.".startswith(f"{here}."):
                return published + key[len(here):]
        return key

    @classmethod
    def tiny(cls) -> Self:
        """Return the key map of signals of five channels at 100 Hz."""
        return cls(channels=("Pz", "PO3", "PO4", "O1", "O2"), sfreq=100.0)


def _of_subjects(state: Mapping[str, Tensor]) -> list[str]:
    """Return what belongs to a single subject by name: rows of the table, value embeddings of ``joint_train``."""
    own = rf"{re.escape(EMBEDDING)}\.value_embedding\.\d+(?=\.)|{re.escape(TABLE)}\[\d+\]"
    return sorted({match.group() for match in (re.match(own, key) for key in state) if match})


def _n_samples(state: Mapping[str, Tensor]) -> int | None:
    """Return the samples of the signals that the weights take, or None where no key tells."""
    widths = [value.shape[1] for key, value in state.items() if value.ndim == 2 and key.endswith(".weight")
            and key.startswith((f"{EMBEDDING}.value_embedding.", "subject_wise_linear.0."))]
    return widths[0] if widths else None


def _cure(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    """Return what to set so that the model becomes that of the file, as far as its keys and shapes say."""
    settings = {"enc_eeg.0.tsconv.0.weight": ("encoder.kernel", 3), "enc_eeg.0.projection.0.weight":
            ("encoder.n_filters", 0), f"{LAYER}.linear1.weight": ("encoder.feedforward", 0),
            "attention_model.transformer_encoder.layers.0.linear1.weight": ("encoder.feedforward", 0)}
    cures = [f"{name}={got[key].shape[axis]} (here {expected[key].shape[axis]})"
             for key, (name, axis) in settings.items()
             if key in got and key in expected and got[key].ndim == expected[key].ndim
             and got[key].shape[axis] != expected[key].shape[axis]]
    if any(".value_embedding." in key for key in set(_of_subjects(got)) - set(_of_subjects(expected))):
        cures.append("adapter.linear=true encoder.value_embedding=false")
    return "The file was written with: " + "; ".join(cures) if cures else (
        "Use the configuration that the file was trained with: encoder.bin=1, encoder.kernel and encoder.pool (25 and "
        "51, for reconstruction 5 and 17), the channels and window of layout, the space of its head.")
