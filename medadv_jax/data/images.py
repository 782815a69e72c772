"""Decodes an image file into a square of 8-bit RGB pixels."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from medadv_jax.data.bounded import (
    MAX_PIXELS,
    BadImageError,
    check_scans,
    check_size,
    read_bounded,
    read_head,
)

WHITE = 65535  # of 16-bit pixels, unless the data set is known to use fewer bits
# Pillow would hand PostScript to Ghostscript, which runs programs in the file.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
# Antialiased bilinear, as torchvision's ImageNet weights were trained and tested with.
_FILTER = Image.Resampling.BILINEAR
_PNG, _TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEAD = 132  # bytes that tell formats apart


def is_dicom(content: bytes) -> bool:
    """Returns whether a file begins as a DICOM file does."""
    return content[128:132] == b"DICM"


def read_square(content: bytes, size: int, fit: str, white: int = WHITE) -> np.ndarray:
    """Decodes an image file and fits it into a square; keeps the aspect ratio.

    Grey, palette, CMYK, 1-bit and 16-bit images become 8-bit RGB (16-bit values are scaled).
    Transparent pixels are composited onto black. The EXIF orientation is applied. Of an animation
    the first frame is taken. DICOM files are read as `data.dicom` says.

    Args:
      content: the bytes of the file.
      size: side of the square in pixels.
      fit: a key of `FITS`.
      white: of 16-bit pixels; larger values are white, too. That of a data set is `white` in the
        report of its build.

    Returns:
      (size, size, 3) uint8.

    Raises:
      BadImageError: the file is empty, damaged, truncated, too large or no image.
    """
    if not content:
        raise BadImageError("empty file")
    try:
        return np.asarray(FITS[fit](_decode(content, white), size))
    except BadImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"over {MAX_PIXELS / 1e6:.0f} megapixels") from error
    except Image.UnidentifiedImageError as error:
        raise BadImageError("not an image, or of an unknown format") from error
    # Damaged files make Pillow raise OSError, SyntaxError, struct.error and others.
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        raise BadImageError(f"damaged: {type(error).__name__}: {reason}") from error


def _decode(content: bytes, white: int) -> Image.Image:
    """Returns the image in 8-bit RGB, upright."""
    if is_dicom(content):
        from medadv_jax.data import dicom  # imported lazily: most images are none

        return dicom.read_rgb(content, white)
    check_scans(content)
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        check_size(*image.size)
        white = WHITE if image.format == "PPM" else white  # Pillow has scaled those
        return _to_rgb(ImageOps.exif_transpose(image), white)


def largest_value(path: Path) -> int:
    """Returns the largest value of a file whose pixels `white` scales: grey ones of 16 bits.

    0 for all others, and for unusable files; `read_square` says why they are unusable.
    """
    try:
        head = read_head(path, _HEAD)
        if is_dicom(head):
            from medadv_jax.data import dicom  # imported lazily: most images are none

            return dicom.largest_value(read_bounded(path))
        if not (head.startswith(_TIFF) or (head.startswith(_PNG) and head[24] == 16)):
            return 0
        content = read_bounded(path)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            check_size(*image.size)
            return int(np.max(np.asarray(image))) if _is_deep(image) else 0
    except Exception:  # decoding reports it
        return 0


def _is_deep(image: Image.Image) -> bool:
    return image.mode == "I" or image.mode.startswith("I;16")


def _to_rgb(image: Image.Image, white: int) -> Image.Image:
    """Converts any Pillow mode to 8-bit RGB."""
    if _is_deep(image):
        image = _scale_16_bit(image, white)
    elif image.mode == "F":
        raise BadImageError("floating-point pixels: what is white is not known")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        black = Image.new("RGBA", colours.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, colours)
    return image.convert("RGB")


def _scale_16_bit(image: Image.Image, white: int) -> Image.Image:
    """Maps 0 … `white` to 0 … 255; Pillow's own conversion would clip at 255."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:  # mode "I" holds 32 bits
        raise BadImageError("32-bit pixels: what is white is not known")
    values = np.minimum(values, white).astype(np.uint32)  # then in place, to save memory
    values *= 255
    values += white // 2
    values //= white
    return Image.fromarray(values.astype(np.uint8))


def _crop(image: Image.Image, size: int) -> Image.Image:
    """Scales the shortest side to `size` and keeps the centre square."""
    return ImageOps.fit(image, (size, size), method=_FILTER)


def _pad(image: Image.Image, size: int) -> Image.Image:
    """Scales the longest side to `size` and centres the image on black."""
    return ImageOps.pad(image, (size, size), method=_FILTER, color="black")


FITS: dict[str, Callable[[Image.Image, int], Image.Image]] = {"crop": _crop, "pad": _pad}
