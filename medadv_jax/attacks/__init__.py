"""Attacks on `logits_fn(pixels)`, and the table that names them.

    attack = make_attack("pgd", epsilon=0.03, step_size=0.0075, num_steps=10)
    adversarial = attack(logits_fn, images, labels, key)

Images, radii and steps are in pixels of [0, 1]; normalisation and purifier belong inside
`logits_fn`. A first-order attack is a choice of numbers for the loop of `lanes.py`. To add one,
write a function that returns an `Attack` and name it in `ATTACKS`:

    def _fast(epsilon, step_size, num_steps, **options):
        "One step of 1.25 ε from a random point (Wong et al. 2020)."
        return Attack("fast", epsilon, 1.25 * epsilon, 1, random_start=True, **options)

    ATTACKS = {..., "fast": _fast}

It then trains and evaluates by that name, in lanes and in the attack queue. Another geometry is a
ball in `norms.py`, another objective a function in `losses.py`; each has a table of its own.
"""

from collections.abc import Callable
from typing import Any

import jax

from medadv_jax.attacks.losses import LOSSES
from medadv_jax.attacks.norms import BALLS
from medadv_jax.attacks.run import Attack, run_assigned, run_attacks
from medadv_jax.attacks.spec import LogitsFn

__all__ = ["ATTACKS", "Attack", "LogitsFn", "make_attack", "run_assigned", "run_attacks"]

Scalar = float | jax.Array


def _fgsm(epsilon: Scalar, step_size: Scalar | None, num_steps: int, **options: Any) -> Attack:
    """One step of ε (Goodfellow et al. 2015, section 4); step size and number are ignored."""
    del step_size, num_steps
    return Attack("fgsm", epsilon, epsilon, 1, **options)


def _bim(epsilon: Scalar, step_size: Scalar | None, num_steps: int, **options: Any) -> Attack:
    """Steps from the image itself (Kurakin et al. 2017, eq. 2)."""
    step_size = 2.5 * epsilon / num_steps if step_size is None else step_size
    return Attack("bim", epsilon, step_size, num_steps, **options)


def _pgd(epsilon: Scalar, step_size: Scalar | None, num_steps: int, **options: Any) -> Attack:
    """Steps from a random point of the ball (Madry et al. 2018, section 2.1)."""
    step_size = 2.5 * epsilon / num_steps if step_size is None else step_size
    return Attack("pgd", epsilon, step_size, num_steps, random_start=True, **options)


def _mifgsm(
    epsilon: Scalar,
    step_size: Scalar | None,
    num_steps: int,
    decay: Scalar = 1.0,
    **options: Any,
) -> Attack:
    """Steps along accumulated gradients (Dong et al. 2018, algorithm 1: step ε / T, μ = 1)."""
    step_size = epsilon / num_steps if step_size is None else step_size
    return Attack("mifgsm", epsilon, step_size, num_steps, decay=decay, **options)


def make_attack(
    name: str,
    epsilon: Scalar,
    step_size: Scalar | None = None,
    num_steps: int = 10,
    **options: Any,
) -> Attack:
    """Returns an attack by name.

    Args:
      name: a key of `ATTACKS`.
      epsilon: radius of the ball, in pixels of [0, 1].
      step_size: length of a step; None: 2.5 ε / num_steps (PGD, BIM) or ε / num_steps (MI-FGSM).
        FGSM ignores it: its step is ε.
      num_steps: gradient steps; FGSM takes one.
      **options: further fields of `Attack`: norm, loss, targeted, num_restarts, keep_best,
        early_stop; and `decay` for MI-FGSM.

    Raises:
      ValueError: for an unknown name, norm or loss, or an impossible number.
    """
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}: known are {', '.join(sorted(ATTACKS))}")
    for field, known in (("norm", BALLS), ("loss", LOSSES)):
        if field in options and options[field] not in known:
            raise ValueError(f"{field}={options[field]!r}: known are {', '.join(sorted(known))}")
    return ATTACKS[name](epsilon, step_size, num_steps, **options)


ATTACKS: dict[str, Callable[..., Attack]] = {
    "fgsm": _fgsm,
    "pgd": _pgd,
    "bim": _bim,
    "mifgsm": _mifgsm,
}
