"""Self-checks that ask the classifier: 1, 2, 3, 6, 8, 9, 10, and the attacks of 7 and 12.

Each is a function of a subject, or of `Findings` about it: what the extra attacks found, which
several checks read. They run through the programs that the evaluation compiled, and the subject's
sweep.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medadv_jax.attacks import Attack, make_attack
from medadv_jax.attacks.continuous_batching import AttackJob
from medadv_jax.attacks.losses import LOSSES, cross_entropy
from medadv_jax.attacks.square import square_attack
from medadv_jax.evaluation.checks.result import Check, check, judge, share, worst
from medadv_jax.evaluation.model_under_test import ModelUnderTest, is_right, margins, scores

DRAWS = 5  # of noise; their lowest margin plants an adversarial example
RESTARTS = 2  # random starts beside those of the evaluation
QUERIES = 100  # answers that the attack without gradients asks for each image

_SEEN_WARN, _SEEN_FAIL = 1e-3, 2e-2  # relative difference of losses; bfloat16 comes near 1e-2
_OVER = 1e-6  # pixels that rounding may add to ε
_MIXED = 1e-3  # relative change of an example's logits or gradient in another batch
_STRONGER = 0.01  # share of images that the weaker of two attacks alone may break
_BLIND = 0.01  # share of images without a gradient
_OTHER_LOSS = 0.005  # share of images that another loss or temperature may break beside
_MISSED = 0.05  # share of planted examples that an attack may miss


class Findings(NamedTuple):
    """What extra attacks found on a subject's n images.

    Attributes:
      clean: (n, K) logits.
      noise: (DRAWS, n, K) logits of uniform noise in the ball.
      left: (n,) bool, right under PGD as in the evaluation.
      fgsm, bim: (n,) bool, right under these.
      restarts: (n,) bool, right under PGD of more random starts too.
      tempered: (n,) bool, right under PGD of logits over `temperature` too.
      margin: (n,) bool, right under PGD of the margin loss too.
      planted: (n,) bool, does the image have a planted adversarial example?
      missed: (n,) bool, does PGD miss it?
      temperature: the mean margin of clean images.
      pgd: PGD as in the evaluation.
    """

    clean: np.ndarray
    noise: np.ndarray
    left: np.ndarray
    fgsm: np.ndarray
    bim: np.ndarray
    restarts: np.ndarray
    tempered: np.ndarray
    margin: np.ndarray
    planted: np.ndarray
    missed: np.ndarray
    temperature: float
    pgd: Attack


def find(subject: ModelUnderTest, pgd: Attack, left: np.ndarray) -> Findings:
    """Runs the extra attacks.

    Args:
      subject: who is attacked.
      pgd: PGD as in the evaluation.
      left: (n,) bool, the images that it leaves right: only these meet its variants.
    """
    labels = subject.labels
    clean = subject.logits(subject.images)
    noise = np.stack(
        [subject.logits(subject.noise(float(pgd.epsilon), draw)) for draw in range(DRAWS)]
    )
    own, lowest = margins(clean, labels), np.min([margins(each, labels) for each in noise], axis=0)
    planted = own - lowest > 1e-5 * (1 + np.abs(own))
    shift = np.where(planted, (own + lowest) / 2, 0.0).astype(np.float32)
    temperature = max(float(np.abs(own).mean()), 1e-3)
    common: dict[str, Any] = {"norm": pgd.norm, "num_steps": pgd.num_steps}
    again = {"step_size": pgd.step_size, "keep_best": True, **common}
    jobs = [
        AttackJob(make_attack("fgsm", pgd.epsilon, norm=pgd.norm)),
        AttackJob(make_attack("bim", pgd.epsilon, **again)),
        AttackJob(make_attack("pgd", pgd.epsilon, num_restarts=RESTARTS, **again), active=left),
        AttackJob(make_attack("pgd", pgd.epsilon, **again), temperature, active=left),
        AttackJob(make_attack("pgd", pgd.epsilon, loss="margin", **again), active=left),
        AttackJob(make_attack("pgd", pgd.epsilon, **again), shift=shift, active=planted),
    ]
    found = subject.attack(jobs, salt=1).logits
    fgsm, bim, restarts, tempered, margin = (is_right(each, labels) for each in found[:5])
    return Findings(
        clean=clean, noise=noise, left=left, fgsm=fgsm, bim=bim, restarts=left & restarts,
        tempered=left & tempered, margin=left & margin, planted=planted,
        missed=planted & is_right(found[5], labels, shift), temperature=temperature, pgd=pgd,
    )  # fmt: skip


def attacks_deployed(subject: ModelUnderTest, epsilon: float) -> Check:
    """1. What attackers differentiate has the deployed classifier's values, on noisy images too."""
    _, labels = subject.batch()
    gap = 0.0
    for points in (subject.batch()[0], subject.batch(subject.noise(epsilon, 0))[0]):
        deployed = np.asarray(
            cross_entropy(jnp.asarray(subject.logits(points)), jnp.asarray(labels))
        )
        for source in subject.sources:
            seen = subject.queue.gradients(source.variables, points, labels, source.gradient).loss
            gap = max(gap, _largest(np.abs(seen - deployed) / (1 + np.abs(deployed))))
    verdict = "pass" if gap <= _SEEN_WARN else "warn" if gap <= _SEEN_FAIL else "fail"
    return check(
        1, subject.defense, verdict, gap,
        f"the losses that attackers see and those of the deployed classifier differ by at most"
        f" {gap:.1e} of their size (limit {_SEEN_WARN:g}); {len(labels)} images and noisy copies",
    )  # fmt: skip


class Evaluated(NamedTuple):
    """The evaluation's own attacks on the first batch of a subject.

    Attributes:
      pixels: for each source and attack (N, H, W, 3).
      attacks: the attack of each of `pixels`.
      changed: names of the sources whose variables are others than before.
    """

    pixels: list[np.ndarray]
    attacks: list[Attack]
    changed: list[str]


def evaluate_again(subject: ModelUnderTest, attacks: Sequence[Attack]) -> Evaluated:
    """Runs the evaluation's programs."""
    images, labels = subject.batch()
    batch = subject.queue.put(
        {"image": np.round(images * 255).astype(np.uint8), "label": labels.astype(np.int32)}
    )
    pixels, changed = [], []
    for source in subject.sources:
        before = _digest(source.variables)
        found = subject.predictor.attack(attacks, source, batch, jax.random.key(subject.seed))
        pixels += [*np.asarray(found)]
        if _digest(source.variables) != before:
            changed.append(source.gradient)
    return Evaluated(pixels, [*attacks] * len(subject.sources), changed)


def stays_within(subject: ModelUnderTest, evaluated: Evaluated, still: np.ndarray) -> Check:
    """2. Perturbations are at most ε, pixels in [0, 1] and finite, and ε = 0 changes nothing.

    Args:
      subject: who was attacked.
      evaluated: by what.
      still: (n,) float32, scores under an attack of ε = 0.
    """
    images, labels = subject.batch()
    finite = all(np.isfinite(pixels).all() for pixels in evaluated.pixels)
    over, outside, rights, rounded = -np.inf, 0.0, [], []
    for pixels, attack in zip(evaluated.pixels, evaluated.attacks, strict=True):
        delta = (pixels - images).reshape(len(images), -1)
        order = np.inf if attack.norm == "linf" else 2
        over = max(over, float(np.linalg.norm(delta, order, axis=1).max() - attack.epsilon))
        outside = max(outside, float(-pixels.min()), float(pixels.max() - 1))
        rights.append(is_right(subject.logits(pixels), labels))
        grey = (np.round(pixels * 255) / 255).astype(np.float32)
        rounded.append(is_right(subject.logits(grey), labels))
    same = np.array_equal(still, scores(subject.logits(subject.images)))
    good = finite and over <= _OVER and outside <= 0 and same
    faults = "" if finite else "; NaN or infinite pixels"
    faults += "" if outside <= 0 else f"; pixels leave [0, 1] by {outside:.1e}"
    faults += "" if same else "; ε = 0 changes scores"
    accuracy, grey = (np.all(each, axis=0).mean() for each in (rights, rounded))
    return check(
        2, subject.defense, "pass" if good else "fail", over if finite else None,
        f"perturbations exceed ε by at most {over:.1e} (limit {_OVER:g}){faults}; accuracy under"
        f" all attacks {accuracy:.3f}, after rounding to 8 bits {grey:.3f}; {len(images)} images",
    )  # fmt: skip


def stronger_breaks_more(subject: ModelUnderTest, findings: Findings) -> Check:
    """3. Accuracy falls from noise over FGSM and BIM to PGD with restarts."""
    n = len(subject)
    right = {
        "noise": is_right(findings.noise[0], subject.labels),
        "FGSM": findings.fgsm,
        "BIM": findings.bim,
        "PGD with restarts": findings.restarts,
    }
    counts = [int(each.sum()) for each in right.values()]
    rise = max(0, *(b - a for a, b in itertools.pairwise(counts)))
    text = ", ".join(f"{name} {share(c, n):.3f}" for name, c in zip(right, counts, strict=True))
    return check(
        3, subject.defense, judge(rise, n, _STRONGER), rise / n,
        f"accuracy under {text}: it may rise by {_STRONGER:g} in this order; {n} images",
    )  # fmt: skip


def has_gradients(subject: ModelUnderTest) -> Check:
    """6. Few images without a gradient, none with one that is no number."""
    zero, odd = {}, 0
    for source in subject.sources:
        found = [
            subject.queue.gradients(source.variables, images, labels, source.gradient).gradient
            for images, labels in subject.batches()
        ]
        gradient = np.concatenate(found)[: len(subject)].reshape(len(subject), -1)
        odd += int((~np.isfinite(gradient)).any(axis=1).sum())
        zero[source.gradient] = ~gradient.any(axis=1)
    blind, n = int(np.all([*zero.values()], axis=0).sum()), len(subject)
    shares = ", ".join(f"{name} {of.mean():.3f}" for name, of in zero.items())
    # One kind of gradient may be missing, if another is there; then one should know.
    some = "warn" if max(int(of.sum()) for of in zero.values()) > _BLIND * n else "pass"
    verdict = "fail" if odd else worst((judge(blind, n, _BLIND), some))
    return check(
        6, subject.defense, verdict, blind / n,
        f"share of images whose gradient is zero: {shares} (limit {_BLIND:g}); NaN or infinite:"
        f" {odd} (limit 0); {n} images",
    )  # fmt: skip


def without_gradients(
    subject: ModelUnderTest, pgd: Attack, left: np.ndarray
) -> tuple[int, int, str] | None:
    """7, in part. Attacks the images `left` (n,) by answers alone.

    Returns (fallen, attacked, the attack in words); None for a norm that it does not know.
    """
    if pgd.norm != "linf":
        return None
    words = f"a search without gradients in {QUERIES} queries"
    positions = np.flatnonzero(left)
    if not len(positions):
        return 0, 0, words
    labels = subject.labels[positions]
    _, found = square_attack(
        lambda pixels, rows: margins(subject.logits(pixels), labels[rows]),
        subject.images[positions], float(pgd.epsilon), QUERIES, subject.seed,
    )  # fmt: skip
    return int((found <= 0).sum()), len(positions), words


def is_the_same_again(subject: ModelUnderTest, pgd: Attack) -> Check:
    """8. Answers repeat to the bit, and so do attacks of one seed; restarts start elsewhere.

    Only a classifier that draws its answers could need an average over draws.
    """
    images, labels = subject.batch()
    source = subject.sources[0]
    different = int((subject.logits(images) != subject.logits(images)).any(axis=1).sum())
    short = AttackJob(make_attack("pgd", pgd.epsilon, num_steps=2, norm=pgd.norm))
    key = jax.random.key(subject.seed)
    first, second = (
        subject.queue.run(source.variables, images, labels, [short], key, source.gradient)[0]
        for _ in range(2)
    )
    moved = int((first != second).any(axis=(1, 2, 3)).sum())
    epsilon = float(pgd.epsilon)
    stuck = epsilon > 0 and np.array_equal(subject.noise(epsilon, 0), subject.noise(epsilon, 1))
    verdict = "fail" if different or stuck else "warn" if moved else "pass"
    why = "; all random starts are the same" if stuck else ""
    return check(
        8, subject.defense, verdict, float(different),
        f"images whose logits change when asked again: {different}; whose attack changes with the"
        f" same seed: {moved} (limits 0){why}; {len(images)} images",
    )  # fmt: skip


def are_logits(subject: ModelUnderTest, findings: Findings) -> Check:
    """9. Attackers see logits in float32; neither another loss nor a temperature helps them."""
    n, labels = len(subject), subject.labels
    logits = findings.clean
    faults = [] if logits.dtype == np.float32 else [f"logits are {logits.dtype}"]
    sums = np.asarray(logits, np.float64).sum(axis=1)
    if logits.min() >= 0 and np.allclose(sums, 1, atol=1e-4):
        faults.append("logits are probabilities")
    if findings.pgd.loss not in LOSSES:
        faults.append(f"unknown loss {findings.pgd.loss}")
    left = findings.left & is_right(logits, labels)
    tempered, other = (int((left & ~right).sum()) for right in (findings.tempered, findings.margin))
    broken = int((left & ~(findings.tempered & findings.margin)).sum())
    verdict = "fail" if faults else judge(broken, n, _OTHER_LOSS)
    return check(
        9, subject.defense, verdict, broken / n,
        "".join(f"{fault}; " for fault in faults)
        + f"of the images that PGD leaves, logits over {findings.temperature:.3g} break {tempered},"
        f" the margin loss {other} (limit {_OTHER_LOSS:g} of {n} images)",
    )  # fmt: skip


def changes_nothing_else(subject: ModelUnderTest, evaluated: Evaluated) -> Check:
    """10. Attacks leave the variables alone; no answer and no gradient depends on the batch."""
    images, labels = subject.batch()
    source, size = subject.sources[0], len(images)
    backwards = np.arange(size)[::-1]
    padded = np.where(np.arange(size) < size // 2, np.arange(size), 0)
    logits = subject.logits(images)
    gradient = subject.queue.gradients(source.variables, images, labels, source.gradient).gradient
    gap = 0.0
    for rows in (backwards, padded):
        gap = max(gap, _gap(subject.logits(images[rows]), logits[rows]))
        found = subject.queue.gradients(
            source.variables, images[rows], labels[rows], source.gradient
        ).gradient
        gap = max(gap, _gap(found, gradient[rows]))
    good = gap <= _MIXED and not evaluated.changed
    fault = f"attacks changed the variables ({', '.join(evaluated.changed)}); "
    return check(
        10, subject.defense, "pass" if good else "fail", gap,
        (fault if evaluated.changed else "variables unchanged; ")
        + f"logits and gradients in another order and beside other images differ by at most"
        f" {gap:.1e} of their size (limit {_MIXED:g}); {size} images",
    )  # fmt: skip


def finds_planted(findings: Findings) -> tuple[str, str]:
    """12, in part. PGD finds adversarial examples that are there.

    The boundary of each image is moved to half way between the image and the most harmful of
    `DRAWS` noisy copies, so that one of these is misclassified. Returns verdict and explanation.
    """
    missed, n = int(findings.missed.sum()), int(findings.planted.sum())
    if not n:
        return "warn", "noise moves no logit, so that no adversarial example could be planted"
    text = f"PGD misses {missed} of {n} planted adversarial examples (limit {_MISSED:g})"
    return judge(missed, n, _MISSED), text


def _gap(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative difference of a row."""
    found, expected = (x.reshape(len(x), -1).astype(np.float64) for x in (found, expected))
    size = np.linalg.norm(expected, axis=1)
    size = np.where(size > 0, size, 1.0)
    return _largest(np.linalg.norm(found - expected, axis=1) / size)


def _largest(values: np.ndarray) -> float:
    """The largest of differences; infinite where one is no number."""
    return float(np.where(np.isfinite(values), values, np.inf).max())


def _digest(variables: Any) -> str:
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
