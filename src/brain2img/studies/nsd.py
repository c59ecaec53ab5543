"""The Natural Scenes Dataset (Allen et al. 2022): 7T fMRI of eight people looking at scenes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

from brain2img.artifacts import digest
from brain2img.data.images import PACKED
from brain2img.data.prepared import PreparedWriter
from brain2img.data.raw_identity import content_of_files
from brain2img.data.reading import reading
from brain2img.interfaces import Study
from brain2img.studies.nsd_design import DESIGN, SESSIONS, Design, existing, subject_name
from brain2img.studies.nsd_files import Published
from brain2img.studies.nsd_repackaged import AllBetas, Averaged, packed_pictures

log = logging.getLogger(__name__)

#: Form -> a file by which it is known; {betas} is the folder asked for.
FORMS = {
    "nifti": "nsddata_betas/ppdata/subj*/func1pt8mm/{betas}/betas_session*.nii*",
    "hdf5": "nsddata_betas/ppdata/subj*/func1pt8mm/{betas}/betas_session*.hdf5",
    "averaged": "webdataset_avg_split/train",
    "all_betas": "betas_all_subj*.hdf5",
}
_SUFFIXES = {"nifti": (".nii.gz", ".nii"), "hdf5": (".hdf5",)}
_STIMULI = ("nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5", "nsd_stimuli.hdf5")
_PACKED = ("coco_images_224_float16.hdf5",)
_CURATED = ("COCO_73k_annots_curated.npy", "annots/COCO_73k_annots_curated.npy")
_INFO = ("nsddata/experiments/nsd/nsd_stim_info_merged.csv", "nsd_stim_info_merged.csv")
_COCO = ("annotations/captions_train2017.json", "annotations/captions_val2017.json")


class NSD(Study):
    """Single-trial betas of people looking at pictures of COCO, each shown up to three times.

    Allen et al. 2022, "A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial intelligence",
    https://doi.org/10.1038/s41593-021-00962-x. ``docs/studies/nsd.md`` says which files are expected where. A stimulus
    is named as NSD names it, "nsd02951": its number among the 73,000, from 1.

    Parameters
    ----------
    subjects
        Numbers, 1 to 8. Of 1, 2, 5 and 7 there are all 40 sessions.
    form
        "nifti" or "hdf5" (as published), "averaged" (the webdataset of MindEye1 and MindBridge), "all_betas" (the files
        of MindEye2); "auto" is what lies there.
    betas
        Version of the published betas: "betas_fithrf" or "betas_fithrf_GLMdenoise_RR".
    voxels
        "<set>" or "<set>:<labels>": a region set of ``roi/`` ("nsdgeneral", "prf-visualrois", ...), or "brain"; and the
        set whose names label the voxels. The re-packagings hold "nsdgeneral" alone.
    sessions
        "all", "early" (without the last three of each subject, which the first release held back), or a number.
    shared
        Test pictures: 1000, those that all subjects see (as many of them as a subject saw), or 982, those of them in
        the first release. No other shared picture is trained on.
    val_fraction, seed
        Share of the other pictures that is set aside for validation, and the seed of the draw; whether a picture is
        drawn does not depend on the subject. "averaged" comes with a validation split of its own.
    image_size
        Side (pixels) in which the pictures of ``nsd_stimuli.hdf5`` are read (they have 425); None leaves them.
    jobs
        Sessions read at the same time.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """

    name, modality = "nsd", "fmri"

    def __init__(self, *, subjects: Sequence[int] = (1, 2, 5, 7), form: str = "auto",
                 betas: str = "betas_fithrf_GLMdenoise_RR", voxels: str = "nsdgeneral", sessions: str | int = "all",
                 shared: int = 1000, val_fraction: float = 0.034, seed: int = 0, image_size: int | None = 256,
                 jobs: int = 1) -> None:
        if not subjects or not set(subjects) <= set(range(1, len(SESSIONS) + 1)):
            raise ValueError(f"study nsd: expected subjects of 1 to {len(SESSIONS)}, got {list(subjects)}. "
                             "Set study.subjects.")
        for what, got, known in (("form", form, ("auto", *FORMS)), ("shared", shared, (1000, 982))):
            if got not in known:
                raise ValueError(f"study nsd: expected {what} of {known}, got {got!r}. Set study.{what}.")
        if not (sessions in ("all", "early") or (isinstance(sessions, int) and sessions > 0)):
            raise ValueError(f"study nsd: expected sessions 'all', 'early' or a number, got {sessions!r}. "
                             "Set study.sessions.")
        if not 0 <= val_fraction < 1:
            raise ValueError(f"study nsd: expected a val_fraction of 0 to 1, got {val_fraction}. "
                             "Set study.val_fraction.")
        self.subjects, self.form, self.betas, self.voxels = sorted(set(subjects)), form, betas, voxels
        self.sessions, self.shared, self.val_fraction, self.seed = sessions, shared, val_fraction, seed
        self.image_size, self.jobs = image_size, jobs
        self.variant = f"{voxels.replace(':', '-')}-{shared}"

    def raw_id(self, raw: Path | None) -> str:
        """Return a hash of the names and the content of all files that are read."""
        raw = self._existing(raw)
        source = self._source(raw)
        files = source.files(self.subjects) + _there(raw, _STIMULI + _PACKED + _CURATED + _INFO + _COCO + DESIGN)
        if isinstance(source, Published):
            files += source.small_files(self.subjects)
        return digest([type(source).__name__, content_of_files({str(path.relative_to(raw)): path for path in files})])

    def prepare(self, raw: Path | None, out: Path) -> None:
        """Write the prepared study from the files under `raw`; everything is checked before signals are written."""
        raw = self._existing(raw)
        source = self._source(raw)
        writer = PreparedWriter(out, study=self.name)
        trials = {subject: self._trials(source, subject) for subject in self.subjects}
        design = _there(raw, DESIGN)
        if design and not isinstance(source, Published):
            _compare(design[0], trials, ordered=isinstance(source, AllBetas))
        readers = {subject: source.readers(subject, table) for subject, table in trials.items()}
        specs = {subject: source.spec(subject, table) for subject, table in trials.items()}
        images = pd.unique(pd.concat([table["image"] for table in trials.values()]))
        stimuli = self._stimuli(raw, images)
        stimuli["file"], stimuli["pointer"] = self._pictures(raw, source, images, writer=writer)
        for subject, spec in specs.items():
            if not writer.has_subject(spec.subject):
                writer.add_sessions(spec, trials=trials[subject], sessions=readers[subject], jobs=self.jobs)
        writer.finish(stimuli, image_size=self.image_size)

    def _pictures(self, raw: Path, source: Published | Averaged | AllBetas, images: np.ndarray, *,
                  writer: PreparedWriter) -> tuple[str, np.ndarray]:
        """Return the file of the pictures and their rows in it; what is in no array of pictures is packed into one."""
        rows = int(images.max()) + 1
        if isinstance(source, Averaged):
            pictures, shape = source.pictures(self.subjects), source.shape(self.subjects)
        elif isinstance(source, AllBetas) and not _there(raw, _STIMULI):
            path = existing(raw, *_PACKED, cure=f"Fetch it, or {_STIMULI[0]}.")
            _, height, width = _data_set_shape(path, "images", rows=rows)[1:]
            pictures, shape = packed_pictures(path, images.tolist()), (height, width, 3)
        else:
            path = existing(raw, *_STIMULI, cure="Fetch it; docs/studies/nsd.md says from where.")
            _data_set_shape(path, "imgBrick", rows=rows)
            return f"{path}::imgBrick", images
        writer.add_images(pictures, n=len(images), shape=shape)
        return PACKED, np.arange(len(images))

    def _existing(self, raw: Path | None) -> Path:
        if raw is None or not Path(raw).is_dir():
            raise ValueError(f"raw: expected the folder of the Natural Scenes Dataset, got "
                             f"{'nothing' if raw is None else f'{raw}, which is no folder'}. Give raw=<folder>; "
                             "docs/studies/nsd.md says what belongs into it.")
        return Path(raw).resolve()

    def _source(self, raw: Path) -> Published | Averaged | AllBetas:
        """Return the reader of the form that was asked for, or that lies there."""
        form = self.form
        if form == "auto":
            found = [name for name, mark in FORMS.items() if any(raw.glob(mark.format(betas=self.betas)))]
            if len(found) != 1:
                wanted = "one form of the data" if found else f"betas ({self.betas}), tars or betas_all_subj*.hdf5"
                raise ValueError(f"{raw}: expected {wanted}, got {' and '.join(found) or 'none'}. "
                                 + ("Choose one with study.form." if found else "docs/studies/nsd.md says what belongs "
                                    "where; another version of the betas is chosen with study.betas."))
            form = found[0]
        if form in _SUFFIXES:
            return Published(raw, suffixes=_SUFFIXES[form], betas=self.betas, voxels=self.voxels,
                             sessions=self.sessions, shared=self.shared)
        if self.voxels.partition(":")[0] != "nsdgeneral":
            raise ValueError(f"{raw}: expected voxels 'nsdgeneral', which is all that the form {form!r} holds, got "
                             f"{self.voxels!r}. Set study.voxels=nsdgeneral, or prepare the published files.")
        if form == "all_betas":
            return AllBetas(raw, shared=self.shared, sessions=self.sessions)
        if self.shared != 982 or isinstance(self.sessions, int):
            raise ValueError(f"{raw}: expected shared=982 of all sessions there are, for the averaged set holds no "
                             f"others and does not tell sessions, got shared={self.shared} and sessions="
                             f"{self.sessions}. Set study.shared=982 study.sessions=all.")
        return Averaged(raw)

    def _trials(self, source: Published | Averaged | AllBetas, subject: int) -> pd.DataFrame:
        """Return the trials of a subject with all that goes into ``trials.parquet``, and image and place."""
        trials = source.trials(subject)
        if not isinstance(source, Averaged):
            # the n-th number of the stream is the n-th picture's, whoever saw it
            drawn = np.random.default_rng([self.seed, 73]).random(int(trials["image"].max()) + 1) < self.val_fraction
            trials.loc[(trials["split"] == "train") & drawn[trials["image"]], "split"] = "val"
        return trials.assign(stimulus_id=[_stimulus_id(n) for n in trials["image"]],
                             repetition=trials.groupby("image").cumcount())

    def _stimuli(self, raw: Path, images: np.ndarray) -> pd.DataFrame:
        """Return the stimuli (rows of the 73,000) with the captions that are at hand: curated ones, else COCO's."""
        curated, info = _there(raw, _CURATED), _there(raw, _INFO)
        coco = _coco(info[0], images) if info else None
        if curated:
            captions = _curated(curated[0], images)
        elif coco is not None and _there(raw, _COCO):
            cure = "Fetch it: the captions of the others are there."
            captions = _coco_captions([existing(raw, place, cure=cure) for place in _COCO], coco)
        else:
            log.warning("study nsd: no captions, for %s has neither %s nor %s with %s", raw, _CURATED[0], _INFO[0],
                        " and ".join(_COCO))
            captions = [[] for _ in images]
        attributes = [{}] * len(images) if coco is None else [{"coco_id": n} for n in coco]
        return pd.DataFrame({"stimulus_id": [_stimulus_id(n) for n in images], "kind": "image", "captions": captions,
                             "attributes": attributes})

    @classmethod
    def tiny(cls) -> Self:
        """Return the study of one subject; its files are what makes it small or large."""
        return cls(subjects=(1,))


def _stimulus_id(image: int) -> str:
    return f"nsd{image + 1:05d}"


def _there(raw: Path, places: Iterable[str]) -> list[Path]:
    """Return those of `places` that exist."""
    return [raw / place for place in places if (raw / place).exists()]


def _compare(path: Path, trials: Mapping[int, pd.DataFrame], *, ordered: bool) -> None:
    """Refuse trials of pictures that the design in `path` does not give the subject.

    If `ordered`, `place` of a trial is its number (from 0) among all of the subject, whose picture the design tells.
    """
    design = Design.read(path)
    for subject, table in trials.items():
        mine, image = design.images[subject - 1], table["image"]
        wrong = table["image"].isin(design.shared) != (table["split"] == "test")
        wrong |= image != mine[design.order.take(table["place"], mode="clip")] if ordered else ~image.isin(mine)
        if wrong.any():
            raise ValueError(f"{path}: expected the pictures of {subject_name(subject)} by this design, got "
                             f"{_stimulus_id(image[wrong].iloc[0])} in the split {table.loc[wrong, 'split'].iloc[0]!r} "
                             f"as trial {wrong.idxmax()}. Fetch files of one version.")


def _data_set_shape(path: Path, name: str, *, rows: int) -> tuple[int, ...]:
    """Return the shape of a data set of pictures; refuse one with too few."""
    import h5py

    with reading(path, what=f"HDF5 file with the data set {name!r}"), h5py.File(path, "r") as file:
        shape = tuple(int(n) for n in file[name].shape)
    if len(shape) != 4 or shape[0] < rows:
        raise ValueError(f"{path}: expected at least {rows} pictures in {name!r} by the trials, got {shape}. "
                         "Fetch the whole one.")
    return shape


def _curated(path: Path, images: np.ndarray) -> list[list[str]]:
    """Return the curated captions, ``(73000, 5)`` strings of which empty ones are missing."""
    with reading(path, what="array of strings (npy, not pickled)"):
        captions = np.load(path, mmap_mode="r", allow_pickle=False)
    if captions.ndim != 2 or captions.dtype.kind != "U" or len(captions) <= images.max():
        raise ValueError(f"{path}: expected captions (pictures, 5) of at least {images.max() + 1} pictures, got "
                         f"{captions.dtype} of {captions.shape}. Give the published file.")
    return [[str(text) for text in captions[n] if text] for n in images]


def _coco(path: Path, images: np.ndarray) -> list[int]:
    """Return the number in COCO of every picture, by ``nsd_stim_info_merged.csv``."""
    with reading(path, what="table with nsdId and cocoId"):
        table = pd.read_csv(path, usecols=lambda name: name in ("nsdId", "cocoId"))
        number = table.set_index("nsdId")["cocoId"]
    if missing := set(images.tolist()) - set(number.index):
        raise ValueError(f"{path}: expected all pictures of the trials, got none for {len(missing)} of them "
                         f"({_stimulus_id(min(missing))}, ...). Give the published file.")
    return [int(n) for n in number.loc[images]]


def _coco_captions(paths: Iterable[Path], coco: list[int]) -> list[list[str]]:
    """Return the captions of COCO's annotations of 2017, read one file at a time."""
    found: dict[int, list[str]] = {n: [] for n in coco}
    for path in paths:
        with reading(path, what="JSON file of COCO's captions"):
            annotations = json.loads(path.read_text())["annotations"]
        for annotation in annotations:
            if annotation["image_id"] in found:
                found[annotation["image_id"]].append(annotation["caption"].strip())
    return [found[n] for n in coco]
