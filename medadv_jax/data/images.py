"""Decodes an image file into a square of 8-bit RGB pixels."""

import io
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 40_000_000  # 0.7 GB while decoding; more is a mistake or a decompression bomb
MAX_BYTES = 256 << 20  # of a file; more than any of 40 megapixels in these formats
_MAX_SCANS = 100  # of a JPEG; ten are usual, and each costs a pass over all pixels
# Pillow would hand PostScript to Ghostscript, which runs programs in the file.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM")
# Antialiased bilinear, as torchvision's ImageNet weights were trained and tested with.
_FILTER = Image.Resampling.BILINEAR


class BadImageError(Exception):
    """The file is no usable image; the message is the reason that the report prints."""


def read_bounded(path: Path, most: int = MAX_BYTES) -> bytes:
    """Returns the bytes of a regular file.

    Raises:
      BadImageError: a pipe, a device or another thing that is no file, or over `most` bytes.
      OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
        raise BadImageError("not a regular file")
    if status.st_size > most:
        raise BadImageError(f"over {most >> 20} MiB")
    with path.open("rb") as file:
        return file.read(most)


def read_square(content: bytes, size: int, fit: str) -> np.ndarray:
    """Decodes an image file and fits it into a square; keeps the aspect ratio.

    Grey, palette, CMYK, 1-bit and 16-bit images become 8-bit RGB (16-bit values are scaled).
    Transparent pixels are composited onto black. The EXIF orientation is applied. Of an animation
    the first frame is taken.

    Args:
      content: the bytes of the file.
      size: side of the square in pixels.
      fit: a key of `FITS`.

    Returns:
      (size, size, 3) uint8.

    Raises:
      BadImageError: the file is empty, damaged, truncated, too large or no image.
    """
    if not content:
        raise BadImageError("empty file")
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _MAX_SCANS:
        raise BadImageError(f"a JPEG of over {_MAX_SCANS} scans")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_size(*image.size)
            rgb = _to_rgb(ImageOps.exif_transpose(image))
        return np.asarray(FITS[fit](rgb, size))
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


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImageError(f"over {MAX_PIXELS / 1e6:.0f} megapixels: {width} x {height}")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Converts any Pillow mode to 8-bit RGB."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = _scale_16_bit(image)
    elif image.mode == "F":
        raise BadImageError("floating-point pixels: what is white is not known")
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        black = Image.new("RGBA", colours.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, colours)
    return image.convert("RGB")


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """Maps 0 … 65535 to 0 … 255; Pillow's own conversion would clip at 255."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:  # mode "I" holds 32 bits
        raise BadImageError("32-bit pixels: what is white is not known")
    values = values.astype(np.uint32)  # then in place, to save memory
    values *= 255
    values += 32767
    values //= 65535
    return Image.fromarray(values.astype(np.uint8))


def _crop(image: Image.Image, size: int) -> Image.Image:
    """Scales the shortest side to `size` and keeps the centre square."""
    return ImageOps.fit(image, (size, size), method=_FILTER)


def _pad(image: Image.Image, size: int) -> Image.Image:
    """Scales the longest side to `size` and centres the image on black."""
    return ImageOps.pad(image, (size, size), method=_FILTER, color="black")


FITS: dict[str, Callable[[Image.Image, int], Image.Image]] = {"crop": _crop, "pad": _pad}
