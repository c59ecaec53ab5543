"""Sensors, head and forward model of the simulated EEG and MEG: real layouts, computed by MNE, no download.

EEG has the 63 channels of THINGS-EEG2 (reference Fz) on the template montage; MEG has the 271 axial gradiometers of
THINGS-MEG, whose flat layout is laid back on a helmet-like cap. Every subject has a head of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import mne
import numpy as np
from mne.io.constants import FIFF

#: Channels of THINGS-EEG2 in the order of its files (Gifford et al. 2022, https://osf.io/3jk45).
EEG_CHANNELS = tuple("""
    Fp1 Fp2 AF7 AF3 AFz AF4 AF8 F7 F5 F3 F1 F2 F4 F6 F8 FT9
    FT7 FC5 FC3 FC1 FCz FC2 FC4 FC6 FT8 FT10 T7 C5 C3 C1 Cz C2
    C4 C6 T8 TP9 TP7 CP5 CP3 CP1 CPz CP2 CP4 CP6 TP8 TP10 P7 P5
    P3 P1 Pz P2 P4 P6 P8 PO7 PO3 POz PO4 PO8 O1 Oz O2
""".split())
#: Recorded against this electrode, which is why it is not among the 63.
EEG_REFERENCE = "Fz"
#: Absent from the CTF-275 of THINGS-MEG: three dead sensors and one that was taken out
#: (Hebart et al. 2023, https://github.com/ViCCo-Group/THINGS-data).
MEG_MISSING = ("MLF25", "MRF43", "MRO13", "MRO11")

_HELMET_CENTRE = np.array([0.0, 0.0, 0.045])
_HELMET_RADIUS = 0.112
_HELMET_CAP = np.deg2rad(112.0)  # polar angle of the rim, below the ears
_BRAIN = 0.88  # radius of the brain as a share of the head's: inside the innermost layer of MNE's sphere model (0.90)
_AXIS_UP = np.array([0.0, 0.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Head:
    """Sensors of one subject around a spherical head.

    Parameters
    ----------
    info
        MNE description of the sensors (for EEG with the reference as last channel), in head coordinates.
    kept
        Which channels of `info` are recorded, in order.
    centre
        ``(3,)`` centre of the head (m, head coordinates: x right, y to the nose, z up).
    radius
        Radius of the head (m).
    referenced
        True where the last channel of `info` is to be subtracted from all others.
    """

    info: mne.Info
    kept: np.ndarray
    centre: np.ndarray
    radius: float
    referenced: bool

    @property
    def ch_names(self) -> tuple[str, ...]:
        """Names of the recorded channels."""
        return tuple(self.info["ch_names"][i] for i in self.kept)

    @property
    def ch_types(self) -> tuple[str, ...]:
        """MNE types of the recorded channels: "eeg"; "mag", under which MNE counts the coils of CTF."""
        return tuple(self.info.get_channel_types()[i] for i in self.kept)

    @property
    def positions(self) -> np.ndarray:
        """Positions of the recorded channels, ``(C, 3)`` in metres, head coordinates."""
        return np.array([self.info["chs"][i]["loc"][:3] for i in self.kept])

    def inside(self, places: np.ndarray) -> np.ndarray:
        """Return ``(n, 3)`` points (m) of places ``(n, 3)`` given as shares of the brain's radius, at most 0.99."""
        norm = np.linalg.norm(places, axis=1, keepdims=True)
        return self.centre + places * np.minimum(1.0, 0.99 / norm) * self.radius * _BRAIN

    def lead_field(self, points: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Return what every channel records of unit dipoles, by MNE's forward solution of the sphere model.

        Parameters
        ----------
        points
            ``(n, 3)`` places of the dipoles (m, head coordinates).
        directions
            ``(n, 3)`` their orientations, unit length.

        Returns
        -------
        numpy.ndarray
            ``(C, n)`` in V/(A m) or T/(A m).
        """
        eeg = "eeg" in self.ch_types
        sphere = mne.make_sphere_model(self.centre, self.radius, verbose="ERROR")
        source_space = mne.setup_volume_source_space(
            pos={"rr": points, "nn": directions}, sphere=sphere, sphere_units="m", verbose="ERROR")
        forward = mne.make_forward_solution(
            self.info, trans=None, src=source_space, bem=sphere, eeg=eeg, meg=not eeg, mindist=0.0, verbose="ERROR")
        assert len(forward["src"][0]["vertno"]) == len(points), "a dipole lies outside the brain"
        gain = forward["sol"]["data"].reshape(len(self.info["ch_names"]), len(points), 3)
        field = np.einsum("cnx,nx->cn", gain, directions)
        return (field - field[-1] if self.referenced else field)[self.kept]


def _rotation(angles: np.ndarray) -> np.ndarray:
    """Return the ``(3, 3)`` rotation by three small angles (rad) about x, y and z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[[i, j], [i, j]] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


def _spread(positions: np.ndarray, n: int | None, *, modality: str) -> np.ndarray:
    """Return the indices of `n` channels spread over the head, the hindmost first chosen; all by default."""
    if n is None:
        return np.arange(len(positions))
    if not 1 <= n <= len(positions):
        raise ValueError(f"n_channels: expected 1 to {len(positions)} for {modality}, got {n}. "
                         "Ask for fewer channels, or leave it out for all.")
    chosen = [int(positions[:, 1].argmin())]
    distance = np.linalg.norm(positions - positions[chosen[0]], axis=1)
    while len(chosen) < n:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(positions - positions[chosen[-1]], axis=1))
    return np.sort(chosen)


def _eeg_head(sfreq: float, n_channels: int | None, rng: np.random.Generator) -> Head:
    names = [*EEG_CHANNELS, EEG_REFERENCE]
    info = mne.create_info(names, sfreq, "eeg", verbose="ERROR")
    info.set_montage("colin27_1005", match_case=False, verbose="ERROR")
    template = np.array([ch["loc"][:3] for ch in info["chs"]])
    middle = template.mean(axis=0)
    size = 1.0 + 0.03 * rng.standard_normal() + 0.015 * rng.standard_normal(3)
    # The cap sits a little differently on every head: turned by a few degrees about the head's middle.
    turned = (template - middle) @ _rotation(np.deg2rad(3.0) * rng.standard_normal(3)).T
    positions = turned * size + middle
    for ch, position in zip(info["chs"], positions, strict=True):
        ch["loc"][:3] = position
        ch["loc"][3:6] = positions[-1]
    # Least-squares sphere: |p|^2 = 2 p.c + (r^2 - |c|^2).
    fit, *_ = np.linalg.lstsq(np.c_[2 * positions, np.ones(len(positions))], (positions**2).sum(axis=1), rcond=None)
    centre, radius = fit[:3], float(np.sqrt(fit[3] + fit[:3] @ fit[:3]))
    kept = _spread(template[:-1], n_channels, modality="EEG")
    return Head(info=info, kept=kept, centre=centre, radius=radius, referenced=True)


def helmet() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the MEG sensors: names, ``(271, 3)`` places (m, helmet at rest) and ``(271, 3)`` outward directions.

    The layout is an azimuthal flattening of the helmet about its top, so the distance from the top becomes the polar
    angle again.
    """
    layout = mne.channels.read_layout("CTF275")
    index = [i for i, name in enumerate(layout.names) if name not in MEG_MISSING]
    flat = layout.pos[:, :2] + layout.pos[:, 2:] / 2
    top = flat[[layout.names.index(name) for name in ("MZC02", "MZC03")]].mean(axis=0)
    offset = flat - top
    distance = np.linalg.norm(offset, axis=1)
    polar = distance / distance.max() * _HELMET_CAP
    azimuth = np.arctan2(offset[:, 1], offset[:, 0])
    outward = np.c_[np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth), np.cos(polar)]
    points = _HELMET_CENTRE + outward * (_HELMET_RADIUS * np.array([0.96, 1.06, 1.0]))
    return [layout.names[i] for i in index], points[index], outward[index]


def _meg_head(sfreq: float, n_channels: int | None, rng: np.random.Generator) -> Head:
    names, points, outward = helmet()
    info = mne.create_info(names, sfreq, "mag", verbose="ERROR")
    # The head, whose coordinates are used, sits shifted and turned in the helmet.
    turn = _rotation(np.deg2rad(3.0) * rng.standard_normal(3))
    places = (points - _HELMET_CENTRE) @ turn.T + _HELMET_CENTRE + 0.003 * rng.standard_normal(3)
    axes = outward @ turn.T
    for ch, place, axis in zip(info["chs"], places, axes, strict=True):
        # The coil definition has its far coil 5 cm along +z: z points away from the head, x and y span the coil.
        across = np.cross(_AXIS_UP if abs(axis[2]) < 0.9 else np.array([0.0, 1.0, 0.0]), axis)
        across /= np.linalg.norm(across)
        ch["loc"][:] = np.concatenate([place, across, np.cross(axis, across), axis])
        ch["coil_type"] = FIFF.FIFFV_COIL_CTF_GRAD
    with info._unlock():  # positions are in head coordinates already; MNE has no public way to say so
        info["dev_head_t"] = mne.Transform("meg", "head")
    radius = 0.090 * (1.0 + 0.03 * rng.standard_normal())
    kept = _spread(points, n_channels, modality="MEG")
    return Head(info=info, kept=kept, centre=_HELMET_CENTRE.copy(), radius=radius, referenced=False)


def make_head(modality: str, *, sfreq: float, n_channels: int | None, rng: np.random.Generator) -> Head:
    """Return the head and sensors of a subject.

    Parameters
    ----------
    modality
        "eeg" or "meg".
    sfreq
        Sampling rate (Hz), for the record only.
    n_channels
        Keep this many channels, spread over the head; None for all (63 or 271).
    rng
        Generator of the subject's anatomy.

    Raises
    ------
    ValueError
        If the modality is unknown or has fewer channels than asked for.
    """
    if modality not in ("eeg", "meg"):
        raise ValueError(f"modality: expected 'eeg' or 'meg', got {modality!r}. Correct the study.")
    return (_eeg_head if modality == "eeg" else _meg_head)(sfreq, n_channels, rng)
