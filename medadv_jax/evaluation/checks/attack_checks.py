"""Self-checks that run the classifier: 1, 2, 3, 6, 8, 9, 10, and the attacks of 12.

Each is a function of a `ModelUnderTest`, or of `Findings` about it: the results of extra attacks,
which several checks read. They run through the programs that the evaluation compiled, and through
the model's attack queue.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.attacks import Attack
from medadv_jax.attacks.continuous_batching import AttackJob
from medadv_jax.attacks.from_config import (
    restricted_attack_from_config,
    restriction_from_config,
)
from medadv_jax.attacks.losses import LOSSES, cross_entropy
from medadv_jax.config import Config
from medadv_jax.evaluation.checks.result import Check, check, judge, share, worst
from medadv_jax.evaluation.model_under_test import ModelUnderTest, is_correct, margins
from medadv_jax.evaluation.predictor import scores
from medadv_jax.evaluation.robustness_curves import curve_attack

DRAWS = 5  # of noise; their lowest margin plants an adversarial example
RESTARTS = 2  # random starts beside those of the evaluation

_SEEN_WARN, _SEEN_FAIL = 1e-3, 2e-2  # relative difference of losses; bfloat16 comes near 1e-2
_OVER = 1e-6  # pixels that rounding may add to ε
_MIXED = 1e-3  # relative change of an example's logits or gradient in another batch
_STRONGER = 0.01  # share of images that the weaker of two attacks alone may break
_BLIND = 0.01  # share of images without a gradient
_OTHER_LOSS = 0.005  # share of images that another loss or temperature may break beside
_MISSED = 0.05  # share of planted examples that an attack may miss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Correct:
    """Which of n images stay correct under each attack, (n,) bool each.

    Attributes:
      pgd: PGD as in the evaluation.
      fgsm, bim: these.
      restarts: PGD, and PGD from more random starts.
      tempered: PGD, and PGD on logits divided by `Findings.temperature`.
      margin: PGD, and PGD with the margin loss.
    """

    pgd: np.ndarray
    fgsm: np.ndarray
    bim: np.ndarray
    restarts: np.ndarray
    tempered: np.ndarray
    margin: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """Results of the extra attacks on the n images of a model under test.

    Attributes:
      clean: (n, K) logits.
      noise: (DRAWS, n, K) logits of uniform noise in the ball.
      temperature: the mean margin of clean images.
      correct: under each attack.
      planted: (n,) bool, does the image have a planted adversarial example?
      missed: (n,) bool, does PGD miss it?
    """

    clean: np.ndarray
    noise: np.ndarray
    temperature: float
    correct: Correct
    planted: np.ndarray
    missed: np.ndarray


def find(model: ModelUnderTest, config: Config, left: np.ndarray) -> Findings:
    """Runs the extra attacks.

    Args:
      model: the model under test.
      config: of the run.
      left: (n,) bool, the images that PGD as in the evaluation leaves correct: only these are
        attacked by its variants.
    """
    epsilon, labels = float(config.attack.epsilon), model.labels
    clean = model.logits(model.images)
    noises = (model.noise(epsilon, draw, restriction_from_config(config)) for draw in range(DRAWS))
    noise = np.stack([model.logits(each) for each in noises])
    own, lowest = margins(clean, labels), np.min([margins(each, labels) for each in noise], axis=0)
    planted = own - lowest > 1e-5 * (1 + np.abs(own))
    shift = np.where(planted, (own + lowest) / 2, 0.0).astype(np.float32)
    temperature = max(float(np.abs(own).mean()), 1e-3)
    found = model.attack(_jobs(config, left, temperature, planted, shift), salt=1).logits
    fgsm, bim, restarts, tempered, margin = (is_correct(each, labels) for each in found[:5])
    correct = Correct(
        pgd=left, fgsm=fgsm, bim=bim,
        restarts=left & restarts, tempered=left & tempered, margin=left & margin,
    )  # fmt: skip
    return Findings(
        clean=clean, noise=noise, temperature=temperature, correct=correct,
        planted=planted, missed=planted & is_correct(found[5], labels, shift),
    )  # fmt: skip


def _jobs(
    config: Config, left: np.ndarray, temperature: float, planted: np.ndarray, shift: np.ndarray
) -> list[AttackJob]:
    """Returns the extra attacks, in the order in which `find` reads them."""
    steps = config.eval.num_steps
    pgd = dataclasses.replace(curve_attack(config), num_restarts=1)
    return [
        AttackJob(restricted_attack_from_config(config, "fgsm", steps)),
        AttackJob(restricted_attack_from_config(config, "bim", steps, keep_best=True)),
        AttackJob(dataclasses.replace(pgd, num_restarts=RESTARTS), active=left),
        AttackJob(pgd, temperature, active=left),
        AttackJob(dataclasses.replace(pgd, loss="margin"), active=left),
        AttackJob(pgd, shift=shift, active=planted),
    ]


def attacks_deployed(model: ModelUnderTest, epsilon: float) -> Check:
    """1. What attackers differentiate has the deployed classifier's values, on noisy images too."""
    _, labels = model.batch()
    gap = 0.0
    for points in (model.batch()[0], model.batch(model.noise(epsilon, 0))[0]):
        deployed = np.asarray(cross_entropy(jnp.asarray(model.logits(points)), jnp.asarray(labels)))
        for source in model.sources:
            seen = model.queue.gradients(source.variables, points, labels, source.gradient).loss
            gap = max(gap, _largest(np.abs(seen - deployed) / (1 + np.abs(deployed))))
    verdict = "pass" if gap <= _SEEN_WARN else "warn" if gap <= _SEEN_FAIL else "fail"
    return check(
        1, model.defense, verdict, gap,
        f"the losses that attackers see and those of the deployed classifier differ by at most"
        f" {gap:.1e} of their size (limit {_SEEN_WARN:g}); {len(labels)} images and noisy copies",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The evaluation's own attacks on the first batch of images.

    Attributes:
      pixels: for each source and attack (N, H, W, 3).
      attacks: the attack of each of `pixels`.
      changed: gradients of the sources whose variables were changed.
    """

    pixels: list[np.ndarray]
    attacks: list[Attack]
    changed: list[str]


def evaluate_again(model: ModelUnderTest, attacks: Sequence[Attack]) -> Evaluated:
    """Runs the evaluation's programs."""
    images, labels = model.batch()
    batch = model.queue.put(
        {"image": np.round(images * 255).astype(np.uint8), "label": labels.astype(np.int32)}
    )
    pixels, changed = [], []
    for source in model.sources:
        before = _digest(source.variables)
        found = model.predictor.attack(attacks, source, batch, jax.random.key(model.seed))
        pixels += [*np.asarray(found)]
        if _digest(source.variables) != before:
            changed.append(source.gradient)
    return Evaluated(pixels=pixels, attacks=[*attacks] * len(model.sources), changed=changed)


def stays_within(
    model: ModelUnderTest,
    evaluated: Evaluated,
    still: np.ndarray,
    record: Mapping[str, Any] | None = None,
) -> Check:
    """2. Perturbations are at most ε, pixels in [0, 1] and finite, and ε = 0 changes nothing.

    Args:
      model: the model under test.
      evaluated: first-order attacks on it.
      still: scores under an attack of ε = 0, as `predictor.scores` of all images.
      record: of the searching attacks on it, by name; see `write_attack_record`.
    """
    images, labels = model.batch()
    recorded = [*(record or {}).values()]
    over = max((each["exceeds"] for each in recorded), default=-np.inf)
    outside = max((each["outside"] for each in recorded), default=0.0)
    finite = all(np.isfinite(pixels).all() for pixels in evaluated.pixels)
    correct, rounded = [], []
    for pixels, attack in zip(evaluated.pixels, evaluated.attacks, strict=True):
        delta = (pixels - images).reshape(len(images), -1)
        order = np.inf if attack.norm == "linf" else 2
        over = max(over, float(np.linalg.norm(delta, order, axis=1).max() - attack.epsilon))
        outside = max(outside, float(-pixels.min()), float(pixels.max() - 1))
        correct.append(is_correct(model.logits(pixels), labels))
        grey = (np.round(pixels * 255) / 255).astype(np.float32)
        rounded.append(is_correct(model.logits(grey), labels))
    same = np.array_equal(still, scores(model.logits(model.images)))
    good = finite and over <= _OVER and outside <= 0 and same
    faults = "" if finite else "; NaN or infinite pixels"
    faults += "" if outside <= 0 else f"; pixels leave [0, 1] by {outside:.1e}"
    faults += "" if same else "; ε = 0 changes scores"
    accuracy, grey = (np.all(each, axis=0).mean() for each in (correct, rounded))
    return check(
        2, model.defense, "pass" if good else "fail", over if finite else None,
        f"perturbations exceed ε by at most {over:.1e} (limit {_OVER:g}){faults}; accuracy under"
        f" first-order attacks {accuracy:.3f}, after rounding to 8 bits {grey:.3f}; {len(images)}"
        f" images",
    )  # fmt: skip


def stronger_breaks_more(model: ModelUnderTest, findings: Findings) -> Check:
    """3. Accuracy falls from noise over FGSM and BIM to PGD with restarts."""
    n = len(model)
    correct = {
        "noise": is_correct(findings.noise[0], model.labels),
        "FGSM": findings.correct.fgsm,
        "BIM": findings.correct.bim,
        "PGD with restarts": findings.correct.restarts,
    }
    counts = [int(each.sum()) for each in correct.values()]
    rise = max(0, *(b - a for a, b in itertools.pairwise(counts)))
    text = ", ".join(f"{name} {share(c, n):.3f}" for name, c in zip(correct, counts, strict=True))
    return check(
        3, model.defense, judge(rise, n, _STRONGER), rise / n,
        f"accuracy under {text}: it may rise by {_STRONGER:g} in this order; {n} images",
    )  # fmt: skip


def has_gradients(model: ModelUnderTest) -> Check:
    """6. Few images have no gradient, and none has one that is NaN or infinite."""
    zero, odd = {}, 0
    for source in model.sources:
        found = [
            model.queue.gradients(source.variables, images, labels, source.gradient).gradient
            for images, labels in model.batches()
        ]
        gradient = np.concatenate(found)[: len(model)].reshape(len(model), -1)
        odd += int((~np.isfinite(gradient)).any(axis=1).sum())
        zero[source.gradient] = ~gradient.any(axis=1)
    blind, n = int(np.all([*zero.values()], axis=0).sum()), len(model)
    shares = ", ".join(f"{name} {of.mean():.3f}" for name, of in zero.items())
    # One kind of gradient may be missing if another is there: a warning.
    some = "warn" if max(int(of.sum()) for of in zero.values()) > _BLIND * n else "pass"
    verdict = "fail" if odd else worst((judge(blind, n, _BLIND), some))
    return check(
        6, model.defense, verdict, blind / n,
        f"share of images whose gradient is zero: {shares} (limit {_BLIND:g}); NaN or infinite:"
        f" {odd} (limit 0); {n} images",
    )  # fmt: skip


def is_the_same_again(model: ModelUnderTest, config: Config) -> Check:
    """8. Logits repeat to the bit, and so do attacks of one seed; restarts start elsewhere.

    Only a randomised classifier would need an average over draws.
    """
    images, labels = model.batch()
    source = model.sources[0]
    different = int((model.logits(images) != model.logits(images)).any(axis=1).sum())
    short = AttackJob(restricted_attack_from_config(config, "pgd", 2))
    key = jax.random.key(model.seed)
    first, second = (
        model.queue.run(source.variables, images, labels, [short], key, source.gradient)[0]
        for _ in range(2)
    )
    moved = int((first != second).any(axis=(1, 2, 3)).sum())
    epsilon = float(config.attack.epsilon)
    stuck = epsilon > 0 and np.array_equal(model.noise(epsilon, 0), model.noise(epsilon, 1))
    verdict = "fail" if different or stuck else "warn" if moved else "pass"
    why = "; all random starts are the same" if stuck else ""
    return check(
        8, model.defense, verdict, float(different),
        f"images whose logits change when asked again: {different}; whose attack changes with the"
        f" same seed: {moved} (limits 0){why}; {len(images)} images",
    )  # fmt: skip


def are_logits(model: ModelUnderTest, pgd: Attack, findings: Findings) -> Check:
    """9. Attackers see logits in float32; neither another loss nor a temperature breaks more."""
    n, labels = len(model), model.labels
    logits = findings.clean
    faults = [] if logits.dtype == np.float32 else [f"logits are {logits.dtype}"]
    sums = np.asarray(logits, np.float64).sum(axis=1)
    if logits.min() >= 0 and np.allclose(sums, 1, atol=1e-4):
        faults.append("logits are probabilities")
    if pgd.loss not in LOSSES:
        faults.append(f"unknown loss {pgd.loss}")
    correct = findings.correct
    left = correct.pgd & is_correct(logits, labels)
    tempered, other = (int((left & ~each).sum()) for each in (correct.tempered, correct.margin))
    broken = int((left & ~(correct.tempered & correct.margin)).sum())
    verdict = "fail" if faults else judge(broken, n, _OTHER_LOSS)
    return check(
        9, model.defense, verdict, broken / n,
        "".join(f"{fault}; " for fault in faults)
        + f"of the images that PGD leaves, logits over {findings.temperature:.3g} break {tempered},"
        f" the margin loss {other} (limit {_OTHER_LOSS:g} of {n} images)",
    )  # fmt: skip


def changes_nothing_else(model: ModelUnderTest, evaluated: Evaluated) -> Check:
    """10. Attacks change no variables; no logit and no gradient depends on the batch."""
    images, labels = model.batch()
    source, size = model.sources[0], len(images)
    backwards = np.arange(size)[::-1]
    padded = np.where(np.arange(size) < size // 2, np.arange(size), 0)
    logits = model.logits(images)
    gradient = model.queue.gradients(source.variables, images, labels, source.gradient).gradient
    gap = 0.0
    for rows in (backwards, padded):
        gap = max(gap, relative_gap(model.logits(images[rows]), logits[rows]))
        found = model.queue.gradients(
            source.variables, images[rows], labels[rows], source.gradient
        ).gradient
        gap = max(gap, relative_gap(found, gradient[rows]))
    good = gap <= _MIXED and not evaluated.changed
    fault = f"attacks changed the variables ({', '.join(evaluated.changed)}); "
    return check(
        10, model.defense, "pass" if good else "fail", gap,
        (fault if evaluated.changed else "variables unchanged; ")
        + f"logits and gradients in another order and beside other images differ by at most"
        f" {gap:.1e} of their size (limit {_MIXED:g}); {size} images",
    )  # fmt: skip


def finds_planted(findings: Findings) -> tuple[str, str]:
    """12, in part. PGD finds adversarial examples that were planted.

    The boundary of each image is moved to half way between the image and the most harmful of
    `DRAWS` noisy copies, so that one of these is misclassified. Returns verdict and explanation.
    """
    missed, n = int(findings.missed.sum()), int(findings.planted.sum())
    if not n:
        return "warn", "noise moves no logit, so that no adversarial example could be planted"
    text = f"PGD misses {missed} of {n} planted adversarial examples (limit {_MISSED:g})"
    return judge(missed, n, _MISSED), text


def relative_gap(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative difference of a row; infinite where one is NaN."""
    found, expected = (x.reshape(len(x), -1).astype(np.float64) for x in (found, expected))
    size = np.linalg.norm(expected, axis=1)
    with np.errstate(invalid="ignore"):
        return _largest(np.linalg.norm(found - expected, axis=1) / np.where(size > 0, size, 1.0))


def _largest(values: np.ndarray) -> float:
    """The largest of differences; infinite where one is NaN."""
    return float(np.where(np.isfinite(values), values, np.inf).max())


def _digest(variables: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
