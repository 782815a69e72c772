"""The numbers that define a first-order attack; the loop in `lanes.py` reads them."""

import dataclasses
from collections.abc import Callable

import jax

from medadv_jax.attacks.inputs import check_count, check_decay, check_number, check_radius
from medadv_jax.attacks.restriction import FREE, Restriction

LogitsFn = Callable[[jax.Array], jax.Array]  # pixels (N, H, W, C) in [0, 1] -> logits (N, K)


@dataclasses.dataclass(frozen=True)
class AttackSpec:
    """A first-order attack inside a ball around the image, cut with the pixel range [0, 1].

    Start, step, projection and number of steps define an attack; every attack of `ATTACKS` is a
    choice of these fields.

    Attributes:
      name: the name in tables and records.
      epsilon: radius of the ball, in pixels of [0, 1]; at least 0, in L∞ at most 1. May be a
        traced scalar.
      step_size: length of one step in the norm of the ball; at least 0. May be a traced scalar.
      num_steps: gradient steps; at least 1.
      random_start: whether to start from a uniform draw from the ball, not from the image.
      decay: momentum decay μ of Dong et al. (2018), eq. 6; 0 follows the last gradient alone.
      norm: norm of ball and step, "linf" or "l2".
      loss: "cross_entropy" or "margin" (Carlini & Wagner 2017, the objective f6).
      targeted: whether labels name the class to reach, not the class to leave.
      num_restarts: independent random starts; the strongest result counts, for each example.
      keep_best: whether the strongest point visited is returned, not the last one.
      early_stop: whether an example that is already misclassified stays where it is.
      restriction: what of the image may be changed.
    """

    name: str
    epsilon: float | jax.Array
    step_size: float | jax.Array
    num_steps: int
    random_start: bool = False
    decay: float | jax.Array = 0.0
    norm: str = "linf"
    loss: str = "cross_entropy"
    targeted: bool = False
    num_restarts: int = 1
    keep_best: bool = False
    early_stop: bool = False
    restriction: Restriction = FREE

    def __post_init__(self):
        """Raises ValueError for impossible values."""
        check_radius(self.name, self.epsilon, self.norm)
        check_number(self.name, "step_size", self.step_size)
        check_count(self.name, "num_steps", self.num_steps)
        check_count(self.name, "num_restarts", self.num_restarts)
        check_decay(self.name, self.decay, self.num_steps)
        if self.num_restarts > 1 and not self.random_start:
            raise ValueError(f"{self.name}: restarts without a random start repeat one result")
