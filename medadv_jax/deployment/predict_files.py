"""Image files → a CSV of predictions; also overlays of saliency, and attacked images.

A file that cannot be read is a row with its reason, and the others go on.
"""

import contextlib
import csv
import dataclasses
import functools
import glob
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import jax.numpy as jnp
import numpy as np
from PIL import Image
from rich.console import Console

from medadv_jax.classifier import to_pixels
from medadv_jax.data.images import BadImageError
from medadv_jax.data.source import SourceFile, list_files
from medadv_jax.deployment.attack_images import (
    Labels,
    attack_images,
    choose_labels,
    read_labels,
)
from medadv_jax.deployment.description import usable_detectors
from medadv_jax.deployment.model import Model
from medadv_jax.errors import UserError
from medadv_jax.evaluation import saliency
from medadv_jax.evaluation.evaluate import choose_attacks
from medadv_jax.evaluation.overlay import overlay
from medadv_jax.files import atomic_write, file_name
from medadv_jax.progress import StageProgress

Row = dict[str, Any]  # column -> cell


@dataclasses.dataclass(frozen=True)
class Options:
    """What is asked for beside the predictions.

    Attributes:
      batch_size: images at a time.
      abstain_below: the largest probability below which a prediction is marked; None: no column.
      saliency: folder for overlays; None: none.
      attack: name of an attack, "": none.
      epsilon: its radius, in pixels of [0, 1].
      attacked: folder for attacked images.
      labels: what is attacked; see `read_labels`.
    """

    batch_size: int = 32
    abstain_below: float | None = None
    saliency: Path | None = None
    attack: str = ""
    epsilon: float = 0.03
    attacked: Path = Path("attacked")
    labels: str = ""

    def check(self) -> None:
        """Raises UserError for what is impossible, before anything is read."""
        if self.abstain_below is not None and not 0 <= self.abstain_below <= 1:
            raise UserError(f"--abstain-below={self.abstain_below:g}: give a probability, 0 to 1")
        try:
            choose_attacks(self.attack or "pgd", self.epsilon, "linf")
        except ValueError as error:
            raise UserError(
                f"--attack={self.attack} --epsilon={self.epsilon:g}: {error}"
            ) from error


def find_files(arguments: Sequence[Path]) -> list[Path]:
    """Returns the files that arguments name: files, folders with all below them, or patterns.

    Raises:
      UserError: an argument names no file, or there is none.
    """
    found: list[Path] = []
    for argument in arguments:
        if argument.is_dir():
            named = [argument / file.path for file in list_files(argument, ("",))]
        elif argument.exists() or argument.is_symlink():
            named = [argument]
        else:
            named = sorted(map(Path, glob.glob(str(argument), recursive=True)))
            named = [path for path in named if not path.is_dir()]
        if not named:
            raise UserError(f"{argument}: no file there; give image files, folders or patterns")
        found += named
    if not found:
        raise UserError("no image: give image files, folders or patterns after the flags")
    return list(dict.fromkeys(found))


def predict_files(
    model: Model, files: Sequence[Path], options: Options, output: Path | None = None
) -> int:
    """Writes a line for each file to a CSV file, or to standard output.

    Returns:
      How many files could not be read.

    Raises:
      UserError: impossible options, or a file that cannot be written.
    """
    options.check()
    labels = read_labels(options.labels, model.classes)
    console = Console(file=sys.stderr)
    if options.attack:
        _make_folder(options.attacked, "--attacked")
    with _opened(output) as file, StageProgress(console, "predict", len(files)) as progress:
        writer = csv.DictWriter(file, _columns(model, options), lineterminator="\n")
        writer.writeheader()
        bad, waiting, images = 0, [], []
        for row, image in _rows(model, files, options):
            progress.advance()
            if image is None:
                bad += 1
            elif options.attack:
                images.append((row, image))
            (waiting.append if options.attack else writer.writerow)(row)
        if images:
            _add_attacked(model, images, options, labels)
        writer.writerows(waiting)
    return bad


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """Opens a file that is complete when it appears; None: standard output."""
    if output is None:
        yield sys.stdout
        return
    try:
        with atomic_write(output) as beside, beside.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise UserError(
            f"--output={output}: cannot be written: {error.strerror}; give another file"
        ) from error


def _columns(model: Model, options: Options) -> list[str]:
    probabilities = [f"probability_{name}" for name in model.classes]
    detectors = usable_detectors(model.classifier)
    calibrated = [name for name in detectors if name in model.description.detectors]
    columns = ["file", "predicted", *probabilities, *(f"score_{name}" for name in detectors)]
    columns += [f"flagged_{name}" for name in calibrated]
    if options.abstain_below is not None:
        columns.append("abstained")
    if options.attack:
        columns += ["attacked_file", "attacked_label", "attacked_predicted"]
        columns += [f"attacked_{name}" for name in probabilities]
    return [*columns, "error"]


def _rows(
    model: Model, files: Sequence[Path], options: Options
) -> Iterator[tuple[Row, np.ndarray | None]]:
    """Yields a row for each file in order, and its image, None where it cannot be read."""
    draw = _saliency_writer(model, options.saliency) if options.saliency else None
    with ThreadPoolExecutor(4) as pool:
        for first in range(0, len(files), options.batch_size):
            part = files[first : first + options.batch_size]
            read = list(pool.map(functools.partial(_read, model), part))
            images = [image for image in read if not isinstance(image, str)]
            rows = iter(_predicted(model, images, options))
            for number, path, image in zip(itertools.count(first), part, read, strict=False):
                name = SourceFile(str(path), 0, 0).place
                if isinstance(image, str):
                    yield {"file": name, "error": image}, None
                    continue
                row = next(rows)
                if draw:
                    draw(f"{number:05}_{file_name(path.stem)}", image, row["predicted"])
                yield {"file": name, **row, "error": ""}, image


def _read(model: Model, path: Path) -> np.ndarray | str:
    """The image, or why it cannot be read."""
    try:
        return model.read(path)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    except BadImageError as error:
        return str(error)


def _predicted(model: Model, images: Sequence[np.ndarray], options: Options) -> Iterator[Row]:
    """Yields the cells of each image that depend on it alone."""
    if not images:
        return
    found = model.predict(np.stack(images), options.batch_size)
    for i, (label, probability) in enumerate(zip(found.label, found.probability, strict=True)):
        row = _prediction("", model, int(label), probability)
        row |= {f"score_{name}": f"{of[i]:.6g}" for name, of in found.scores.items()}
        row |= {f"flagged_{name}": int(of[i]) for name, of in found.flagged.items()}
        if options.abstain_below is not None:
            row["abstained"] = int(probability.max() < options.abstain_below)
        yield row


def _prediction(prefix: str, model: Model, label: int, probability: np.ndarray) -> Row:
    named = zip(model.classes, probability, strict=True)
    cells = {f"{prefix}probability_{name}": f"{value:.8f}" for name, value in named}
    return {f"{prefix}predicted": model.classes[label], **cells}


def _saliency_writer(model: Model, folder: Path) -> Callable[[str, np.ndarray, str], None]:
    """Returns a function that writes the two overlays of an image, for its predicted class."""
    _make_folder(folder, "--saliency")
    maps = saliency.make_maps(model.classifier, model.gradient)

    def write(name: str, image: np.ndarray, predicted: str) -> None:
        label = np.array([model.classes.index(predicted)])
        found = maps(model.variables, to_pixels(jnp.asarray(image[None])), label)
        for kind, heat in zip(("integrated_gradients", "grad_cam"), found, strict=True):
            _write_png(folder / f"{name}_{kind}.png", overlay(image, np.asarray(heat[0])))

    return write


def _add_attacked(
    model: Model, kept: Sequence[tuple[Row, np.ndarray]], options: Options, labels: Labels
) -> None:
    """Writes the attacked images, and adds to their rows what the model says of these."""
    images = np.stack([image for _, image in kept])
    start = choose_labels([row["file"] for row, _ in kept], labels)
    predicted = [model.classes.index(row["predicted"]) for row, _ in kept]
    true = np.array([p if s is None else s for p, s in zip(predicted, start, strict=True)])
    attacked, found = attack_images(model, images, true, options.attack, options.epsilon)
    for i, (row, _) in enumerate(kept):
        path = options.attacked / f"{i:05}_{file_name(Path(row['file']).stem)}.png"
        _write_png(path, Image.fromarray(attacked[i]))
        row |= {"attacked_file": str(path), "attacked_label": model.classes[true[i]]}
        row |= _prediction("attacked_", model, int(found.label[i]), found.probability[i])


def _write_png(path: Path, image: Image.Image) -> None:
    try:
        image.save(path, "PNG")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be written: {reason}; give another folder") from error


def _make_folder(folder: Path, flag: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{flag}={folder}: {error.strerror}; give another folder") from error
