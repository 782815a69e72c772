"""Adversarially robust medical-image classifiers in JAX.

Importing this package imports no JAX. The parts are imported by their own names, such as
`medadv_jax.attacks` and `medadv_jax.models`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from os import PathLike

    from medadv_jax.deployment.model import Model
    from medadv_jax.evaluation.evaluate import evaluate

    __version__: str

__all__ = ["__version__", "evaluate", "load"]


def load(path: "str | PathLike[str]", *, defense: str | None = None) -> "Model":
    """Loads the classifier of a run directory, or of a model folder.

    Args:
      path: a run directory, such as "runs/x", or a model folder, such as "runs/x/models/hybrid".
      defense: which classifier of a run directory: base, adversarial, autoencoder, hybrid or
        distilled; None: its only one.

    Returns:
      A model with `predict`, differentiable `logits`, `classes`, `image_size` and `card`. A run
      directory without model folders, as of an earlier version, is read from its checkpoint.

    Raises:
      UserError: the folder is damaged, of a newer version, or neither of the two.
    """
    from medadv_jax.deployment.model import load as load_model

    return load_model(path, defense)


def __getattr__(name: str) -> Any:
    """Returns what is imported or looked up only when it is asked for."""
    if name == "evaluate":
        from medadv_jax.evaluation.evaluate import evaluate

        return evaluate
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("medadv_jax")
    except PackageNotFoundError:  # a source folder on the path, never installed
        return "0+unknown"
