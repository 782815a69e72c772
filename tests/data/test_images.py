import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from medadv_jax.data.bounded import MAX_BYTES, BadImageError, read_bounded
from medadv_jax.data.images import largest_value, read_square

RED, GREY = (200, 40, 10), 120


def _bytes(image: Image.Image, file_format: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _solid(mode: str, colour, file_format: str = "png", **options) -> bytes:
    return _bytes(Image.new(mode, (12, 8), colour), file_format, **options)


def _sixteen_bits(value: int, file_format: str = "png") -> bytes:
    return _bytes(Image.fromarray(np.full((8, 12), value, np.uint16)), file_format)


def _palette(transparent: bool) -> bytes:
    image = Image.new("P", (12, 8), 1)
    image.putpalette([0, 0, 0, *RED])
    return _bytes(image, transparency=1) if transparent else _bytes(image)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (_solid("RGB", RED), RED),
        (_solid("L", GREY), (GREY,) * 3),
        (_solid("1", 1), (255,) * 3),
        (_solid("LA", (GREY, 255)), (GREY,) * 3),
        (_solid("LA", (GREY, 0)), (0,) * 3),
        (_solid("RGBA", (*RED, 255)), RED),
        (_solid("RGBA", (200, 40, 10, 0)), (0, 0, 0)),
        (_solid("RGBA", (200, 40, 10, 128)), (100, 20, 5)),
        (_solid("L", GREY, transparency=GREY), (0,) * 3),
        (_palette(transparent=False), RED),
        (_palette(transparent=True), (0, 0, 0)),
        (_solid("CMYK", (0, 255, 255, 0), "jpeg", quality=100), (255, 0, 0)),
        (_solid("CMYK", (0, 0, 0, 255), "tiff"), (0, 0, 0)),
        (_solid("YCbCr", (120, 128, 128), "tiff"), (120,) * 3),
        (_sixteen_bits(0), (0,) * 3),
        (_sixteen_bits(300), (1,) * 3),  # clipping would give 255
        (_sixteen_bits(32768), (128,) * 3),
        (_sixteen_bits(65535), (255,) * 3),
        (_sixteen_bits(32768, "tiff"), (128,) * 3),
        (_bytes(Image.new("I", (12, 8), 32768), "tiff"), (128,) * 3),
    ],
)
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_every_mode_becomes_the_right_rgb(content, expected, fit):
    image = read_square(content, 4, fit)
    assert image.dtype == np.uint8
    assert image.shape == (4, 4, 3)
    np.testing.assert_allclose(image[2, 2], expected, atol=3)


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize(
    ("value", "white", "expected"),
    [(4095, 4095, 255), (1000, 4095, 62), (5000, 4095, 255), (1000, 1023, 249), (4095, 65535, 16)],
)
def test_white_scales_pixels_of_16_bits(kind, value, white, expected):
    assert (read_square(_sixteen_bits(value, kind), 4, "crop", white) == expected).all()


def test_white_changes_no_other_pixels(tmp_path):
    deep = Image.fromarray(np.full((8, 12), 50_000, np.uint16))
    for content in (_solid("RGB", RED), _solid("L", GREY), PHOTO, _bytes(deep, "ppm")):
        plain = read_square(content, 4, "crop")
        np.testing.assert_array_equal(read_square(content, 4, "crop", 4095), plain)
        (tmp_path / "x").write_bytes(content)
        assert largest_value(tmp_path / "x") == 0


def test_the_largest_value_of_what_white_scales(tmp_path):
    for kind in ("png", "tiff"):
        (tmp_path / "x").write_bytes(_sixteen_bits(3987, kind))
        assert largest_value(tmp_path / "x") == 3987
    for content in (b"", b"x" * 200, _sixteen_bits(3987)[:45]):  # decoding says why
        (tmp_path / "x").write_bytes(content)
        assert largest_value(tmp_path / "x") == 0
    assert largest_value(tmp_path / "nowhere") == 0


def _png_of_size(width: int, height: int) -> bytes:
    """A tiny file whose header claims a size."""
    content = _solid("L", 0)
    header = content[12:16] + struct.pack(">II", width, height) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


PHOTO = _bytes(
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)), "jpeg"
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"%PDF-1.4 no image", "not an image"),
        (PHOTO[:2000], "truncated"),
        (PHOTO[:30], "not an image|truncated|damaged"),
        (_solid("RGB", RED)[:50], "damaged"),
        (_png_of_size(20_000, 6_000), "over 40 megapixels"),
        (_png_of_size(60_000, 60_000), "over 40 megapixels"),
        (_bytes(Image.new("F", (4, 4), 0.5), "tiff"), "floating-point"),
        (_bytes(Image.new("I", (4, 4), 70_000), "tiff"), "32-bit"),
    ],
)
@pytest.mark.parametrize("warning", ["error", "ignore"])  # Pillow warns of large images
def test_bad_files_get_a_reason(content, reason, warning):
    with warnings.catch_warnings():
        warnings.simplefilter(warning)
        with pytest.raises(BadImageError, match=reason) as caught:
            read_square(content, 8, "crop")
    assert "\n" not in str(caught.value)


def test_exif_orientation_is_applied():
    upright = Image.new("RGB", (40, 40))
    ImageDraw.Draw(upright).rectangle((0, 0, 39, 9), fill="white")  # a bar on top
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it turned clockwise
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    image = read_square(_bytes(turned, "jpeg", exif=exif, quality=95), 40, "crop")
    assert image[:8].mean() > 240
    assert image[14:].mean() < 15


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("size", [(300, 200), (200, 300), (301, 217), (110, 90)])
def test_a_circle_stays_a_circle(fit, size):
    width, height = size
    radius = min(size) * 0.4
    picture = Image.new("RGB", size)
    ImageDraw.Draw(picture).circle((width / 2, height / 2), radius, fill="white")
    inside = read_square(_bytes(picture), 100, fit)[..., 0] > 127
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    side = min(size) if fit == "crop" else max(size)
    for extent in (rows, columns):
        assert np.ptp(extent) + 1 == pytest.approx(200 * radius / side, abs=2.5)
        assert extent.mean() == pytest.approx(49.5, abs=1.5)  # in the centre


def test_pad_keeps_the_border_and_crop_cuts_it():
    picture = Image.new("RGB", (90, 60), "white")
    ImageDraw.Draw(picture).rectangle((0, 0, 9, 59), fill="red")
    padded, cropped = (read_square(_bytes(picture), 30, fit) for fit in ("pad", "crop"))
    assert (padded[[0, -1]] == 0).all()  # black above and below
    np.testing.assert_array_equal(padded[15, 1], (255, 0, 0))
    assert (cropped == 255).all()


@pytest.mark.parametrize("size", [(400, 200), (200, 400), (200, 200)])
def test_resizing_is_pillows_antialiased_bilinear(size):
    noise = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)
    picture = Image.fromarray(noise)
    width, height = size[0] // 4, size[1] // 4
    small = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - 50) // 2, (height - 50) // 2
    reference = small.crop((left, top, left + 50, top + 50))
    image = read_square(_bytes(picture), 50, "crop").astype(int)
    np.testing.assert_allclose(image, np.asarray(reference), atol=1)  # rounded between the passes
    assert np.asarray(reference).std() < 0.5 * noise.std()  # the reference does average


def test_the_triangle_filter_is_what_antialiases():
    column = np.random.default_rng(2).integers(0, 255, 64).astype(float)
    picture = Image.fromarray(np.repeat(column[:, None], 64, 1).astype(np.uint8))
    centres = (np.arange(16) + 0.5) * 4
    distance = np.abs(centres[:, None] - (np.arange(64) + 0.5)) / 4
    weights = np.maximum(0, 1 - distance)
    expected = weights @ column / weights.sum(1)
    image = read_square(_bytes(picture), 16, "crop")
    np.testing.assert_allclose(image[:, 8, 0], expected, atol=1)


def test_only_regular_files_of_bounded_size_are_read(tmp_path):
    pipe, device, sparse, usual = (tmp_path / name for name in ("pipe", "device", "sparse", "x"))
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    with sparse.open("wb") as file:
        file.truncate(6 << 30)
    usual.write_bytes(b"abc")
    for path, reason in (
        (pipe, "not a regular file"),
        (device, "not a regular file"),
        (sparse, f"over {MAX_BYTES >> 20} MiB"),
        (Path("/dev/null"), "not a regular file"),
    ):
        with pytest.raises(BadImageError, match=reason):
            read_bounded(path)
    assert read_bounded(usual, 3) == b"abc"
    with pytest.raises(BadImageError):
        read_bounded(usual, 2)


def test_a_jpeg_of_very_many_scans_is_refused():
    content = _bytes(Image.new("L", (40, 40), GREY), "jpeg", progressive=True)
    assert (read_square(content, 8, "crop") == GREY).all()
    start = content.index(b"\xff\xda")
    scan = content[start : content.index(b"\xff", start + 2)]
    with pytest.raises(BadImageError, match="over 100 scans"):
        read_square(content[:start] + 200 * scan + content[start:], 8, "crop")
