"""Every kind of picture file, and every range of an array, comes out with the right pixels or is refused."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageCms
from scipy.io import loadmat

from brain2img.data import pictures
from brain2img.data.images import StimulusImages
from brain2img.data.pictures import picture_size, pictures_from, read_picture, to_uint8
from brain2img.stages.reconstruct import _render
from brain2img.studies.digit69 import Digit69
from brain2img.studies.nsd_repackaged import packed_pictures

RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
RAMP = np.arange(48, dtype=np.uint16).reshape(6, 8) * 1394 + 17  # 17..65535


@pytest.fixture(autouse=True)
def _anew():
    pictures._warn_once.cache_clear()


def written(tmp_path, image, name="a.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return read_picture(path)


@pytest.mark.parametrize("name", ["a.png", "A.PNG", "a.bmp", "a.tif", "a.webp", "a.jpg"])
def test_plain_pictures_come_as_they_are_whatever_their_name(tmp_path, name):
    image = Image.fromarray(RGB)
    content = io.BytesIO()
    image.save(content, format={"jpg": "PNG"}.get(name[2:].lower(), name[2:].upper().replace("TIF", "TIFF")),
               **({"lossless": True} if "webp" in name else {}))
    (tmp_path / name).write_bytes(content.getvalue())  # a PNG that is called .jpg is a PNG
    for got in (read_picture(tmp_path / name), read_picture(content.getvalue(), within=tmp_path)):
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, RGB)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_16_bits_is_scaled_by_its_range(tmp_path, name):
    got = written(tmp_path, Image.fromarray(RAMP), name)
    assert got.shape == (6, 8, 3)
    np.testing.assert_array_equal(got, np.repeat(np.rint(RAMP / 65535 * 255)[..., None], 3, axis=2))


def test_grey_in_32_bits_and_floats_are_scaled_or_refused(tmp_path):
    got = written(tmp_path, Image.fromarray(RAMP.astype(np.int32)), "i.tif")
    np.testing.assert_array_equal(got[..., 1], np.rint(RAMP / 65535 * 255))
    got = written(tmp_path, Image.fromarray((RAMP / 65535).astype(np.float32)), "f.tif")
    np.testing.assert_array_equal(got[..., 1], np.rint(RAMP / 65535 * 255))
    for values, message in (
            (RAMP.astype(np.int32) * 2, r"x.tif: expected grey of 16 bits, 0..65535, got 34..131070"),
            (RAMP // 300, r"x.tif: expected grey of 16 bits over its range.*got none above 218.*8-bit values"),
            (RGB[..., 0].astype(np.float32), r"x.tif \(32-bit floats\): expected pixels 0..1, got \d+..\d+ \(float32"),
            (np.full((2, 2), np.nan, np.float32), r"x.tif \(32-bit floats\): expected pixels 0..1, got NaN")):
        with pytest.raises(ValueError, match=message):
            written(tmp_path, Image.fromarray(values), "x.tif")


def test_what_is_transparent_is_white(tmp_path, caplog):
    alpha = np.zeros((6, 8), dtype=np.uint8)
    alpha[:3], alpha[3] = 255, 51
    expected = np.where(alpha[..., None] == 255, RGB, 255)
    expected[3] = np.rint(RGB[3] * 0.2 + 255 * 0.8)
    rgba = np.dstack([RGB, alpha])
    with caplog.at_level(logging.WARNING):
        for i, name in enumerate(("a.png", "a.tif", "b.png")):
            got = written(tmp_path, Image.fromarray(rgba), f"{i}{name}")
            np.testing.assert_allclose(got.astype(int), expected, atol=1)
    assert caplog.text.count("pictures with transparency are shown on white") == 1
    grey = written(tmp_path, Image.fromarray(np.dstack([RGB[..., 0], alpha]), mode="LA"), "la.png")
    np.testing.assert_array_equal(grey[:3], np.repeat(RGB[:3, :, :1], 3, axis=2))
    assert (grey[4:] == 255).all()


def test_transparent_colours_and_palettes_are_white(tmp_path):
    index = np.array([[0, 1], [2, 1]], dtype=np.uint8)
    palette = Image.fromarray(index, mode="P")
    palette.putpalette([10, 20, 30, 0, 0, 0, 200, 100, 50])
    for name in ("p.png", "p.gif"):
        got = written(tmp_path, palette, name, transparency=1)
        np.testing.assert_array_equal(got, [[[10, 20, 30], [255] * 3], [[200, 100, 50], [255] * 3]])
    np.testing.assert_array_equal(written(tmp_path, palette, "opaque.png")[0, 1], [0, 0, 0])
    key = written(tmp_path, Image.fromarray(RGB), "key.png", transparency=tuple(RGB[2, 3].tolist()))
    assert (key[2, 3] == 255).all()
    np.testing.assert_array_equal(key[0], RGB[0])
    one_bit = written(tmp_path, Image.fromarray(index > 0), "bit.png")
    np.testing.assert_array_equal(one_bit[..., 0], [[0, 255], [255, 255]])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_exif_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = written(tmp_path, Image.fromarray(RGB), exif=exif)
    flipped = {1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1], 5: RGB.transpose(1, 0, 2),
               6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB)}
    np.testing.assert_array_equal(got, flipped[orientation])
    assert picture_size(tmp_path / "a.png") == got.shape[:2]


def test_colour_profiles_are_converted_to_srgb(tmp_path, caplog):
    """A display whose red and green are swapped, written as a profile: the colours must come back."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    red, green = srgb.index(b"rXYZ", 128), srgb.index(b"gXYZ", 128)
    swapped = bytearray(srgb)
    swapped[red:red + 4], swapped[green:green + 4] = b"gXYZ", b"rXYZ"
    swapped = bytes(swapped).replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap")
    got = written(tmp_path, Image.fromarray(RGB), "swapped.png", icc_profile=swapped)
    np.testing.assert_allclose(got.astype(int), RGB[..., [1, 0, 2]], atol=2)
    np.testing.assert_array_equal(written(tmp_path, Image.fromarray(RGB), "srgb.png", icc_profile=srgb), RGB)
    alpha = np.dstack([RGB, np.full((6, 8), 255, dtype=np.uint8)])
    got = written(tmp_path, Image.fromarray(alpha), "alpha.png", icc_profile=swapped)
    np.testing.assert_allclose(got.astype(int), RGB[..., [1, 0, 2]], atol=2)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(written(tmp_path, Image.fromarray(RGB), "broken.png", icc_profile=b"no"), RGB)
    assert "broken.png: its colour profile cannot be used" in caplog.text


def test_cmyk_is_converted(tmp_path):
    ink = np.zeros((8, 8, 4), dtype=np.uint8)
    ink[:4, :, 1], ink[4:, :, 3] = 255, 255  # magenta above, black below
    for name in ("c.tif", "c.jpg"):  # Pillow writes Adobe's inverted form
        got = written(tmp_path, Image.fromarray(ink, mode="CMYK"), name)
        np.testing.assert_allclose(got[[0, 7], 0].astype(int), [[255, 0, 255], [0, 0, 0]], atol=3)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif"])
def test_of_several_frames_the_first_is_read_with_a_warning(tmp_path, name, caplog):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    with caplog.at_level(logging.WARNING):
        got = written(tmp_path, frames[0], name, save_all=True, append_images=frames[1:],
                      **({"lossless": True} if "webp" in name else {}))
    np.testing.assert_array_equal(got, np.broadcast_to([255, 0, 0], (8, 8, 3)))
    assert f"{name}: one of 2 frames is read, the first" in caplog.text


def test_a_picture_that_is_too_large_is_named_with_its_size(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(ValueError, match=r"bomb.png: expected a picture of at most 80 million pixels, got one of 400 "
                                         r"million. Make it smaller.*pictures.MAX_PIXELS"):
        read_picture(path)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 40)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    for read in (read_picture, picture_size):
        with pytest.raises(ValueError, match=r"a.png: expected a picture of at most .*, got one of 8 x 6"):
            read(tmp_path / "a.png")


def test_what_is_wrong_with_a_file_is_said_truly(tmp_path):
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(content, "JPEG")
    whole = content.getvalue()
    for name, data, message in (
            ("cut.jpg", whole[:len(whole) // 2], r"got a truncated or damaged file of \d+ bytes .*truncated"),
            ("no.jpg", b"<html>not found</html>", r"got a web page .*not found"),
            ("none.jpg", b"", r"got an empty file\. Fetch it again")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: expected a whole picture, {message}"):
            read_picture(tmp_path / name)
    (tmp_path / "all.tar").write_bytes(whole)
    with pytest.raises(ValueError, match=r"all.tar: expected a whole picture in 7, got a truncated"):
        read_picture(whole[:500], within=tmp_path / "all.tar", what="picture in 7")
    with pytest.raises(ValueError, match=r"gone.jpg: expected a whole picture, got no such file"):
        read_picture(tmp_path / "gone.jpg")


@pytest.mark.parametrize(("array", "expected", "result"), [
    (np.array([0, 128, 255], np.uint8), "0..255", [0, 128, 255]), (np.array([0, 200.6, 255]), "0..255", [0, 201, 255]),
    (np.array([0, 7, 255], np.int64), "0..255", [0, 7, 255]),
    (np.array([0, 0.5, 1], np.float16), "0..1", [0, 128, 255]),
    (np.array([-0.001, 1.001]), "0..1", [0, 255]), (np.array([True, False]), "0..1", [255, 0]),
    (np.array([0, 1], np.uint8), "0..1", [0, 255]), (np.zeros(3), "0..255", [0, 0, 0]), (np.zeros(0), "0..1", [])])
def test_arrays_of_a_known_range_are_converted(array, expected, result):
    got = pictures_from(array, expected=expected, what="x")
    assert got.dtype == np.uint8
    assert got.tolist() == result


@pytest.mark.parametrize(("array", "expected", "message"), [
    (np.array([0, 0.3, 1.0]), "0..255", r"expected pixels 0..255, got none above 1 \(float64\), as of pictures 0..1"),
    (np.array([0, 1], np.uint8), "0..255", r".*got none above 1 \(uint8\)"),
    (np.array([True, False]), "0..255", r".*got none above 1 \(bool\)"),
    (np.array([0, 200.0]), "0..1", r"expected pixels 0..1, got 0..200 \(float64\)"),
    (np.array([0, 200], np.uint8), "0..1", r"expected pixels 0..1, got 0..200 \(uint8\)"),
    (np.array([0, 0.003]), "0..1", r".*got none above 0.003 \(float64\), as of pictures divided by 255 twice"),
    (np.array([0, 300], np.int16), "0..255", r"expected pixels 0..255, got 0..300 \(int16\)"),
    (np.array([-1.0, 1.0]), "0..1", r"expected pixels 0..1, got -1..1"),
    (np.array([0.5, np.nan]), "0..1", r"expected pixels 0..1, got NaN or infinite"),
    (np.array([0.5, np.inf]), "0..255", r"expected pixels 0..255, got NaN or infinite"),
    (np.array([1j]), "0..1", r"expected pixels 0..1 as numbers, got complex128")])
def test_arrays_of_another_range_are_refused(array, expected, message):
    with pytest.raises(ValueError, match=f"file x: {message}"):
        pictures_from(array, expected=expected, what="file x")


def test_a_dark_picture_that_was_made_is_no_error():
    assert to_uint8(np.array([0, 0.003]), expected="0..1", what="x").tolist() == [0, 1]


def test_stimuli_are_read_by_the_same_reader(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(RAMP).save(tmp_path / "deep.png")
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        file["imgBrick"] = (RGB[None] > 99).astype(np.uint8)
    table = pd.DataFrame({"file": ["turned.png", "deep.png", "b.hdf5::imgBrick"], "pointer": [None, None, 0]})
    images = StimulusImages(tmp_path, table)
    np.testing.assert_array_equal(images([0])[0], np.rot90(RGB, -1))
    np.testing.assert_array_equal(images([1])[0, ..., 0], np.rint(RAMP / 65535 * 255))
    with pytest.raises(ValueError, match=r"b.hdf5, row 0 of 'imgBrick': expected pixels 0..255, got none above 1"):
        images([2])


def test_studies_check_the_range_of_their_arrays(tmp_path, digits):
    path = digits()
    values = loadmat(path)["stimTrn"]
    digits(stimTrn=values / 255)
    with pytest.raises(ValueError, match=r"digits.mat, stimTrn: expected pixels 0..255, got none above 0.996"):
        Digit69().prepare(path, tmp_path)
    digits(stimTrn=values.astype(float))
    Digit69().prepare(path, tmp_path)
    expected = values[3].reshape(8, 8).T  # column by column
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy")[3], expected)
    path = tmp_path / "coco_images_224_float16.hdf5"
    with h5py.File(path, "w") as file:
        file["images"] = np.stack([RGB.transpose(2, 0, 1) / 255, RGB.transpose(2, 0, 1)]).astype(np.float16)
    np.testing.assert_array_equal(next(packed_pictures(path, [0])), RGB)
    with pytest.raises(ValueError, match=r"float16.hdf5, row 1 of 'images': expected pixels 0..1, got 0..249"):
        list(packed_pictures(path, [0, 1]))


@pytest.mark.parametrize(("made", "message"), [
    (torch.full((1, 3, 4, 4), float("nan")), "expected pixels 0..1, got NaN or infinite values"),
    (torch.full((1, 3, 4, 4), 128.0), "expected pixels 0..1, got 128..128"),
    (torch.full((1, 3, 4, 4), -0.5), "expected pixels 0..1, got -0.5..-0.5")])
def test_reconstructions_out_of_range_are_not_written(tmp_path, made, message):
    maker = SimpleNamespace(needs=(), reconstruct=lambda needed, generators: made)
    predictions = SimpleNamespace(rows=pd.DataFrame({"array_row": [0]}))
    with pytest.raises(ValueError, match=f"pictures of SimpleNamespace: {message}"):
        _render(pd.Series([tmp_path / "a.png"]), predictions, maker, seed=0)
    assert not list(tmp_path.iterdir())
    maker.reconstruct = lambda needed, generators: torch.full((1, 3, 4, 4), 0.5004, dtype=torch.float16)
    _render(pd.Series([tmp_path / "a.png"]), predictions, maker, seed=0)
    assert (read_picture(tmp_path / "a.png") == 128).all()
