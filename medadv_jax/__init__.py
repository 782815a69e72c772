"""Adversarially robust medical-image classifiers in JAX.

Importing this package imports no JAX. The parts are imported by their own names, such as
`medadv_jax.attacks` and `medadv_jax.models`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from os import PathLike

    from medadv_jax.evaluation.evaluate import evaluate

    __version__: str

__all__ = ["__version__", "evaluate", "load"]


def load(path: "str | PathLike[str]", *, defense: str | None = None) -> Any:
    """Loads the classifier of a run directory, or of a model folder.

    Args:
      path: a run directory, such as "runs/x", or a model folder.
      defense: which classifier of a run directory: base, adversarial, autoencoder or hybrid.

    Raises:
      NotImplementedError: always; loading is not written yet.
    """
    raise NotImplementedError(
        f"load({str(path)!r}, defense={defense!r}): loading a trained classifier is not written"
        " yet; use `python main.py` with the run's config and workdir to evaluate it"
    )


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
