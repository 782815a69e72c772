"""The peers under one roof: made from one network, asked for jobs, compared with ours."""

import dataclasses
from typing import Any

import numpy as np

from benchmarks import libraries, pytorch
from benchmarks.agreement import Agreement, Judge
from benchmarks.cases import VARIANTS, Case, Job
from medadv_jax.classifier import Variables


@dataclasses.dataclass(frozen=True)
class Peer:
    """One program beside ours.

    Attributes:
      name: as `Job.name`.
      program: a `PyTorch` or a `Library`.
    """

    name: str
    program: Any

    def job(self, case: Case) -> Job | None:
        """Returns the job of a case; None if there is none."""
        return self.program.job(case)

    def compare(self, judge: Judge, case: Case) -> list[Agreement]:
        """Returns what the judge says of a case."""
        if isinstance(self.program, pytorch.PyTorch):
            return judge.pytorch(self.program, self.name, case)
        return judge.library(self.program, self.name, case)

    def release(self) -> None:
        """Gives PyTorch's memory and programs back, everybody's."""
        pytorch.release()


def make_peers(
    names: list[str], case: Case, images: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, Peer], Variables]:
    """Returns the peers by name, and their weights as our variables.

    Args:
      names: of `VARIANTS` and `LIBRARIES`.
      case: any of the place.
      images: (B, H, W, 3) uint8.
      labels: (B,) int32.
    """
    pytorch.set_up()
    net = pytorch.make_network(case, images)
    peers = {}
    for name in names:
        if name in VARIANTS:
            program = pytorch.PyTorch(net, images, labels, name)
            peers[name] = Peer(f"pytorch {name}", program)
        else:
            peers[name] = Peer(name, libraries.Library(name, net, images, labels))
    return peers, pytorch.our_variables(case, net)
