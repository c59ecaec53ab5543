"""Writes a simulated NSD in the layouts that people have: raw files with a known answer, at any size.

The published layout (data manual: https://cvnlab.slite.page), and two re-packagings: the "averaged" webdataset of
MindEye1 and MindBridge, and the betas of all trials with behaviour tars of MindEye2.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from brain2img.simulate import fmri
from brain2img.simulate.nsd import SimulatedNSD


def write_form(folder: Path, sim: SimulatedNSD, *, form: str) -> None:
    """Write `sim` in a form of the study ("hdf5", "nifti", "averaged", "all_betas"), with captions of its pictures."""
    if form == "averaged":
        write_averaged(sim, folder, n_val=max(8, len(sim.seen()) // 40), per_shard=250)
    elif form == "all_betas":
        write_all_betas(sim, folder)
        write_coco_images(sim, folder)
    else:
        write_published(sim, folder, suffix={"hdf5": ".hdf5", "nifti": ".nii.gz"}[form])
    write_captions(sim, folder, curated=True)


def write_published(sim: SimulatedNSD, folder: Path, *, suffix: str = ".nii.gz", n_sessions: int | None = None,
                    betas: str = "betas_fithrf_GLMdenoise_RR",
                    chunks: tuple[int, int, int] | None = (1, 16, 16)) -> None:
    """Write the layout of the data set's authors: design, pictures, regions, betas session by session.

    Parameters
    ----------
    sim
        What was recorded.
    folder
        Root of the data set.
    suffix
        ".nii.gz", ".nii" or ".hdf5".
    n_sessions
        Only the first ones; all by default.
    betas
        Name of the betas' folder.
    chunks
        HDF5: (z, y, x) of a chunk, which holds all trials of a session; None stores trial after trial in one piece.
    """
    write_design(sim, folder)
    write_pictures(sim, folder, n_sessions=n_sessions)
    for subject in sim.subjects:
        write_regions(sim, folder, subject=subject)
        spec, _ = sim.recording(subject)
        assert spec.affine is not None
        assert spec.volume_shape is not None
        where = folder / f"nsddata_betas/ppdata/subj{subject:02d}/func1pt8mm" / betas
        where.mkdir(parents=True, exist_ok=True)
        brain, responding = (sim.masks(subject)[name] for name in ("brain", "responding"))
        ncsnr = np.where(responding > 0, sim.snr, np.where(brain, 0.02, np.nan)).astype(np.float32)
        _write_nifti(where / "ncsnr.nii.gz", [ncsnr], affine=spec.affine)
        for session in range(1, min(n_sessions or sim.n_sessions, sim.sessions(subject)) + 1):
            path = where / f"betas_session{session:02d}{suffix}"
            if suffix == ".hdf5":
                _write_hdf5(path, sim.volumes(subject, session), n=sim.per_session, shape=spec.volume_shape,
                            chunks=chunks)
            else:
                _write_nifti(path, sim.volumes(subject, session), n=sim.per_session, affine=spec.affine)


def write_design(sim: SimulatedNSD, folder: Path) -> None:
    """Write ``nsd_expdesign.mat``, numbers from 1 as in MATLAB."""
    from scipy.io import savemat

    where = folder / "nsddata/experiments/nsd"
    where.mkdir(parents=True, exist_ok=True)
    savemat(where / "nsd_expdesign.mat", {
        "masterordering": sim.order[None] + 1, "subjectim": sim.images + 1, "sharedix": sim.shared[None] + 1,
        "stimpattern": sim.pattern})


def write_pictures(sim: SimulatedNSD, folder: Path, *, n_sessions: int | None = None) -> None:
    """Write ``nsd_stimuli.hdf5``; the rows of pictures that nobody saw (in the first sessions) stay black."""
    import h5py

    where = folder / "nsddata_stimuli/stimuli/nsd"
    where.mkdir(parents=True, exist_ok=True)
    shape = (sim.image_size, sim.image_size, 3)
    with h5py.File(where / "nsd_stimuli.hdf5", "w") as file:
        brick = file.create_dataset("imgBrick", shape=(sim.n_stimuli, *shape), dtype="uint8", chunks=(1, *shape))
        for row in sim.seen(n_sessions=n_sessions):
            brick[row] = sim.image(row)


def write_regions(sim: SimulatedNSD, folder: Path, *, subject: int) -> None:
    """Write the brain mask, `nsdgeneral`, `prf-visualrois` and an atlas of the brain, with their label tables."""
    spec, _ = sim.recording(subject)
    assert spec.affine is not None
    masks = sim.masks(subject)
    where = folder / f"nsddata/ppdata/subj{subject:02d}/func1pt8mm"
    labels = folder / f"nsddata/freesurfer/subj{subject:02d}/label"
    for made in (where / "roi", labels):
        made.mkdir(parents=True, exist_ok=True)
    early = [name for name, area in fmri.AREAS.items() if area.field]
    shape = np.array(masks["brain"].shape)[:, None, None, None]
    beyond = np.indices(masks["brain"].shape) >= shape // 2
    octant = 1 + np.tensordot([1, 2, 4], beyond, axes=1)
    general = np.where(masks["nsdgeneral"], 1, np.where(masks["brain"], 0, -1))
    visual = np.where(masks["responding"] <= len(early), masks["responding"], 0)
    tables = {"prf-visualrois": early, "HCP_MMP1": [f"area{n}" for n in range(1, 9)]}
    volumes = {"nsdgeneral": general, "prf-visualrois": visual, "HCP_MMP1": np.where(masks["brain"], octant, -1)}
    _write_nifti(where / "brainmask.nii.gz", [masks["brain"].astype(np.uint8)], affine=spec.affine)
    for name, volume in volumes.items():
        _write_nifti(where / f"roi/{name}.nii.gz", [volume.astype(np.int16)], affine=spec.affine)
    for name, areas in tables.items():
        lines = ["0 Unknown", *(f"{i} {area}" for i, area in enumerate(areas, start=1))]
        (labels / f"{name}.mgz.ctab").write_text("\n".join(lines) + "\n")


def write_captions(sim: SimulatedNSD, folder: Path, *, curated: bool = False) -> None:
    """Write the COCO annotations with the table that leads to them, or the curated array of five captions each."""
    if curated:
        captions = np.full((sim.n_stimuli, 5), "", dtype="U120")
        for row in sim.seen():
            captions[row, :3] = sim.scene(row).captions
        np.save(folder / "COCO_73k_annots_curated.npy", captions)
        return
    where = folder / "nsddata/experiments/nsd"
    for made in (where, folder / "annotations"):
        made.mkdir(parents=True, exist_ok=True)
    rows = np.arange(sim.n_stimuli)
    splits = np.where(rows % 3 == 0, "val2017", "train2017")
    pd.DataFrame({"cocoId": 1000 + rows * 7, "cocoSplit": splits, "nsdId": rows}).to_csv(
        where / "nsd_stim_info_merged.csv")
    for split in ("train2017", "val2017"):
        found = [{"image_id": 1000 + row * 7, "id": 10 * row + i, "caption": caption}
                 for row in sim.seen() if splits[row] == split for i, caption in enumerate(sim.scene(row).captions)]
        (folder / f"annotations/captions_{split}.json").write_text(json.dumps({"annotations": found}))


def write_averaged(sim: SimulatedNSD, folder: Path, *, n_val: int = 2, per_shard: int = 5, n_test_shards: int = 2,
                   extracted: bool = False) -> None:
    """Write the "averaged" webdataset: a sample per picture with its three repetitions, of the early sessions alone.

    Fewer repetitions than three are filled up by repeating them; `num_uniques` says how many there are. The pictures
    are JPEG of 256 pixels in the published set, of `image_size` here.

    Parameters
    ----------
    sim
        What was recorded.
    folder
        Where ``webdataset_avg_split`` shall stand.
    n_val
        Own pictures of the validation part (300 in the published set).
    per_shard, n_test_shards
        Samples of a training tar, and number of test tars.
    extracted
        Write the members into ``<split>/subj0S/`` (as MindBridge wants them) rather than into tars.
    """
    root = folder / "webdataset_avg_split"
    for subject in sim.subjects:
        trials = sim.trials(subject).iloc[:sim.early_sessions(subject) * sim.per_session]
        betas = sim.standardised(subject)
        own = [row for row in trials["image"].unique() if row not in sim.shared]
        seen = sorted(set(trials["image"]) & set(sim.shared))
        parts = {"train": own[:-n_val], "val": own[-n_val:], "test": seen}
        counts = {"train": -(-len(own[:-n_val]) // per_shard), "val": 1, "test": n_test_shards}
        for split, rows in parts.items():
            (root / split).mkdir(parents=True, exist_ok=True)
            for shard, some in enumerate(np.array_split(np.array(rows), counts[split])):
                samples = {}
                for row in some.tolist():
                    places = trials.index[trials["image"] == row].to_numpy()
                    three = np.resize(places, 3)
                    samples[f"sample{row:09d}"] = {
                        "jpg": _jpeg(sim.image(row)), "nsdgeneral.npy": _npy(betas[three]),
                        "coco73k.npy": _npy(np.array([row])), "trial.npy": _npy(np.array([places[0]])),
                        "num_uniques.npy": _npy(np.array([len(places)]))}
                if extracted:
                    where = root / split / f"subj{subject:02d}"
                    where.mkdir(parents=True, exist_ok=True)
                    for key, members in samples.items():
                        for ending, content in members.items():
                            (where / f"{key}.{ending}").write_bytes(content)
                else:
                    write_tar(root / split / f"{split}_subj{subject:02d}_{shard}.tar", samples)
        totals = {split: len(rows) for split, rows in parts.items()}
        (root / f"metadata_subj{subject:02d}.json").write_text(json.dumps({"totals": totals}))


def write_all_betas(sim: SimulatedNSD, folder: Path) -> None:
    """Write the betas of all trials, ``betas_all_subj0S_fp32_renorm.hdf5``, and the tars that say what was shown.

    A tar per training session, and of the shared pictures ``new_test`` (all sessions) and ``test`` (the early ones).
    """
    import h5py

    for subject in sim.subjects:
        betas, trials = sim.standardised(subject), sim.trials(subject)
        with h5py.File(folder / f"betas_all_subj{subject:02d}_fp32_renorm.hdf5", "w") as file:
            file["betas"] = betas.astype(np.float32)
        behaviour = np.full((len(trials), 17), -1.0)
        for column, values in {0: trials["image"], 1: subject, 2: trials["session"], 3: trials["run"],
                               4: trials.groupby(["session", "run"]).cumcount() + 1, 5: np.arange(len(trials)),
                               16: trials["image"].isin(sim.shared)}.items():
            behaviour[:, column] = values
        shared = behaviour[:, 16] == 1
        early = (np.isin(trials["image"], sim.shared_early)
                 & (trials["session"] <= sim.early_sessions(subject)).to_numpy())
        parts = {f"train/{s - 1}": np.flatnonzero(~shared & (trials["session"] == s).to_numpy())
                 for s in range(1, sim.sessions(subject) + 1)}
        parts |= {"new_test/0": np.flatnonzero(shared), "test/0": np.flatnonzero(early)}
        for name, rows in parts.items():
            path = folder / f"wds/subj{subject:02d}/{name}.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_tar(path, {f"sample{row:09d}": {"behav.npy": _npy(behaviour[row][None])} for row in rows.tolist()})


def write_coco_images(sim: SimulatedNSD, folder: Path) -> None:
    """Write ``coco_images_224_float16.hdf5``: pictures ``(n, 3, s, s)`` float16 in [0, 1]."""
    import h5py

    with h5py.File(folder / "coco_images_224_float16.hdf5", "w") as file:
        shape = (sim.n_stimuli, 3, sim.image_size, sim.image_size)
        images = file.create_dataset("images", shape=shape, dtype="float16", chunks=(1, *shape[1:]))
        for row in sim.seen():
            images[row] = sim.image(row).transpose(2, 0, 1) / 255


def write_tar(path: Path, samples: Mapping[str, Mapping[str, bytes]]) -> None:
    """Write a webdataset tar: sample key -> ending -> content."""
    with tarfile.open(path, "w") as tar:
        for key, members in samples.items():
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=98, subsampling=0)
    return buffer.getvalue()


def _write_nifti(path: Path, volumes: Iterable[np.ndarray], *, affine: np.ndarray, n: int | None = None) -> None:
    """Write one volume, or n volumes as a fourth axis, one after the other."""
    import nibabel

    header = None
    with (gzip.open(path, "wb", compresslevel=1) if path.suffix == ".gz" else path.open("wb")) as file:
        for volume in volumes:
            if header is None:
                header = nibabel.Nifti1Header(endianness="<")
                header.set_data_dtype(volume.dtype)
                header.set_data_shape(volume.shape if n is None else (*volume.shape, n))
                header.set_sform(affine, code=1)
                header.set_zooms([*np.abs(np.diag(affine)[:3]), *([] if n is None else [1.0])])
                header["magic"], header["vox_offset"] = b"n+1", 352
                file.write(header.binaryblock + bytes(4))
            file.write(volume.tobytes(order="F"))


def _write_hdf5(path: Path, volumes: Iterable[np.ndarray], *, n: int, shape: tuple[int, int, int],
                chunks: tuple[int, int, int] | None) -> None:
    """Write data set ``betas`` ``(n, z, y, x)``, the order in which MATLAB's ``(x, y, z, n)`` reaches Python."""
    import h5py

    turned = shape[::-1]
    sizes = None if chunks is None else (n, *(min(a, b) for a, b in zip(chunks, turned, strict=True)))
    with h5py.File(path, "w") as file:
        betas = file.create_dataset("betas", shape=(n, *turned), dtype="int16", chunks=sizes)
        step = max(1, 512_000_000 // (2 * int(np.prod(shape))))
        block: list[np.ndarray] = []
        for i, volume in enumerate(volumes, start=1):
            block.append(volume.transpose().copy())
            if len(block) == step or i == n:
                betas[i - len(block):i] = np.stack(block)
                block.clear()
