"""Pictures of a prepared study: packed once, or read where they are."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from brain2img.data.images import StimulusImages
from brain2img.data.prepared import PreparedStudy, PreparedWriter
from brain2img.records import SignalSpec

PICTURES = np.random.default_rng(0).integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)


class Lazy(list):
    """Pictures that remember which were read."""

    def __init__(self, values):
        super().__init__(values)
        self.read = []

    def __getitem__(self, i):
        self.read.append(i)
        if i == 3 and self.stop:
            raise RuntimeError("interrupted")
        return super().__getitem__(i)

    stop = False


def table(files, pointers=None):
    return pd.DataFrame({"stimulus_id": [f"s{i}" for i in range(len(files))], "kind": "image", "file": files,
                         "pointer": pointers, "captions": [[]] * len(files), "attributes": None})


def study(tmp_path, stimuli, **arguments):
    writer = PreparedWriter(tmp_path, study="test")
    n = len(stimuli)
    writer.add_subject(SignalSpec(subject="sub-01", modality="fmri", units="a.u.", n_channels=1, n_times=1),
                       trials=pd.DataFrame({"stimulus_id": stimuli["stimulus_id"], "split": "train"}),
                       signals=[np.zeros((n, 1, 1))])
    writer.finish(stimuli, **arguments)
    return PreparedStudy(tmp_path, finished=False)


def test_packed_pictures_continue_where_they_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("brain2img.data.prepared._IMAGES_AT_A_TIME", 2)
    lazy = Lazy(PICTURES)
    lazy.stop = True
    writer = PreparedWriter(tmp_path, study="test")
    with pytest.raises(RuntimeError, match="interrupted"):
        writer.add_images(lazy, n=6, shape=(8, 8, 3))
    lazy.stop, lazy.read = False, []
    PreparedWriter(tmp_path, study="test").add_images(lazy, n=6, shape=(8, 8, 3))
    assert lazy.read == [2, 3, 4, 5]
    writer.add_images(iter(()), n=6, shape=(8, 8, 3))  # whole: nothing is read
    prepared = study(tmp_path, table(["images.npy"] * 6, np.arange(6)))
    assert prepared.has_images
    np.testing.assert_array_equal(prepared.stimuli_of(["s4", "s1"]).images(), PICTURES[[4, 1]])


@pytest.mark.parametrize(("pictures", "message"), [
    (PICTURES[:5], "expected 6, got 5"),
    (np.concatenate([PICTURES, PICTURES]), "expected 6, got more"),
    (PICTURES[:, :4], r"expected uint8 pictures of \(8, 8, 3\), got uint8 of \(4, 8, 3\)"),
    (PICTURES / 255, r"expected uint8 pictures of \(8, 8, 3\), got float64"),
])
def test_pictures_that_do_not_fit_are_refused(tmp_path, pictures, message):
    with pytest.raises(ValueError, match=message):
        PreparedWriter(tmp_path, study="test").add_images(iter(pictures), n=6, shape=(8, 8, 3))
    assert not (tmp_path / "images.npy").exists()


def test_pictures_outside_are_read_where_they_are(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "prepared"
    raw.mkdir()
    out.mkdir()
    for i in range(3):
        Image.fromarray(PICTURES[i]).save(raw / f"{i}.png")
    with h5py.File(raw / "bricks.hdf5", "w") as file:
        file["imgBrick"] = PICTURES[3:]
    brick = "../raw/bricks.hdf5::imgBrick"
    stimuli = table([brick, "../raw/0.png", brick, str(raw / "1.png"), brick], [2, None, 0, None, 1])
    prepared = study(out, stimuli)
    np.testing.assert_array_equal(prepared.stimuli.images(), PICTURES[[5, 0, 3, 1, 4]])
    np.testing.assert_array_equal(prepared.stimuli_of(["s3", "s0"]).images(), PICTURES[[1, 5]])
    assert prepared.stimuli_of(["s2"]).images([0]).dtype == np.uint8


def test_stimuli_without_a_picture_stand_beside_those_with_one(tmp_path):
    Image.fromarray(PICTURES[0]).save(tmp_path / "a.png")
    with h5py.File(tmp_path / "bricks.hdf5", "w") as file:
        file["imgBrick"] = PICTURES
    prepared = study(tmp_path, table([None, "a.png", "bricks.hdf5::imgBrick"], [None, None, 5]))
    assert prepared.has_images
    np.testing.assert_array_equal(prepared.stimuli.images([1, 2]), PICTURES[[0, 5]])


def test_pictures_of_several_sizes_come_in_one(tmp_path):
    Image.fromarray(PICTURES[0]).save(tmp_path / "a.png")
    wide = np.zeros((4, 12, 3), dtype=np.uint8)
    wide[:, 4:8] = 200  # what is left of the middle
    Image.fromarray(wide).save(tmp_path / "b.png")
    stimuli = table(["a.png", "b.png"])
    images = study(tmp_path, stimuli, image_size=8).stimuli.images()
    assert images.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(images[0], PICTURES[0])
    assert images[1].min() > 150
    with pytest.raises(ValueError, match=r"expected a picture of \(8, 8, 3\) like the others, got one of \(4, 12, 3\)"):
        StimulusImages(tmp_path, stimuli)([0, 1])


def test_missing_and_damaged_pictures_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (tmp_path / "broken.hdf5").write_bytes(b"no")
    with h5py.File(tmp_path / "bricks.hdf5", "w") as file:
        file["imgBrick"] = PICTURES
    with h5py.File(tmp_path / "floats.hdf5", "w") as file:
        file["x"] = PICTURES / 255
    for file, pointer, message in (
            ("gone.png", None, "gone.png: expected a picture there, by stimuli.parquet, got no such file"),
            ("broken.hdf5::x", 0, r"broken.hdf5: expected a whole HDF5 file, got a truncated or damaged file"),
            ("bricks.hdf5::x", 0, r"bricks.hdf5: expected the data set 'x', got \['imgBrick'\]"),
            ("floats.hdf5::x", 0, r"floats.hdf5: expected pictures \(N, h, w, 3\) uint8 in 'x', got \(6, 8, 8, 3\)"),
            ("bricks.hdf5::imgBrick", None, "imgBrick: expected rows of its 6 pictures in stimuli.parquet, got nan"),
            ("bricks.hdf5::imgBrick", 6, "imgBrick: expected rows of its 6 pictures in stimuli.parquet, got 6")):
        with pytest.raises(ValueError, match=message):
            study(tmp_path, table([file], [pointer]))
    with pytest.raises(ValueError, match=r"broken.png: expected a whole picture, got a truncated or damaged file"):
        StimulusImages(tmp_path, table(["broken.png"]))([0])
    with pytest.raises(ValueError, match=r"gone.png: expected a picture there, got no such file"):
        StimulusImages(tmp_path, table(["gone.png"]))([0])
