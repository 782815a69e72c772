"""The paper's Figures 5 to 18 over several networks of one data set."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medadv_jax.report.aggregate import Group, Series, all_series
from medadv_jax.report.records import title_of
from medadv_jax.report.run_tables import LABELS
from medadv_jax.report.style import (
    WIDTH,
    Graphic,
    Look,
    Omitted,
    Picture,
    bars,
    defense_look,
    draw,
    heatmap,
    legend_below,
    look,
)  # fmt: skip

_OBLIVIOUS = {  # paler than the adaptive attacker's
    "autoencoder": Look("#F7D48A", "||", "v", ":"),
    "hybrid": Look("#8FD8C0", "--", "P", "-."),
}
_BY_ATTACK = {"14": "accuracy", "15": "auc", "16": "f1", "17": "precision", "18": "recall"}


def paper_figures(dataset: str, groups: Sequence[Group]) -> list[Graphic]:
    """Returns Figures 5 to 7 and 14 to 18 of the groups of one data set."""
    figures = [by_metric(dataset, groups)]
    if not any(group.attacks for group in groups):
        return [
            *figures,
            Omitted(_figure("6 to 18", dataset), "nothing was attacked"),
        ]
    figures += [
        with_deviation(dataset, groups), improvements(dataset, groups),
        under_attack(dataset, groups), success_heatmap(dataset, groups),
    ]  # fmt: skip
    return figures + [by_attack(dataset, groups, *figure) for figure in _BY_ATTACK.items()]


def figures_of_one(group: Group) -> list[Graphic]:
    """Returns those figures of one network that add to the figures of its run."""
    dataset = group.runs[0].dataset
    if not group.attacks:
        return [Omitted("Figures 6, 7 and 15 to 18", "nothing was attacked")]
    return [
        improvements(dataset, [group]), success_heatmap(dataset, [group]), metrics_of_one(group),
    ]  # fmt: skip


def metrics_of_one(group: Group) -> Graphic:
    """Returns Figures 15 to 18 of one network: four metrics by attack and defence."""
    names = ["clean", *group.attacks]
    panels = {
        LABELS[metric]: {
            s.label: (series_look(s), [_mean(group, s, n, metric) for n in names])
            for s in _present([group])
        }
        for metric in ("auc", "f1", "precision", "recall")
    }
    caption = "Figures 15 to 18: AUC, F1, precision and recall, clean and by attack."
    return _bar_panels("figures_15_to_18", caption, 5.8, names, panels, 3)


Bars = Mapping[str, tuple[Look, Sequence[float | None]]]  # name -> look, a value for each group


def _bar_panels(
    name: str, caption: str, height: float, labels: Sequence[str], panels: Mapping[str, Bars],
    legend_columns: int, ylabel: str = "",
) -> Picture:  # fmt: skip
    """Returns a figure with grouped bars in each panel; panels: title -> bars."""

    def paint(figure: Figure) -> None:
        shape = -(-len(panels) // 2), min(2, len(panels))
        grid = figure.subplots(*shape, sharey=True, squeeze=False)
        for axes, (title, series) in zip(grid.flat, panels.items(), strict=False):
            bars(axes, labels, series)
            axes.set_title(title)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[:, 0]:
            axes.set_ylabel(ylabel)
        legend_below(figure, grid[0, 0], legend_columns)

    return draw(name, caption, (WIDTH, height), paint)


def series_look(series: Series) -> Look:
    """Returns the look of a defence attacked by one kind of attacker."""
    oblivious = _OBLIVIOUS.get(series.defense) if series.threat == "oblivious" else None
    return oblivious or defense_look(series.defense)


def _figure(number: str, dataset: str) -> str:
    return f"Figure {number}, {title_of(dataset)}"


def _present(groups: Sequence[Group]) -> list[Series]:
    return all_series([run for group in groups for run in group.runs])


def _labels(groups: Sequence[Group]) -> list[str]:
    return [group.label.replace(" (", "\n(").replace(", ", ",\n") for group in groups]


def _mean(group: Group, series: Series, evaluation: str, metric: str) -> float | None:
    spread = group.spread(series, evaluation, metric)
    return None if spread is None else spread.mean


def _repeats(groups: Sequence[Group]) -> str:
    most = max(len(group.runs) for group in groups)
    return f" Means over up to {most} runs (seeds or folds)." if most > 1 else ""


def by_metric(dataset: str, groups: Sequence[Group]) -> Graphic:
    """Returns Figure 5: four metrics on clean images, by network and defence."""
    defenses = {s.defense: s for s in _present(groups)}  # clean images have no attacker
    panels = {
        LABELS[metric]: {
            d: (defense_look(d), [_mean(g, s, "clean", metric) for g in groups])
            for d, s in defenses.items()
        }
        for metric in ("accuracy", "precision", "recall", "f1")
    }
    caption = f"{_figure('5', dataset)}: clean images, by network and defence.{_repeats(groups)}"
    return _bar_panels(f"figure_05_{dataset}", caption, 5.6, _labels(groups), panels, 5)


def _over_attacks(group: Group, series: Series, clean: bool) -> list[float]:
    """Returns the accuracies of all runs under all attacks, and on clean images if asked."""
    evaluations = [*(["clean"] if clean else []), *group.attacks]
    return [v for e in evaluations for v in group.values(series, e, "accuracy")]


def with_deviation(dataset: str, groups: Sequence[Group]) -> Graphic:
    """Returns Figure 6a: mean and SD of accuracy over clean images and all attacks."""
    present = _present(groups)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        series, errors = {}, {}
        for s in present:
            values = [_over_attacks(g, s, clean=True) for g in groups]
            means = [float(np.mean(v)) if v else None for v in values]
            deviations = [float(np.std(v, ddof=1)) if len(v) > 1 else None for v in values]
            series[s.label] = (series_look(s), means)
            errors[s.label] = [
                None if m is None or d is None else (max(m - d, 0), min(m + d, 1))
                for m, d in zip(means, deviations, strict=True)
            ]
        bars(axes, _labels(groups), series, errors)
        axes.set_ylabel("accuracy")
        legend_below(figure, axes, 3)

    caption = (
        f"{_figure('6a', dataset)}: mean accuracy over clean images and all attacks; lines: ± one"
        " standard deviation over them (and over seeds or folds), cut at 0 and 1."
    )
    return draw(f"figure_06a_{dataset}", caption, (WIDTH, 3.6), paint)


def improvements(dataset: str, groups: Sequence[Group]) -> Graphic:
    """Returns Figure 6b: gain in accuracy of each defence over base, attack by attack."""
    defended = [s for s in _present(groups) if s.defense != "base"]
    gains = {s: [_gains(g, s) for g in groups] for s in defended}
    if not any(len(values) for rows in gains.values() for values in rows):
        return Omitted(_figure("6b", dataset), "no run has both base and a defence")

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        width = 0.82 / len(gains)
        for i, (s, rows) in enumerate(gains.items()):
            style = series_look(s)
            for at, values in enumerate(rows):
                if values:
                    x = at + (i - (len(gains) - 1) / 2) * width
                    _box(axes, x, width, values, style)
            axes.bar(0, 0, color=style.color, hatch=style.hatch, edgecolor="white", label=s.label)
        axes.axhline(0, color="black", lw=0.8)
        axes.set_xticks(range(len(groups)), _labels(groups))
        axes.set(xlim=(-0.5, len(groups) - 0.5), ylabel="accuracy above base")
        legend_below(figure, axes, 3)

    caption = (
        f"{_figure('6b', dataset)}: accuracy of a defence minus that of base under the same attack,"
        " over the attacks and runs. Box: quartiles; bar: median; points: every value."
    )
    return draw(f"figure_06b_{dataset}", caption, (WIDTH, 3.6), paint)


def _box(axes: Axes, x: float, width: float, values: list[float], style: Look) -> None:
    parts = axes.boxplot(
        [values], positions=[x], widths=width * 0.8, patch_artist=True, showfliers=False,
        manage_ticks=False, medianprops={"color": "black"},
    )  # fmt: skip
    for box in parts["boxes"]:
        box.set(facecolor=style.color, hatch=style.hatch, edgecolor="black", linewidth=0.7)
    axes.plot([x] * len(values), values, ls="", marker=".", ms=4, color="black", zorder=4)


def _gains(group: Group, series: Series) -> list[float]:
    base, gains = Series("base", "adaptive"), []
    for run in group.runs:
        alone = Group(group.label, (run,))
        for attack in alone.attacks:
            both = [alone.values(s, attack, "accuracy") for s in (series, base)]
            gains += [both[0][0] - both[1][0]] if all(both) else []
    return gains


def under_attack(dataset: str, groups: Sequence[Group]) -> Graphic:
    """Returns Figure 7a: mean accuracy over the attacks, and under the worst of them."""
    present = _present(groups)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        series = {}
        for i, s in enumerate(present):
            values = [_over_attacks(g, s, clean=False) for g in groups]
            means = [float(np.mean(v)) if v else None for v in values]
            series[s.label] = (series_look(s), means)
            x = np.arange(len(groups)) + (i - (len(present) - 1) / 2) * 0.82 / len(present)
            worst = [_mean(g, s, "worst", "accuracy") for g in groups]
            axes.plot(x, [np.nan if w is None else w for w in worst], ls="", marker="D", ms=5,
                      mfc="white", mec="black", zorder=5, clip_on=False,
                      label="worst attack for each image" if i == 0 else None)  # fmt: skip
        bars(axes, _labels(groups), series)
        axes.set_ylabel("accuracy")
        legend_below(figure, axes, 4)

    caption = (
        f"{_figure('7a', dataset)}: average accuracy under attack (bars), and against the worst"
        f" attack for each image (diamonds), which is what counts.{_repeats(groups)}"
    )
    return draw(f"figure_07a_{dataset}", caption, (WIDTH, 3.9), paint)


def success_heatmap(dataset: str, groups: Sequence[Group]) -> Graphic:
    """Returns Figure 7b: attack success rate by network, defence and attack."""
    attacks = list(dict.fromkeys(a for g in groups for a in g.attacks))
    names, rows = [], []
    for group in groups:
        for s in _present([group]):
            rates = [_mean(group, s, a, "attack_success_rate") for a in attacks]
            if any(rate is not None for rate in rates):
                names.append(f"{group.label}: {s.label}")
                rows.append([np.nan if rate is None else rate for rate in rates])
    if not rows:
        return Omitted(_figure("7b", dataset), "no image is correct when clean")

    def paint(figure: Figure) -> None:
        axes = heatmap(figure, np.array(rows), digits=2, size=9.5)
        axes.set_xticks(range(len(attacks)), attacks)
        axes.set_yticks(range(len(names)), names)

    caption = (
        f"{_figure('7b', dataset)}: attack success rate, the share of the images correct when"
        " clean that an attack breaks. Lower is better for the defence."
    )
    return draw(f"figure_07b_{dataset}", caption, (WIDTH, 0.9 + 0.29 * len(rows)), paint)


def by_attack(dataset: str, groups: Sequence[Group], number: str, metric: str) -> Graphic:
    """Returns one of Figures 14 to 18: a metric by attack and network for each defence."""
    names = ["clean", *dict.fromkeys(a for g in groups for a in g.attacks)]
    panels = {
        s.label: {
            g.label: (look(i), [_mean(g, s, n, metric) for n in names])
            for i, g in enumerate(groups)
        }
        for s in _present(groups)
    }
    caption = (
        f"{_figure(number, dataset)}: {LABELS[metric]} by attack and network, for each defence."
        f"{_repeats(groups)} A gap has no value."
    )
    name, height = f"figure_{number}_{dataset}", 0.8 + 2.3 * -(-len(panels) // 2)
    return _bar_panels(name, caption, height, names, panels, 4, LABELS[metric])
