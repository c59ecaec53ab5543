"""The one reader of pictures: files of any kind, and arrays, become ``(h, w, 3)`` uint8 in sRGB by one policy.

Of a picture file:

- **Orientation** of EXIF is applied: the picture is read as a viewer shows it.
- **Transparency** (alpha, a transparent colour, a palette with either) lies on white; the log says so once.
- **16 bit** and **floats**: grey of 16 bits (also where PIL hands out 32) is scaled by its full range, 65535 -> 255,
  and floats by [0, 1] -> 0..255; others are refused, and so are values that fill no more than the lowest 8 of 16 bits,
  for these were not meant so. Of colours of 16 bits PIL reads the upper 8.
- **Colour profiles** are converted to sRGB (relative colorimetric, with black point compensation); one that cannot be
  used is named in the log, and the numbers are then taken for sRGB. CMYK without a profile is converted as PIL does,
  Adobe's inverted JPEG included.
- **Animations** and files of several pages: the first frame, with a warning.
- **Size**: at most `MAX_PIXELS`, so that a small file cannot fill the memory.

What a file holds decides, not how its name ends. Arrays say nothing about their range or the order of their channels:
the range is stated by who knows the source, and checked; the order is RGB, and BGR cannot be told from it.
"""

from __future__ import annotations

import io
import logging
import re
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from brain2img.data.file_names import is_junk
from brain2img.data.reading import ReadError, reading

log = logging.getLogger(__name__)

MAX_PIXELS = 80_000_000
"""Pixels of the largest picture that is read; PIL's own guard begins a little above."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
Range = Literal["0..255", "0..1"]
_ROUNDING = 2e-3  # what half precision and resampling may add to a range of 1
_DIRECT = ("RGB", "L", "CMYK", "LAB")  # modes that a profile is about


def read_picture(source: Path | bytes, *, within: Path | None = None, what: str = "picture") -> np.ndarray:
    """Return a picture as ``(h, w, 3)`` uint8 (0..255) in sRGB, by the policy of this module.

    Parameters
    ----------
    source
        A file, or the content of a member of `within`.
    within
        The archive it is of, if any.
    what
        What messages call it.

    Raises
    ------
    ValueError
        If the file is missing, locked, no picture, damaged or too large, or its range is not known.
    """
    named, naming = _named(source, within, what)
    with naming:
        image = _opened(source, named)
        with image:
            if getattr(image, "is_animated", False) and image.format != "MPO":  # the others of a camera are previews
                _warn_once(f"{named}: one of {getattr(image, 'n_frames', 'several')} frames is read, the first")
                image.seek(0)
            image.load()
            return np.asarray(_in_srgb(_upright(image, named), named))


def picture_size(source: Path | bytes, *, within: Path | None = None, what: str = "picture") -> tuple[int, int]:
    """Return height and width of what `read_picture` would give; the pixels are not decoded.

    Raises
    ------
    ValueError
        If the file is missing, locked, no picture or too large.
    """
    named, naming = _named(source, within, what)
    with naming, _opened(source, named) as image:
        width, height = image.size
        return (width, height) if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5 else (height, width)


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures below a folder, by the endings of their names in any case."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not is_junk(path.name))


def pictures_from(array: np.ndarray, *, expected: Range, what: str) -> np.ndarray:
    """Return pictures out of an array of a source as uint8 (0..255).

    Parameters
    ----------
    array
        Pictures of any shape, integer, boolean or float.
    expected
        The range that the source is known to have.
    what
        What messages call the array.

    Raises
    ------
    ValueError
        If it holds NaN or values out of the range, or fills so little of it that it must be of the other one.
    """
    made, top = to_uint8(array, expected=expected, what=what), 255 if expected == "0..255" else 1
    highest = float(np.max(array, initial=0))
    if 0 < highest <= top / 255:
        raise PictureError(f"{what}: expected pixels {expected}, got none above {highest:.3g} ({array.dtype}), as of "
                         f"pictures {'0..1' if top == 255 else 'divided by 255 twice'}. {_CURE}")
    return made


_CURE = "Correct the file, or the study that says which range it has."


def to_uint8(array: np.ndarray, *, expected: Range, what: str) -> np.ndarray:
    """Return an array of pixels as uint8 (0..255), rounded; nothing is clipped but what rounding explains.

    Raises
    ------
    ValueError
        If it holds NaN, infinite values or values out of the range.
    """
    if array.dtype.kind not in "buif":
        raise PictureError(f"{what}: expected pixels {expected} as numbers, got {array.dtype}. {_CURE}")
    if not array.size or (array.dtype == np.uint8 and expected == "0..255"):
        return array.astype(np.uint8)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise PictureError(f"{what}: expected pixels {expected}, got NaN or infinite values. {_CURE}")
    low, high, top = float(array.min()), float(array.max()), 255 if expected == "0..255" else 1
    if low < -_ROUNDING * top or high > (1 + _ROUNDING) * top:
        raise PictureError(f"{what}: expected pixels {expected}, got {low:.4g}..{high:.4g} ({array.dtype}). {_CURE}")
    wide = array.astype(np.float64 if array.dtype.itemsize > 4 else np.float32)
    return np.rint(np.clip(wide * (255 // top), 0, 255)).astype(np.uint8)


@lru_cache(maxsize=4096)
def _warn_once(message: str) -> None:
    log.warning("%s", message)


class PictureError(ReadError):
    """A picture is of a size or a range that is not read; the message says why."""


def _named(source: Path | bytes, within: Path | None, what: str) -> tuple[str, AbstractContextManager[None]]:
    """Return what messages call a picture, and what turns errors of PIL into messages."""
    if isinstance(source, bytes):
        return f"{within}, {what}", reading(within or Path(), what=what, member=True)
    return str(source), reading(source, what=what)


def _opened(source: Path | bytes, named: str) -> Image.Image:
    limit = (f"{named}: expected a picture of at most {MAX_PIXELS / 1e6:.0f} million pixels, got {{got}}. Make it "
             "smaller: no backbone sees more than some hundred pixels a side (or raise "
             "brain2img.data.pictures.MAX_PIXELS).")
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels = re.search(r"\d+", str(error))
        got = f"one of {int(pixels[0]) / 1e6:.0f} million" if pixels else str(error)
        raise PictureError(limit.format(got=got)) from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise PictureError(limit.format(got=f"one of {image.width} x {image.height}"))
    return image


def _upright(image: Image.Image, named: str) -> Image.Image:
    """Return the picture as its EXIF orientation says."""
    try:
        turned = ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError) as error:
        _warn_once(f"{named}: its EXIF data are damaged ({error}), it is taken to be upright")
        return image
    turned.info = {**image.info, **turned.info}
    return turned


def _in_srgb(image: Image.Image, named: str) -> Image.Image:
    """Return the picture as RGB in sRGB, on white."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)
        key = image.info.get("transparency")
        hidden = values == key if isinstance(key, int) else np.zeros(values.shape, dtype=bool)
        shown = Image.fromarray(_eight_bits(values, named))
        return _on_white(shown.convert("RGB"), Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))
    alpha = None
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if image.mode in ("LA", "La"):
            image = image.convert("LA").getchannel("L")
    if image.mode == "1":
        image = image.convert("L")
    profile = image.info.get("icc_profile")
    if image.mode not in _DIRECT:
        image = image.convert("RGBA").convert("RGB") if alpha is not None else image.convert("RGB")
    image.info = {}  # PIL would take a transparent colour into account a second time
    if profile or image.mode == "LAB":
        image = _converted(image, profile, named)
    image = image.convert("RGB")
    return image if alpha is None or alpha.getextrema() == (255, 255) else _on_white(image, alpha)


def _eight_bits(values: np.ndarray, named: str) -> np.ndarray:
    """Return grey of 16 bits, or floats, as uint8."""
    if values.dtype.kind == "f":
        return pictures_from(values, expected="0..1", what=f"{named} (32-bit floats)")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise PictureError(f"{named}: expected grey of 16 bits, 0..65535, got {low}..{high}. Save it with 8 bits.")
    if 0 < high <= 255:
        raise PictureError(f"{named}: expected grey of 16 bits over its range, 0..65535, got none above {high}: these "
                           "seem to be 8-bit values, and would be read as black. Save it with 8 bits.")
    return np.rint(values / 257).astype(np.uint8)


def _converted(image: Image.Image, profile: bytes | None, named: str) -> Image.Image:
    """Return the picture with its numbers brought from its own profile to sRGB."""
    try:
        if profile and image.mode == "RGB" and _is_srgb(profile):
            return image
        converted = ImageCms.applyTransform(image, _transform(profile, image.mode))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        if image.mode == "LAB":
            raise
        _warn_once(f"{named}: its colour profile cannot be used ({error}), its colours are taken for sRGB")
        return image
    assert converted is not None
    return converted


@lru_cache(maxsize=64)
def _is_srgb(profile: bytes) -> bool:
    return "srgb" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).lower()


@lru_cache(maxsize=64)
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform:
    """Return the way from a profile to sRGB, made once for the many pictures that share one."""
    own = ImageCms.createProfile("LAB") if profile is None else ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(own, ImageCms.createProfile("sRGB"), mode, "RGB",
                                   ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION)


def _on_white(image: Image.Image, alpha: Image.Image) -> Image.Image:
    if alpha.getextrema() != (255, 255):
        _warn_once("pictures with transparency are shown on white")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white
