"""The cases to time, the jobs that run them, and two suites of cases."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

TASKS = ("clean_step", "attack", "adversarial_step", "evaluation")
ATTACKS = ("fgsm", "pgd", "bim", "mifgsm")
ALL = "all"  # the four together; see `Case.attack`
VARIANTS = ("eager", "compiled")  # of the PyTorch loop
LIBRARIES = ("torchattacks", "foolbox", "art")
EPSILON, RELATIVE_STEP, DECAY = 0.03, 2.5, 1.0  # as in configs/default.py


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
      task: one of `TASKS`.
      attack: one of `ATTACKS`; "all": in training each image gets one of the four, in an evaluation
        all of them; None: none.
      model: a name of `create_model`.
      image_size: pixels, height = width.
      batch: images a step, over all devices.
      precision: "float32" or "bfloat16", of the network's computation.
      devices: number of devices.
      num_steps: gradient steps of the attack; 0: none.
    """

    task: str
    attack: str | None
    model: str
    image_size: int
    batch: int
    precision: str
    devices: int = 1
    num_steps: int = 10

    @property
    def title(self) -> str:
        """Task, attack and number of steps, for people."""
        if self.attack is None:
            return self.task
        steps = "" if self.attack == "fgsm" else f"-{self.num_steps}"
        return f"{self.task} {self.attack}{steps}"

    @property
    def place(self) -> str:
        """Network, image size, batch and precision, for people."""
        return f"{self.model} {self.image_size} px, {self.batch} images, {self.precision}"


@dataclasses.dataclass(frozen=True)
class Group:
    """Cases of one network, size, batch, precision and number of devices, and their peers.

    Attributes:
      cases: at least one.
      peers: of `VARIANTS` and `LIBRARIES`; tasks that a peer lacks are skipped.
    """

    cases: tuple[Case, ...]
    peers: tuple[str, ...] = ()


@dataclasses.dataclass
class Job:
    """One implementation of a case, ready to run.

    Attributes:
      case: what it computes.
      implementation: its name in records.
      run: starts one run and returns a result for `wait`.
      wait: blocks until the run of a result is done.
      variant: of the implementation, "" if it has only one.
      memory: () -> (peak bytes since the last call or None, source of that number or None).
    """

    case: Case
    implementation: str
    run: Callable[[], Any]
    wait: Callable[[Any], Any]
    variant: str = ""
    memory: Callable[[], tuple[int | None, str | None]] = lambda: (None, None)

    @property
    def name(self) -> str:
        """Implementation and variant."""
        return f"{self.implementation} {self.variant}".strip()


def all_cases(
    tasks: Sequence[str], attacks: Sequence[str], num_steps: int, **place: Any
) -> tuple[Case, ...]:
    """Returns every case of `tasks`; `place` has model, image_size, batch, precision, devices."""
    cases = []
    for task in tasks:
        if task == "clean_step":
            cases.append(Case(task, None, **place, num_steps=0))
        elif task == "evaluation":
            cases.append(Case(task, ALL, **place, num_steps=num_steps))
        else:
            single = [attack for attack in attacks if attack != ALL or task == "adversarial_step"]
            cases += [Case(task, attack, **place, num_steps=num_steps) for attack in single]
    return tuple(cases)


def grid(
    models: Sequence[str],
    image_sizes: Sequence[int],
    batch_sizes: Sequence[int],
    precisions: Sequence[str],
    devices: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Yields every combination as the `place` of `all_cases`."""
    names = ("model", "image_size", "batch", "precision", "devices")
    for values in itertools.product(models, image_sizes, batch_sizes, precisions, devices):
        yield dict(zip(names, values, strict=True))


def _cpu() -> list[Group]:
    """PGD-10, attacks and adversarial steps, beside PyTorch; once beside the libraries."""
    groups = []
    for size, batch in ((64, 32), (224, 8)):
        for place in grid(("resnet50", "vgg16"), (size,), (batch,), ("float32",), (1,)):
            cases = all_cases(("attack", "adversarial_step"), ("pgd",), 10, **place)
            libraries = LIBRARIES if size == 64 and place["model"] == "resnet50" else ()
            groups.append(Group(cases, (*VARIANTS, *libraries)))
    return groups


def _gpu() -> list[Group]:
    """The same at 224 px for four networks. The most informative groups come first, since the time
    budget may end it. `torch.compile` takes most of the time, so most of it comes last."""
    models = ("resnet50", "vgg16", "inception_v3", "vgg19")
    first, later = [], []
    for batch, precision in itertools.product((128, 32), ("bfloat16", "float32")):
        for place in grid(models, (224,), (batch,), (precision,), (1,)):
            cases = all_cases(("attack", "adversarial_step"), ("pgd",), 10, **place)
            compiled = (precision, batch) == ("bfloat16", 128)
            peers = VARIANTS if compiled else ("eager",)
            first.append(Group(cases, (*peers, *LIBRARIES)))
            if not compiled:
                later.append(Group(cases, VARIANTS))
    place = next(grid(("resnet50",), (224,), (128,), ("bfloat16",), (1,)))
    rest = [
        *all_cases(("clean_step", "evaluation"), (), 10, **place),
        *all_cases(("attack",), ("fgsm", "bim", "mifgsm"), 10, **place),
        *all_cases(("adversarial_step",), (ALL,), 10, **place),
    ]
    return [*first, Group(tuple(rest), ()), *later]


SUITES: dict[str, Callable[[], list[Group]]] = {"cpu": _cpu, "gpu": _gpu}
