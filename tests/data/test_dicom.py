"""DICOM pixels against values computed by hand, and one reason for each file that is refused."""

import io
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLSLossless,
    RLELossless,
)

from medadv_jax.data import dicom
from medadv_jax.data.bounded import BadImageError
from medadv_jax.data.images import largest_value, read_square
from tools.dicom_files import PATIENT, dicom_file


def _flat(value: int, dtype: type = np.uint16) -> np.ndarray:
    return np.full((8, 10), value, dtype)


def _table(bits: int, first: int, results: list[int], kind: str = "OW") -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(results) % 65536, first, bits]
    words = np.array(results, "<u2").tobytes()
    item.add_new("LUTData", kind, words if kind == "OW" else results)
    return Sequence([item])


def _full_table() -> Sequence:
    """A table with a result for each value of 16 bits; DICOM says 0 for 65536."""
    return _table(8, 0, [value >> 8 for value in range(65536)])


@pytest.mark.parametrize(
    ("value", "dtype", "tags", "expected"),
    [
        # without a window the range of the stored bits: round(255 · value / (2^bits − 1))
        (100, np.uint8, {}, 100),
        (4095, np.uint16, {"BitsStored": 12}, 255),
        (1000, np.uint16, {"BitsStored": 12}, 62),
        (1000, np.uint16, {"BitsStored": 10}, 249),
        (1000, np.uint16, {"BitsStored": 12, "PhotometricInterpretation": "MONOCHROME1"}, 193),
        (0, np.uint16, {"BitsStored": 12, "PhotometricInterpretation": "MONOCHROME1"}, 255),
        (-2048, np.int16, {"BitsStored": 12}, 0),
        (0, np.int16, {"BitsStored": 12}, 128),
        (127, np.int8, {}, 255),
        (5000, np.uint16, {"BitsStored": 12}, 56),  # what stands above 12 bits is no pixel
        (1000, np.uint16, {"BitsStored": 12, "RescaleSlope": 2, "RescaleIntercept": 7}, 62),
        # a falling slope turns light and dark: 1 − 1000/4095
        (1000, np.uint16, {"BitsStored": 12, "RescaleSlope": -1, "RescaleIntercept": 0}, 193),
        # 16 stored bits tell nothing: the data set's white, here 4095
        (1000, np.uint16, {}, 62),
        (4095, np.uint16, {"PhotometricInterpretation": "MONOCHROME1"}, 0),
        # a window: ((x − (c − 0.5)) / (w − 1) + 0.5)
        (1000, np.uint16, {"WindowCenter": 1000.5, "WindowWidth": 1001}, 128),
        (1000, np.uint16, {"WindowCenter": 1100.5, "WindowWidth": 401}, 64),
        (1000, np.uint16, {"WindowCenter": 3000, "WindowWidth": 100}, 0),
        (1000, np.uint16, {"WindowCenter": 30, "WindowWidth": 100}, 255),
        (1000, np.uint16, {"WindowCenter": [1100.5, 5], "WindowWidth": [401, 5]}, 64),  # the first
        (1000, np.uint16, {"WindowCenter": 1100, "WindowWidth": 400,
                           "VOILUTFunction": "LINEAR_EXACT"}, 64),
        # 1 / (1 + exp(−4 · (1000 − 1100) / 400)) = 0.269
        (1000, np.uint16, {"WindowCenter": 1100, "WindowWidth": 400,
                           "VOILUTFunction": "SIGMOID"}, 69),
        # Hounsfield units: 1024 − 1024 = 0 in the middle of a window around 0
        (1024, np.uint16, {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": -1024,
                           "WindowCenter": 0.5, "WindowWidth": 401}, 128),
        (-100, np.int16, {"WindowCenter": 0.5, "WindowWidth": 401}, 64),
        # a table of four results; values beyond its ends take the ends
        (2, np.uint16, {"VOILUTSequence": _table(8, 1, [0, 51, 102, 255])}, 51),
        (600, np.uint16, {"VOILUTSequence": _table(8, 1, [0, 51, 102, 204])}, 204),
        (0, np.uint16, {"VOILUTSequence": _table(12, 1, [819, 0, 0, 0], "US")}, 51),
        (1000, np.uint16, {"VOILUTSequence": _full_table()}, 3),  # 1000 // 256
    ],
)  # fmt: skip
def test_grey_by_hand(value, dtype, tags, expected):
    image = read_square(dicom_file(_flat(value, dtype), **tags), 4, "crop", 4095)
    assert image.shape == (4, 4, 3)
    assert (image == expected).all()


@pytest.mark.parametrize("seed", range(5))
def test_windows_are_as_pydicoms(seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 4096, (16, 16), np.uint16)
    tags: dict[str, Any] = {"RescaleSlope": float(rng.uniform(0.5, 2)), "RescaleIntercept": -500.0}
    tags |= {"WindowCenter": float(rng.integers(2000)), "WindowWidth": float(rng.integers(2, 3000))}
    image = read_square(dicom_file(pixels, BitsStored=12, **tags), 16, "crop")
    dataset = Dataset()
    for name, given in {"BitsStored": 12, "PixelRepresentation": 0, **tags}.items():
        setattr(dataset, name, given)
    dataset.PhotometricInterpretation = "MONOCHROME2"
    shown = apply_windowing(apply_modality_lut(pixels, dataset), dataset)
    low, high = tags["RescaleIntercept"], 4095 * tags["RescaleSlope"] + tags["RescaleIntercept"]
    np.testing.assert_allclose(image[..., 0], 255 * (shown - low) / (high - low), atol=0.51)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, RLELossless])
def test_other_transfer_syntaxes_show_the_same(syntax):
    pixels = np.random.default_rng(0).integers(0, 4096, (16, 16), np.uint16)
    plain = read_square(dicom_file(pixels, BitsStored=12), 16, "crop")
    content = dicom_file(pixels, syntax, syntax.is_encapsulated, BitsStored=12)
    np.testing.assert_array_equal(read_square(content, 16, "crop"), plain)


def _encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return encapsulate([buffer.getvalue()])


def test_colours_are_rgb():
    red = np.full((8, 8, 3), (200, 40, 10), np.uint8)
    assert (read_square(dicom_file(red), 4, "crop") == (200, 40, 10)).all()
    ycc = np.asarray(Image.fromarray(red).convert("YCbCr"))
    content = dicom_file(ycc, PhotometricInterpretation="YBR_FULL")
    np.testing.assert_allclose(read_square(content, 4, "crop")[0, 0], (200, 40, 10), atol=2)
    tags: dict[str, Any] = {"PhotometricInterpretation": "YBR_FULL_422"}
    tags["PixelData"] = _encoded(Image.fromarray(red), "jpeg", quality=95)
    content = dicom_file(red, JPEGBaseline8Bit, **tags)
    np.testing.assert_allclose(read_square(content, 4, "crop")[0, 0], (200, 40, 10), atol=4)


def test_jpeg_2000_of_12_bits_is_read():
    pixels = np.random.default_rng(0).integers(0, 4096, (16, 16), np.uint16)
    data = _encoded(Image.fromarray(pixels), "jpeg2000", irreversible=False, no_jp2=True)
    content = dicom_file(pixels, JPEG2000Lossless, PixelData=data)
    plain = read_square(dicom_file(pixels), 16, "crop", 4095)
    np.testing.assert_array_equal(read_square(content, 16, "crop", 4095), plain)


def _short_table() -> Sequence:
    table = _table(8, 0, [0, 255])
    table[0].LUTDescriptor = [4, 0, 8]
    return table


def _deflated() -> bytes:
    """A small file that would inflate to 100 MB."""
    content = dicom_file(_flat(1), DeflatedExplicitVRLittleEndian)
    squeezed = zlib.compressobj(wbits=-15)
    return content + squeezed.compress(bytes(100 << 20)) + squeezed.flush()


def _huge_jpeg() -> bytes:
    data = bytearray(_encoded(Image.new("L", (8, 8)), "jpeg"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = b"\xea\x60\xea\x60"  # 60,000 x 60,000
    return dicom_file(_flat(1, np.uint8), JPEGBaseline8Bit, PixelData=bytes(data))


def _many_scans() -> bytes:
    data = io.BytesIO()
    Image.new("L", (8, 8)).save(data, "jpeg")
    frame = data.getvalue() + b"\xff\xda" * 101
    return dicom_file(_flat(1, np.uint8), JPEGBaseline8Bit, PixelData=encapsulate([frame]))


def _looping_jp2() -> bytes:
    """A JP2 file with a box of no length, in which pydicom 3.0.2 loops for ever."""
    data = _encoded(Image.new("L", (8, 8)), "jpeg2000")
    place = data.index(b"ftyp") - 4
    data = data[:place] + bytes(4) + data[place + 4 :]
    return dicom_file(_flat(1, np.uint8), JPEG2000Lossless, PixelData=data)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (dicom_file(_flat(1), NumberOfFrames=3), "DICOM of 3 frames: save the one to use"),
        (dicom_file(_flat(1), JPEGLSLossless, PixelData=encapsulate([b"\0" * 8])),
         "compressed as JPEG-LS .* no decoder is installed: install pylibjpeg"),
        (dicom_file(_flat(1), JPEGExtended12Bit, BitsStored=12, PixelData=encapsulate([bytes(8)])),
         "cannot be|damaged|not an image"),
        (dicom_file(_flat(1), PhotometricInterpretation="PALETTE COLOR"), "'PALETTE COLOR' of 1"),
        (dicom_file(_flat(1), PhotometricInterpretation="RGB"), "'RGB' of 1 samples"),
        (dicom_file(_flat(1), PixelData=None), "without PixelData"),
        (dicom_file(_flat(1), Rows=None), "without Rows"),
        (dicom_file(_flat(1, np.int16)), "signed 16-bit pixels without a window"),
        (dicom_file(np.zeros((8, 8), np.uint32), BitsStored=32), "32 bits in 32"),
        (dicom_file(np.zeros((8, 8, 3), np.uint16)), "16 bits in 16"),
        (dicom_file(_flat(1), BitsStored=12, HighBit=15), "HighBit 15 of 12"),
        (dicom_file(_flat(1), ModalityLUTSequence=_table(8, 0, [1, 2])), "a modality table"),
        (dicom_file(_flat(1), VOILUTSequence=_short_table()), "a VOI table of 2 results, not 4"),
        (dicom_file(_flat(1), WindowCenter=5, WindowWidth=0), "Window Width"),
        (dicom_file(_flat(1), Rows=60_000, Columns=60_000), "over 40 megapixels"),
        (dicom_file(_flat(1), Rows=800), "damaged: .* less than expected"),
        (dicom_file(_flat(1))[:-60], "damaged"),
        (dicom_file(_flat(1))[:140], "damaged|without"),
        (_deflated(), "a deflated DICOM file"),
        (_huge_jpeg(), "over 40 megapixels"),
        (_many_scans(), "a JPEG of over 100 scans"),
        (_looping_jp2(), "no JPEG 2000 codestream"),
    ],
)  # fmt: skip
def test_other_files_get_a_reason(content, reason):
    tracemalloc.start()
    with pytest.raises(BadImageError, match=reason) as caught:
        read_square(content, 8, "crop")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20 << 20
    assert "\n" not in str(caught.value)
    assert not any(text in str(caught.value) for text in PATIENT)


def test_run_lengths_have_a_bound(monkeypatch):
    """They unpack to up to 64 times as many bytes."""
    content = dicom_file(_flat(1), RLELossless, compress=True)
    assert read_square(content, 8, "crop").shape == (8, 8, 3)
    monkeypatch.setattr(dicom, "_MAX_RLE", 64)  # bytes; the header alone has as many
    with pytest.raises(BadImageError, match="of run lengths"):
        read_square(content, 8, "crop")


def test_only_files_that_do_not_tell_their_white_count(tmp_path):
    cases: list[tuple[dict[str, Any], int]] = [
        ({}, 3000),
        ({"BitsStored": 12}, 0),
        ({"WindowCenter": 5, "WindowWidth": 9}, 0),
        ({"NumberOfFrames": 2}, 0),
    ]
    for tags, largest in cases:
        (tmp_path / "x").write_bytes(dicom_file(_flat(3000), **tags))
        assert largest_value(tmp_path / "x") == largest
