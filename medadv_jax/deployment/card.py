"""The card of a model folder: Markdown for people, with the front matter of the Hugging Face Hub.

Class names, ids and config values come from data: they are escaped, and never markup.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from medadv_jax.deployment.description import Description

_TAGS = ["adversarial-robustness", "medical-imaging", "jax", "flax"]
_ONE_CLASS = "It names one of its classes for any image, also for one that shows none of them."
_LIMITS = (
    "Not a medical device: it has not been validated for clinical use and must not guide care.",
    _ONE_CLASS,
    "Robustness was measured against the attacks listed, at their radius; a stronger attack may"
    " break more images.",
    "Intervals hold for images like those tested; another hospital, scanner or stain may differ.",
)


def card_text(description: Description) -> str:
    """Returns the card as Markdown; depends on the description alone."""
    found = description.evaluation
    title = f"{found.get('defense') or 'classifier'}, {description.network['name']}"
    several = found.get("labels") == "several"
    limits = [line for line in _LIMITS if not (several and line == _ONE_CLASS)]
    parts = [
        f"---\n{_front_matter(description)}---",
        f"# {escape(title)}",
        _what(description),
        "## Intended use\n\nResearch on adversarial robustness of medical-image classifiers. **Not"
        " a medical device.**",
        f"## Data\n\n{_data(found)}",
        f"## Results\n\n{_results(found)}",
        f"## Self-checks of the measurement\n\n{_checks(found)}",
        "## Limits\n\n" + "\n".join(f"- {line}" for line in limits),
        f"## Use\n\n{_START if several else _USE}",
        f"## Provenance\n\n{_provenance(description.provenance)}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_START = (
    "Several labels an image, a sigmoid for each; `label_results.csv` of the run has what was"
    " measured. Another run starts from it: `--config.model.weights=FOLDER`."
)
_USE = """```python
import medadv_jax

model = medadv_jax.load("FOLDER")  # of this file
pixels = model.read("image.png")  # (S, S, 3) uint8
print(model.classes, model.predict(pixels[None]).probability)
```"""


def _front_matter(description: Description) -> str:
    """YAML; PyYAML quotes what comes from data."""
    name, found = description.network["name"], description.evaluation
    content: dict[str, Any] = {
        "library_name": "medadv_jax",
        "pipeline_tag": "image-classification",
        "tags": [*_TAGS, name],
    }
    results = found.get("results")
    if results:
        metrics = [
            {"type": "accuracy", "name": _name(row), "value": round(row["accuracy"], 4)}
            for row in results
            # Weaker attackers are in the table of the card, not in the headline.
            if row["evaluation"] in ("clean", "worst")
            and row["threat_model"] in ("none", "adaptive")
        ]
        dataset = {"name": _plain(found["dataset"]), "type": _plain(found["dataset"])}
        task = {"type": "image-classification"}
        entry = {"task": task, "dataset": dataset, "metrics": metrics}
        title = f"{found['defense']} {name}"
        content["model-index"] = [{"name": _plain(title), "results": [entry]}]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=10**6)


def _name(row: Mapping[str, Any]) -> str:
    if row["threat_model"] == "none":
        return "clean accuracy"
    return f"robust accuracy, {row['threat_model']} attacker, epsilon {row['epsilon']:g}"


def _what(description: Description) -> str:
    purifier, network = description.purifier, description.network
    size = description.image_size
    rows = [
        ("network", f"{network['name']}, width {network['width']:g}, {network['dtype']}"),
        ("purifier", f"{purifier['name']}, width {purifier['width']:g}" if purifier else "none"),
        ("input", f"{size} × {size} RGB pixels; image files are fitted by “{description.fit}”"),
        ("normalisation", f"{description.normalization}; part of the model"),
        ("classes, in order", ", ".join(description.classes)),
        ("detectors", ", ".join(description.detectors) or "none calibrated"),
    ]
    return _table(["", ""], rows)


def _data(found: Mapping[str, Any]) -> str:
    if not found.get("split"):
        return "Not recorded."
    split = found["split"]
    rows = [
        (name, part["images"], part["groups"], ", ".join(map(str, part["by_class"].values())))
        for name, part in split["counts"].items()
    ]
    head = ["split", "images", "groups", "images of each class"]
    return f"{escape(found['dataset'])}; split by {escape(split['done'])}.\n\n{_table(head, rows)}"


def _results(found: Mapping[str, Any]) -> str:
    if not found.get("results"):
        return "Not evaluated."
    rows = [
        (
            row["threat_model"], row["evaluation"], f"{row['epsilon']:g}", row["n"],
            f"{row['accuracy']:.3f}", f"{row['low']:.3f}–{row['high']:.3f}",
        )
        for row in found["results"]
    ]  # fmt: skip
    head = ["attacker", "attack", "ε", "images", "accuracy", "95 % interval"]
    attack = found["attack"]
    settings = ", ".join(f"{name} {value}" for name, value in attack.items())
    return (
        f"{_table(head, rows)}\n\nε in pixels of [0, 1]. “worst”: correct when clean and under"
        " every attack. Oblivious attackers do not know the purifier, adaptive ones know"
        f" everything; images of one patient count together. Attacks: {escape(settings)}."
    )


def _checks(found: Mapping[str, Any]) -> str:
    checks = found.get("self_checks")
    if not checks:
        return "Not run: whether these numbers can be trusted is not known."
    head = f"{checks['headline']}; {checks['passed']} of {checks['made']} pass."
    return "\n".join([escape(head), *(f"- {escape(line)}" for line in checks["others"])])


def _provenance(found: Mapping[str, Any]) -> str:
    rows = [(name, value) for name, value in found.items() if isinstance(value, str) and value]
    versions = ", ".join(f"{k} {v}" for k, v in found.get("versions", {}).items())
    return _table(["", ""], [*rows, ("versions", versions)])


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *([escape(str(cell)) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escape(text: str) -> str:
    """Returns text of any origin as one line of Markdown that shows it and does nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$@-])", r"\\\1", _plain(text))


def _plain(text: str) -> str:
    """One line without control characters, and without those that turn the reading direction."""
    text = "".join(c if c.isprintable() or c.isspace() else "\ufffd" for c in text)
    return " ".join(text.split())
