"""Figures of attacked images beside the clean ones, with the predictions."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medadv_jax.evaluation.metrics import probability_of
from medadv_jax.report.records import RunRecords
from medadv_jax.report.style import Graphic, Omitted, draw, shortened

MOST_EXAMPLES = 4
CORRECT, WRONG = "#00583b", "#a33c00"


def panels(run: RunRecords) -> list[Graphic]:
    """Returns a figure for each defence: clean, perturbation, attacked, purified."""
    arrays = run.pictures
    if arrays is None or not len(arrays["images"]):
        return [Omitted("Perturbation panels", "the run has no pictures.npz")]
    defenses = [d for d in run.defenses if f"{d}/adversarial" in arrays]
    return [_panel(run, arrays, defense) for defense in defenses]


def _panel(run: RunRecords, arrays: dict[str, np.ndarray], defense: str) -> Graphic:
    chosen = choose(arrays["label"], max(MOST_EXAMPLES, len(run.class_names)))
    epsilon, attack = float(arrays["epsilon"]), str(arrays["attack"])
    purified = arrays.get(f"{defense}/purified")
    columns = 3 + (purified is not None)

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(chosen), columns, squeeze=False)
        for row, i in zip(grid, chosen, strict=True):
            clean, attacked = arrays["images"][i], arrays[f"{defense}/adversarial"][i]
            before, after = (
                prediction(run, arrays["label"][i], arrays[f"{defense}/score_{kind}"][i])
                for kind in ("clean", "adversarial")
            )
            truth = shortened(run.class_names[int(arrays["label"][i])])
            show(row[0], clean, f"clean, is {truth}", before)
            shift = perturbation(attacked, clean, epsilon)
            show(row[1], shift, "perturbation", (f"× {1 / (2 * epsilon):.3g}", "black"))
            show(row[2], attacked, "attacked", after)
            if purified is not None:
                show(row[3], purified[i], "attacked, purified", ("what the network sees", "black"))

    caption = (
        f"{defense} under adaptive {attack}, ε = {epsilon:g}: images of the test split. The"
        f" perturbation is drawn {1 / (2 * epsilon):.3g} times as strong, around"
        f" grey: black is −ε, white +ε. Numbers: the probability of the class that is named."
    )
    return draw(f"panel_{defense}", caption, (1.95 * columns, 2.3 * len(chosen)), paint)


def choose(label: np.ndarray, most: int = MOST_EXAMPLES) -> list[int]:
    """Returns up to `most` indices of labels (n,): the first of each class, then others."""
    classes = max(2, label.max(initial=0) + 1)
    each = most // classes
    first = [int(i) for c in range(classes) for i in np.flatnonzero(label == c)[:each]]
    rest = [i for i in range(len(label)) if i not in first]
    return sorted((first + rest)[:most])


def prediction(run: RunRecords, label: int, score: np.ndarray | float) -> tuple[str, str]:
    """Returns the predicted class with its probability, and the colour of correct or wrong.

    `score`: of one image, () float of class 1 of two classes, or (K,).
    """
    predicted = int(np.argmax(score) if np.ndim(score) else score > 0.5)
    confidence = float(probability_of(np.array(predicted), np.asarray(score, float)))
    mark, color = ("correct", CORRECT) if predicted == label else ("wrong", WRONG)
    return f"{shortened(run.class_names[predicted])} {confidence:.3f}: {mark}", color


def perturbation(attacked: np.ndarray, clean: np.ndarray, epsilon: float) -> np.ndarray:
    """Returns the perturbation as a picture, (…) in [0, 1]: grey is 0, black −ε, white +ε."""
    return 0.5 + (attacked - clean) / (2 * epsilon)


def show(axes: Axes, image: np.ndarray, title: str, below: tuple[str, str]) -> None:
    """Draws an image (H, W, 3) in [0, 1] with its title and a text of a colour below it."""
    axes.imshow(np.clip(image, 0, 1), interpolation="nearest")
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(below[0], color=below[1], fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
