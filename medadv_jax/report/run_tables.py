"""The tables of one run."""

import numpy as np

from medadv_jax.config import flatten
from medadv_jax.evaluation.checks.result import WHY
from medadv_jax.evaluation.intervals import patient_accuracy
from medadv_jax.evaluation.metrics import (
    COUNTS,
    balanced_accuracy,
    one_against_rest,
    reliability,
)
from medadv_jax.evaluation.statistics import (
    RESAMPLED,
    WILSON,
    Interval,
    proportion_interval,
    proportion_method,
)
from medadv_jax.report.comparison import ATTACKED, CLEAN, correct_by_defense
from medadv_jax.report.records import PURIFIED, THREATS, Outcome, RunRecords
from medadv_jax.report.tables import NOTHING, Cell, Estimate, Table, group_starts

METRICS = ("precision", "recall", "specificity", "f1", "auc", "attack_success_rate")
LABELS = {
    "accuracy": "accuracy", "precision": "precision", "recall": "sensitivity (recall)",
    "specificity": "specificity", "f1": "F1", "auc": "AUC", "attack_success_rate": "success rate",
}  # fmt: skip
_SHORT = {"recall": "sensitivity"}  # where there are many columns
WORST = "worst"
_OF_CLASS = {
    "n": "images", "tp": "correct", "recall": "sensitivity (recall)", "precision": "precision",
    "specificity": "specificity", "f1": "F1", "auc": "AUC",
}  # fmt: skip
MACRO = (
    "Precision to AUC: the mean over all classes, one against the rest; empty where a class has no"
    " value."
)


def interval_note(run: RunRecords) -> str:
    """Returns the note that explains how the intervals of this run are computed."""
    n, patients = len(run.label), run.count_patients()
    if run.patients_unknown:
        return (
            f"Brackets: 95 % intervals over the {n} images; W: Wilson's, R: by resampling images."
            " Patients are unknown: where one has several images, these intervals are too narrow."
        )
    if not run.clustered:
        return (
            f"Brackets: 95 % intervals; each of the {n} images has a patient (group) of its own. W:"
            " Wilson's, R: by resampling images."
        )
    return (
        f"Brackets: 95 % intervals. R: by resampling the {patients} patients (groups), not the {n}"
        " images: images of one patient are alike. W: Wilson's with patients for images, where all"
        " are correct, or all wrong. results.csv holds Wilson's over images, which are too narrow"
        " here."
    )


def results_table(run: RunRecords) -> Table:
    """Returns accuracy by defence, attack and threat model, and other metrics."""
    rows = [row for defense in run.defenses for row in _defense_rows(run, defense)]
    notes = [
        interval_note(run),
        "transfer: examples made on base. oblivious: the attacker does not know the purifier."
        " adaptive: the attacker knows everything deployed. Precision to success rate are those of"
        " the adaptive attack. Sensitivity: the paper's recall. Success rate: share of the images"
        f" correct when clean that the attack breaks. {WORST}: for each image, the attack that"
        " harms most; it may also be left alone.",
    ]
    if len(run.class_names) > 2:
        notes.append(MACRO)
    if any(d not in PURIFIED for d in run.defenses):
        notes.append("Without a purifier the oblivious attack is the adaptive one: not run twice.")
    if run.withheld():
        notes.append(f"Withheld, as its adaptive partner is missing: {', '.join(run.withheld())}.")
    metrics = (_SHORT.get(m, LABELS[m]) for m in METRICS)
    columns = ("defence", "attack", "no attack", *THREATS, *metrics)
    title = f"Accuracy at ε = {run.epsilon:g}, by threat model, and what else adaptive attacks do"
    return Table("results", title, columns, rows, tuple(notes), group_starts(rows))


def _defense_rows(run: RunRecords, defense: str) -> list[tuple[Cell, ...]]:
    clean = run.clean(defense)
    numbers = run.metrics(defense, clean, attacked=False)
    rows: list[tuple[Cell, ...]] = [
        (defense, "clean", accuracy(run, clean), *[None] * len(THREATS),
         *(getattr(numbers, m) for m in METRICS))
    ]  # fmt: skip
    attacks = [(a, {t: run.get(defense, t, a) for t in THREATS}) for a in run.attacks]
    attacks = [(a, found) for a, found in attacks if found["adaptive"]]
    if len(attacks) > 1:
        attacks.append((WORST, {t: run.worst(defense, (t,)) for t in THREATS}))
    for attack, found in attacks:
        cells = [None if o is None else accuracy(run, o) for o in found.values()]
        adaptive = found["adaptive"]
        assert adaptive is not None
        numbers = run.metrics(defense, adaptive, attacked=True)
        rows.append((defense, attack, None, *cells, *(getattr(numbers, m) for m in METRICS)))
    return rows


def accuracy(run: RunRecords, outcome: Outcome) -> Estimate:
    """Returns accuracy and interval, by patient where a patient has several images."""
    return _share(run, outcome.predicted == run.label)


def metrics_table(run: RunRecords) -> Table:
    """Returns all metrics of all evaluations at the run's epsilon, with intervals."""
    names = ("accuracy", *METRICS)
    counted = COUNTS if len(run.class_names) == 2 else ()
    rows: list[tuple[Cell, ...]] = []
    for defense in run.defenses:
        for threat, evaluation, outcome in _shown(run, defense):
            attacked = evaluation != "clean"
            values = run.metrics(defense, outcome, attacked)
            intervals = run.intervals(defense, outcome, attacked)
            cells = (_metric(run, outcome, m, getattr(values, m), intervals.get(m)) for m in names)
            counts = (getattr(values, name) for name in counted)
            rows.append((defense, threat, evaluation, values.n, *cells, *counts))
    columns = (
        "defence", "threat model", "evaluation", "n", *(LABELS[m] for m in names), *counted,
    )  # fmt: skip
    title = f"Every metric at ε = {run.epsilon:g}, with 95 % intervals"
    notes = (interval_note(run), *([] if counted else [MACRO]))
    return Table("metrics", title, columns, rows, notes, group_starts(rows))


def _metric(
    run: RunRecords, outcome: Outcome, name: str, value: float | None, interval: Interval | None
) -> Estimate:
    """Returns a metric with its interval and the interval's method."""
    if name == "accuracy":
        method = proportion_method(outcome.predicted == run.label, run.group)
    else:  # resampling says nothing where all are right, or all wrong
        method = WILSON if value in (0.0, 1.0) else RESAMPLED
    return Estimate(value, interval, method)


def clinical_table(run: RunRecords, metrics: Table) -> Table | None:
    """Returns what each defence misses and where it raises a false alarm; None of many classes.

    `metrics`: of `metrics_table`.
    """
    names = list(run.class_names)
    if len(names) != 2:
        return None
    negative, positive = names
    images: dict[tuple[Cell, ...], str] = {
        ("none", "clean"): CLEAN, ("adaptive", WORST): ATTACKED,
    }  # fmt: skip
    shown = ("defence", LABELS["recall"], LABELS["specificity"], "fn", "fp")
    places = [metrics.columns.index(name) for name in shown]
    rows: list[tuple[Cell, ...]] = []
    for row in metrics.rows:
        if row[1:3] in images:
            defense, *cells = (row[place] for place in places)
            rows.append((defense, images[row[1:3]], *cells))
    notes = (
        f"Sensitivity, the paper's recall: the share of {positive} images called {positive}."
        f" Specificity: the share of {negative} images called {negative}.",
        interval_note(run),
    )
    columns = (
        "defence", "images", "sensitivity", "specificity", f"{positive} missed",
        f"false alarms of {positive}",
    )  # fmt: skip
    title = "Sensitivity and specificity"
    return Table("sensitivity", title, columns, rows, notes, group_starts(rows))


def class_table(run: RunRecords) -> Table | None:
    """Returns the metrics of every class against the rest; None for two classes."""
    if len(run.class_names) == 2:
        return None
    rows: list[tuple[Cell, ...]] = []
    for defense in run.defenses:
        for evaluation, outcome in (("clean", run.clean(defense)), (WORST, run.worst(defense))):
            if outcome is None:
                continue
            classes = one_against_rest(run.label, outcome.score, outcome.predicted)
            balanced = balanced_accuracy(classes)
            for name, each in zip(run.class_names, classes, strict=True):
                cells = (getattr(each, m) for m in _OF_CLASS)
                rows.append((defense, evaluation, name, *cells, balanced))
    columns = ("defence", "evaluation", "class", *_OF_CLASS.values(), "balanced accuracy")
    notes = (
        "Each class against the rest. worst: for each image the adaptive attack that harms most."
        " Balanced accuracy: the mean recall of the classes that have test images.",
    )
    return Table("classes", "Class by class", columns, rows, notes, group_starts(rows, 2))


def _shown(run: RunRecords, defense: str) -> list[tuple[str, str, Outcome]]:
    """Returns (threat model, evaluation, outcome), clean and attacked."""
    shown: list[tuple[str, str, Outcome]] = [("none", "clean", run.clean(defense))]
    for threat in THREATS:
        for attack in run.attacks:
            outcome = run.get(defense, threat, attack)
            if outcome is not None:
                shown.append((threat, attack, outcome))
    worst = run.worst(defense)
    return shown + ([] if worst is None else [("adaptive", WORST, worst)])


def headline_table(run: RunRecords) -> Table:
    """Returns accuracy by defence: clean, worst case, per patient."""
    attacked, rows = correct_by_defense(run, ATTACKED), []
    clean = correct_by_defense(run, CLEAN)
    for defense in run.defenses:
        everything = run.worst(defense, THREATS)
        cells: list[Cell] = [accuracy(run, run.clean(defense))]
        cells.append(None if defense not in attacked else _share(run, attacked[defense]))
        cells.append(None if everything is None else accuracy(run, everything))
        for correct in (clean, attacked):
            known = defense in correct and not run.patients_unknown
            cells.append(_by_patient(run, correct[defense]) if known else None)
        rows.append((defense, *cells))
    columns = (
        "defence", "clean", "worst adaptive attack", "worst of all threat models",
        "clean, by patient", "worst adaptive, by patient",
    )  # fmt: skip
    notes = (
        interval_note(run),
        "By patient: mean over patients of the share of their images that is correct. Worst of all"
        " threat models below worst adaptive: the adaptive attack missed what a weaker one found.",
    )
    return Table("headline", "Accuracy: the headline", columns, rows, notes)


def _share(run: RunRecords, correct: np.ndarray) -> Estimate:
    interval = proportion_interval(correct, run.group, run.weights)
    return Estimate(float(correct.mean()), interval, proportion_method(correct, run.group))


def _by_patient(run: RunRecords, correct: np.ndarray) -> Estimate:
    method = WILSON if correct.all() or not correct.any() else RESAMPLED
    return Estimate(*patient_accuracy(correct, run.group, run.weights), method)


_MOST_KINDS = 20  # more are free text or numbers, and each has too few images


def subgroup_table(run: RunRecords, by: str) -> Table | None:
    """Returns clean and attacked accuracy by magnification, subtype or an attribute of a table.

    None if the test images have fewer than two of them, or very many.
    """
    values = run.subgroups[by]
    kinds = [kind for kind in np.unique(values) if kind not in (0, "")]
    if not 2 <= len(kinds) <= _MOST_KINDS:
        return None
    rows: list[tuple[Cell, ...]] = []
    for kind in kinds:
        inside = values == kind
        name = f"{kind}×" if by == "magnification" else str(kind)
        patients = run.count_patients(inside)
        for defense in run.defenses:
            cells = []
            for on in (CLEAN, ATTACKED):
                correct = correct_by_defense(run, on).get(defense)
                cells.append(None if correct is None else _inside(run, correct, inside))
            rows.append((name, int(inside.sum()), patients, defense, *cells))
    columns = (by, "images", "patients", "defence", "clean", "worst adaptive attack")
    notes = ("Few images or patients in a row: the interval says how little it means.",)
    return Table(f"by_{by}", f"Accuracy by {by}", columns, rows, notes, group_starts(rows))


def _inside(run: RunRecords, correct: np.ndarray, inside: np.ndarray) -> Estimate:
    correct, group = correct[inside], run.group[inside]
    method = proportion_method(correct, group)
    return Estimate(float(correct.mean()), proportion_interval(correct, group), method)


def calibration_table(run: RunRecords) -> Table:
    """Returns the expected calibration error, clean and attacked."""
    rows: list[tuple[Cell, ...]] = []
    for defense in run.defenses:
        cells = []
        for outcome in (run.clean(defense), run.worst(defense)):
            error = None
            if outcome is not None:
                error = reliability(run.label, outcome.score, outcome.predicted).error
            cells.append(error)
        rows.append((defense, *cells))
    note = (
        "Expected calibration error (Guo et al. 2017): mean distance between how sure the"
        " classifier is of its prediction and how often it is correct, in 10 equal bins. 0 is best."
    )
    columns = ("defence", "clean", "worst adaptive attack")
    return Table("calibration", "Calibration error", columns, rows, (note,))


def detection_table(run: RunRecords) -> Table | None:
    """Returns the detectors' results; None without a detector."""
    rows: list[tuple[Cell, ...]] = []
    for row in run.detection:
        counts = [int(float(row[c])) for c in ("n_clean", "n_attacked")]
        rates = [
            float(row[c]) if row[c] else None
            for c in ("auc", "true_positive_rate", "false_positive_rate", "threshold")
        ]
        rows.append((row["detector"], row["threat_model"], row["evaluation"], *counts, *rates))
    if not rows:
        return None
    columns = (
        "detector", "threat model", "attack", "clean images", "attacked images", "AUC",
        "share of attacks found", "false alarms", "threshold",
    )  # fmt: skip
    note = (
        "The threshold is chosen on clean validation images. adaptive: the attack also lowers the"
        " detector's score; only this row says what a detector is worth."
    )
    title = "Telling attacked images from clean ones"
    return Table("detection", title, columns, rows, (note,), group_starts(rows))


def checks_table(run: RunRecords) -> Table | None:
    """Returns every self-check, folded; None if the summary already shows them all."""
    if run.checks is None:
        return None
    rows = [_check_row(check) for check in run.checks.get("checks", [])]
    if len({row[0] for row in rows}) == len(rows):
        return None
    starts = group_starts(rows)
    return Table(
        "self_checks_full", "Every self-check", _CHECK_COLUMNS, rows, (), starts, folded=True
    )


def checks_summary(run: RunRecords) -> Table | None:
    """Returns the worst verdict of each self-check over the defences, and why it matters."""
    if run.checks is None:
        return None
    severity = {"pass": 0, "warn": 1, "fail": 2}
    worst: dict[int, dict] = {}
    for check in run.checks.get("checks", []):
        number = int(check["number"])
        both = worst.setdefault(number, check), check
        worst[number] = max(both, key=lambda c: severity.get(c["verdict"], 2))
    rows = []
    for number, check in sorted(worst.items()):
        row = _check_row(check | {"defense": _defenses_with(run, check)})
        rows.append((*row[:-1], WHY.get(number, NOTHING), row[-1]))
    title = "Self-checks: the worst verdict of each over the defences"
    note = "Value and measurement are those of the first defence with this verdict."
    columns = (*_CHECK_COLUMNS[:-1], "why it matters", _CHECK_COLUMNS[-1])
    return Table("self_checks", title, columns, rows, (note,))


def _defenses_with(run: RunRecords, worst: dict) -> str:
    """Returns the defences for which a check has its worst verdict."""
    same = [c for c in (run.checks or {})["checks"] if c["number"] == worst["number"]]
    names = [str(c.get("defense") or "all") for c in same if c["verdict"] == worst["verdict"]]
    return "all" if len(names) == len(same) else ", ".join(names)


_CHECK_COLUMNS = ("no.", "check", "defence", "verdict", "value", "what was measured")


def _check_row(check: dict) -> tuple[Cell, ...]:
    value = check.get("value")
    return (
        str(check.get("number", "")), str(check.get("name", "")),
        str(check.get("defense") or "all"), str(check.get("verdict", "")),
        NOTHING if value is None else f"{value:.3g}", str(check.get("explanation", "")),
    )  # fmt: skip


def settings_table(run: RunRecords) -> Table:
    """Returns every field of the config, and versions, device and commit."""
    rows: list[tuple[Cell, ...]] = [
        ("device", str(run.about.get("device", NOTHING))),
        ("git commit", str(run.about.get("git_commit") or NOTHING)),
    ]
    versions = run.about.get("versions", {})
    rows += [(f"version of {name}", str(version)) for name, version in versions.items()]
    rows += [(f"config.{name}", str(value)) for name, value in sorted(flatten(run.config).items())]
    return Table("settings", "Every setting", ("setting", "value"), rows, folded=True)
