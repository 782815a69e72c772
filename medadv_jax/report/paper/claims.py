"""The paper's sentences, and whether the runs reproduce them.

A sentence is a set of contrasts: one number minus another one, on the same images. It is
reproduced if the 95 % interval of every contrast is above 0, not reproduced if the interval of one
is at or below 0, and otherwise not decidable. `evidence.py` measures contrasts; `sentences.py`
lists the sentences.
"""

import dataclasses
from collections.abc import Sequence

from medadv_jax.report.aggregate import Group
from medadv_jax.report.page import Section
from medadv_jax.report.paper.evidence import Evidence, Result, View
from medadv_jax.report.paper.sentences import CLAIMS, TISSUE, XRAYS, Claim
from medadv_jax.report.records import title_of
from medadv_jax.report.tables import Cell, Estimate, Table, cell_text

REPRODUCED, NOT_REPRODUCED, UNDECIDABLE = "reproduced", "not reproduced", "not decidable"


@dataclasses.dataclass(frozen=True)
class Finding:
    """The verdict on a claim.

    Attributes:
      verdict: REPRODUCED, NOT_REPRODUCED or UNDECIDABLE.
      number: the contrast that decides, or why there is none.
    """

    verdict: str
    number: str


def judge_claim(claim: Claim, evidence: Evidence, view: View) -> Finding:
    """Returns the verdict of the runs of one data set.

    Args:
      claim: a conclusion of the paper.
      evidence: the runs.
      view: attackers, and how accuracies under attack are combined.
    """
    if not claim.contrasts:
        return Finding(UNDECIDABLE, claim.why)
    measured = [evidence.measure(contrast, view) for contrast in claim.contrasts]
    against = [one for one in measured if one.interval and one.interval[1] <= 0]
    undecided = [one for one in measured if not (one.interval and one.interval[0] > 0)]
    held = [one for one in measured if one.interval and one.interval[0] > 0]
    if against:
        verdict, deciding = NOT_REPRODUCED, _lowest(against)
    elif undecided:
        known = [one for one in undecided if one.value is not None]
        verdict, deciding = UNDECIDABLE, _lowest(known) if known else undecided[0]
    else:
        verdict, deciding = REPRODUCED, _lowest(measured)
    number = _text(deciding)
    if verdict == UNDECIDABLE and held:
        of_all = f"{len(held)} of {len(measured)} hold, the smallest {_text(_lowest(held))}"
        number = f"{number}; {of_all}"
    if verdict != UNDECIDABLE and evidence.doubts:
        return Finding(UNDECIDABLE, f"{evidence.doubts[0]}; {number}")
    return Finding(verdict, number)


def _text(one: Result) -> str:
    return one.reason if one.value is None else f"{one.label}: {_number(one)}"


def _lowest(measured: Sequence[Result]) -> Result:
    return min(measured, key=lambda one: one.value if one.value is not None else 0.0)


def _number(one: Result) -> str:
    low, high = one.interval or (0.0, 1.0)
    interval = one.interval if low < high else None  # such as a cost, measured once
    return cell_text(Estimate(one.value, interval)) + (f"; {one.reason}" if one.reason else "")


def claims_table(dataset: str, paper_dataset: str, groups: Sequence[Group]) -> Table:
    """Returns the paper's conclusions on a data set, each with two verdicts.

    Args:
      dataset: the runs' data set.
      paper_dataset: the data set of the conclusions.
      groups: the runs.
    """
    evidence = Evidence(groups)
    rows: list[tuple[Cell, ...]] = []
    for claim in CLAIMS:
        if paper_dataset in claim.datasets:
            findings = [judge_claim(claim, evidence, view) for view in View]
            cells = [text for one in findings for text in (one.verdict, one.number)]
            rows.append((claim.where, claim.text, *cells))
    return Table(
        f"conclusions_{dataset}",
        "What the paper says, and what these runs say of it",
        (
            "section", "the paper says", "attacked as in the paper", "deciding number",
            "worst adaptive attack", "deciding number ",
        ),
        rows,
        (
            "Numbers: a difference, of accuracies unless another metric is named: what the paper"
            " calls better or higher minus the other, with its 95 % interval (by patient; over"
            " seeds or folds that cannot be pooled: Student's t). Reproduced: every difference of a"
            " sentence is above 0 with its whole interval; not reproduced: one is at or below 0"
            " with its whole interval; else not decidable. The number is that of the smallest"
            " difference which decides.",
            "Attacked as in the paper: mean over the attacks, the purifier unknown to the attacker."
            " Worst adaptive attack: for each image the worst attack, the purifier known.",
            *evidence.notes,
        ),
    )  # fmt: skip


def claims_section(dataset: str, groups: Sequence[Group]) -> Section:
    """Returns the section of a data set; generated images decide no conclusion."""
    paper = TISSUE if dataset in (TISSUE, "phantoms_histology") else XRAYS
    table = claims_table(dataset, paper, groups)
    return Section(f"The paper's conclusions: {title_of(dataset)}", [table])
