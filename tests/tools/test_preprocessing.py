"""From an image file to what a network gets: filter, geometry and normalisation, without libraries.

`tools/preprocessing.py` compares with torchvision and Keras themselves.
"""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from medadv_jax.classifier import NORMALIZATIONS
from medadv_jax.data.images import read_square
from tools import preprocessing

SIZE = 32


def encoded(pixels, file_format="png", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def triangle(source: int, start: float, extent: float) -> np.ndarray:
    """(SIZE, source): the antialiased bilinear filter of `extent` pixels from `start`, by hand."""
    scale = extent / SIZE
    centres = start + (np.arange(SIZE)[:, None] + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(source) + 0.5 - centres) / max(scale, 1.0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("height", "width"), [(97, 97), (97, 150), (131, 64), (33, 47)])
def test_the_centre_square_is_scaled_by_the_antialiased_triangle_filter(height, width):
    pixels, side = noise(height, width), min(height, width)
    rows = triangle(height, (height - side) / 2, side)
    columns = triangle(width, (width - side) / 2, side)
    expected = np.einsum("ih,jw,hwc->ijc", rows, columns, pixels.astype(np.float64))
    found = read_square(encoded(pixels), SIZE, "crop")
    # Rounded between the passes and at the end; two taps more or less at the filter's rim.
    assert np.abs(found - expected).max() < 2.0
    assert np.abs(found - expected).mean() < 0.5


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("side", [SIZE, 50, 131, 20])
def test_a_square_jpeg_is_what_pillows_resize_makes_of_it(mode, side):
    """Which is what torchvision's transform and Keras' `load_img` call."""
    pixels = noise(side, side) if mode == "RGB" else noise(side, side)[..., 0]
    content = encoded(pixels, "jpeg", quality=90)
    with Image.open(io.BytesIO(content)) as image:
        resized = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    assert_array_equal(read_square(content, SIZE, "crop"), np.asarray(resized))


@pytest.mark.parametrize(("height", "width"), [(100, 151), (460, 700)])
def test_torchvisions_cut_at_whole_pixels_is_off_by_less_than_a_pixel(height, width):
    """On a ramp, the difference divided by the slope is how far the picture is shifted."""
    ramp = np.linspace(0, 255, width).round().astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (height, width, 3)).copy()
    long = int(SIZE * width / height)  # torchvision: scaled first, then cut at whole pixels
    resized = Image.fromarray(pixels).resize((long, SIZE), Image.Resampling.BILINEAR)
    left = round((long - SIZE) / 2)
    theirs = np.asarray(resized.crop((left, 0, left + SIZE, SIZE))).astype(float)
    ours = read_square(encoded(pixels), SIZE, "crop").astype(float)
    slope = 255 / width * height / SIZE  # steps a pixel of the result
    shift = (ours - theirs) / slope
    assert np.abs(shift[:, 1:-1]).max() < 1 + 1 / slope
    assert np.abs(shift.mean()) < 1


FORMULAS = {  # from 8-bit RGB, as the publishers write them
    "imagenet": lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    "symmetric": lambda x: x / 127.5 - 1,
    "caffe": lambda x: x[..., ::-1] - [103.939, 116.779, 123.68],
}


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
def test_inputs_are_the_publishers_formula_of_every_value(name):
    values = np.stack([np.arange(256), np.arange(256)[::-1], np.roll(np.arange(256), 99)], -1)
    content = encoded(values.astype(np.uint8).reshape(16, 16, 3))
    found = preprocessing.our_inputs(content, 16, name)
    expected = FORMULAS[name](values.reshape(16, 16, 3).astype(np.float64))
    assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
def test_steps_are_those_of_8_bit_pixels(name):
    dark, light = (
        preprocessing.our_inputs(encoded(np.full((8, 8, 3), value, np.uint8)), 8, name)
        for value in (100, 103)
    )
    assert_allclose(preprocessing.steps(dark, light, name), 3.0, atol=1e-3)


def test_a_difference_above_its_bound_is_a_miss(capsys):
    content = encoded(noise(SIZE, SIZE))

    def shifted(content):
        return preprocessing.our_inputs(content, SIZE, "symmetric") + 2 / 255  # one step

    def judged(theirs, **bounds):
        row = preprocessing.Row("row", "symmetric", theirs, True, **bounds)
        return preprocessing.report([row], [content], SIZE)

    assert judged(shifted, largest=1.01)
    assert not judged(shifted, largest=0.99)
    assert not judged(shifted, mean=0.99)
    assert not judged(lambda content: jnp.nan * shifted(content), mean=9.0)
    assert capsys.readouterr().out.count("MISS") == 3


def test_the_centred_square_is_cut_at_whole_pixels():
    pixels = noise(10, 15)
    with Image.open(io.BytesIO(preprocessing.centred_square(encoded(pixels)))) as image:
        assert_array_equal(np.asarray(image), pixels[:, 2:12])


def test_generated_files_are_wide_jpegs_grey_and_colour():
    modes = []
    for content in preprocessing.generated():
        with Image.open(io.BytesIO(content)) as image:
            modes.append(image.mode)
            assert image.format == "JPEG"
            assert image.width > image.height
    assert modes == ["L", "L", "RGB", "RGB"]
