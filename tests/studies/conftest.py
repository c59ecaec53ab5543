"""A small NSD in every layout, written once for all tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from nsd_raw import SUBJECTS

from brain2img.simulate import nsd_files as write
from brain2img.simulate.nsd import SimulatedNSD


@pytest.fixture(scope="session")
def nsd_sim():
    return SimulatedNSD(subjects=SUBJECTS)


@pytest.fixture(scope="session")
def nsd_folder(nsd_sim, tmp_path_factory):
    """Return a function that gives the folder of a form, written once."""
    root = tmp_path_factory.mktemp("nsd")
    writers = {
        ".nii.gz": lambda folder: write.write_published(nsd_sim, folder),
        ".nii": lambda folder: write.write_published(nsd_sim, folder, suffix=".nii"),
        ".hdf5": lambda folder: write.write_published(nsd_sim, folder, suffix=".hdf5"),
        "contiguous": lambda folder: write.write_published(nsd_sim, folder, suffix=".hdf5", chunks=None),
        "averaged": lambda folder: write.write_averaged(nsd_sim, folder),
        "unpacked": lambda folder: write.write_averaged(nsd_sim, folder, extracted=True),
        "all_betas": lambda folder: (write.write_all_betas(nsd_sim, folder), write.write_coco_images(nsd_sim, folder)),
    }

    def folder_of(form):
        folder = root / form
        if not folder.exists():
            folder.mkdir()
            writers[form](folder)
        return folder

    return folder_of


@pytest.fixture
def nsd_copy(nsd_folder, tmp_path):
    """Return a function that gives a copy of a form's folder, whose files may be replaced (not written into)."""
    def copy(form):
        return Path(shutil.copytree(nsd_folder(form), tmp_path / "raw", copy_function=os.link))

    return copy
