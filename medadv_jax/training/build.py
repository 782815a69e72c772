"""Config → classifiers: the network, its initial weights and normalisation, the purifier."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from medadv_jax.classifier import Classifier, Variables
from medadv_jax.config import Config
from medadv_jax.errors import UserError
from medadv_jax.models import create_model, pretrained
from medadv_jax.models.purifiers import create_purifier


class Assembly(NamedTuple):
    """The classifiers of a run, which share their network.

    Attributes:
      bare: the network without a purifier.
      purified: the network behind a purifier.
      student: the network at the width of `config.distill`, without a purifier.
      start: pretrained weights of the network; None: it is initialised as in its paper.
      notes: lines for the user about these weights.
    """

    bare: Classifier
    purified: Classifier
    student: Classifier
    start: Variables | None
    notes: list[str]


def assemble(config: Config, class_names: Sequence[str]) -> Assembly:
    """Builds the classifiers of a config, for labels 0, 1, … of these names.

    Raises:
      UserError: weights that cannot be found or downloaded, or belong to another network.
    """
    model, purifier = config.model, config.purifier
    network, start, expected, notes = _network(config, class_names)
    normalization = expected if model.normalization == "auto" else model.normalization
    if normalization != expected and start is not None:
        notes.append(f"the weights expect {expected} inputs, and get {normalization} ones")
    bare = Classifier(network, normalization)
    module = create_purifier(
        purifier.name, purifier.bottleneck, purifier.width, model.dtype, model.conv_impl
    )
    student: Any = network  # the same options
    student = Classifier(student.clone(width=config.distill.width), normalization)
    return Assembly(bare, Classifier(network, normalization, module), student, start, notes)


def training_classifier(classifier: Classifier, config: Config) -> Classifier:
    """Returns the classifier as it is trained: at `config.model.precision`.

    Where layers are frozen, BatchNorm uses its running statistics and does not update them:
    statistics of the batch would change the inputs that the frozen layers were trained on.
    """
    classifier = dataclasses.replace(classifier, precision=config.model.precision)
    frozen = config.train.trainable != "all" and hasattr(classifier.network, "freeze_norm")
    if not frozen:
        return classifier
    return dataclasses.replace(classifier, network=classifier.network.clone(freeze_norm=True))


def find_start(config: Config) -> None:
    """Fetches the weights that a run starts from, if they are a published name.

    Raises:
      UserError: there is no such file, and it cannot be fetched.
    """
    if config.model.weights == "none":
        return
    try:
        pretrained.find_weights(config.model.name, config.model.weights)
    except UserError as error:
        raise UserError(f"{error}; for a fresh start --config.model.weights=none") from error


def _network(
    config: Config, class_names: Sequence[str]
) -> tuple[nn.Module, Variables | None, str, list[str]]:
    """Returns network, initial weights, the normalisation that they expect, and notes."""
    model = config.model
    options: dict[str, Any] = {}
    if model.head != "auto":
        options["head"] = model.head
    if model.dropout != -1:
        options["dropout"] = model.dropout
    if model.weights == "none":
        network = create_model(
            model.name, len(class_names), model.width, model.dtype, model.conv_impl, **options
        )
        return network, None, "imagenet", []
    loaded = pretrained.load_network(
        model.name,
        model.weights,
        class_names=class_names,
        width=model.width,
        dtype=model.dtype,
        conv_impl=model.conv_impl,
        options=options,
        seed=config.seed,
    )
    variables = {"batch_stats": {}, **loaded.variables}
    fresh = ", ".join(loaded.fresh)
    if fresh and not config.train.epochs:
        raise UserError(
            f"config.train.epochs=0: needs a trained head for {', '.join(class_names)}; of"
            f" {model.weights}, {loaded.head}"
        )
    note = f"{model.name} starts from {model.weights}: {loaded.head}"
    return (
        loaded.net,
        variables,
        loaded.normalization,
        [f"{note}; freshly initialised: {fresh or 'nothing'}"],
    )
