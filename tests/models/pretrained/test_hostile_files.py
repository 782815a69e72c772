"""Files made to take time or memory without end, and damaged ones, end in one line."""

import os
import resource
import time

import numpy as np
import pytest

from medadv_jax.errors import UserError
from medadv_jax.models.pretrained import read
from medadv_jax.models.pretrained.read import read_weights
from tests.helpers import weight_files
from tests.models.pretrained.test_read import NUMBERS, OURS, equal, refusal, written


def legacy_of(**programs):
    """A legacy file with other programs in place of some of its pickles."""
    parts = {
        "magic": weight_files.pickled(0x1950A86A20F9469CFC6C),
        "protocol": weight_files.pickled(1001),
        "system": weight_files.pickled({"little_endian": True}),
        "state": weight_files.pickled({"a": weight_files.tensor(OURS, (6,))}),
        "keys": weight_files.pickled(["0"]),
    }
    return b"".join({**parts, **programs}.values())


NESTED = weight_files.nested_tuples(100)
WIDE = b"](" + b"K\x01" * 20_000 + b"eq\x00"  # a list of 20,000 numbers, the first of the memo
PAIRS = b"ccollections\nOrderedDict\n](" + b"h\x00" * 20_000 + b"e\x85R"
ENDLESS = {
    "its byte order": legacy_of(protocol=b"\x80\x02" + NESTED + b"."),
    "list of its storages": legacy_of(keys=b"\x80\x02](" + NESTED + b"e."),
    "a dictionary is damaged": legacy_of(state=b"\x80\x02" + WIDE + PAIRS + b"."),
}


@pytest.mark.parametrize("reason", ENDLESS)
def test_small_pickles_of_endless_work_end_in_one_line(tmp_path, reason):
    path = tmp_path / "w.pth"
    path.write_bytes(ENDLESS[reason])
    began = time.monotonic()
    assert reason in refusal(path)
    assert time.monotonic() - began < 5


def test_nested_tuples_beside_the_tensors_do_no_harm(tmp_path):
    program = b"\x80\x02}(X\x01\x00\x00\x00a" + NESTED + b"X\x01\x00\x00\x00b"
    program += weight_files.pickled(weight_files.tensor(OURS, (6,)))[2:-1] + b"u."
    entries = {"archive/data.pkl": program, "archive/data/0": NUMBERS.tobytes()}
    (tmp_path / "w.pth").write_bytes(weight_files.zip_of(entries))
    equal(read_weights(tmp_path / "w.pth").arrays, {"b": NUMBERS})


def test_pipes_devices_and_sparse_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    assert "not a regular file" in refusal(tmp_path / "pipe.pth")
    (tmp_path / "zero.pth").symlink_to("/dev/zero")
    assert "not a regular file" in refusal(tmp_path / "zero.pth")
    sparse = tmp_path / "sparse.pth"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for start in (b"\x80\x02", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", bytes(8) + b"{"):
        for size in (3 << 30, 6 << 30):
            sparse.write_bytes(start)
            os.truncate(sparse, size)
            assert ("no file of weights needs" in refusal(sparse)) == (size > 4 << 30)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_arrays_of_more_than_any_network_are_not_read(tmp_path):
    """A sparse file that is a valid safetensors file of 3 GiB."""
    header = b'{"a":{"dtype":"F32","shape":[805306368],"data_offsets":[0,3221225472]}}'
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + (3 << 30))
    assert "more than any network" in refusal(path)


def test_a_listing_that_crashes_or_takes_too_long_is_one_line(tmp_path, monkeypatch):
    path = weight_files.safetensors(tmp_path / "w.safetensors", {"a": NUMBERS})
    for signal, words in ("SIGSEGV", "crashes"), ("SIGXCPU", "more time or memory"):
        program = tmp_path / f"{signal}.py"
        program.write_text(f"import os, signal\nos.kill(os.getpid(), signal.{signal})\n")
        monkeypatch.setattr(read, "_LISTING", program)
        assert words in refusal(path)


def mutated(whole, rng):
    """A few bytes changed, blocks overwritten, cut out or doubled."""
    contents = bytearray(whole)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(contents)))
        match rng.integers(5):
            case 0 | 1:
                contents[place] = rng.integers(256)
            case 2:
                extreme = [b"\xff" * 8, bytes(8), b"\xff" * 7 + b"\x7f", b"\x00" * 5 + b"\x01"]
                contents[place : place + 8] = extreme[rng.integers(4)]
            case 3:
                del contents[place : place + int(rng.integers(1, 9))]
            case 4:
                contents[place:place] = contents[place : place + 16]
        if not contents:
            return b"x"
    return bytes(contents)


@pytest.mark.parametrize(
    ("kind", "count"), [("zip", 25), ("legacy", 25), ("safetensors", 25), ("h5", 8)]
)
def test_mutated_files_end_in_a_user_error_or_are_read(tmp_path, kind, count):
    """No other exception, no crash, and no memory beyond some times the file: 64 MiB for all."""
    path = written(tmp_path)[kind]
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(count):
        path.write_bytes(mutated(whole, rng))
        try:
            read_weights(path)
        except UserError:
            refused += 1
    assert refused > count / 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB
