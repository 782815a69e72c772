"""The robust accuracy of any function from pixels to logits: `medadv_jax.evaluate`.

result = medadv_jax.evaluate(model, pixels, labels, epsilon=8 / 255, attacks="autoattack")
print(result.summary())
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from medadv_jax.attacks import Attack, make_attack
from medadv_jax.attacks.autoattack import AutoAttack
from medadv_jax.attacks.norms import BALLS
from medadv_jax.attacks.restriction import FREE
from medadv_jax.evaluation.checks.function_checks import Attempt, Evidence, check_function
from medadv_jax.evaluation.function_under_test import FunctionUnderTest
from medadv_jax.evaluation.model_under_test import is_correct
from medadv_jax.evaluation.robustness import AttackRecord, Robustness
from medadv_jax.progress import StageProgress, default_console

CHECK_IMAGES = 200


def evaluate(
    logits_fn: Callable[..., Any],
    pixels: Any,
    labels: Any,
    epsilon: float = 8 / 255,
    norm: str = "linf",
    attacks: str | Sequence[Any] = "autoattack",
    *,
    surrogates: Sequence[Callable[..., Any]] = (),
    batch_size: int = 32,
    seed: int = 0,
    check_images: int = CHECK_IMAGES,
    progress: bool = True,
) -> Robustness:
    """Attacks a classifier, and checks whether the result can be trusted.

    Each attack runs on all images that are correct when clean. A result for an image depends on
    neither batch size nor order, up to rounding. Accuracies are those of `logits_fn` on the images
    that the attacks return, whatever the attacks believe.

    Args:
      logits_fn: pixels (N, H, W, C) float32 in [0, 1] -> logits (N, K), K ≥ 2, not probabilities.
        Normalisation belongs inside. Treats every image alone, as a network in evaluation mode
        does. Any function that JAX can trace and differentiate; of other libraries through
        `jax.pure_callback`.
      pixels: (n, H, W, C) floating, in [0, 1].
      labels: (n,) integer, the true classes, 0 … K - 1.
      epsilon: radius of the ball, in pixels of [0, 1].
      norm: "linf" or "l2".
      attacks: names of `ATTACKS` and `EVALUATION_ATTACKS`, comma-separated, at their published
        settings (PGD, BIM, MI-FGSM: 10 steps); or a sequence of names and results of `make_attack`
        of this ε and norm. For a randomised classifier `make_attack("autoattack", epsilon,
        version="rand")` alone: `logits_fn` then takes pixels and a key for each image (N,).
      surrogates: functions of the form of `logits_fn` whose gradients the attacks follow as well,
        such as one with a straight-through gradient (BPDA, Athalye et al. 2018); for each image
        the worst counts.
      batch_size: images at a time.
      seed: of all random draws.
      check_images: how many images the checks use, drawn at random; 0: no checks.
      progress: whether to show a bar on a terminal, or lines elsewhere, on standard output.

    Raises:
      ValueError: for input that cannot be evaluated, with the remedy: pixels outside [0, 1] or
        integer, labels that are one-hot or out of range, one logit, NaN or infinite logits, a
        function that JAX cannot trace, an unknown attack.
    """
    epsilon = float(epsilon)
    images, chosen = as_images(pixels), choose_attacks(attacks, epsilon, norm)
    if batch_size < 1 or check_images < 0:
        raise ValueError(f"batch_size={batch_size} must be at least 1, check_images not negative")
    function = FunctionUnderTest(
        logits_fn, surrogates, images.shape[1:], min(batch_size, max(len(images), 2)), norm,
        _randomized(chosen), seed,
    )  # fmt: skip
    classes = as_labels(labels, len(images), function.num_classes)
    logits = function.logits(images)
    if not np.isfinite(logits).all():
        first = int((~np.isfinite(logits)).any(axis=1).argmax())
        raise ValueError(f"logits_fn: the logits of image {first} are NaN or infinite")
    console = default_console() if progress else Console(file=sys.stdout, quiet=True)
    run = _Run(function, images, classes, logits, console)
    correct = np.stack([run.attack(attack) for attack in chosen], axis=1)
    found = Robustness(
        attacks=tuple(attack.name for attack in chosen), epsilon=epsilon, norm=norm,
        labels=classes, predicted=logits.argmax(axis=1).astype(np.int32), correct=correct,
        broken_by=np.array(run.broken_by), pixels=run.pixels, records=tuple(run.records),
    )  # fmt: skip
    return run.checked(found, check_images, seed)


class _Run:
    """The attacks on one function, and what they left behind."""

    def __init__(
        self,
        function: FunctionUnderTest,
        images: np.ndarray,
        labels: np.ndarray,
        logits: np.ndarray,
        console: Console,
    ):
        self._function, self._images, self._labels = function, images, labels
        self._logits, self._console = logits, console
        self._clean = is_correct(logits, labels)
        self.pixels = images.copy()
        self.broken_by = ["" if correct else "clean" for correct in self._clean]
        self.records: list[AttackRecord] = []
        self._attempts: list[Attempt] = []

    def attack(self, attack: Any) -> np.ndarray:
        """Runs an attack, or the parts of a set in turn; returns which images stand (n,)."""
        standing = self._clean.copy()
        if not isinstance(attack, AutoAttack):
            self._run_part(attack.name, attack, standing, self._function.key)
            return standing
        for number, part in enumerate(attack.components(self._function.num_classes)):
            key = jax.random.fold_in(self._function.key, number)
            self._run_part(attack.name, part, standing, key)
        return standing

    def _run_part(self, name: str, part: Any, standing: np.ndarray, key: jax.Array) -> None:
        """Attacks the images that stand (n,), and marks those that fall."""
        start, rows = time.perf_counter(), np.flatnonzero(standing)
        total = self._function.count_runs(part, len(rows))
        with StageProgress(self._console, f"evaluate {part.name}", total, unit="runs") as progress:
            found = self._function.attack(
                part, self._images[rows], self._labels[rows], key, progress.advance
            )
        broken = found.broken_through >= 0
        for row, adversarial in zip(rows[broken], found.pixels[broken], strict=True):
            if not self.broken_by[row]:
                self.broken_by[row], self.pixels[row] = part.name, adversarial
        standing[rows[broken]] = False
        self._attempts.append(Attempt(part, rows, found))
        seconds = time.perf_counter() - start
        self.records.append(
            AttackRecord(name, part.name, len(rows), int(broken.sum()), found.passes, seconds)
        )

    def checked(self, found: Robustness, count: int, seed: int) -> Robustness:
        """Returns the results with the checks, which use `count` images."""
        return found if not count else check_function(
            found,
            Evidence(
                function=self._function, images=self._images, logits=self._logits,
                attempts=tuple(self._attempts),
            ),
            count, seed, self._console,
        )  # fmt: skip


def as_images(pixels: Any) -> np.ndarray:
    """Returns (n, H, W, C) float32; ValueError if they are no pixels of [0, 1]."""
    if not jnp.issubdtype(getattr(pixels, "dtype", np.asarray(pixels).dtype), jnp.floating):
        raise ValueError("pixels: not floating; give pixels / 255 where they are uint8")
    images = np.asarray(pixels, np.float32)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"pixels: of shape {images.shape}, not (n, H, W, C)")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"pixels: from {low:g} to {high:g}, not in [0, 1]; put normalisation inside logits_fn"
        )
    return images


def as_labels(labels: Any, count: int, num_classes: int) -> np.ndarray:
    """Returns (n,) int32; ValueError if they are not the classes of n images."""
    found = np.asarray(labels)
    if found.ndim == 2:
        raise ValueError(f"labels: of shape {found.shape}; one-hot? give labels.argmax(axis=1)")
    if found.shape != (count,) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(f"labels: {found.dtype} {found.shape}, not integers ({count},)")
    if found.min() < 0 or found.max() >= num_classes:
        raise ValueError(
            f"labels: from {found.min()} to {found.max()}, but logits_fn has classes 0 to"
            f" {num_classes - 1}"
        )
    return found.astype(np.int32)


def choose_attacks(attacks: str | Sequence[Any], epsilon: float, norm: str) -> list[Any]:
    """Returns attacks by name at this ε and norm; ValueError for what does not exist or fit."""
    if norm not in BALLS:
        raise ValueError(f"norm={norm!r}: known are {', '.join(sorted(BALLS))}")
    named = attacks.split(",") if isinstance(attacks, str) else attacks
    chosen = [_by_name(each, epsilon, norm) if isinstance(each, str) else each for each in named]
    if not chosen:
        raise ValueError("attacks: none; give names, such as 'autoattack'")
    for attack in chosen:
        if (attack.epsilon, attack.norm) != (epsilon, norm):
            raise ValueError(
                f"attack {attack.name}: of ε = {attack.epsilon:g} ({attack.norm}), not"
                f" ε = {epsilon:g} ({norm})"
            )
        if getattr(attack, "targeted", False):
            raise ValueError(f"attack {attack.name}: targeted; labels are the true classes here")
        if attack.restriction != FREE:
            raise ValueError(f"attack {attack.name}: restricted, and the checks attack every pixel")
    names = [attack.name for attack in chosen]
    if len({*names}) < len(names):
        raise ValueError(f"attacks: {', '.join(names)}: a name stands twice")
    return chosen


def _by_name(name: str, epsilon: float, norm: str) -> Any:
    options: dict[str, Any] = {"norm": norm}
    attack = make_attack(name.strip(), epsilon, **options)
    # FGSM's result is where its step ends, as in its paper; others keep their strongest point.
    if isinstance(attack, Attack) and attack.name != "fgsm":
        return make_attack(name.strip(), epsilon, keep_best=True, **options)
    return attack


def _randomized(attacks: Sequence[Any]) -> AutoAttack | None:
    """Returns the set that draws keys for `logits_fn`, if it is the attack; else None."""
    drawing = [
        attack
        for attack in attacks
        if getattr(attack, "samples", 0) or getattr(attack, "version", "") == "rand"
    ]
    if not drawing:
        return None
    if len(attacks) > 1 or not isinstance(drawing[0], AutoAttack):
        raise ValueError(
            "attacks: a randomised logits_fn is evaluated by autoattack of version 'rand' alone"
        )
    return drawing[0]
