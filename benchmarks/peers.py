"""All peers behind one interface: made from one network, give jobs, compared with ours."""

import dataclasses
from typing import Any

import numpy as np

from benchmarks import libraries, pytorch
from benchmarks.agreement import Agreement, Judge
from benchmarks.cases import VARIANTS, Case, Job
from medadv_jax.classifier import Variables


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another implementation of the cases.

    Attributes:
      name: as `Job.name`.
      program: a `PyTorch` or a `Library`.
    """

    name: str
    program: Any

    def job(self, case: Case) -> Job | None:
        """Returns the job of a case; None if the peer lacks it."""
        return self.program.job(case)

    def compare(self, judge: Judge, case: Case) -> list[Agreement]:
        """Returns the comparisons with ours."""
        if isinstance(self.program, pytorch.PyTorch):
            return judge.pytorch(self.program, self.name, case)
        return judge.library(self.program, self.name, case)

    def release(self) -> None:
        """Frees PyTorch's memory and compiled programs, of all peers."""
        pytorch.release()


def make_peers(
    names: list[str], case: Case, images: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, Peer], Variables]:
    """Returns the peers by name, and their weights as our variables.

    Args:
      names: of `VARIANTS` and `LIBRARIES`.
      case: any with this network, size, batch and precision.
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
