"""Decodes a DICOM file of one frame to 8-bit RGB, by pydicom.

Grey pixels are shown as DICOM's PS3.3 C.11 says: rescale, then the first VOI table, else the first
window, then the inversion of MONOCHROME1. Without table and window, black and white are the ends of
the range that `BitsStored` gives. 16 stored bits say as little as those of a PNG: then `white` is
white, as in other 16-bit files.

Only the tags of `_TAGS` are read, so nothing about the patient gets any further.
"""

import io

import numpy as np
import pydicom
from PIL import Image
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from medadv_jax.data.bounded import BadImageError, check_scans, check_size

_TAGS = [
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth",
    "VOILUTFunction", "VOILUTSequence", "PixelData",
]  # fmt: skip
_NEEDED = ("PixelData", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
           "BitsAllocated", "BitsStored", "PixelRepresentation")  # fmt: skip
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_CODESTREAM = b"\xff\x4f\xff\x51"  # begins JPEG 2000
_MAX_RLE = 32 << 20  # bytes of a frame; they unpack to up to 64 times as many


def read_rgb(content: bytes, white: int) -> Image.Image:
    """Returns the picture in 8-bit RGB.

    Args:
      content: the bytes of the file.
      white: the value shown as white where the file does not tell.

    Raises:
      BadImageError: a DICOM file of another kind; the message says which.
      Exception: of any kind, from a damaged file.
    """
    dataset = _parse(content)
    pixels = _pixels(dataset)
    if dataset.SamplesPerPixel == 3:
        return Image.fromarray(pixels)
    levels = _grey_levels(dataset, pixels.dtype, white)
    return Image.fromarray(levels[pixels.astype(np.int32) - np.iinfo(pixels.dtype).min]).convert(
        "RGB"
    )


def largest_value(content: bytes) -> int:
    """Returns the largest pixel of a file whose own tags do not say what is white; 0 of others."""
    dataset = _parse(content)
    return 0 if _tells_white(dataset) else int(_pixels(dataset).max())


def _parse(content: bytes) -> pydicom.Dataset:
    """Returns the elements of `_TAGS`; BadImageError if the file is of another kind."""
    # pydicom would inflate the whole file, to any size.
    if DeflatedExplicitVRLittleEndian.encode() in content:
        raise BadImageError("a deflated DICOM file: save it in another transfer syntax")
    dataset = pydicom.dcmread(io.BytesIO(content), specific_tags=list(_TAGS))
    lacking = [name for name in _NEEDED if dataset.get(name) in (None, "")]
    if lacking:
        raise BadImageError(f"a DICOM file without {lacking[0]}: no picture of 8 to 16 bits")
    check_size(dataset.Columns, dataset.Rows)
    _check_kind(dataset)
    _check_bits(dataset)
    return dataset


def _check_kind(dataset: pydicom.Dataset) -> None:
    """Refuses several frames, and colours that are none of `_COLOURS`."""
    frames, kind = int(dataset.get("NumberOfFrames") or 1), str(dataset.PhotometricInterpretation)
    if frames != 1:
        raise BadImageError(f"DICOM of {frames} frames: save the one to use as a file of its own")
    samples = {**dict.fromkeys(_GREY, 1), **dict.fromkeys(_COLOURS, 3)}.get(kind)
    if samples is None or samples != dataset.SamplesPerPixel:
        known = ", ".join((*_GREY, *_COLOURS))
        raise BadImageError(
            f"DICOM with photometric interpretation {kind[:16]!r} of {dataset.SamplesPerPixel}"
            f" samples: known are {known}"
        )
    if dataset.get("ModalityLUTSequence"):
        raise BadImageError("DICOM with a modality table: known is rescaling alone")


def _check_bits(dataset: pydicom.Dataset) -> None:
    """Refuses pixels whose range is not known."""
    allocated, stored = dataset.BitsAllocated, dataset.BitsStored
    deepest = 8 if dataset.SamplesPerPixel == 3 else 16
    if allocated not in (8, deepest) or not 1 < stored <= allocated:
        raise BadImageError(f"DICOM of {stored} bits in {allocated}: known are up to {deepest}")
    if dataset.get("HighBit", stored - 1) != stored - 1:
        raise BadImageError(f"DICOM with HighBit {dataset.HighBit} of {stored} stored bits")
    if dataset.PixelRepresentation and stored == 16 and not _tells_white(dataset):
        raise BadImageError("DICOM of signed 16-bit pixels without a window: what is white?")


def _pixels(dataset: pydicom.Dataset) -> np.ndarray:
    """Returns (rows, columns) stored values, or (rows, columns, 3) uint8 RGB."""
    syntax = UID(dataset.file_meta.TransferSyntaxUID)
    if not get_decoder(syntax).is_available:
        raise BadImageError(
            f"DICOM compressed as {syntax.name}, for which no decoder is installed: install"
            " pylibjpeg with its plugins, or decompress the file"
        )
    if syntax.is_encapsulated:
        _check_frame(get_frame(dataset.PixelData, 0, number_of_frames=1), syntax)
    try:
        pixels = pixel_array(dataset)
    except (RuntimeError, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise BadImageError(f"DICOM as {syntax.name} cannot be decoded: {reason}") from error
    check_size(pixels.shape[1], pixels.shape[0])
    return pixels


def _check_frame(frame: bytes, syntax: UID) -> None:
    """Refuses a compressed frame that would take far more time or memory than it should."""
    if syntax == RLELossless and len(frame) > _MAX_RLE:
        raise BadImageError(f"DICOM with over {_MAX_RLE >> 20} MiB of run lengths")
    # DICOM has the codestream alone; in the boxes of a JP2 file pydicom 3.0.2 can loop for ever.
    if syntax in JPEG2000TransferSyntaxes and not frame.startswith(_CODESTREAM):
        raise BadImageError("DICOM with pixels that are no JPEG 2000 codestream")
    if syntax in (*JPEGTransferSyntaxes, *JPEG2000TransferSyntaxes):
        check_scans(frame)
        with Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000")) as image:
            check_size(*image.size)


def _has_window(dataset: pydicom.Dataset) -> bool:
    return None not in (dataset.get("WindowCenter"), dataset.get("WindowWidth"))


def _tells_white(dataset: pydicom.Dataset) -> bool:
    """Returns whether the file itself says which value is white, by table, window or bits."""
    return (
        bool(dataset.get("VOILUTSequence"))
        or _has_window(dataset)
        or dataset.BitsStored < 16
        or dataset.SamplesPerPixel == 3
    )


def _grey_levels(dataset: pydicom.Dataset, dtype: np.dtype, white: int) -> np.ndarray:
    """Returns the 8-bit grey of every value that `dtype` can hold, the smallest first."""
    stored = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1)
    values = apply_modality_lut(stored, dataset)
    # pydicom keeps a window's result in the range of the rescaled values.
    low, high = apply_modality_lut(np.array(_stored_range(dataset, white)), dataset)
    if dataset.get("VOILUTSequence"):
        shares = _look_up(values, dataset.VOILUTSequence[0])
    elif _has_window(dataset):
        shares = (apply_windowing(values, dataset) - low) / (high - low)
    else:
        shares = (values - min(low, high)) / abs(high - low)
    if not np.isfinite(shares).all():
        raise BadImageError("DICOM with a window or rescaling that is no number")
    levels = (np.clip(shares, 0, 1) * 255 + 0.5).astype(np.uint8)
    return 255 - levels if dataset.PhotometricInterpretation == "MONOCHROME1" else levels


def _stored_range(dataset: pydicom.Dataset, white: int) -> tuple[int, int]:
    """Returns the stored values that are black and white without a window."""
    values = 1 << dataset.BitsStored
    if dataset.PixelRepresentation:
        return -(values >> 1), (values >> 1) - 1
    return 0, values - 1 if _tells_white(dataset) else white


def _look_up(values: np.ndarray, table: pydicom.Dataset) -> np.ndarray:
    """Returns what a VOI table makes of values, in [0, 1].

    Not by pydicom's `apply_voi`: it wraps values over 255 where a table's results have 8 bits.
    """
    count, first, bits = table.LUTDescriptor
    data = table.LUTData
    results = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data)
    if len(results) != (count or 65536):
        raise BadImageError(f"DICOM with a VOI table of {len(results)} results, not {count}")
    at = np.clip(np.rint(values) - first, 0, len(results) - 1).astype(int)
    return results[at] / (2**bits - 1)
