"""The paper's Figures 2b, 3 and 8 to 13: images of a run, reconstructed and attacked."""

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from medadv_jax.report.example_panels import choose, perturbation, prediction, show
from medadv_jax.report.records import PURIFIED, RunRecords, title_of
from medadv_jax.report.style import WIDTH, Graphic, Omitted, draw, shortened

# The paper's figure of each network's attacked images: of X-rays, of tissue.
_NUMBERS = {
    "vgg16": ("8", "13a"), "resnet50": ("9", "12b"), "inception_v3": ("10", "12a"),
    "vgg19": ("11", "13b"),
}  # fmt: skip
_TISSUE = ("breakhis", "phantoms_histology")
_OBLIVIOUS, _ADAPTIVE = "the paper's attacker", "adaptive"


def pictures(run: RunRecords, label: str, with_samples: bool = True) -> list[Graphic]:
    """Returns the paper's figures that show images, of one run.

    Args:
      run: of two classes.
      label: of the network.
      with_samples: also Figure 3, which is the same for all networks.
    """
    arrays = run.pictures
    if arrays is None or not len(arrays["images"]):
        return [Omitted(f"Figures 2b, 3 and 8 to 13, {label}", f"{run.name} has no pictures.npz")]
    kept = _kept(run, arrays)
    return [
        *([samples(run, arrays)] if with_samples else []),
        *reconstructions(run, arrays),
        *(attacked(run, label, kept, number) for number in range(len(kept.attacks))),
    ]


def samples(run: RunRecords, arrays: dict[str, np.ndarray]) -> Graphic:
    """Returns Figure 3: test images of each class."""
    labels = arrays["label"]
    rows = [np.flatnonzero(labels == number) for number in range(len(run.class_names))]
    columns = max(map(len, rows))

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for axes_row, row, name in zip(grid, rows, run.class_names, strict=True):
            for axes in axes_row[len(row) :]:
                axes.set_axis_off()
            for axes, i in zip(axes_row, row, strict=False):
                show(axes, arrays["images"][i], shortened(name), ("", "black"))

    part = "3b" if run.dataset in _TISSUE else "3a"
    caption = f"Figure {part}, {title_of(run.dataset)}: the first test images of each class."
    return draw(f"figure_03_{run.name}", caption, (1.9 * columns, 2.1 * len(rows)), paint)


def reconstructions(run: RunRecords, arrays: dict[str, np.ndarray]) -> list[Graphic]:
    """Returns Figure 2b of each defence with a purifier: clean images before and after it."""
    names = [d for d in run.defenses if f"{d}/reconstructed" in arrays]
    return [_reconstruction(run, arrays, name) for name in names]


def _reconstruction(run: RunRecords, arrays: dict[str, np.ndarray], defense: str) -> Graphic:
    clean, after = arrays["images"][arrays["first"]], arrays[f"{defense}/reconstructed"]
    labels, gain = arrays["label"][arrays["first"]], 5

    def paint(figure: Figure) -> None:
        grid = figure.subplots(1, 3 * len(clean), squeeze=False)[0]
        for i, label in enumerate(labels):
            name, change = shortened(run.class_names[label]), after[i] - clean[i]
            error = (f"mean change {np.abs(change).mean():.4f}", "black")
            show(grid[3 * i], clean[i], "clean", (f"is {name}", "black"))
            show(grid[3 * i + 1], after[i], "reconstructed", error)
            show(grid[3 * i + 2], 0.5 + gain * change, "difference", (f"× {gain}", "black"))

    caption = (
        f"Figure 2b, {title_of(run.dataset)}: clean test images before and after the purifier of"
        f" {defense}. The difference is drawn {gain} times as strong, around grey."
    )
    name = f"figure_02b_{defense}_{run.name}"
    return draw(name, caption, (min(WIDTH, 4.7 * len(clean)), 2.3), paint)


class _Kept(NamedTuple):
    """Attacked images of one image of each class.

    Attributes:
      attacks: names of A attacks.
      first: (K,) positions of the images among those of the run.
      found: defence -> threat model -> images (A, K, H, W, 3) and their scores (A, K).
    """

    attacks: list[str]
    first: np.ndarray
    found: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]


def _kept(run: RunRecords, arrays: dict[str, np.ndarray]) -> _Kept:
    """Reads the arrays; runs of earlier versions kept one adaptive attack only."""
    if "attacks" not in arrays:
        first = np.array(choose(arrays["label"], 2))
        found = {
            d: {_ADAPTIVE: (arrays[f"{d}/adversarial"][first][None],
                            arrays[f"{d}/score_adversarial"][first][None])}
            for d in run.defenses if f"{d}/adversarial" in arrays
        }  # fmt: skip
        return _Kept([str(arrays["attack"])], first, found)
    found = {}
    for defense in (d for d in run.defenses if f"{d}/adaptive" in arrays):
        # Without a purifier the paper's attacker is the adaptive one.
        of_paper = "oblivious" if f"{defense}/oblivious" in arrays else "adaptive"
        threats = {_OBLIVIOUS: of_paper} | (
            {_ADAPTIVE: "adaptive"} if of_paper == "oblivious" else {}
        )
        found[defense] = {
            title: (arrays[f"{defense}/{threat}"], arrays[f"{defense}/{threat}_score"])
            for title, threat in threats.items()
        }
    return _Kept(arrays["attacks"].tolist(), arrays["first"], found)


def attacked(run: RunRecords, label: str, kept: _Kept, number: int) -> Graphic:
    """Returns the network's figure out of 8 to 13, for one of the attacks.

    A row for each image and defence: the image, then under each attacker the perturbation and the
    attacked image, with the predicted class and its probability.
    """
    arrays = run.pictures or {}
    epsilon, attack = float(arrays["epsilon"]), kept.attacks[number]
    rows = [(k, defense) for k in range(len(kept.first)) for defense in kept.found]

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(rows), 5, squeeze=False)
        for axes, (k, defense) in zip(grid, rows, strict=True):
            i = kept.first[k]
            clean, truth = arrays["images"][i], int(arrays["label"][i])
            before = prediction(run, truth, arrays[f"{defense}/score_clean"][i])
            show(axes[0], clean, f"{defense}: is {shortened(run.class_names[truth])}", before)
            for place, threat in ((1, _OBLIVIOUS), (3, _ADAPTIVE)):
                if threat not in kept.found[defense]:
                    same = "the same attack:\nno purifier" if defense not in PURIFIED else ""
                    axes[place].text(0.5, 0.5, same, ha="center", va="center", fontsize=9)
                    axes[place].set_axis_off()
                    axes[place + 1].set_axis_off()
                    continue
                images, scores = kept.found[defense][threat]
                found = images[number, k].astype(np.float32)
                shift = perturbation(found, clean, epsilon)
                after = prediction(run, truth, scores[number, k])
                show(axes[place], shift, threat, (f"× {1 / (2 * epsilon):.3g}", "black"))
                show(axes[place + 1], found, "attacked", after)

    which = _NUMBERS.get(run.model, ("8 to 11", "12 and 13"))[run.dataset in _TISSUE]
    caption = (
        f"Figure {which}, {label} on {title_of(run.dataset)} (run {run.name}): {attack.upper()},"
        f" ε = {epsilon:g}. The paper's attacker does not know the purifier, the adaptive one does."
        f" Perturbations around grey: black is −ε, white +ε. Numbers: the probability of the class"
        f" that is named."
    )
    size = (8.9, 2 * len(rows))
    return draw(f"figure_{which.replace(' ', '_')}_{attack}_{run.name}", caption, size, paint)
