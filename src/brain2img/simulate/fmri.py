"""Simulated single-trial fMRI betas: what one subject's visual cortex answers to the scenes, in a small volume.

Early voxels follow the compressive population receptive field model of Kay et al. (2013, J. Neurophysiol. 110, 481): a
Gaussian receptive field sums local contrast and colour, and a power below one compresses the sum. Voxels of higher
areas mix latents that all subjects share: smooth nonlinear functions of objects, their attributes and the background.
Deviation: contrast comes from two scales and four orientations, not from a Gabor pyramid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from brain2img.records import SignalSpec
from brain2img.simulate.features import GRID, MAPS, StimulusFeatures
from brain2img.simulate.observer import Ideal, held_out_stimuli

VOLUME_SHAPE = (40, 48, 36)
_VOXEL_MM = 2.0
#: Exponent of the compressive nonlinearity.
_EXPONENT = 0.5
#: Trials that are simulated at once.
_BLOCK = 256
_N_LATENTS = 12

#: Shares of the trial noise: common to neighbours (falling by 1/e over `_NEIGHBOUR_MM`); common to the whole brain; and
#: internal, which moves voxels together as stimuli do, so that pooling voxels does not average it away (Cohen & Kohn
#: 2011, Nat. Neurosci. 14, 811). The rest is a voxel's own.
_NEIGHBOUR_SHARE, _NEIGHBOUR_MM, _GLOBAL_SHARE, _INTERNAL_SHARE = 0.3, 6.0, 0.1, 0.2
#: Standard deviations, in units of the trial noise, of session offsets and of the drift within a session.
_OFFSET, _DRIFT = 0.4, 0.35
_GAIN = 0.08


@dataclass(frozen=True)
class _Area:
    """Where an area lies (voxels from the midline, from the back, from below), and what it prefers.

    `prefers` weighs groups of maps (early areas) or groups of attributes (higher areas); `field` is the size of a
    receptive field at the fovea as a share of the picture, 0 in higher areas.
    """

    share: float
    centre: tuple[float, float, float]
    prefers: dict[str, float]
    field: float = 0.0
    snr: float = 1.0


AREAS: dict[str, _Area] = {
    "V1": _Area(0.17, (4, 6, 19), {"fine": 1.0, "coarse": 0.6, "colour": 0.5, "luminance": 0.5}, 0.06, 1.2),
    "V2": _Area(0.14, (8, 8, 19), {"fine": 0.7, "coarse": 0.9, "colour": 0.6, "luminance": 0.4}, 0.08, 1.15),
    "V3": _Area(0.11, (11, 10, 20), {"fine": 0.4, "coarse": 1.0, "colour": 0.4, "luminance": 0.4}, 0.11, 1.1),
    "hV4": _Area(0.10, (11, 15, 11), {"fine": 0.3, "coarse": 0.6, "colour": 1.4, "luminance": 0.3}, 0.14, 1.1),
    "LO": _Area(0.15, (16, 13, 18), {"kind": 1.0, "scale": 1.5, "place": 1.5, "second": 0.7}, 0.0, 1.05),
    "FFA": _Area(0.08, (15, 22, 9), {"kind": 1.3, "colour": 0.5, "scale": 0.5}),
    "PPA": _Area(0.09, (9, 25, 10), {"kind": 0.6, "background": 1.8, "second": 0.5}),
    "ventral": _Area(0.16, (15, 30, 12), {"kind": 1.2, "colour": 1.2, "second": 0.5}),
}
_MAP_GROUPS = ("fine", "coarse")
_ATTRIBUTE_GROUPS = {"kind": "kind", "colour": "colour", "background": "background", "second": "second",
                     "n": "second", "scale": "scale", "x": "place", "y": "place"}


def simulate_subject(subject: str, *, features: StimulusFeatures, trials: pd.DataFrame, snr: float,
                     n_voxels: int = 1500, seed: int = 0) -> tuple[SignalSpec, Iterator[np.ndarray], Ideal]:
    """Simulate the single-trial betas of one subject.

    Parameters
    ----------
    subject
        Name; anatomy, tuning and noise are drawn from `seed` and this name alone.
    features
        Features of the n stimuli of the study.
    trials
        Trials in the order of recording: `stimulus` (row of `features`), session, repetition, split. Responses are
        scaled by their statistics over the stimuli of the training split.
    snr
        Standard deviation of the noise-free response over stimuli, divided by that of the noise of one trial; middle of
        a distribution over voxels (NSD's "ncsnr", for which 0.3 to 0.6 is usual in visual cortex). 0 leaves nothing of
        the stimulus in the signals.
    n_voxels
        Voxels of a middle-sized subject; a subject has 0.85 to 1.15 times as many.
    seed
        Seed of the study.

    Returns
    -------
    spec : SignalSpec
        Voxels in percent signal change. Its noise ceiling is the share of variance of the average over the test
        repetitions that the stimulus explains, ``s^2 / (s^2 + v / R)``, s being the signal-to-noise ratio of the voxel
        and v the variance of noise and drift within a session, as in NSD (Allen et al. 2022, Nat. Neurosci. 25, 116).
    blocks : iterator of numpy.ndarray
        ``(n, C, 1)`` float32 in the order of `trials`.
    ideal : Ideal
        What the generator knows; the observation space is voxels in units of their trial noise.

    Raises
    ------
    ValueError
        If `n_voxels` is below 16 or above 20000.
    """
    if not 16 <= n_voxels <= 20000:
        raise ValueError(f"voxels of subject {subject!r}: expected 16 to 20000, got {n_voxels}. "
                         "Set study.recording.n_voxels.")
    anatomy, tuning, sessions, noise = (_generator(subject, part, seed=seed)
                                        for part in ("anatomy", "tuning", "sessions", "noise"))
    ijk, rois = _voxels(round(n_voxels * anatomy.uniform(0.85, 1.15)), anatomy)
    near = _nearness(ijk)
    used = trials["stimulus"].to_numpy()
    responses = _responses(features, ijk=ijk, rois=rois, near=near, rng=tuning)
    known = responses[np.unique(used[(trials["split"] == "train").to_numpy()])]
    # In units of the trial noise, by voxel.
    strength = snr * tuning.lognormal(0.0, 0.5, len(ijk)) * np.array([AREAS[roi].snr for roi in rois])
    responses = (responses - known.mean(axis=0)) / np.maximum(known.std(axis=0), 1e-6) * strength

    covariance = _noise_covariance(near, ijk=ijk, internal=np.corrcoef(known, rowvar=False), rng=anatomy)
    factor = np.linalg.cholesky(covariance).astype(np.float32)
    slow = _Sessions.draw(trials, n_voxels=len(ijk), smooth=factor, rng=sessions)

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, len(trials), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(trials)))
            clean = responses[used[rows]] + noise.standard_normal((len(rows), len(ijk)), dtype=np.float32) @ factor.T
            yield slow.apply(clean, rows=rows)[:, :, None].astype(np.float32)

    repetitions = trials.loc[trials["split"] == "test", "repetition"].nunique() or 1
    spec = SignalSpec(
        subject=subject, modality="fmri", units="percent signal change", n_channels=len(ijk), n_times=1, ijk=ijk,
        affine=_affine(), volume_shape=VOLUME_SHAPE, rois=rois,
        noise_ceiling=strength**2 / (strength**2 + (1 + _DRIFT**2) / repetitions),
        filtered="single-trial betas (simulated); session offsets and slow drift not removed")
    ideal = Ideal(expected=responses[held_out_stimuli(trials)], covariance=covariance,
                  project=lambda signals, rows: slow.remove(signals[:, :, 0], rows=rows))
    return spec, blocks(), ideal


def _generator(*names: str, seed: int | None = None) -> np.random.Generator:
    """Return a generator that depends on the seed and the names alone."""
    text = "/".join((str(seed), *names))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def _affine() -> np.ndarray:
    """Return the ``(4, 4)`` matrix from voxel indices to mm: 2 mm voxels, midline and middle of the volume at 0."""
    affine = np.diag([_VOXEL_MM, _VOXEL_MM, _VOXEL_MM, 1.0])
    affine[:3, 3] = -_VOXEL_MM * (np.array(VOLUME_SHAPE) - 1) / 2
    return affine


def _voxels(n_voxels: int, rng: np.random.Generator) -> tuple[np.ndarray, tuple[str, ...]]:
    """Choose ``(C, 3)`` voxel indices and their areas: balls around the areas' centres, moved a little by subject."""
    grid = np.stack(np.meshgrid(*map(np.arange, VOLUME_SHAPE), indexing="ij"), axis=-1).reshape(-1, 3)
    from_midline = np.abs(grid[:, 0] - (VOLUME_SHAPE[0] - 1) / 2)
    free = np.ones(len(grid), dtype=bool)
    chosen, rois = [], []
    counts = np.floor(np.array([area.share for area in AREAS.values()]) * n_voxels).astype(int)
    counts[0] += n_voxels - counts.sum()
    for (name, area), count in zip(AREAS.items(), counts, strict=True):
        centre = np.array(area.centre) + rng.normal(0, 0.7, 3)
        distance = np.hypot(from_midline - centre[0], np.hypot(*(grid[:, 1:] - centre[1:]).T))
        # Cortex folds: an area is no perfect ball.
        distance = np.where(free, distance + rng.normal(0, 0.4, len(grid)), np.inf)
        take = np.sort(np.argsort(distance)[:count])
        free[take] = False
        chosen.append(grid[take])
        rois += [name] * count
    return np.concatenate(chosen), tuple(rois)


def _nearness(ijk: np.ndarray) -> np.ndarray:
    """Return the ``(C, C)`` correlation of a smooth field over the voxels: 1 on the diagonal, 1/e at 6 mm."""
    points = ijk * (_VOXEL_MM / _NEIGHBOUR_MM)
    square = (points**2).sum(axis=1)
    return np.exp(-np.sqrt(np.maximum(square[:, None] + square - 2 * points @ points.T, 0)))


def _noise_covariance(near: np.ndarray, *, ijk: np.ndarray, internal: np.ndarray, rng: np.random.Generator
                      ) -> np.ndarray:
    """Return the ``(C, C)`` covariance of the trial noise from the correlations of its parts; 1 on the diagonal."""
    points = ijk / np.array(VOLUME_SHAPE)
    waves = np.cos(np.pi * (points @ rng.normal(0, 1.5, (3, 6)) + rng.uniform(0, 2, 6)))
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    own = 1 - _NEIGHBOUR_SHARE - _GLOBAL_SHARE - _INTERNAL_SHARE
    return (own * np.eye(len(ijk)) + _NEIGHBOUR_SHARE * near + _GLOBAL_SHARE * waves @ waves.T
            + _INTERNAL_SHARE * np.nan_to_num(internal))


def _responses(features: StimulusFeatures, *, ijk: np.ndarray, rois: tuple[str, ...], near: np.ndarray,
               rng: np.random.Generator) -> np.ndarray:
    """Return the noise-free responses ``(n, C)`` of all voxels, not scaled."""
    labels = np.array(rois)
    parts = []
    for name, area in AREAS.items():
        inside = np.flatnonzero(labels == name)
        if area.field:
            parts.append(_early(features, area=area, ijk=ijk[inside], rng=rng))
        else:
            latents = shared_latents(features, area=name)
            own = rng.standard_normal((len(inside), _N_LATENTS))
            # Neighbours are tuned alike: half of the mixing is smooth over cortex.
            smooth = np.linalg.cholesky(near[np.ix_(inside, inside)]) @ rng.standard_normal((len(inside), _N_LATENTS))
            parts.append(latents @ (own + smooth).T.astype(np.float32))
    return np.concatenate(parts, axis=1)


def _early(features: StimulusFeatures, *, area: _Area, ijk: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return responses ``(n, c)`` of voxels with receptive fields."""
    x, y, size = _receptive_fields(ijk, area=area, rng=rng)
    place = (np.arange(GRID) + 0.5) / GRID
    across = np.exp(-0.5 * ((place - x[:, None]) / size[:, None]) ** 2)
    down = np.exp(-0.5 * ((place - y[:, None]) / size[:, None]) ** 2)
    fields = down[:, :, None] * across[:, None, :]
    fields /= fields.sum(axis=(1, 2), keepdims=True)
    groups = [name.split("_")[0] for name in MAPS]
    prefers = [area.prefers[g if g in (*_MAP_GROUPS, "luminance") else "colour"] for g in groups]
    # A gamma below one: a voxel listens to a few maps, not to all alike.
    weights = rng.gamma(0.6, size=(len(ijk), len(MAPS))) * prefers / [deviation for _, deviation in MAPS.values()]
    kernel = (weights[:, :, None, None] * fields[:, None]).reshape(len(ijk), -1).astype(np.float32)
    return np.maximum(features.maps.reshape(len(features), -1) @ kernel.T, 0) ** _EXPONENT


def _receptive_fields(ijk: np.ndarray, *, area: _Area, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return centres x, y and sizes ``(c,)`` as shares of the picture, retinotopic within each hemisphere.

    The right hemisphere sees the left half; lower cortex the upper half; the fovea lies at the back.
    """
    right = ijk[:, 0] > (VOLUME_SHAPE[0] - 1) / 2
    angle, eccentricity = np.empty(len(ijk)), np.empty(len(ijk))
    for side in (right, ~right):
        n = max(int(side.sum()), 1)
        rank = (np.argsort(np.argsort(ijk[side] + rng.normal(0, 0.5, ijk[side].shape), axis=0), axis=0) + 0.5) / n
        angle[side] = np.pi * (0.5 - rank[:, 2])
        # Cortical magnification: more voxels near the centre.
        eccentricity[side] = 0.52 * rank[:, 1] ** 1.5
    x = 0.5 + np.where(right, -1, 1) * eccentricity * np.cos(angle) + rng.normal(0, 0.03, len(ijk))
    y = 0.5 - eccentricity * np.sin(angle) + rng.normal(0, 0.03, len(ijk))
    size = area.field * (1 + 3 * eccentricity) * rng.lognormal(0, 0.2, len(ijk))
    return np.clip(x, 0.02, 0.98), np.clip(y, 0.02, 0.98), size


def shared_latents(features: StimulusFeatures, *, area: str) -> np.ndarray:
    """Return the latents of a higher area that all subjects of all studies share.

    Parameters
    ----------
    features
        Features of the n stimuli.
    area
        Name of a higher area of `AREAS`.

    Returns
    -------
    numpy.ndarray
        ``(n, 24)`` float32, not negative: softplus of random sums of the attributes that the area prefers.
    """
    prefers = AREAS[area].prefers
    groups = [_ATTRIBUTE_GROUPS[name.split("_")[0]] for name in features.names["high"]]
    weights = np.array([prefers.get(group, 0.0) for group in groups])
    mixing = _generator("latents", area).standard_normal((len(weights), _N_LATENTS)) * weights[:, None]
    mixing *= 1.5 / np.linalg.norm(mixing, axis=0)
    return np.logaddexp(0, features.high @ mixing).astype(np.float32)


@dataclass(frozen=True)
class _Sessions:
    """The slow part of a subject's recording: ``scale * (gain_s * clean + offset_s + drift(t)) + baseline``."""

    session: np.ndarray
    """``(n_trials,)`` number of each trial's session."""
    waves: np.ndarray
    """``(n_trials, 3)`` slow cosines of the time within the session."""
    gain: np.ndarray
    offset: np.ndarray
    drift: np.ndarray
    """``(n_sessions, 3, C)`` amplitudes of the cosines."""
    baseline: np.ndarray
    scale: np.ndarray
    """``(C,)`` standard deviation of the trial noise (percent signal change)."""

    @classmethod
    def draw(cls, trials: pd.DataFrame, *, n_voxels: int, smooth: np.ndarray, rng: np.random.Generator) -> _Sessions:
        """Draw offsets, gains and drifts that neighbouring voxels share in part."""
        names, session = np.unique(trials["session"].to_numpy(), return_inverse=True)
        groups = trials.groupby("session")["session"]
        time = (groups.cumcount() + 0.5) / groups.transform("size")
        waves = np.cos(np.pi * np.arange(1, 4) * time.to_numpy()[:, None])
        fields = rng.standard_normal((len(names), 4, n_voxels)) @ smooth.T
        # Three cosines of variance 1/2 each, falling in strength, sum to the variance of the drift.
        fall = np.array([1, 0.6, 0.4])
        fall *= _DRIFT * np.sqrt(2 / (fall**2).sum())
        return cls(session=session, waves=waves, gain=rng.lognormal(0, _GAIN, len(names)),
                   offset=_OFFSET * fields[:, 0], drift=fall[:, None] * fields[:, 1:],
                   baseline=rng.normal(0.8, 0.4, n_voxels), scale=rng.lognormal(0.0, 0.25, n_voxels))

    def _slow(self, rows: np.ndarray) -> np.ndarray:
        at = self.session[rows]
        return self.offset[at] + np.einsum("nk,nkc->nc", self.waves[rows], self.drift[at])

    def apply(self, clean: np.ndarray, *, rows: np.ndarray) -> np.ndarray:
        """Turn responses with noise ``(n, C)``, in units of the trial noise, into percent signal change."""
        return self.scale * (self.gain[self.session[rows], None] * clean + self._slow(rows)) + self.baseline

    def remove(self, signals: np.ndarray, *, rows: np.ndarray) -> np.ndarray:
        """Undo `apply`."""
        return ((signals - self.baseline) / self.scale - self._slow(rows)) / self.gain[self.session[rows], None]
