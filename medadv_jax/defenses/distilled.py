"""Distillation of a robust network into a narrower one, which learns to answer attacked images as
its teacher answers the clean ones (Goldblum et al. 2020)."""

import dataclasses

import jax
import jax.numpy as jnp

from medadv_jax.attacks.losses import cross_entropy
from medadv_jax.classifier import Classifier, Variables
from medadv_jax.defenses.objectives import (
    Batch,
    Examples,
    Loss,
    kl_divergence,
    weighted_sum,
)


@dataclasses.dataclass(frozen=True)
class Student(Classifier):
    """A classifier beside its teacher, whose variables are `variables["teacher"]`."""

    teacher: Classifier | None = None

    def teacher_logits(self, variables: Variables, pixels: jax.Array) -> jax.Array:
        """Returns the deployed teacher's logits (B, K), without a gradient."""
        assert self.teacher is not None, "a student learns from a teacher"
        gradient = "full" if self.teacher.purifier is not None else "bare"
        logits = self.teacher.logits(variables["teacher"], pixels, gradient)
        return jax.lax.stop_gradient(logits)


def distillation_loss(
    classifier: Classifier,
    variables: Variables,
    examples: Examples,
    batch: Batch,
    key: jax.Array,
    *,
    temperature: float,
) -> Loss:
    """Returns the loss of adversarially robust distillation (Goldblum et al. 2020, eq. 3):

        α t² KL(softmax(T(x) / t) ‖ softmax(S(x + δ) / t)) + (1 - α) · cross-entropy(S(x), y)

    S and T are the logits of student and teacher, x a clean image, x + δ its attacked version. The
    divergence is the one of the authors' code: the teacher's probabilities weight it.

    Args:
      classifier: a `Student`, in train mode.
      variables: its own and its teacher's.
      examples: column 0 is clean, the others attacked; α and 1 - α are in the weights.
      batch: labels and mask.
      key: dropout's.
      temperature: t.

    Returns:
      The loss, and as metrics accuracy, adversarial_accuracy (the mean over attacked columns), and
      agreement: of the student on attacked images with its teacher on the clean ones.
    """
    assert isinstance(classifier, Student)
    columns = examples.images.shape[1]
    flat = examples.images.reshape(-1, *examples.images.shape[2:])
    logits, batch_stats = classifier.train_logits(variables, flat, key)
    logits = logits.reshape(-1, columns, logits.shape[-1])
    taught = classifier.teacher_logits(variables, examples.images[:, 0])
    divergence = kl_divergence(taught[:, None] / temperature, logits[:, 1:] / temperature)
    own = cross_entropy(logits[:, 0], batch.labels)
    losses = jnp.concatenate([own[:, None], temperature**2 * divergence], axis=1)
    count = jnp.maximum(jnp.sum(batch.mask), 1.0)

    def share(right: jax.Array) -> jax.Array:
        return jnp.sum(right.mean(axis=1) * batch.mask) / count

    predicted, labels = logits.argmax(axis=-1), batch.labels[:, None]
    metrics = {
        "accuracy": share(predicted[:, :1] == labels),
        "adversarial_accuracy": share(predicted[:, 1:] == labels),
        "agreement": share(predicted[:, 1:] == taught.argmax(axis=-1)[:, None]),
    }
    return Loss(weighted_sum(examples.weights, losses), metrics, batch_stats)
