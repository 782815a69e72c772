"""Our networks are the published ones: what those compute is in tests/golden/*.npz.

Weights are seeded, with nothing hidden behind zeros and ones; `tools/make_golden.py` made the
files, `make parity` compares live, and at the full sizes of all.
"""

import functools
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from medadv_jax.models import HEAD, create_model
from tools import originals
from tools.originals import (
    BATCH,
    BOUNDS,
    GRADIENT_STEP,
    STATISTICS_STEP,
    difference,
    gradient_difference,
)

# Each network runs once: compiling is what takes the time.
QUICK_TO_COMPILE = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
FILES = sorted((Path(__file__).parents[2] / "golden").glob("*.npz"))


@functools.cache
def load(path):
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def parse(path):
    source, rest = path.stem.split("_", 1)
    arch, size = rest.rsplit("_", 1)
    return source, arch, int(size)


def shapes_of(path):
    listed = json.loads(str(load(path)["shapes"]))
    return {name: tuple(shape) for name, shape in listed.items()}


def our_shapes(source, arch):
    images = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
    net = create_model(arch, num_classes=1000, **originals.LAYOUTS[source].OPTIONS[arch])
    variables: Any = jax.eval_shape(net.init, jax.random.key(0), images)
    leaves: Any = flatten_dict(variables)
    return {path: leaf.shape for path, leaf in leaves.items()}


def test_every_network_of_every_source_has_a_file():
    found = {parse(path)[:2] for path in FILES}
    wanted = {(source, arch) for source in originals.LAYOUTS for arch in originals.IMAGE_SIZE}
    assert found == wanted


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_map_uses_every_array_of_the_original_once_and_fills_every_one_of_ours(path):
    source, arch, _ = parse(path)
    layout = originals.LAYOUTS[source]
    sources, shapes = layout.sources(arch), shapes_of(path)
    names = [origin.name for origin in sources.values()]
    assert len(names) == len(set(names))
    left = set(shapes) - set(names)
    assert all(any(re.fullmatch(each, name) for each in layout.IGNORED) for name in left)
    ours = {
        place: origin.transform(np.empty(shapes[origin.name], np.float32)).shape
        for place, origin in sources.items()
    }
    assert ours == our_shapes(source, arch)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_head_is_just_the_dense_layers(path):
    """So a file without a head lacks the arrays of `HEAD` and no others."""
    source, arch, _ = parse(path)
    sources, shapes = originals.LAYOUTS[source].sources(arch), shapes_of(path)
    dense = {place[1] for place, origin in sources.items() if len(shapes[origin.name]) == 2}
    assert dense == {place[1] for place in sources if place[1] in HEAD[arch]}
    assert dense == {"fc", *(("fc1", "fc2") if arch.startswith("vgg") else ())}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_network_is_the_original(path):
    source, arch, size = parse(path)
    golden, shapes = load(path), shapes_of(path)
    images = originals.seeded_images(BATCH, size)
    ours = originals.our_outputs(source, arch, images, shapes, QUICK_TO_COMPILE)
    assert difference(ours.logits, golden["logits"]) < BOUNDS["logits"]
    gradient = ours.gradient[:, ::GRADIENT_STEP, ::GRADIENT_STEP]
    assert gradient_difference(gradient, golden["gradient"]) < BOUNDS["gradient"]
    kept = {name for name in golden if name.startswith("statistics:")}
    assert bool(kept) == (not arch.startswith("vgg"))
    for name, statistic in ours.statistics.items():
        start = originals.seeded_weight(name, shapes[name])[::STATISTICS_STEP]
        moved = golden[f"statistics:{name}"] - start
        assert float(np.abs(moved).max()) > 1e-4  # the original did move
        assert difference(statistic[::STATISTICS_STEP] - start, moved) < BOUNDS["statistics"]
