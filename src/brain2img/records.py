"""What passes between the parts: frozen, checked records, and nothing that computes.

Shape letters are those of `brain2img.interfaces`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

MODALITIES = ("fmri", "eeg", "meg")
KINDS = ("image", "audio", "sentence")


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(item) for item in value]
    return value


@dataclass(frozen=True, kw_only=True)
class SignalSpec:
    """What one subject's signals ``(n_trials, C, T)`` are.

    Parameters
    ----------
    subject
        Name of the subject, as in ``trials.parquet``.
    modality
        One of "fmri", "eeg", "meg".
    units
        "V", "T", "T/m", "a.u." or "percent signal change".
    n_channels, n_times
        C and T; T is 1 for single-trial betas.
    sfreq
        Samples per second (Hz), or None where T is 1.
    tmin
        Time of the first sample relative to stimulus onset (s).
    ch_names, ch_types
        Names and MNE types of the channels (M/EEG); empty for voxels.
    positions
        ``(C, 3)`` sensor positions in metres, head coordinates (M/EEG).
    ijk
        ``(C, 3)`` voxel indices into a volume of `volume_shape` (fMRI).
    affine
        ``(4, 4)`` from `ijk` to millimetres (fMRI).
    volume_shape
        Shape of the volume the voxels come from (fMRI).
    rois
        One ROI label per voxel ("" for none); empty where unknown.
    noise_ceiling
        ``(C,)`` explainable share of variance of a voxel, in [0, 1].
    filtered
        What was already filtered, in words; "" for nothing.
    whitened
        True where the source is already noise-normalised: channel subsets are then refused by the data module.

    Raises
    ------
    ValueError
        If the sizes of the parts do not fit each other.
    """

    subject: str
    modality: str
    units: str
    n_channels: int
    n_times: int
    sfreq: float | None = None
    tmin: float = 0.0
    ch_names: tuple[str, ...] = ()
    ch_types: tuple[str, ...] = ()
    positions: np.ndarray | None = None
    ijk: np.ndarray | None = None
    affine: np.ndarray | None = None
    volume_shape: tuple[int, int, int] | None = None
    rois: tuple[str, ...] = ()
    noise_ceiling: np.ndarray | None = None
    filtered: str = ""
    whitened: bool = False

    def __post_init__(self) -> None:
        what = f"signals of subject {self.subject!r}"
        if self.modality not in MODALITIES:
            raise ValueError(f"{what}: expected a modality of {MODALITIES}, got {self.modality!r}. Correct the study.")
        if self.n_channels < 1 or self.n_times < 1:
            raise ValueError(f"{what}: expected channels and samples, got {self.n_channels} and {self.n_times}. "
                             "Check the raw files: constant channels were left out.")
        for name in ("positions", "ijk", "affine", "noise_ceiling"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, np.asarray(value))
        for name in ("ch_names", "ch_types", "rois", "volume_shape"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, tuple(value))
        sizes = {name: len(getattr(self, name) if getattr(self, name) is not None else ())
                 for name in ("ch_names", "ch_types", "positions", "ijk", "rois", "noise_ceiling")}
        for name, size in sizes.items():
            if size not in (0, self.n_channels):
                raise ValueError(
                    f"{what}: expected {self.n_channels} entries in {name}, one per channel, got {size}. "
                    "Correct the study that wrote this folder.")
        if self.n_times > 1 and self.sfreq is None:
            raise ValueError(f"{what}: expected sfreq in Hz for {self.n_times} samples, got None. State it.")

    @property
    def times(self) -> np.ndarray:
        """Time of each sample relative to stimulus onset, ``(T,)`` in seconds."""
        return self.tmin + np.arange(self.n_times) / (self.sfreq or 1.0)

    def select(self, channels: np.ndarray, *, samples: slice | None = None) -> SignalSpec:
        """Return the spec of ``signals[:, channels, samples]``."""
        start, stop, _ = (samples or slice(None)).indices(self.n_times)
        changes: dict[str, Any] = {"n_channels": len(channels), "n_times": stop - start}
        if self.n_times > 1:
            changes["tmin"] = float(self.times[start])
        for name in ("positions", "ijk", "noise_ceiling"):
            if getattr(self, name) is not None:
                changes[name] = getattr(self, name)[channels]
        for name in ("ch_names", "ch_types", "rois"):
            if getattr(self, name):
                changes[name] = tuple(getattr(self, name)[i] for i in channels)
        return dataclasses.replace(self, **changes)

    def difference(self, known: SignalSpec, *, channels: bool = True) -> str:
        """Return in words how these signals differ from known ones in channels, rate or window; "" where they do not.

        Parameters
        ----------
        known
            What is compared with.
        channels
            Whether names and order of the channels count.
        """
        if channels and self.ch_names != known.ch_names:
            missing = [name for name in known.ch_names if name not in self.ch_names]
            more = [name for name in self.ch_names if name not in known.ch_names]
            if missing or more or len(self.ch_names) != len(known.ch_names):
                return (f"{len(self.ch_names)} channels in place of {len(known.ch_names)}: missing {missing[:6]}, "
                        f"others {more[:6]}")
            there, here = next((a, b) for a, b in zip(known.ch_names, self.ch_names, strict=True) if a != b)
            return f"another order of channels: {here} in place of {there}, ..."
        if abs((self.sfreq or 0.0) - (known.sfreq or 0.0)) > 1e-6:
            return f"{self.sfreq} in place of {known.sfreq} samples per second"
        if self.n_times != known.n_times or abs(self.tmin - known.tmin) > 0.5 / (known.sfreq or 1.0):
            return (f"{self.n_times} samples from {self.tmin:g} s on in place of {known.n_times} from "
                    f"{known.tmin:g} s on")
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {f.name: _jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SignalSpec:
        """Build the record from what `to_json` returned."""
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class EmbeddingSpec:
    """What the embeddings ``(N, *shape)`` of one space are.

    Parameters
    ----------
    name
        Key of the space in the configuration, e.g. "clip".
    shape
        Shape of one embedding, without the stimulus axis.
    dtype
        How it is stored: "float16" or "float32".
    kind
        What is embedded: "image", "audio" or "sentence".
    n_views
        Views (crops, captions, ...) that were embedded per stimulus and combined by `view_rule`.
    view_rule
        "single" or "mean".
    normalised
        True where the stored vectors have unit L2 norm.
    value_range
        Smallest and largest possible value where the space is bounded, e.g. (0, 1) for pixels.
    labels
        Name of every dimension ("kind=apple", "x"), for spaces whose dimensions mean something; else empty.
    parts
        Name -> number of values, for flat embeddings that are several put together, in their order (layers); they are
        stored one after the other. Empty for those of one piece.
    uid
        Identity of weights, transform, layer and dtype: two folders with the same uid hold the same function.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float16"
    kind: str = "image"
    n_views: int = 1
    view_rule: str = "single"
    normalised: bool = False
    value_range: tuple[float, float] | None = None
    labels: tuple[str, ...] = ()
    parts: Mapping[str, int] = field(default_factory=dict)
    uid: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        if self.parts and sum(self.parts.values()) != self.size:
            raise ValueError(f"space {self.name!r}: expected parts of {self.size} values in all, got "
                             f"{dict(self.parts)}. Correct the space.")
        object.__setattr__(self, "labels", tuple(self.labels))
        if self.value_range is not None:
            object.__setattr__(self, "value_range", tuple(self.value_range))
        if self.kind not in KINDS:
            raise ValueError(f"space {self.name!r}: expected a kind of {KINDS}, got {self.kind!r}. Correct the space.")

    @property
    def size(self) -> int:
        """Number of values in one embedding."""
        return int(np.prod(self.shape))

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return {f.name: _jsonable(getattr(self, f.name)) for f in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EmbeddingSpec:
        """Build the record from what `to_json` returned."""
        return cls(**values)


@dataclass(frozen=True)
class Grid:
    """Size ``(F, T)`` of what an encoder takes from every subject's adapter."""

    F: int
    T: int


@dataclass(frozen=True)
class Features:
    """What a subject adapter hands on: `grid` ``(B_s, F, T)`` and `tokens` ``(B_s, K, T)`` or None."""

    grid: Tensor
    tokens: Tensor | None = None


@dataclass(frozen=True)
class Stimuli:
    """Stimuli in the order of `table`, read lazily.

    Parameters
    ----------
    table
        Rows of ``stimuli.parquet``: stimulus_id, kind, concept, category, captions (list), attributes (dict).
    read_images
        Maps row numbers of `table` to ``(n, h, w, 3)`` uint8 images (0..255), or to ``(n, h, w)`` grey ones.
    """

    table: pd.DataFrame
    read_images: Callable[[Sequence[int]], np.ndarray]

    def __len__(self) -> int:
        return len(self.table)

    def images(self, rows: Sequence[int] | None = None) -> np.ndarray:
        """Return ``(n, h, w, 3)`` uint8 images (0..255) of the given rows (all by default); grey is repeated."""
        images = self.read_images(range(len(self.table)) if rows is None else rows)
        return images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=-1)


@dataclass
class BrainBatch:
    """A ragged batch: one tensor per subject, no padding of voxels.

    Parameters
    ----------
    signals
        Subject -> ``(B_s, C_s, T_s)`` float32, normalised by the data module.
    rows
        Subject -> ``(B_s,)`` long: the place of each trial in the batch's B trials, hence in `targets`.
    stimulus_ids
        Identity of the stimulus of each of the B trials.
    targets
        Space -> ``(B, *shape)`` float32; empty when predicting.
    sources
        A batch of any training trials of one known subject, beside those of a new subject that is adapted to, or None.
    """

    signals: dict[str, Tensor]
    rows: dict[str, Tensor]
    stimulus_ids: list[str]
    targets: dict[str, Tensor] = field(default_factory=dict)
    sources: BrainBatch | None = None

    def __len__(self) -> int:
        return len(self.stimulus_ids)

    def to(self, device: Any) -> BrainBatch:
        """Return the batch with every tensor on `device`."""
        sources = None if self.sources is None else self.sources.to(device)
        return BrainBatch(stimulus_ids=self.stimulus_ids, sources=sources, **{
            name: {k: v.to(device) for k, v in getattr(self, name).items()} for name in ("signals", "rows", "targets")})


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What a metric scores: all that was decoded for one subject under one condition and number of repetitions.

    Parameters
    ----------
    truth
        ``(n,)`` for every decoded row the place of its stimulus in the gallery.
    gallery_ids
        Stimulus ids of the N gallery entries, without duplicates.
    embeddings
        Space -> ``(n, *shape)`` decoded embeddings.
    gallery
        Space -> ``(N, *shape)`` true embeddings.
    specs
        Space -> its `EmbeddingSpec`.
    images
        ``(n, h, w, 3)`` uint8 reconstructions, or None.
    gallery_images
        ``(N, h', w', 3)`` uint8 stimuli, or None.
    features
        Space -> ``(n, *shape)`` features of `images`, for the metrics that need a network.
    gallery_features
        Space -> ``(N, *shape)`` features of `gallery_images`.
    feature_specs
        Space -> `EmbeddingSpec` of the features.
    captions
        n decoded captions, or None.
    gallery_captions
        Lists of reference captions of the N stimuli, or None.
    gallery_attributes
        Known attributes of the N stimuli (name -> value), or None.
    """

    truth: np.ndarray
    gallery_ids: tuple[str, ...]
    embeddings: Mapping[str, np.ndarray] = field(default_factory=dict)
    gallery: Mapping[str, np.ndarray] = field(default_factory=dict)
    specs: Mapping[str, EmbeddingSpec] = field(default_factory=dict)
    images: np.ndarray | None = None
    gallery_images: np.ndarray | None = None
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    gallery_features: Mapping[str, np.ndarray] = field(default_factory=dict)
    feature_specs: Mapping[str, EmbeddingSpec] = field(default_factory=dict)
    captions: Sequence[str] | None = None
    gallery_captions: Sequence[Sequence[str]] | None = None
    gallery_attributes: Sequence[Mapping[str, Any]] | None = None

    def __len__(self) -> int:
        return len(self.truth)
