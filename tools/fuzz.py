"""Fuzzes the readers of images and weight files.

    python -m tools.fuzz                                # 10,000 of each: make fuzz
    python -m tools.fuzz --images=200 --weights=0 --seed=7

Reading a mutated file must return a value or raise the reader's own error, within seconds and one
GiB of memory. A worker process reads the files, so a crash costs one file and is reported. File
number i of a kind depends on the seed and i alone: `--first=I --images=1` reproduces it.
"""

import argparse
import io
import os
import queue
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, JPEGBaseline8Bit, RLELossless

from tools.dicom_files import dicom_file

ROOT = Path(__file__).parents[1]
MAX_CPU_SECONDS = 10.0  # for one file
MAX_WALL_SECONDS = 300.0  # for one file, in case it blocks without computing
MEMORY = 1 << 30  # bytes at most, the libraries included
# Per cent of the files. HDF5 is listed in a process of its own, which takes a third of a second.
SHARES = {"zip": 30, "legacy": 28, "safetensors": 30, "h5": 6, "keras": 6}
_EXTREME = (b"\xff" * 8, bytes(8), b"\xff" * 7 + b"\x7f", b"\x00" * 5 + b"\x01")


def mutate(whole: bytes, rng: np.random.Generator) -> bytes:
    """Changes bytes; overwrites, removes or repeats blocks; sometimes truncates the file."""
    content = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        place, length = int(rng.integers(len(content))), int(rng.integers(1, 33))
        match rng.integers(16):
            case 0:
                del content[place + 1 :]
            case 1 | 2:
                del content[place : place + length]
            case 3 | 4:
                content[place:place] = content[place : place + length]
            case 5 | 6:
                content[place : place + 8] = _EXTREME[rng.integers(len(_EXTREME))]
            case 7 | 8 | 9:
                content[place] ^= 1 << int(rng.integers(8))
            case _:
                content[place] = rng.integers(256)
        content = content or bytearray(b"x")
    return bytes(content)


def mutate_deeply(whole: bytes, rng: np.random.Generator) -> bytes:
    """Like `mutate`; half of the time changes zip entries or PNG chunks and mends the checksums."""
    if rng.integers(2):
        return mutate(whole, rng)
    if whole[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            entries = {name: archive.read(name) for name in archive.namelist()}
        name = list(entries)[rng.integers(len(entries))]
        entries[name] = mutate(entries[name] or b"x", rng)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        return buffer.getvalue()
    content = mutate(whole, rng)
    return _with_checksums(content) if whole[:4] == b"\x89PNG" else content


def _with_checksums(png: bytes) -> bytes:
    """Recomputes the checksums of the chunks of a PNG file."""
    content, place = bytearray(png), 8
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place : place + 4], "big")
        if end + 4 > len(content):
            break
        content[end : end + 4] = zlib.crc32(content[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return bytes(content)


def image_files() -> dict[str, bytes]:
    """Returns a small image file for every supported format and its variants."""
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8))
    grey, deep = colours.convert("L"), Image.fromarray(np.full((24, 40), 3000, np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    forms: dict[str, tuple[Image.Image, str, dict]] = {
        "png": (colours, "png", {}),
        "png grey": (grey, "png", {}),
        "png palette": (colours.convert("P"), "png", {"transparency": 1}),
        "png alpha": (colours.convert("RGBA"), "png", {}),
        "png 16 bit": (deep, "png", {}),
        "jpeg": (colours, "jpeg", {"exif": exif}),
        "jpeg progressive": (colours, "jpeg", {"progressive": True}),
        "jpeg CMYK": (colours.convert("CMYK"), "jpeg", {}),
        "tiff": (colours, "tiff", {}),
        "tiff LZW": (deep, "tiff", {"compression": "tiff_lzw"}),
        "tiff deflate": (grey, "tiff", {"compression": "tiff_adobe_deflate"}),
        "bmp": (colours, "bmp", {}),
        "gif": (colours, "gif", {"save_all": True, "append_images": [grey]}),
        "webp": (colours, "webp", {}),
        "ppm": (colours, "ppm", {}),
    }
    saved = {name: _saved(image, kind, given) for name, (image, kind, given) in forms.items()}
    window: dict[str, Any] = {"WindowCenter": 2000, "WindowWidth": 900}
    window |= {"RescaleSlope": 2, "RescaleIntercept": -9}
    return saved | {
        "dicom": dicom_file(np.asarray(deep), BitsStored=12, **window),
        "dicom RLE": dicom_file(np.asarray(deep), RLELossless, compress=True),
        "dicom JPEG": dicom_file(
            np.asarray(grey), JPEGBaseline8Bit, PixelData=encapsulate([_saved(grey, "jpeg", {})])
        ),
        "dicom JPEG 2000": dicom_file(
            np.asarray(deep),
            JPEG2000,
            PixelData=encapsulate([_saved(deep, "jpeg2000", {"no_jp2": True})]),
        ),
        "dicom colour": dicom_file(np.asarray(colours)),
    }


def _saved(image: Image.Image, kind: str, options: dict) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def weight_files() -> dict[str, bytes]:
    """Returns a small weight file for every supported format."""
    from tests.models.pretrained import test_read

    with tempfile.TemporaryDirectory() as folder:
        return {name: path.read_bytes() for name, path in test_read.written(Path(folder)).items()}


def read_images(seed: int) -> Callable[[int], str]:
    """Returns file number -> outcome of reading that image."""
    from medadv_jax.data.bounded import BadImageError
    from medadv_jax.data.images import FITS, read_square

    originals = list(image_files().items())

    def read(number: int) -> str:
        rng = np.random.default_rng((seed, 0, number))
        name, whole = originals[number % len(originals)]
        try:
            image = read_square(mutate_deeply(whole, rng), 32, list(FITS)[number % 2])
        except BadImageError:
            return f"{name}\trefused"
        return f"{name}\tread" if image.shape == (32, 32, 3) else f"{name}\tBAD {image.shape}"

    return read


def read_weights(seed: int) -> Callable[[int], str]:
    """Returns file number -> outcome of reading that weight file."""
    from medadv_jax.errors import UserError
    from medadv_jax.models.pretrained.read import read_weights as read_file

    originals = weight_files()
    order = [name for name, share in SHARES.items() for _ in range(share)]
    order = np.random.default_rng(1).permutation(order).tolist()
    path = Path(tempfile.mkdtemp()) / "weights"

    def read(number: int) -> str:
        name = order[number % len(order)]
        rng = np.random.default_rng((seed, 1, number))
        path.write_bytes(mutate_deeply(originals[name], rng))
        try:
            found = read_file(path)
        except UserError as error:
            return f"{name}\t{'BAD two lines' if chr(10) in str(error) else 'refused'}"
        return f"{name}\tread" if found.arrays else f"{name}\tBAD nothing read"

    return read


READERS = {"images": read_images, "weights": read_weights}


def worker(kind: str, seed: int, first: int, last: int) -> None:
    """Reads the files of a kind; prints a line for each, and at the end the peak memory."""
    read = READERS[kind](seed)
    print("ready", flush=True)
    for number in range(first, last):
        try:
            outcome = read(number)
        except Exception as error:  # not the reader's own error
            outcome = f"{kind}\tBAD {type(error).__name__}: {' '.join(str(error).split())[:100]}"
        print(f"{number}\t{outcome}", flush=True)
    # RUSAGE_SELF would include the memory of the parent process before exec.
    status = Path("/proc/self/status").read_text()
    own = int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    peaks = [own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]
    print(f"peak\t{max(peaks)}", flush=True)


def fuzz(kind: str, count: int, seed: int, first: int = 0) -> tuple[Counter, list[str], int]:
    """Reads `count` files; after a crash or a hang it continues with the next file.

    Returns:
      (format, outcome) -> count; descriptions of failures; the peak memory in KiB.
    """
    found, wrong, peak, number = Counter(), [], 0, first
    while number < first + count:
        for line in _lines(kind, seed, number, first + count):
            if line.startswith("peak\t"):
                peak = max(peak, int(line.split("\t")[1]))
                number = first + count
            elif line.startswith("died"):
                wrong.append(f"{kind} {number}: {line}")
                number += 1
            else:
                at, form, outcome = line.split("\t")
                number = int(at) + 1
                found[form, outcome.split()[0]] += 1
                if outcome.startswith("BAD"):
                    wrong.append(f"{kind} {at}: {form}: {outcome}")
    return found, wrong, peak


def _lines(kind: str, seed: int, first: int, last: int) -> Iterator[str]:
    """Yields the lines of a worker, and "died …" if it crashes or hangs."""
    command = [sys.executable, "-m", "tools.fuzz", "worker", kind, *map(str, (seed, first, last))]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_pass_on, args=(process.stdout, lines), daemon=True).start()
        busy, seen, line = 0.0, time.monotonic(), ""
        while True:
            try:
                line = lines.get(timeout=1.0)
            except queue.Empty:
                cpu, wall = cpu_seconds(process.pid) - busy, time.monotonic() - seen
                if cpu > MAX_CPU_SECONDS or wall > MAX_WALL_SECONDS:
                    process.kill()
                    yield "died: hangs"
                    return
                continue
            if not line:
                break
            busy, seen = cpu_seconds(process.pid), time.monotonic()
            if line != "ready\n":
                yield line.rstrip("\n")
    if process.returncode:
        yield f"died: ended with {process.returncode}"


def _pass_on(stream: Any, lines: queue.SimpleQueue[str]) -> None:
    """Puts lines into the queue as they come, "" at the end."""
    for line in stream:
        lines.put(line)
    lines.put("")


def cpu_seconds(pid: int) -> float:
    """Returns the processor time of a process and its ended children; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Fuzzes both readers; prints a table; returns 1 after any failure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--weights", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    given = parser.parse_args()
    failed = False
    for kind in READERS:
        count = getattr(given, kind)
        if not count:
            continue
        began = time.monotonic()
        found, wrong, peak = fuzz(kind, count, given.seed, given.first)
        for form in sorted({form for form, _ in found}):
            counts = ", ".join(f"{n} {o}" for (f, o), n in sorted(found.items()) if f == form)
            print(f"  {form:18} {counts}")
        failed |= bool(wrong) or peak * 1024 > MEMORY
        print(f"{kind}: {sum(found.values())} files, {len(wrong)} wrong, peak {peak >> 10} MiB,"
              f" {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
        for line in wrong[:20]:
            print(f"  {line}")
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], *map(int, sys.argv[3:6]))
    else:
        sys.exit(main())
