"""The certificates of a run: certified accuracy against the radius, as a table and a figure."""

import numpy as np
from matplotlib.figure import Figure

from medadv_jax.evaluation.certificates import ABSTAINS, RADII, certified_accuracy, linf_radius
from medadv_jax.evaluation.predictions import Columns
from medadv_jax.report.records import RunRecords
from medadv_jax.report.style import WIDTH, Picture, defense_look, draw, legend_below
from medadv_jax.report.tables import Cell, Estimate, Table

_PROMISE = (
    "Guaranteed: no 8-bit image within the L2 radius changes the class that the smoothed classifier"
    " names, each promise but for a probability of α = {alpha:g}. Not guaranteed: that this class"
    " is right, anything about larger or other changes, and anything about the network without"
    " noise, which all other sections show."
)
_SMALL = (
    "The L∞ radius that follows is r / √d: L2 {radius:g} is {linf:.5f} of a pixel's range at"
    " {pixels} values, {levels:.2f} of 255 levels, and far below the ε of the attacks above."
)


def by_defense(run: RunRecords) -> dict[str, Columns]:
    """Returns defence -> its certificates, of those that have any."""
    columns = run.certificates or {}
    names = columns.get("defense", np.array([]))
    return {
        str(name): {key: values[names == name] for key, values in columns.items()}
        for name in dict.fromkeys(names.tolist())
    }


def certificates_table(run: RunRecords) -> Table | None:
    """Returns certified accuracies; None without certificates."""
    found = by_defense(run)
    if not found:
        return None
    rows: list[tuple[Cell, ...]] = []
    for name, columns in found.items():
        shares = (Estimate(*certified_accuracy(columns, at)) for at in RADII)
        abstains = float((columns["predicted"] == ABSTAINS).mean())
        rows.append((name, float(columns["sigma"][0]), len(columns["label"]), *shares, abstains))
    first = next(iter(found.values()))
    pixels, radius = int(first["pixels"][0]), 0.5
    linf = linf_radius(radius, pixels)
    return Table(
        "certificates",
        "Certified accuracy of smoothed classifiers",
        ("defense", "σ", "images", *(f"L2 radius {at:g}" for at in RADII), "abstains"),
        rows,
        (
            _PROMISE.format(alpha=first["alpha"][0]),
            _SMALL.format(radius=radius, linf=linf, pixels=pixels, levels=linf * 255),
            f"{first['draws'][0]} noisy copies of each image bound the radius. Intervals: 95 %, by"
            " resampling patients.",
        ),
    )


def certificates_figure(run: RunRecords) -> Picture | None:
    """Returns certified accuracy against the radius; None without certificates."""
    found = by_defense(run)
    if not found:
        return None
    end = 1.05 * max(max(float(c["radius"].max()) for c in found.values()), RADII[1])
    radii = np.linspace(0, end, 200)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for name, columns in found.items():
            right = columns["radius"][columns["predicted"] == columns["label"]]
            right = right[right > 0]
            share = [(right >= at).sum() / len(columns["label"]) for at in radii]
            style = defense_look(name)
            axes.plot(radii, share, color=style.color, ls=style.line, lw=1.8, label=name)
        axes.set(xlabel="L2 radius (pixels in [0, 1])", ylabel="certified accuracy")
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlim(0, end)
        legend_below(figure, axes, 4)

    images = len(next(iter(found.values()))["label"])
    caption = (
        f"Certified accuracy: the share of {images} test images whose right class is guaranteed"
        " within the radius."
    )
    return draw("certified_accuracy", caption, (WIDTH * 0.75, 3.6), paint)
