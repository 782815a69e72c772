"""Self-checks of `evaluate`: can the robust accuracy of any function be trusted?

They carry the numbers and names of a run's checks, as far as a function alone can be asked: 1, 2,
4, 6 to 10 and 12.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from medadv_jax.attacks import make_attack
from medadv_jax.attacks.apgd import Apgd
from medadv_jax.attacks.fab import Fab
from medadv_jax.attacks.fmn import Fmn
from medadv_jax.attacks.square import Square
from medadv_jax.evaluation.checks.attack_checks import relative_gap
from medadv_jax.evaluation.checks.result import Check, check, judge, worst
from medadv_jax.evaluation.function_under_test import Attacked, FunctionUnderTest
from medadv_jax.evaluation.metrics import is_trivial, larger_class
from medadv_jax.evaluation.model_under_test import is_correct
from medadv_jax.evaluation.robustness import Robustness
from medadv_jax.progress import StageProgress

QUERIES, RANDOMIZED_QUERIES = 1000, 50  # of Square where the evaluation does not include it
STEPS = 10  # of PGD at other radii
RADII = (0.25, 0.5, 1.0, 2.0)  # of ε

_UNCONFIRMED = 0.005  # share of images whose attack succeeds in its own eyes only
_OVER = 1e-6  # pixels that rounding may add to ε; of an L2 radius, relative
_RISE = 0.005  # share of images by which accuracy may rise with the radius
_BLIND = 0.01  # share of images without a gradient
_OTHER = 0.01  # share of images that another kind of attack may break beside
_AGAIN = 1e-5  # relative difference of logits between two calls; kernels may add in any order
_MIXED = 1e-3  # relative change of an image's logits in another batch


class Attempt(NamedTuple):
    """An attack on some of the images.

    Attributes:
      attack: which.
      rows: (m,) int, positions of the images.
      found: on these.
    """

    attack: Any
    rows: np.ndarray
    found: Attacked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the checks look at, beside the results.

    Attributes:
      function: the classifier.
      images: (n, H, W, C) float32 in [0, 1].
      logits: (n, K) float32, of the images.
      attempts: of the evaluation.
    """

    function: FunctionUnderTest
    images: np.ndarray
    logits: np.ndarray
    attempts: tuple[Attempt, ...]


def check_function(
    found: Robustness, evidence: Evidence, count: int, seed: int, console: Console
) -> Robustness:
    """Returns the results with their checks, which use at most `count` images drawn at random."""
    n = len(found.labels)
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:count])
    with StageProgress(console, "evaluate checks", 9, unit="checks") as progress:
        checks = []
        for each in (
            _claims_are_confirmed, _stays_within, _larger_radius_breaks_more, _has_gradients,
            _no_other_breaks_more, _is_the_same_again, _are_logits, _no_logit_depends_on_the_batch,
            _is_not_trivial,
        ):  # fmt: skip
            checks.append(each(found, evidence, rows))
            progress.advance()
    return dataclasses.replace(found, checks=tuple(checks))


def _claims_are_confirmed(found: Robustness, evidence: Evidence, _: np.ndarray) -> Check:
    """1. What attacks believe to have broken is misclassified by the function itself."""
    n = len(found.labels)
    count = max(attempt.found.unconfirmed for attempt in evidence.attempts)
    return check(
        1, "", judge(count, n, _UNCONFIRMED), count / n,
        f"{count} of {n} images are broken in the eyes of an attack, and not when logits_fn sees"
        f" the result (limit {_UNCONFIRMED:g})",
    )  # fmt: skip


def _stays_within(found: Robustness, evidence: Evidence, _: np.ndarray) -> Check:
    """2. Adversarial images are finite, within [0, 1] and within ε."""
    change = (found.pixels - evidence.images).reshape(len(found.labels), -1).astype(np.float64)
    order = np.inf if found.norm == "linf" else 2
    over = float(np.linalg.norm(change, order, axis=1).max() - found.epsilon)
    good = over <= _OVER * max(1.0, found.epsilon) and np.isfinite(found.pixels).all()
    good = good and found.pixels.min() >= 0 and found.pixels.max() <= 1
    return check(
        2, "", "pass" if good else "fail", over,
        f"perturbations exceed ε by at most {over:.1e} (limit {_OVER:g}); pixels from"
        f" {found.pixels.min():g} to {found.pixels.max():g}",
    )  # fmt: skip


def _larger_radius_breaks_more(found: Robustness, evidence: Evidence, rows: np.ndarray) -> Check:
    """4. Accuracy does not rise with ε, and where every image can be reached it is chance."""
    images, labels, function = evidence.images[rows], found.labels[rows], evidence.function
    full = 1.0 if found.norm == "linf" else float(np.sqrt(images[0].size))
    radii = [radius * found.epsilon for radius in RADII] + [full]
    counts = []
    for radius in radii:
        attack = make_attack(
            "pgd", min(radius, full), num_steps=STEPS, norm=found.norm, keep_best=True
        )
        broken = function.attack(attack, images, labels, function.key).broken_through >= 0
        counts.append(int((is_correct(evidence.logits[rows], labels) & ~broken).sum()))
    n, chance = len(rows), larger_class(labels) / len(rows)
    rise = max(0, *(b - a for a, b in itertools.pairwise(counts)))
    text = ", ".join(f"{e:.3g}: {c / n:.3f}" for e, c in zip(radii, counts, strict=True))
    return check(
        4, "", worst((judge(rise, n, _RISE), judge(counts[-1], n, chance))), rise / n,
        f"accuracy under PGD by ε {text}; it may rise by {_RISE:g} and end at {chance:.3f};"
        f" {n} images",
    )  # fmt: skip


def _has_gradients(found: Robustness, evidence: Evidence, rows: np.ndarray) -> Check:
    """6. Few images have no gradient, and none has one that is NaN or infinite."""
    function, n, odd, zero = evidence.function, len(rows), 0, []
    for source in function.sources:
        gradients = function.gradients(evidence.images[rows], found.labels[rows], source)
        flat = gradients.reshape(n, -1)
        odd += int((~np.isfinite(flat)).any(axis=1).sum())
        zero.append(~flat.any(axis=1))
    blind, own = int(np.all(zero, axis=0).sum()), int(zero[0].sum())
    # A function without gradients is no obstacle where a surrogate has them: a warning.
    verdicts = (judge(blind, n, _BLIND), "warn" if own > _BLIND * n else "pass")
    return check(
        6, "", "fail" if odd else worst(verdicts), blind / n,
        f"share of images whose cross-entropy has a zero gradient {own / n:.3f}, with surrogates"
        f" {blind / n:.3f} (limit {_BLIND:g}); NaN or infinite: {odd} (limit 0); {n} images",
    )  # fmt: skip


def _no_other_breaks_more(found: Robustness, evidence: Evidence, rows: np.ndarray) -> Check:
    """7. No attack of another kind breaks what the gradients of the function left."""
    n, function, labels = len(found.labels), evidence.function, found.labels
    own, surrogate, free = _broken(evidence.attempts, n)
    left, size = rows[found.robust[rows]], len(rows)
    more = np.zeros(n, bool)
    others = _other_attacks(found, evidence.attempts, function.randomized)
    for attack in others:
        result = function.attack(attack, evidence.images[left], labels[left], function.key)
        more[left[result.broken_through >= 0]] = True
    gradients = any(not isinstance(attempt.attack, Square) for attempt in evidence.attempts)
    unseen, extra = int((free & ~own & ~surrogate).sum()) * gradients, int(more.sum())
    through = int((surrogate & ~own).sum())
    names = " and ".join(attack.name for attack in others)
    text = f"{names}: {extra} of {size} images" if others else "no further attack was needed"
    return check(
        7, "",
        worst((
            _strict(unseen, n, _OTHER), _strict(extra, size, _OTHER),
            "warn" if through > _OTHER * n else "pass",
        )),
        max(unseen / n, extra / size),
        f"beyond attacks with gradients, Square broke {unseen} of {n} images, surrogates"
        f" {through}; beyond all, {text}; limit {_OTHER:g}",
    )  # fmt: skip


def _broken(attempts: Sequence[Attempt], n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the images (n,) broken by own gradients, by those of surrogates, and by Square."""
    masks = np.zeros((3, n), bool)
    for attempt in attempts:
        through = attempt.found.broken_through
        if isinstance(attempt.attack, Square):
            masks[2][attempt.rows[through >= 0]] = True
        else:
            masks[0][attempt.rows[through == 0]] = True
            masks[1][attempt.rows[through > 0]] = True
    return masks[0], masks[1], masks[2]


def _other_attacks(found: Robustness, attempts: Sequence[Attempt], randomized: bool) -> list[Any]:
    """Returns attacks of kinds that the evaluation lacks: another with gradients, and Square."""
    ran = [attempt.attack for attempt in attempts]
    others = []
    if not any(isinstance(attack, Apgd) for attack in ran):
        others.append(make_attack("apgd", found.epsilon, norm=found.norm))
    elif not any(isinstance(attack, Fab | Fmn) for attack in ran) and not randomized:
        others.append(make_attack("fmn", found.epsilon, norm=found.norm))
    if not any(isinstance(attack, Square) for attack in ran):
        queries = RANDOMIZED_QUERIES if randomized else QUERIES
        others.append(make_attack("square", found.epsilon, num_steps=queries, norm=found.norm))
    return others


def _strict(count: int, n: int, limit: float) -> str:
    """Fails where more than the share `limit` fell; a single image is a warning."""
    return "pass" if count <= limit * n else "warn" if count == 1 else "fail"


def _is_the_same_again(found: Robustness, evidence: Evidence, rows: np.ndarray) -> Check:
    """8. Two calls give the same logits, else attacks must average over draws."""
    images, function = _batch(evidence, rows), evidence.function
    gap = relative_gap(function.call(images), function.call(images))
    remedy = (
        "; a randomised classifier needs its draws from an argument, logits_fn(pixels, keys), and"
        " make_attack('autoattack', epsilon, version='rand')"
    )
    return check(
        8, "", "pass" if gap <= _AGAIN else "fail", gap,
        f"logits of two calls differ by at most {gap:.1e} of their size (limit {_AGAIN:g})"
        + ("" if gap <= _AGAIN else remedy),
    )  # fmt: skip


def _are_logits(found: Robustness, evidence: Evidence, _: np.ndarray) -> Check:
    """9. The function returns logits in float32, not probabilities."""
    logits = evidence.logits.astype(np.float64)
    off = float(np.abs(logits.sum(axis=1) - 1).max())
    verdict, text = "pass", "logits are no probabilities"
    if evidence.function.dtype != np.float32:
        verdict = "warn"
        text = f"logits are {evidence.function.dtype}: compute the last layer in float32"
    if logits.min() >= 0 and off <= 1e-3:
        verdict = "fail"
        text = "logits are probabilities, as after softmax: return what goes into it"
    return check(9, "", verdict, off, f"{text}; rows sum to 1 up to {off:.1e}")


def _no_logit_depends_on_the_batch(
    found: Robustness, evidence: Evidence, rows: np.ndarray
) -> Check:
    """10. An image's logits depend on neither order nor the other images of its batch."""
    images, function = _batch(evidence, rows), evidence.function
    size = len(images)
    logits, gap = function.logits(images), 0.0
    padded = np.where(np.arange(size) < (size + 1) // 2, np.arange(size), 0)
    for order in (np.arange(size)[::-1], padded):
        gap = max(gap, relative_gap(function.logits(images[order]), logits[order]))
    remedy = "; put the model in evaluation mode (BatchNorm with running statistics, no dropout)"
    return check(
        10, "", "pass" if gap <= _MIXED else "fail", gap,
        f"logits in another order and beside other images differ by at most {gap:.1e} of their"
        f" size (limit {_MIXED:g}); {size} images" + ("" if gap <= _MIXED else remedy),
    )  # fmt: skip


def _is_not_trivial(found: Robustness, evidence: Evidence, _: np.ndarray) -> Check:
    """12. The classifier does better on clean images than to name one class always."""
    n, most = len(found.labels), larger_class(found.labels)
    # The same class for all is right where all labels are the same.
    trivial = is_trivial(found.labels, found.predicted) and most < n
    low, high = found.interval
    return check(
        12, "", "warn" if trivial else "pass", found.accuracy,
        f"clean {found.accuracy:.3f}, robust {found.robust_accuracy:.3f} ({low:.3f}–{high:.3f});"
        f" naming the most frequent class always is right in {most / n:.3f}; {n} images",
    )  # fmt: skip


def _batch(evidence: Evidence, rows: np.ndarray) -> np.ndarray:
    """Returns one batch of images (N, H, W, C), repeated if too few."""
    return evidence.images[rows[np.arange(evidence.function.slots) % len(rows)]]
