"""Times exported programs on one image, in a process of its own that has as many cores as threads.

    python benchmarks/latency.py --threads=1 --runs=200 FOLDER…    # JSON: folder -> seconds of runs

A folder is one of `scripts/export.py`. The programs take turns, so that other load on the machine
affects all of them. Prints JSON.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # works without an installed package

import numpy as np

_WARM_UP, _TURN = 10, 20  # runs; the second of a program before it is the next one's turn


def open_program(folder: Path, threads: int) -> Callable[[np.ndarray], object]:
    """Returns images (1, S, S, 3) uint8 -> anything, when done, of the program in a folder."""
    for path in folder.glob("*.onnx"):
        from medadv_jax.deployment.onnx_program import INPUT, open_onnx

        session = open_onnx(path, threads)
        return lambda images: session.run(None, {INPUT: images})
    from medadv_jax.deployment.read_stablehlo import load

    program = load(folder)
    return lambda images: np.asarray(program(images)[0])


def main() -> None:
    """Times the programs that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.threads])
    size = json.loads((given.folders[0] / "export.json").read_text())["image_size"]
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    programs = {str(folder): open_program(folder, given.threads) for folder in given.folders}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for run in programs.values():
        for _ in range(_WARM_UP):
            run(image)
    while min(map(len, seconds.values())) < given.runs:
        for name, run in programs.items():
            for _ in range(_TURN):
                start = time.perf_counter()
                run(image)
                seconds[name].append(time.perf_counter() - start)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
