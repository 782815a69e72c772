"""Writes the report of a run, or a comparison of several: one page, its figures and its tables.

    python scripts/report.py runs/x          # --png: also figures/robustness_curves.png
    python scripts/report.py runs/x runs/y runs/z --output=runs/comparison
    python scripts/report.py runs/smoke    # all finished cells of a sweep
    python scripts/report.py --paper=docs/paper.md docs/records/xray64  # the paper, answered

Reads run directories, and beside them folders of evaluate_runs.py, which give a transfer matrix
and an ensemble; runs no model and imports no JAX.
"""

from pathlib import Path

from absl import flags

from medadv_jax import cli
from medadv_jax.config import expand_path
from medadv_jax.report import write_answers, write_report

_PNG = flags.DEFINE_bool("png", False, "Also write figures/robustness_curves.png, of one run.")
_PAPER = flags.DEFINE_string(
    "paper", "", "Write, instead of a report, the Markdown page that answers the paper."
)
_OUTPUT = flags.DEFINE_string(
    "output", "", 'Folder for the report; "": RUN/report for one run, ./report for several.'
)


def main(runs: list[Path]) -> None:
    """Writes the report and prints its path."""
    if _PAPER.value:
        print(write_answers(runs, expand_path(_PAPER.value, "--paper")))
        return
    default = runs[0] / "report" if len(runs) == 1 else Path("report")
    output = expand_path(_OUTPUT.value, "--output") if _OUTPUT.value else default
    print(write_report(runs, output, png=_PNG.value))


if __name__ == "__main__":
    cli.run_on_paths(main)
