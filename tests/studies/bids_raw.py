"""Small BIDS datasets with a known answer: written by MNE-BIDS (EEG, MEG) and nibabel (betas), pictures in stimuli/."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import mne
import mne_bids
import numpy as np
import pandas as pd
from PIL import Image

EEG = ("Fz", "Cz", "Pz", "P3", "P4", "O1", "Oz", "O2")
#: The response to every picture: a bump of this middle and width (s), its sign and size by channel and picture.
MIDDLE, WIDTH = 0.15, 0.03


def write_pictures(root: Path, n: int, *, folder: str = "stimuli", size: int = 16) -> list[str]:
    """Write pictures of one colour each, "shapes/p00.png", ...; returns their names as ``stim_file`` has them."""
    names = [f"shapes/p{i:02d}.png" for i in range(n)]
    for i, name in enumerate(names):
        path = root / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (size, size), ((i * 37) % 256, (i * 91) % 256, (i * 53) % 256)).save(path)
    return names


def weights(n_channels: int, stimulus: int, *, scale: float) -> np.ndarray:
    """Size of a picture's response in every channel."""
    return scale * np.random.default_rng([7, stimulus]).standard_normal(n_channels)


def response(times: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * ((times - MIDDLE) / WIDTH) ** 2)


@dataclass
class Dataset:
    """What is written, subject by subject and run by run; settings can be changed before `write`."""

    root: Path
    datatype: str = "eeg"
    form: str = "BrainVision"
    subjects: tuple[str, ...] = ("01",)
    sessions: tuple[str | None, ...] = (None,)
    runs: tuple[str, ...] = ("1",)
    n_stimuli: int = 10
    n_repeats: int = 2
    sfreq: float = 500.0
    isi: float = 1.6
    noise: float = 0.0
    ch_names: tuple[str, ...] = EEG
    montage: str | None = "colin27_1005"
    bads: tuple[str, ...] = ()
    events: dict[tuple, pd.DataFrame] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    @property
    def scale(self) -> float:
        return 1e-5 if self.datatype == "eeg" else 1e-12

    def info(self) -> mne.Info:
        if self.datatype == "meg":
            from brain2img.simulate.sensors import helmet

            names, positions, _ = helmet()
            # occipital and temporal ones, which the demo decodes from
            chosen = [i for start in ("MLO", "MLT") for i, name in enumerate(names) if name.startswith(start)]
            chosen = [*chosen[:6], *chosen[-6:]]
            info = mne.create_info([names[i] for i in chosen], self.sfreq, "mag")
            for channel, place in zip(info["chs"], positions[chosen], strict=True):
                channel["loc"][:3], channel["loc"][3:] = place, np.eye(3).ravel()
            info["dev_head_t"] = mne.Transform("meg", "head", np.eye(4))
        else:
            info = mne.create_info(list(self.ch_names), self.sfreq, "eeg")
            if self.montage:
                info.set_montage(self.montage)
        info["line_freq"] = 50
        info["bads"] = list(self.bads)
        return info

    def signals(self, order: np.ndarray, onsets: np.ndarray, n_times: int, *, n_channels: int, seed: list[int]
                ) -> np.ndarray:
        times = np.arange(n_times) / self.sfreq
        x = self.noise * self.scale * np.random.default_rng(seed).standard_normal((n_channels, n_times))
        for stimulus, onset in zip(order, onsets, strict=True):
            x += weights(n_channels, stimulus, scale=self.scale)[:, None] * response(times - onset)
        return x

    def path(self, subject: str, session: str | None, run: str, *, suffix: str | None = None, extension: str = ".tsv"):
        return mne_bids.BIDSPath(subject=subject, session=session, task="look", run=run, root=self.root,
                                 datatype=self.datatype, suffix=suffix, extension=extension if suffix else None)

    def write(self) -> Dataset:
        """Write every run: pictures in random order, `onset` at whole samples, `stim_file` and `trial_type`."""
        self.names = write_pictures(self.root, self.n_stimuli)
        for s, subject in enumerate(self.subjects):
            for e, session in enumerate(self.sessions):
                for r, run in enumerate(self.runs):
                    self._write_run(subject, session, run, seed=[s, e, r])
        return self

    def _write_run(self, subject: str, session: str | None, run: str, *, seed: list[int]) -> None:
        rng = np.random.default_rng([*seed, 1])
        order = rng.permutation(np.tile(np.arange(self.n_stimuli), self.n_repeats))
        onsets = np.round((0.7 + self.isi * np.arange(len(order)) + rng.uniform(0, 0.2, len(order))) * self.sfreq
                          ) / self.sfreq
        info = self.info()
        n_times = int((onsets[-1] + 2.0) * self.sfreq)
        x = self.signals(order, onsets, n_times, n_channels=len(info["ch_names"]), seed=seed)
        raw = mne.io.RawArray(x, info, verbose="ERROR")
        raw.set_annotations(mne.Annotations(onsets, 0.5, ["image"] * len(onsets)))
        given = {"format": self.form, "allow_preload": True} if self.datatype == "eeg" else {
            "allow_preload": True, "format": "FIF"}
        path = self.path(subject, session, run)
        mne_bids.write_raw_bids(raw, path, overwrite=True, verbose="ERROR", **given)
        table = pd.read_csv(self.events_path(subject, session, run), sep="\t")
        assert len(table) == len(order)
        self.edit(subject, session, run, table.assign(stim_file=[self.names[i] for i in order]))

    def events_path(self, subject: str = "01", session: str | None = None, run: str = "1") -> Path:
        return Path(self.path(subject, session, run, suffix="events").fpath)

    def edit(self, subject: str, session: str | None, run: str, table: pd.DataFrame) -> None:
        """Put another table of events in place."""
        self.events[subject, session, run] = table
        table.to_csv(self.events_path(subject, session, run), sep="\t", index=False, na_rep="n/a")

    def table(self, subject: str = "01", session: str | None = None, run: str = "1") -> pd.DataFrame:
        return self.events[subject, session, run]


SHAPE = (5, 6, 4)
AFFINE = np.array([[2.0, 0, 0, -5], [0, 2, 0, -6], [0, 0, 2, -4], [0, 0, 0, 1]])


def beta(stimulus: int) -> np.ndarray:
    """The map of a picture, ``(5, 6, 4)``, the same in every repetition but for the trial's own offset."""
    return np.random.default_rng([9, stimulus]).standard_normal(SHAPE).astype(np.float32)


def save(values: np.ndarray, path: Path, *, affine: np.ndarray = AFFINE, axes: str = "RAS") -> Path:
    """Write a volume of the grid `SHAPE`, `AFFINE` with its axes in another order."""
    import nibabel
    from nibabel.orientations import axcodes2ornt, ornt_transform

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, affine)
    image = image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes)))
    nibabel.save(image, path)
    return path


@dataclass
class Betas:
    """A dataset whose derivative holds betas: 4-D volumes by run, a mask, an atlas with its table."""

    root: Path
    subjects: tuple[str, ...] = ("01",)
    sessions: tuple[str, ...] = ("1", "2")
    runs: tuple[str, ...] = ("1", "2")
    n_stimuli: int = 10
    derivative: str = "derivatives/glm"
    axes: dict[str, str] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    shown: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)

    @property
    def mask(self) -> np.ndarray:
        mask = np.zeros(SHAPE, dtype=np.uint8)
        mask[1:4, 1:5, 1:3] = 1
        return mask

    @property
    def atlas(self) -> np.ndarray:
        return np.broadcast_to(np.array([0, 3, 3, 7, 7])[:, None, None], SHAPE).astype(np.int16)

    def path(self, subject: str, session: str, run: str, name: str, *, derivative: bool = True) -> Path:
        folder = self.root / self.derivative if derivative else self.root
        return folder / f"sub-{subject}/ses-{session}/func/sub-{subject}_ses-{session}_task-look_run-{run}_{name}"

    def maps(self, shown: np.ndarray) -> np.ndarray:
        """Return ``(n, 5, 6, 4)``: picture's map plus a hundredth of the trial's number."""
        return np.stack([np.zeros(SHAPE, np.float32) if s < 0 else beta(s) + 0.01 * i for i, s in enumerate(shown)])

    def write(self) -> Betas:
        """Write every run: each picture once, and one event without a picture (-1)."""
        self.names = write_pictures(self.root, self.n_stimuli)
        for s, subject in enumerate(self.subjects):
            for e, session in enumerate(self.sessions):
                for r, run in enumerate(self.runs):
                    shown = np.r_[np.random.default_rng([3, s, e, r]).permutation(self.n_stimuli), -1]
                    self.shown[subject, session, run] = shown
                    save(np.moveaxis(self.maps(shown), 0, -1), self.path(
                        subject, session, run, "space-T1w_betas.nii.gz"), axes=self.axes.get(run, "RAS"))
                    events = pd.DataFrame({"onset": 4.0 * np.arange(len(shown)), "duration": 3.0,
                                           "trial_type": ["image" if s >= 0 else "rest" for s in shown],
                                           "stim_file": [self.names[s] if s >= 0 else "n/a" for s in shown]})
                    path = self.path(subject, session, run, "events.tsv", derivative=False)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    events.to_csv(path, sep="\t", index=False)
            anat = self.root / self.derivative / f"sub-{subject}/anat"
            save(self.mask, anat / f"sub-{subject}_space-T1w_desc-brain_mask.nii.gz", axes=self.axes.get("mask", "RAS"))
            save(self.atlas, anat / f"sub-{subject}_space-T1w_dseg.nii.gz", axes=self.axes.get("atlas", "RAS"))
            pd.DataFrame({"index": [3, 7], "name": ["V1", "LOC"]}).to_csv(
                anat / f"sub-{subject}_space-T1w_dseg.tsv", sep="\t", index=False)
        return self
