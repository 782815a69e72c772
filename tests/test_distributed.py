"""One device, eight devices and two processes train the same; what they say to each other."""

import dataclasses
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from medadv_jax.data.loader import make_loader
from medadv_jax.distributed import along_data, use_own_settings
from tests.helpers.hlo import COLLECTIVE, computations, reachable
from tests.helpers.tiny import tiny_dataset

ROOT = Path(__file__).parents[1]
WORKER = ROOT / "tests" / "helpers" / "sharding_worker.py"


def _start(folder: Path, devices: int, *arguments: str) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"
        " --xla_backend_optimization_level=0",
    }
    command = [sys.executable, str(WORKER), str(folder), *arguments]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, cwd=ROOT, **pipe)


def _finish(workers: Sequence[subprocess.Popen], said: str) -> None:
    try:
        for worker in workers:
            output, _ = worker.communicate(timeout=300)
            assert worker.returncode == 0, output
            assert output.splitlines()[-1] == said
    finally:
        for worker in workers:
            worker.kill()


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the training on one device."""
    folder = tmp_path_factory.mktemp("one")
    _finish([_start(folder, 1)], "1 processes, 1 devices")
    return folder


@pytest.fixture(scope="module")
def eight_devices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the training on eight virtual devices."""
    folder = tmp_path_factory.mktemp("eight")
    _finish([_start(folder, 8)], "1 processes, 8 devices")
    return folder


def _assert_same_variables(first: Path, second: Path) -> None:
    one, other = (np.load(folder / "variables.npz") for folder in (first, second))
    assert set(one) == set(other)
    assert any("batch_stats" in name for name in one)
    for name in one:
        np.testing.assert_allclose(other[name], one[name], rtol=0, atol=1e-5, err_msg=name)


def test_eight_devices_train_what_one_does(one_device: Path, eight_devices: Path) -> None:
    _assert_same_variables(one_device, eight_devices)


def test_two_processes_train_what_one_does(one_device: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    workers = [
        _start(tmp_path, 2, coordinator, "--num_processes=2", f"--process_id={i}") for i in (0, 1)
    ]
    _finish(workers, "2 processes, 4 devices")
    _assert_same_variables(one_device, tmp_path)


def test_devices_reduce_gradients_and_nothing_within_the_attack(eight_devices: Path) -> None:
    parts = computations((eight_devices / "step.hlo").read_text())
    text = {name: "\n".join(lines) for name, lines in parts.items()}
    bodies = re.findall(
        r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)", "\n".join(text.values())
    )
    assert bodies, "the attack is no loop: there is nothing to look into"
    inside = reachable(text, [name for pair in bodies for name in pair])
    convolutions = [name for name in inside if " convolution(" in text[name]]
    assert convolutions, "no loop holds the network"
    assert not [name for name in inside if COLLECTIVE.search(text[name])]
    outside = "\n".join(text[name] for name in text.keys() - inside)
    reduced = [line for line in outside.splitlines() if COLLECTIVE.search(line)]
    assert {COLLECTIVE.findall(line)[0] for line in reduced} == {"all-reduce"}
    # One for all kernels' gradients. The others are of vectors: sums of BatchNorm over the batch,
    # forwards and backwards, in two layers.
    kernels = [line for line in reduced if re.search(r"f32\[\d+,", line.split(" all-reduce")[0])]
    assert len(kernels) == 1
    assert len(re.findall(r"f32\[\d+,", kernels[0].split(" all-reduce")[0])) == 3
    assert len(reduced) <= 1 + 2 * 2


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """What a mesh asks of a device."""

    id: int
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"


TOPOLOGIES = {
    # 4×4 chips by number, row by row; a process has 2×2 of them
    "v5e:4x4": [FakeDevice(y * 4 + x, y // 2 * 2 + x // 2) for y in range(4) for x in range(4)],
    "two slices": [FakeDevice(100_000 * (s + 1) + i, s) for s in range(2) for i in range(4)],
    "two machines, the second first": [FakeDevice(i, i // 4) for i in (*range(4, 8), *range(4))],
}


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_rows_follow_processes_whatever_the_topology(name: str) -> None:
    devices: Any = TOPOLOGIES[name]
    mesh = along_data(devices)
    rows = NamedSharding(mesh, PartitionSpec("data")).devices_indices_map((2 * len(devices),))
    of_process: dict[int, list[int]] = {}
    for device, (part,) in rows.items():
        start, stop, _ = part.indices(2 * len(devices))
        of_process.setdefault(device.process_index, []).extend(range(start, stop))
    share = 2 * len(devices) // len(of_process)
    for process, own in of_process.items():  # as `part` of `make_loader`
        assert sorted(own) == list(range(process * share, (process + 1) * share))


def test_settings_of_other_programs_do_not_reach_a_run() -> None:
    names = ("jax_enable_x64", "jax_numpy_dtype_promotion", "jax_default_prng_impl")
    before = {name: jax.config.values[name] for name in names}
    try:
        for name, value in zip(names, (True, "strict", "rbg"), strict=True):
            jax.config.update(name, value)
        use_own_settings()
        assert [jax.config.values[name] for name in names] == [False, "standard", "threefry2x32"]
        assert (jnp.arange(2) * jnp.float32(0.5)).dtype == jnp.float32
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_processes_read_their_parts_of_every_batch() -> None:
    dataset = tiny_dataset(22)
    whole = list(make_loader(dataset, range(22), 8, shuffle_seed=3, epoch=1, num_threads=0))
    parts = [
        list(
            make_loader(dataset, range(22), 8, shuffle_seed=3, epoch=1, part=(i, 4), num_threads=0)
        )
        for i in range(4)
    ]
    for number, batch in enumerate(whole):
        for name, array in batch.items():
            joined = np.concatenate([part[number][name] for part in parts])
            np.testing.assert_array_equal(joined, array)


def test_a_process_reads_no_image_of_the_others() -> None:
    dataset = tiny_dataset(16)
    read: list[int] = []

    class Source(list):
        def __getitem__(self, index: int) -> np.ndarray:  # pyright: ignore
            read.append(index)
            return super().__getitem__(index)

    object.__setattr__(
        dataset, "source", Source(dataset.source[i] for i in range(len(dataset.source)))
    )
    list(make_loader(dataset, range(16), 8, shuffle_seed=None, part=(1, 2), num_threads=0))
    assert read == [4, 5, 6, 7, 12, 13, 14, 15]
