"""Checks that a peer computes the same as we do; otherwise its times do not count.

Logits: maximum difference relative to the largest logit, on the clean images. Attacks: the rise
of the mean loss from the same start, measured with our float32 network for both, so that only the
adversarial images differ. The libraries take no start, so there PGD begins at the image, as BIM.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import ALL, ATTACKS, EPSILON, Case
from benchmarks.flops import CLASSES
from benchmarks.ours import Ours, case_config
from medadv_jax.attacks import make_attack
from medadv_jax.attacks.from_config import attack_from_config
from medadv_jax.attacks.losses import cross_entropy
from medadv_jax.classifier import Classifier
from medadv_jax.models import create_model

# Attacks step by the gradient's sign, so rounding flips the step of single pixels and the attacks
# diverge. On a GPU float32 is TF32, for both.
BOUNDS = {
    ("cpu", "float32"): {"logits": 1e-4, "loss": 0.02},
    ("gpu", "float32"): {"logits": 1e-2, "loss": 0.05},
    ("cpu", "bfloat16"): {"logits": 5e-2, "loss": 0.10},
    ("gpu", "bfloat16"): {"logits": 5e-2, "loss": 0.10},
}


class Agreement(NamedTuple):
    """A comparison with a peer and its errors."""

    peer: str
    attack: str
    place: str
    logits: float | None  # maximum relative error; None: compared with another peer
    loss: float  # relative difference of the rises
    ours: float  # rise of the mean loss under our attack
    theirs: float
    bounds: dict[str, float]

    @property
    def holds(self) -> bool:
        """Whether both errors are within their bounds; NaN is not."""
        same = self.logits is None or self.logits <= self.bounds["logits"]
        return same and self.loss <= self.bounds["loss"] and self.ours > 0

    def __str__(self) -> str:
        logits = "" if self.logits is None else f"logits differ by {self.logits:.1e}, "
        verdict = "agrees" if self.holds else "DISAGREES: its times do not count"
        return (
            f"{self.peer}, {self.place}, {self.attack}: {logits}the loss rises by "
            f"{self.theirs:.4g}, ours by {self.ours:.4g}: {verdict}"
        )


class Judge:
    """Compares peers with `ours`, for all cases of one network, size, batch and precision."""

    def __init__(self, ours: Ours):
        self._ours, case = ours, ours.case
        network = create_model(case.model, CLASSES)
        self._logits = jax.jit(Classifier(network, precision="default").logits)
        self._clean = self._loss(ours.pixels)
        self._rises: dict[Any, float] = {}
        platform = "cpu" if jax.default_backend() == "cpu" else "gpu"
        self._bounds = BOUNDS[platform, case.precision]

    def pytorch(self, peer: Any, name: str, case: Case) -> list[Agreement]:
        """Compares a `PyTorch` peer's logits, and its attacks from our start."""
        expected = self._ours.logits(self._ours.pixels)
        logits = float(np.abs(peer.logits() - expected).max() / np.abs(expected).max())
        found = []
        for attack in ATTACKS if case.attack == ALL else (case.attack or "fgsm",):
            start = self._start() if attack == "pgd" else None
            theirs = peer.adversarial(attack, max(1, case.num_steps), start)
            found.append(self._compare(name, attack, case, theirs, logits))
        return found

    def library(self, peer: Any, name: str, case: Case) -> list[Agreement]:
        """Compares a `Library` peer; its PGD without random start with our BIM."""
        theirs = peer.adversarial(case)
        if theirs is None:
            return []
        attack = "bim" if case.attack == "pgd" else case.attack or ""
        return [self._compare(name, attack, case, theirs, None)]

    def _compare(
        self, name: str, attack: str, case: Case, theirs: np.ndarray, logits: float | None
    ) -> Agreement:
        rise, ours = self._loss(theirs) - self._clean, self._rise(attack, case)
        return Agreement(
            name, attack, case.place, logits, abs(rise - ours) / abs(ours), ours, rise, self._bounds
        )

    def _rise(self, attack: str, case: Case) -> float:
        """Returns the rise of the mean loss under our attack."""
        key = (attack, case.num_steps)
        if key not in self._rises:
            steps = max(1, case.num_steps)
            made = attack_from_config(case_config(case), attack, steps)
            self._rises[key] = self._loss(self._ours.adversarial(made)) - self._clean
        return self._rises[key]

    def _start(self) -> np.ndarray:
        """Returns PGD's random start, which is the result of PGD with step size 0."""
        still = make_attack("pgd", EPSILON, step_size=0.0, num_steps=1)
        return np.asarray(self._ours.adversarial(still))

    def _loss(self, pixels: Any) -> float:
        """Returns the mean loss of our network, in float32."""
        logits = self._logits(self._ours.variables, jnp.asarray(pixels))
        return float(cross_entropy(logits, self._ours.batch["label"]).mean())
