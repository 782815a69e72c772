"""What the paper says in sections III to V, each sentence as contrasts that runs can decide.

Where the paper gives no limit for a word such as "strong" or "near zero", the limit is ours, and
stands in the text.
"""

import dataclasses
from collections.abc import Sequence

from medadv_jax.report.paper.evidence import ATTACKED, CLEAN, COST, Contrast, Term

XRAYS, TISSUE = "chest_xray", "breakhis"
BOTH = (XRAYS, TISSUE)
NETWORKS = ("vgg16", "vgg19", "resnet50", "inception_v3")
VGGS, OTHERS = NETWORKS[:2], NETWORKS[2:]
ATTACKS = ("fgsm", "pgd", "mifgsm", "bim")


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the paper.

    Attributes:
      where: the paper's section or figure.
      text: in our words.
      datasets: that it is about.
      contrasts: all must be above 0; (): no run can decide it.
      why: no run can decide it.
    """

    where: str
    text: str
    datasets: tuple[str, ...]
    contrasts: tuple[Contrast, ...]
    why: str = ""


def _each(
    higher: tuple[str, str],
    lower: tuple[str, str],
    networks: Sequence[str] = NETWORKS,
    metrics: Sequence[str] = ("accuracy",),
) -> tuple[Contrast, ...]:
    """Returns a contrast for each metric and network; each side is (defence, what)."""
    return tuple(
        Contrast(_label(n, m), Term(n, *higher, metric=m), Term(n, *lower, metric=m))
        for m in metrics
        for n in networks
    )


def _label(text: str, metric: str) -> str:
    return text if metric == "accuracy" else f"{text}, {metric}"


def _among(defense: str, best: Sequence[str], rest: Sequence[str]) -> tuple[Contrast, ...]:
    """Returns contrasts of each of the best networks with each of the rest, under attack."""
    return tuple(
        Contrast(f"{a} − {b}", Term(a, defense, ATTACKED), Term(b, defense, ATTACKED))
        for a in best
        for b in rest
    )


def _above(
    limit: float,
    networks: Sequence[str],
    defense: str,
    whats: Sequence[str] = (ATTACKED,),
    metric: str = "accuracy",
) -> tuple[Contrast, ...]:
    """Returns contrasts of a metric with a limit that it must exceed."""
    return tuple(
        Contrast(
            f"{_label(f'{n}, {what}', metric)} − {limit:g}",
            Term(n, defense, what, metric=metric), limit,
        )
        for n in networks
        for what in whats
    )  # fmt: skip


def _below(
    limit: float,
    networks: Sequence[str],
    defense: str = "base",
    whats: Sequence[str] = (ATTACKED,),
    metric: str = "accuracy",
) -> tuple[Contrast, ...]:
    """Returns contrasts of a limit with a metric that it must exceed."""
    return tuple(
        Contrast(
            f"{limit:g} − {_label(n if what == ATTACKED else f'{n}, {what}', metric)}", limit,
            Term(n, defense, what, metric=metric),
        )
        for n in networks
        for what in whats
    )  # fmt: skip


def _between_attacks(
    network: str, defense: str, strong: Sequence[str], weak: Sequence[str]
) -> tuple[Contrast, ...]:
    """Returns contrasts of weak with strong attacks on a network."""
    return tuple(
        Contrast(f"{network}, {b} − {a}", Term(network, defense, b), Term(network, defense, a))
        for a in strong
        for b in weak
    )


def _gains(best: str, defense: str) -> tuple[Contrast, ...]:
    """Returns contrasts of one network's gain over base under attack with the others' gains."""

    def both(first: str, gaining: str, second: str) -> tuple[Term, ...]:
        return Term(first, gaining, ATTACKED), Term(second, "base", ATTACKED)

    return tuple(
        Contrast(f"gain of {best} − {n}", both(best, defense, n), both(n, defense, best))
        for n in NETWORKS
        if n != best
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


def _cost(metric: str, more: tuple[str, str], less: tuple[str, str]) -> Contrast:
    """Returns the contrast of the costs of two classifiers, (network, defence) each."""
    terms = (Term(*one, COST, metric=metric) for one in (more, less))
    same = more[0] == less[0]
    label = more[0] if same else f"{more[0]} − {less[0]}"
    return Contrast(f"{label}, {metric}", *terms)


_BASE, _ADVERSARIAL = ("base", ATTACKED), ("adversarial", ATTACKED)
_AUTOENCODER, _HYBRID = ("autoencoder", ATTACKED), ("hybrid", ATTACKED)
_METRICS = ("precision", "recall", "f1", "auc")

_ABOUT_ATTACKS = (
    Claim("IV, IV-A, IV-B", "Every undefended network loses accuracy under attack.", BOTH,
          _each(("base", CLEAN), _BASE)),
    Claim("IV, IV-B", "Every undefended network loses AUC, too.", BOTH,
          _each(("base", CLEAN), _BASE, metrics=("auc",))),
    Claim("IV-A, IV-B", "Undefended, all networks are strong on clean images (accuracy above 0.8).",
          BOTH, _above(0.8, NETWORKS, "base", (CLEAN,))),
    Claim("IV-A, Fig. 5", "The undefended VGG19 finds no pneumonia on clean images (recall 0).",
          (XRAYS,), _below(0.01, ("vgg19",), whats=(CLEAN,), metric="recall")),
    Claim("I, IV-A", "Undefended, both VGGs withstand the attacks better than ResNet50 and"
          " InceptionV3.", (XRAYS,), _among("base", VGGS, OTHERS)),
    Claim("IV-A", "The undefended InceptionV3 falls below 0.15 under attack.", (XRAYS,),
          _below(0.15, ("inception_v3",))),
    Claim("IV-B, Fig. 14", "The undefended InceptionV3 falls below 0.03 under attack.", (TISSUE,),
          _below(0.03, ("inception_v3",))),
    Claim("IV-B", "PGD and MI-FGSM harm the undefended InceptionV3 more than FGSM and BIM do.",
          (TISSUE,), _between_attacks("inception_v3", "base", ("pgd", "mifgsm"), ("fgsm", "bim"))),
    Claim("IV-B", "Attacks turn malignant into benign more often than benign into malignant.",
          (TISSUE,), tuple(
              Contrast(f"{n}, specificity − recall", Term(n, *_BASE, metric="specificity"),
                       Term(n, *_BASE, metric="recall")) for n in NETWORKS)),
    Claim("IV-C, Fig. 15a", "Undefended, InceptionV3 and VGG19 have an AUC near 0 (below 0.05)"
          " under PGD and BIM.", (TISSUE,),
          _below(0.05, ("inception_v3", "vgg19"), whats=("pgd", "bim"), metric="auc")),
    Claim("IV-C, Figs. 16a, 17a", "Undefended, InceptionV3 has F1 and precision near 0 (below 0.05)"
          " under attack.", (TISSUE,), (
              *_below(0.05, ("inception_v3",), metric="f1"),
              *_below(0.05, ("inception_v3",), metric="precision"))),
    Claim("IV-C, Fig. 18a", "Undefended, InceptionV3, VGG16 and VGG19 have a recall near 0 (below"
          " 0.05) under attack.", (TISSUE,),
          _below(0.05, ("inception_v3", *VGGS), metric="recall")),
)  # fmt: skip

_ABOUT_ADVERSARIAL = (
    Claim("IV-A, IV-B, V", "Adversarial training makes every network withstand the attacks"
          " better.", BOTH, _each(_ADVERSARIAL, _BASE)),
    Claim("IV-A, Fig. 7b", "Attacks succeed less often on adversarially trained networks.",
          (XRAYS,), _each(_BASE, _ADVERSARIAL, metrics=("success rate",))),
    Claim("IV-A", "Adversarial training reaches 0.857 (VGG19) and 0.755 (VGG16) under attack.",
          (XRAYS,), (*_above(0.857, ("vgg19",), "adversarial"),
                     *_above(0.755, ("vgg16",), "adversarial"))),
    Claim("IV-A, Fig. 6a", "With adversarial training both VGGs are above 0.9, clean and under"
          " attack.", (XRAYS,), _above(0.9, VGGS, "adversarial", (CLEAN, ATTACKED))),
    Claim("IV-A, Fig. 6a", "Adversarial training gives a low standard deviation over clean images"
          " and attacks (lower than base).", (XRAYS,),
          _each(_BASE, _ADVERSARIAL, metrics=("deviation",))),
    Claim("I, IV", "InceptionV3 benefits from adversarial training more than the other networks.",
          (XRAYS,), _gains("inception_v3", "adversarial")),
    Claim("IV-A", "Adversarially trained networks are better on clean images, too.", (XRAYS,),
          _each(("adversarial", CLEAN), ("base", CLEAN))),
    Claim("IV-A, Fig. 5", "On clean images adversarially trained VGG16 has accuracy 0.950 and F1"
          " 0.953.", (XRAYS,), (*_above(0.945, ("vgg16",), "adversarial", (CLEAN,)),
                                *_above(0.948, ("vgg16",), "adversarial", (CLEAN,), "f1"))),
    Claim("IV-A, Figs. 8 to 11", "Under attack, adversarial training keeps a higher confidence in"
          " the true class than base.", (XRAYS,),
          _each(_ADVERSARIAL, _BASE, metrics=("confidence",))),
    Claim("IV-A, Fig. 9", "ResNet50 and its defences keep most attacked images right (above 0.5).",
          (XRAYS,), tuple(c for d in ("base", "adversarial", "autoencoder")
                          for c in _above(0.5, ("resnet50",), d))),
    Claim("IV-A", "For the VGGs and ResNet50 adversarial training withstands the attacks better"
          " than the autoencoder.", (XRAYS,), _each(_ADVERSARIAL, _AUTOENCODER, NETWORKS[:3])),
    Claim("IV-B", "Adversarial training raises the recall under attack.", (TISSUE,),
          _each(_ADVERSARIAL, _BASE, metrics=("recall",))),
    Claim("IV-C, Fig. 15c", "With adversarial training the AUC is 0.6 to 0.78 under every attack.",
          (TISSUE,), (*_above(0.6, NETWORKS, "adversarial", ATTACKS, "auc"),
                      *_below(0.78, NETWORKS, "adversarial", ATTACKS, "auc"))),
    Claim("IV-B, IV-C, Fig. 14", "Adversarial training withstands BIM worse than FGSM.",
          (TISSUE,), tuple(Contrast(f"{n}, fgsm − bim", Term(n, "adversarial", "fgsm"),
                                    Term(n, "adversarial", "bim")) for n in NETWORKS)),
    Claim("V", "Of the adversarially trained networks VGG19 and ResNet50 withstand the attacks"
          " best.", BOTH, _among("adversarial", ("vgg19", "resnet50"), ("vgg16", "inception_v3"))),
)  # fmt: skip

_ABOUT_AUTOENCODERS = (
    Claim("Abstract, IV-B, V", "The autoencoder withstands the attacks better than adversarial"
          " training.", (TISSUE,), _each(_AUTOENCODER, _ADVERSARIAL)),
    Claim("IV-B, IV-C", "The autoencoder is better than adversarial training in precision, recall,"
          " F1 and AUC, too.", (TISSUE,),
          _each(_AUTOENCODER, _ADVERSARIAL, metrics=_METRICS)),
    Claim("IV-A", "The autoencoder makes every network withstand the attacks better.", BOTH,
          _each(_AUTOENCODER, _BASE)),
    Claim("IV-A", "InceptionV3 benefits from the autoencoder more than the other networks.",
          (XRAYS,), _gains("inception_v3", "autoencoder")),
    Claim("IV-A, Fig. 6b", "Behind an autoencoder InceptionV3 gains under attack; the other"
          " networks lose.", (XRAYS,), (*_each(_AUTOENCODER, _BASE, ("inception_v3",)),
                               *_each(_BASE, _AUTOENCODER, NETWORKS[:3]))),
    Claim("IV-A, Fig. 7b", "Behind an autoencoder attacks succeed in about 0.47 (0.37 to 0.57) of"
          " the images.", (XRAYS,), (
              *_above(0.37, NETWORKS, "autoencoder", metric="success rate"),
              *_below(0.57, NETWORKS, "autoencoder", metric="success rate"))),
    Claim("IV-A, Fig. 10", "Of InceptionV3's classifiers the one behind an autoencoder is the most"
          " confident of the true class under attack.", (XRAYS,), (
              *_each(_AUTOENCODER, _BASE, ("inception_v3",), ("confidence",)),
              *_each(_AUTOENCODER, _ADVERSARIAL, ("inception_v3",), ("confidence",)))),
    Claim("IV-B, Figs. 12, 13", "Behind an autoencoder the confidence in the true class stays above"
          " 0.85 under attack.", (TISSUE,),
          _above(0.85, NETWORKS, "autoencoder", metric="confidence")),
    Claim("IV-C, Fig. 15b", "Behind an autoencoder the AUC stays above 0.65 under every attack.",
          (TISSUE,), _above(0.65, NETWORKS, "autoencoder", ATTACKS, "auc")),
    Claim("IV-C, Fig. 15b", "Behind an autoencoder ResNet50's AUC reaches 0.97 on clean images.",
          (TISSUE,),
          _above(0.965, ("resnet50",), "autoencoder", (CLEAN,), "auc")),
    Claim("IV-C, Fig. 16b", "Behind an autoencoder ResNet50's F1 stays at 0.80 under every attack.",
          (TISSUE,), _above(0.795, ("resnet50",), "autoencoder", ATTACKS, "f1")),
    Claim("IV-C, Fig. 17b", "Behind an autoencoder ResNet50's precision stays above 0.75 under"
          " every attack.", (TISSUE,),
          _above(0.75, ("resnet50",), "autoencoder", ATTACKS, "precision")),
    Claim("IV-C, Fig. 18b", "Behind an autoencoder ResNet50 and VGG19 keep a recall above 0.80"
          " under attack.", (TISSUE,),
          _above(0.8, ("resnet50", "vgg19"), "autoencoder", metric="recall")),
    Claim("IV-B, V", "Behind an autoencoder ResNet50 withstands the attacks best.", (TISSUE,),
          _among("autoencoder", ("resnet50",), ("vgg16", "vgg19", "inception_v3"))),
)  # fmt: skip

_ABOUT_THE_REST = (
    Claim("Abstract, IV, V", "The hybrid withstands the attacks better than the undefended"
          " network.", BOTH, _each(_HYBRID, _BASE)),
    Claim("Abstract", "The hybrid is better than the undefended network in precision, recall, F1"
          " and AUC, too.", BOTH,
          _each(_HYBRID, _BASE, metrics=_METRICS)),
    Claim("V", "The hybrid recovers confidence in the true class under attack.", BOTH,
          _each(_HYBRID, _BASE, metrics=("confidence",))),
    Claim("Abstract, IV-A", "The hybrid withstands the attacks better than adversarial training"
          " and better than the autoencoder.", BOTH,
          (*_each(_HYBRID, _ADVERSARIAL), *_each(_HYBRID, _AUTOENCODER))),
    Claim("Abstract, IV, V", "The autoencoder is lightweight: its training takes fewer seconds than"
          " adversarial training.", BOTH, tuple(
              _cost("training seconds", (n, "adversarial"), (n, "autoencoder")) for n in NETWORKS)),
    Claim("I, IV, V", "The autoencoder is computationally efficient: a prediction takes no more"
          " FLOPs than with adversarial training.", BOTH, tuple(
              _cost("GFLOPs", (n, "adversarial"), (n, "autoencoder")) for n in NETWORKS)),
    Claim("III-C", "InceptionV3 takes longer to train than ResNet50, and ResNet50 longer than the"
          " VGGs.", BOTH, tuple(
              _cost("training seconds", (slow, "base"), (quick, "base"))
              for slow, quick in (("inception_v3", "resnet50"), ("resnet50", "vgg16"),
                                  ("resnet50", "vgg19")))),
    Claim("I, V", "The defences improve interpretability.", BOTH, (),
          "the paper measures nothing of it, so there is nothing to compare with"),
    Claim("III-C", "Of the radii 0.01 to 0.05, 0.03 is the best to train against (PGD at 0.03).",
          BOTH, _variants("attack.epsilon", 0.03, (0.01, 0.02, 0.04, 0.05), "adversarial",
                          "curve 0.03")),
    Claim("III-C", "Of bottlenecks of 64, 128 and 256 units, 128 is the best under attack.", BOTH,
          _variants("purifier.bottleneck", 128, (64, 256), "autoencoder", ATTACKED)),
)  # fmt: skip

CLAIMS = (*_ABOUT_ATTACKS, *_ABOUT_ADVERSARIAL, *_ABOUT_AUTOENCODERS, *_ABOUT_THE_REST)
