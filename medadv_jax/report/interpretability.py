"""How far the explanations of a run's classifiers move under attack, as a table and overlays."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from medadv_jax.evaluation.interpretability import METHODS, NOISE, TOP
from medadv_jax.evaluation.overlay import overlay
from medadv_jax.evaluation.predictions import group_rows
from medadv_jax.report.page import Part
from medadv_jax.report.records import RunRecords
from medadv_jax.report.style import Picture, draw
from medadv_jax.report.tables import Cell, Table, group_starts

NAMES = {"integrated_gradients": "integrated gradients", "grad_cam": "Grad-CAM"}
_NOTES = (
    "Both maps of a pair explain the logit of the class that is predicted for the clean image."
    f" Rank correlation: Spearman's, of all places of a map; strongest places: which share of the"
    f" {TOP:.0%} strongest is the same. 1: nothing moved. Means over images; a map that is the same"
    " everywhere has no rank correlation.",
    "noise: uniform noise of the same ε, which shows how much of the movement any small change"
    " causes. Grad-CAM has few places at small images: its numbers are coarse there.",
)


def interpretability_parts(run: RunRecords) -> Sequence[Part | None]:
    """Returns the table and a figure for each defence; nothing without these records."""
    if not run.interpretability:
        return []
    figures = [overlays(run, d) for d in run.defenses if f"{d}/clean" in run.saliency_maps]
    return [interpretability_table(run), *figures]


def interpretability_table(run: RunRecords) -> Table:
    """Returns a row for each defence, method and change."""
    columns = run.interpretability
    assert columns is not None
    groups = group_rows(columns, ("defense", "method", "evaluation"))
    rows: list[tuple[Cell, ...]] = []
    for (defense, method, change), indices in groups.items():
        correlation, top = (
            columns[name][indices].astype(float)
            for name in ("rank_correlation", "top_intersection")
        )
        known = correlation[~np.isnan(correlation)]
        changed = (columns["explained"] != columns["predicted"])[indices]
        rows.append((
            defense, NAMES.get(method, method), change, len(indices),
            float(known.mean()) if len(known) else None, float(top.mean()), float(changed.mean()),
        ))  # fmt: skip
    order = {name: i for i, name in enumerate(run.defenses)}
    rows.sort(key=lambda row: (order.get(str(row[0]), len(order)), row[1], row[2] == NOISE))
    return Table(
        "interpretability",
        "How far saliency maps move",
        ("defense", "map", "change", "images", "rank correlation", "strongest places in common",
         "predictions that change"),
        rows, _NOTES, group_starts(rows),
    )  # fmt: skip


def overlays(run: RunRecords, defense: str) -> Picture:
    """Returns the maps of a defence on clean and attacked images."""
    arrays = run.saliency_maps
    clean = arrays[f"{defense}/clean"]
    panels = [(kind, method) for method in METHODS for kind in ("clean", "attacked")]

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(clean), len(panels), squeeze=False)
        for i, row in enumerate(grid):
            for axes, (kind, method) in zip(row, panels, strict=True):
                image = (arrays[f"{defense}/{kind}"][i] * 255).round().astype(np.uint8)
                axes.imshow(np.asarray(overlay(image, arrays[f"{defense}/{kind}/{method}"][i])))
                axes.set_title(f"{NAMES[method]}, {kind}", fontsize=9)
                axes.set_axis_off()

    caption = (
        f"{defense}: where the class that is predicted for the clean image is seen (red), in test"
        " images clean and attacked."
    )
    return draw(f"saliency_{defense}", caption, (2.2 * len(panels), 2.3 * len(clean)), paint)
