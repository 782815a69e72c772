"""The paper's conclusions, and whether the runs reproduce them.

A conclusion is a set of contrasts: one accuracy minus another one, on the same images. It is
reproduced if the 95 % interval of every contrast is above 0, not reproduced if the interval of one
is at or below 0, and otherwise not decidable. `evidence.py` measures contrasts.
"""

import dataclasses
from collections.abc import Sequence

from medadv_jax.report.aggregate import Group
from medadv_jax.report.page import Section
from medadv_jax.report.paper.evidence import ATTACKED, CLEAN, Contrast, Evidence, Result, Term, View
from medadv_jax.report.tables import Cell, Estimate, Table, cell_text

REPRODUCED, NOT_REPRODUCED, UNDECIDABLE = "reproduced", "not reproduced", "not decidable"
XRAYS, TISSUE = "chest_xray", "breakhis"
BOTH = (XRAYS, TISSUE)
NETWORKS = ("vgg16", "vgg19", "resnet50", "inception_v3")
VGGS, OTHERS = NETWORKS[:2], NETWORKS[2:]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A conclusion of the paper.

    Attributes:
      where: the paper's section.
      text: in our words.
      datasets: that it is about.
      contrasts: all must be above 0.
    """

    where: str
    text: str
    datasets: tuple[str, ...]
    contrasts: tuple[Contrast, ...]


def _each(
    higher: tuple[str, str], lower: tuple[str, str], networks: Sequence[str] = NETWORKS
) -> tuple[Contrast, ...]:
    """Returns a contrast for each network; each side is (defence, what)."""
    return tuple(Contrast(n, Term(n, *higher), Term(n, *lower)) for n in networks)


def _among(defense: str, best: Sequence[str], rest: Sequence[str]) -> tuple[Contrast, ...]:
    """Returns contrasts of each of the best networks with each of the rest, under attack."""
    return tuple(
        Contrast(f"{a} − {b}", Term(a, defense, ATTACKED), Term(b, defense, ATTACKED))
        for a in best
        for b in rest
    )


def _below(limit: float, network: str) -> tuple[Contrast, ...]:
    """Returns the contrast of a limit with the undefended network under attack."""
    return (Contrast(f"{limit:g} − {network}", limit, Term(network, "base", ATTACKED)),)


def _between_attacks(
    network: str, strong: Sequence[str], weak: Sequence[str]
) -> tuple[Contrast, ...]:
    """Returns contrasts of weak with strong attacks on the undefended network."""
    return tuple(
        Contrast(f"{b} − {a}", Term(network, "base", b), Term(network, "base", a))
        for a in strong
        for b in weak
    )


def _variants(
    field: str, best: float, others: Sequence[float], defense: str, what: str
) -> tuple[Contrast, ...]:
    """Returns contrasts of one value of a config field with others, for ResNet50."""
    return tuple(
        Contrast(
            f"{best:g} − {other:g}",
            Term("resnet50", defense, what, ((field, best),)),
            Term("resnet50", defense, what, ((field, other),)),
        )
        for other in others
    )


_BASE, _ADVERSARIAL = ("base", ATTACKED), ("adversarial", ATTACKED)
_AUTOENCODER, _HYBRID = ("autoencoder", ATTACKED), ("hybrid", ATTACKED)

CLAIMS = (
    Claim("IV, IV-A, IV-B", "Every undefended network loses accuracy under attack.", BOTH,
          _each(("base", CLEAN), _BASE)),
    Claim("I, IV-A", "Undefended, both VGGs withstand the attacks better than ResNet50 and"
          " InceptionV3.", (XRAYS,), _among("base", VGGS, OTHERS)),
    Claim("IV-A", "The undefended InceptionV3 falls below 0.15 under attack.", (XRAYS,),
          _below(0.15, "inception_v3")),
    Claim("IV-B", "The undefended InceptionV3 falls below 0.03 under attack.", (TISSUE,),
          _below(0.03, "inception_v3")),
    Claim("IV-B", "PGD and MI-FGSM harm the undefended InceptionV3 more than FGSM and BIM do.",
          (TISSUE,), _between_attacks("inception_v3", ("pgd", "mifgsm"), ("fgsm", "bim"))),
    Claim("IV-A, IV-B, V", "Adversarial training makes every network withstand the attacks"
          " better.", BOTH, _each(_ADVERSARIAL, _BASE)),
    Claim("IV-A", "Adversarially trained networks are better on clean images, too.", (XRAYS,),
          _each(("adversarial", CLEAN), ("base", CLEAN))),
    Claim("IV-A", "For the VGGs and ResNet50 adversarial training withstands the attacks better"
          " than the autoencoder.", (XRAYS,), _each(_ADVERSARIAL, _AUTOENCODER, NETWORKS[:3])),
    Claim("Abstract, IV-B, V", "The autoencoder withstands the attacks better than adversarial"
          " training.", (TISSUE,), _each(_AUTOENCODER, _ADVERSARIAL)),
    Claim("IV-B, V", "Behind an autoencoder ResNet50 withstands the attacks best.", (TISSUE,),
          _among("autoencoder", ("resnet50",), ("vgg16", "vgg19", "inception_v3"))),
    Claim("V", "Of the adversarially trained networks VGG19 and ResNet50 withstand the attacks"
          " best.", BOTH, _among("adversarial", ("vgg19", "resnet50"), ("vgg16", "inception_v3"))),
    Claim("Abstract, IV, V", "The hybrid withstands the attacks better than the undefended"
          " network.", BOTH, _each(_HYBRID, _BASE)),
    Claim("Abstract, IV-A", "The hybrid withstands the attacks better than adversarial training"
          " and better than the autoencoder.", BOTH,
          (*_each(_HYBRID, _ADVERSARIAL), *_each(_HYBRID, _AUTOENCODER))),
    Claim("III-C", "Of the radii 0.01 to 0.05, 0.03 is the best to train against (PGD at 0.03).",
          BOTH, _variants("attack.epsilon", 0.03, (0.01, 0.02, 0.04, 0.05), "adversarial",
                          "curve 0.03")),
    Claim("III-C", "Of bottlenecks of 64, 128 and 256 units, 128 is the best under attack.", BOTH,
          _variants("purifier.bottleneck", 128, (64, 256), "autoencoder", ATTACKED)),
)  # fmt: skip


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
    measured = [evidence.measure(contrast, view) for contrast in claim.contrasts]
    against = [one for one in measured if one.interval and one.interval[1] <= 0]
    undecided = [one for one in measured if not (one.interval and one.interval[0] > 0)]
    if against:
        verdict, deciding = NOT_REPRODUCED, _lowest(against)
    elif undecided:
        known = [one for one in undecided if one.value is not None]
        verdict, deciding = UNDECIDABLE, _lowest(known) if known else undecided[0]
    else:
        verdict, deciding = REPRODUCED, _lowest(measured)
    number = f"{deciding.label}: {_number(deciding)}"
    if verdict != UNDECIDABLE and evidence.doubts:
        return Finding(UNDECIDABLE, f"{evidence.doubts[0]}; {number}")
    return Finding(verdict, number)


def _lowest(measured: Sequence[Result]) -> Result:
    return min(measured, key=lambda one: one.value if one.value is not None else 0.0)


def _number(one: Result) -> str:
    if one.value is None:
        return one.reason
    return cell_text(Estimate(one.value, one.interval)) + (f"; {one.reason}" if one.reason else "")


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
        "What the paper concludes, and what these runs say of it",
        (
            "section", "the paper says", "attacked as in the paper", "deciding number",
            "worst adaptive attack", "deciding number ",
        ),
        rows,
        (
            "Numbers: a difference of accuracies, what the paper calls better minus the other, with"
            " its 95 % interval (by patient; over seeds or folds that cannot be pooled: Student's"
            " t). Reproduced: every difference of a sentence is above 0 with its whole interval;"
            " not reproduced: one is at or below 0 with its whole interval; else not decidable."
            " The number is that of the smallest difference which decides.",
            "Attacked as in the paper: mean over the attacks, the purifier unknown to the attacker."
            " Worst adaptive attack: for each image the worst attack, the purifier known.",
            *evidence.notes,
        ),
    )  # fmt: skip


def claims_section(dataset: str, groups: Sequence[Group]) -> Section:
    """Returns the section of a data set; generated images decide no conclusion."""
    paper = TISSUE if dataset in (TISSUE, "phantoms_histology") else XRAYS
    table = claims_table(dataset, paper, groups)
    return Section(f"The paper's conclusions: {dataset}", [table])
