"""Times clean steps, attacks, adversarial steps and evaluation, alone or beside other libraries.

    python benchmarks/run.py --tasks=attack --models=resnet50,vgg16 --image_sizes=64
    python benchmarks/run.py --suite=cpu --output=benchmark.json   # beside the peers
    python benchmarks/run.py --suite=gpu --output=benchmark.json   # in under nine minutes
    python benchmarks/run.py --growth                              # time against steps and batch
    python benchmarks/run.py --loader --starts                     # data loader; start of a run

Implementations of a case run in turn, so that other load on the machine affects all of them.
Needs jax, flax, optax and ml_collections; `--loader` and `--starts` need the full installation.
`--peers` and both suites include the peers that are installed (`make peers`). A peer's times count
only if its network and attack agree with ours.
"""

import dataclasses
import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# JAX and PyTorch share the GPU, so JAX must not allocate all of it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.insert(0, str(Path(__file__).parents[1]))  # works without an installed package

import jax
from absl import app, flags, logging

from benchmarks import report
from benchmarks.agreement import Agreement, Judge
from benchmarks.cases import (
    ALL,
    ATTACKS,
    LIBRARIES,
    SUITES,
    TASKS,
    VARIANTS,
    Case,
    Group,
    Job,
    all_cases,
    grid,
)
from benchmarks.flops import Peak, compiler_check, copy_bytes_per_second
from benchmarks.growth import measure_growth
from benchmarks.ours import Ours, make_images
from benchmarks.timing import measure
from medadv_jax.distributed import enable_compilation_cache

_SUITE = flags.DEFINE_enum("suite", None, sorted(SUITES), "A prepared list of cases, with peers.")
_TASKS = flags.DEFINE_list("tasks", list(TASKS), f"Out of {', '.join(TASKS)}.")
_ATTACKS = flags.DEFINE_list(
    "attacks", ["pgd"], f"Out of {', '.join(ATTACKS)}, {ALL}: steps against all four."
)
_MODELS = flags.DEFINE_list("models", ["resnet50"], "Networks.")
_SIZES = flags.DEFINE_list("image_sizes", ["64"], "Pixels, height = width.")
_BATCHES = flags.DEFINE_list("batch_sizes", ["32"], "Images a step, over all devices.")
_PRECISIONS = flags.DEFINE_list("precisions", ["float32"], "float32, bfloat16: of the network.")
_DEVICES = flags.DEFINE_list("devices", ["1"], "Numbers of devices.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 10, "Steps of the attacks.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 5, "Timed runs of each, after two.", lower_bound=1)
_PEERS = flags.DEFINE_bool("peers", False, "Also time every installed peer.")
_PEER_NAMES = flags.DEFINE_list(
    "peer_names", [*VARIANTS, *LIBRARIES], "Which peers; eager and compiled are PyTorch's."
)
_GROWTH = flags.DEFINE_bool("growth", False, "Also fit time against steps and batch.")
_LOADER = flags.DEFINE_bool("loader", False, "Also time the loader against clean steps.")
_STARTS = flags.DEFINE_bool("starts", False, "Also time a run until its first step, twice.")
_BUDGET = flags.DEFINE_float(
    "budget_seconds", 0.0, "Groups that would not end by then are left out and listed; 0: no "
    "limit, but 500 for the suite gpu."
)  # fmt: skip
_COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache", "", 'Folder of compiled programs, as config.compile_cache; "": none.'
)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for all results.")


def chosen_groups() -> list[Group]:
    """Returns the groups of cases that the flags ask for."""
    if _SUITE.value:
        return SUITES[_SUITE.value]()
    sizes, batches, devices = (
        [int(value) for value in flag.value] for flag in (_SIZES, _BATCHES, _DEVICES)
    )
    peers = (*VARIANTS, *LIBRARIES) if _PEERS.value else ()
    return [
        Group(all_cases(_TASKS.value, _ATTACKS.value, _NUM_STEPS.value, **place), peers)
        for place in grid(_MODELS.value, sizes, batches, _PRECISIONS.value, devices)
    ]


class Benchmark:
    """Runs groups and collects times, comparisons and failures."""

    def __init__(self, runs: int, budget: float):
        self._runs, self._end = runs, time.monotonic() + budget if budget else None
        self._longest = 0.0
        self.peak = Peak()
        self.timed: list[tuple[int, Any]] = []
        self.agreements: list[Agreement] = []
        self.failures: list[str] = []
        self.left_out: list[str] = []

    def run(self, number: int, group: Group) -> None:
        """Times a group, unless it would exceed the budget."""
        start, place = time.monotonic(), group.cases[0].place
        if self._end is not None and start + self._longest > self._end:
            self.left_out.append(f"{place}: {', '.join(('medadv_jax', *group.peers))}")
            return
        print(f"\n{place}", flush=True)
        self.peak.measure(group.cases[0].precision)
        ours, peers = self._prepare(group)
        for case in group.cases:
            self._run_case(number, case, ours, peers)
        if peers:
            peers[next(iter(peers))].release()
        self._longest = max(self._longest, time.monotonic() - start)

    def _prepare(self, group: Group) -> tuple[Ours, dict[str, Any]]:
        """Returns ours and the installed peers by name, all with the same weights."""
        case, names = group.cases[0], [name for name in group.peers if name in _PEER_NAMES.value]
        missing = [name for name in names if not _installed(name)]
        names = [name for name in names if name not in missing]
        if missing:
            self.left_out.append(f"{case.place}: {', '.join(missing)} (not installed)")
        if not names:
            return Ours(case), {}
        from benchmarks import peers  # needs PyTorch

        made, variables = peers.make_peers(names, case, *make_images(case))
        return Ours(case, variables), made

    def _run_case(self, number: int, case: Case, ours: Ours, peers: dict[str, Any]) -> None:
        """Times one case, ours and the peers' in turn; keeps the peers that agree with ours."""
        made = [ours.job(case), *(peer.job(case) for peer in peers.values())]
        timed = measure([job for job in made if job is not None], self._runs, self._failed)
        agreed = {"medadv_jax": True}
        judge = Judge(ours) if len(timed) > 1 else None
        for peer in peers.values():
            if judge is not None and any(each.job.name == peer.name for each in timed):
                found = peer.compare(judge, case)
                agreed[peer.name] = all(each.holds for each in found)
                self.agreements += found
                for each in found:
                    print(f"  {each}", flush=True)
        kept = [each for each in timed if agreed[each.job.name]]
        self.timed += [(number, each) for each in kept]
        print(f" {case.title}")
        report.print_records([report.make_record(each, self.peak) for each in kept])

    def _failed(self, job: Job, error: Exception) -> None:
        message = str(error).strip().splitlines() or [""]
        text = f"{job.name}, {job.case.title}, {job.case.place}: {type(error).__name__}"
        self.failures.append(f"{text}: {message[0][:200]}")
        print(f"  failed: {self.failures[-1]}", flush=True)

    def records(self) -> list[report.Record]:
        """Returns the records; `share_of_peak` refers to the highest measured peak."""
        return [{**report.make_record(t, self.peak), "group": n} for n, t in self.timed]


def _installed(peer: str) -> bool:
    modules = ["torch", "torchvision", *([peer] if peer in LIBRARIES else [])]
    return all(importlib.util.find_spec(module) is not None for module in modules)


def _checks(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Compares our FLOP counts with the compiler's, for each network and size."""
    places = {(case.model, case.image_size): None for group in groups for case in group.cases}
    return [compiler_check(*place) for place in places]


def measure_around(case: Case, failures: list[str]) -> dict[str, Any]:
    """Returns "growth", "loader" and "starts" for a case; None if not asked for or failed.

    Adds the failures to `failures`.
    """
    asked = {
        "growth": (_GROWTH.value, lambda: measure_growth(case, _RUNS.value)),
        "loader": (_LOADER.value, lambda: _loader(case)),
        "starts": (_STARTS.value, lambda: _starts(case)),
    }
    found: dict[str, Any] = dict.fromkeys(asked)
    for name, (wanted, measure_it) in asked.items():
        if not wanted:
            continue
        try:
            found[name] = measure_it()
        except Exception as error:  # keep the measurements before it
            failures.append(f"{name}: {type(error).__name__}: {error}")
    return found


# These two need the full installation, so they import lazily.


def _loader(case: Case) -> dict[str, Any]:
    from benchmarks.loading import measure_loader

    clean = dataclasses.replace(case, task="clean_step", attack=None, num_steps=0)
    return measure_loader(clean, _RUNS.value)


def _starts(case: Case) -> dict[str, Any]:
    from benchmarks.starts import measure_starts

    return measure_starts(dataclasses.replace(case, num_steps=_NUM_STEPS.value))


def _print_end(content: dict[str, Any]) -> None:
    if content["ratios"]:
        report.print_ratios(content["ratios"])
    for check in content["flops_checks"]:
        shares = [f"{name} {check[name]['ratio']:.3f}" for name in ("forward", "train")]
        verdict = "within the tolerance" if check["within"] else "NOT within the tolerance"
        name = f"{check['model']} {check['image_size']} px"
        print(f"the compiler's count of FLOPs / ours, {name}: {', '.join(shares)}: {verdict}")
    for name in ("failures", "left_out"):
        for line in content[name]:
            print(f"{name.replace('_', ' ')}: {line}")


def main(argv: list[str]) -> None:
    """Prints the tables; writes all results to --output."""
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]}: not a flag")
    logging.set_verbosity(logging.ERROR)
    start = time.monotonic()
    enable_compilation_cache(_COMPILE_CACHE.value)
    groups = chosen_groups()
    budget = _BUDGET.value or (500.0 if _SUITE.value == "gpu" else 0.0)
    benchmark = Benchmark(_RUNS.value, budget)
    machine = report.describe_machine()
    device = f"{machine['device_count']} × {machine['device']} ({machine['platform']})"
    print(f"jax {jax.__version__} on {device}; seconds: median (smallest–largest)")
    for number, group in enumerate(groups):
        benchmark.run(number, group)
    around = measure_around(groups[0].cases[0], benchmark.failures)
    records = benchmark.records()
    content = {
        **machine,
        "command": " ".join(sys.argv),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "peak_flops_per_second": benchmark.peak.flops,
        "copy_bytes_per_second": copy_bytes_per_second(),
        "flops_checks": _checks(groups),
        "agreements": [
            {**each._asdict(), "holds": each.holds, "text": str(each)}
            for each in benchmark.agreements
        ],
        "failures": benchmark.failures,
        "left_out": benchmark.left_out,
        **around,
        "ratios": report.ratios(records),
        "records": records,
        "total_seconds": time.monotonic() - start,
    }
    _print_end(content)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
