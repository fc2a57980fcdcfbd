"""What each part of the distillation loss is worth: the same run with one thing changed at a time, as a table.

    python -m training.ablation training/recipes/local-teacher.toml --out runs/ablation --set data.max_pairs=1000

All variants share one cache of the teacher's vectors. A variant that is finished is not run again, so that the table
can be interrupted and widened; the table is written to table.md in the folder after each.
"""

import argparse
import logging
from pathlib import Path

from luotuo_integrations.training.config import TrainConfig
from luotuo_integrations.training.distiller import Distiller
from luotuo_integrations.training.run_folder import read_json

BASE = (
    "loss.feature.distance=l1",
    "loss.feature.weights=[1]",
    "loss.kl.temperature=0.03",
    "loss.kl.prior=0",
    "loss.kl.weights=[0, 1]",
    "batch.kind=neighbours",
)
CSE = ("loss.cse.temperature=0.05", "loss.cse.weights=[0, 0.1]")
PRIOR = ("loss.kl.prior=0.3",)
VARIANTS: dict[str, tuple[str, ...]] = {
    "feature and KL": (),
    "another seed": ("seed=1",),
    "MSE for L1": ("loss.feature.distance=mse",),
    "cosine for L1": ("loss.feature.distance=cosine",),
    "without KL": ("loss.kl.weights=[0]",),
    "with CSE": CSE,
    "with diagonal prior": PRIOR,
    "with CSE and diagonal prior": (*CSE, *PRIOR),
    "random batches": ("batch.kind=random",),
    "KL from the first epoch": ("loss.kl.weights=[1]",),
    "KL alone": ("loss.feature.weights=[0]", "loss.kl.weights=[1]"),
    "KL temperature 0.01": ("loss.kl.temperature=0.01",),
    "KL temperature 0.02": ("loss.kl.temperature=0.02",),
    "KL temperature 0.05": ("loss.kl.temperature=0.05",),
    "KL temperature 0.1": ("loss.kl.temperature=0.1",),
    "with CSE, temperature 0.02": ("loss.cse.temperature=0.02", "loss.cse.weights=[0, 0.1]"),
    "with CSE, temperature 0.1": ("loss.cse.temperature=0.1", "loss.cse.weights=[0, 0.1]"),
}
COLUMNS = {
    "dev/spearman_to_teacher": "rank correlation with the teacher",
    "dev/cosine_to_teacher": "cosine with the teacher",
    "dev/pair@1": "pair accuracy",
    "dev/off_diagonal_mean": "mean off-diagonal of R",
}


def metrics_of(run: Path, which: str) -> dict[str, float] | None:
    """Metrics of a finished run, or None."""
    found: dict[str, float] | None = (read_json(run / "metrics.json") or {}).get(which)
    return found


def table(out: Path, variants: list[str]) -> str:
    """The finished variants as a Markdown table, the untrained student and the teacher first."""
    rows = ["| variant | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    finished = [(name, metrics_of(out / slug(name), "after")) for name in variants]
    first = next((out / slug(name) for name, metrics in finished if metrics), None)
    edges = [] if first is None else [(name, metrics_of(first, name)) for name in ("before", "teacher")]
    for name, metrics in [*edges, *finished]:
        if metrics:
            values = (f"{metrics[key]:.4f}" if key in metrics else "" for key in COLUMNS)
            rows.append(f"| {name} | " + " | ".join(values) + " |")
    return "\n".join(rows) + "\n"


def slug(name: str) -> str:
    """Name of a variant's folder."""
    return name.lower().replace(",", "").replace(" ", "-")


def main() -> None:
    """Run what is not finished yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="a .toml recipe, or the config.json of a run")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"), help="folder of the runs")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="a setting, as batch.size=64")
    parser.add_argument("--only", action="append", choices=list(VARIANTS), help="this variant; may be given again")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    base = TrainConfig.from_file(arguments.recipe).with_overrides([*BASE, *arguments.overrides])
    names = arguments.only or list(VARIANTS)
    for name in names:
        run = arguments.out / slug(name)
        if not (run / "report.md").is_file():
            config = base.with_overrides(VARIANTS[name]).with_values({"run.out": str(run)})
            if config.teacher.cache is None:
                config = config.with_values({"teacher.cache": str(arguments.out / "teacher")})
            print(f"== {name}", flush=True)
            Distiller(config).run(resume=True)
        (arguments.out / "table.md").write_text(table(arguments.out, list(VARIANTS)), encoding="utf-8")
    print(table(arguments.out, list(VARIANTS)))


if __name__ == "__main__":
    main()
