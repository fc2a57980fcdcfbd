"""The commands `luotuo distill` and `luotuo finetune`."""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from luotuo_integrations.cli_errors import clear_errors
from luotuo_integrations.progress import standard_error
from luotuo_integrations.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from luotuo_integrations.training.config import TrainConfig
    from luotuo_integrations.training.teachers import Estimate
    from luotuo_integrations.training.training_run import RunResult

err = standard_error()

FINETUNED = "runs/finetuned"
INTERRUPTED = "What was finished is kept; the same command with --resume goes on from there."

Recipe = Annotated[Path | None, typer.Argument(help="A .toml recipe: see training/recipes.", show_default=False)]
Out = Annotated[str | None, typer.Option(help="Folder of the run.", show_default="the recipe's")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder; without one, begin.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="A setting, as batch.size=64; may be given again and again.")
]
Student = Annotated[
    str | None,
    typer.Option(
        help="How the student begins: bert, bert-pruned:6, vocab:24000, random:6x384, glm:FOLDER; joined by +.",
        show_default="bert",
    ),
]
Base = Annotated[str | None, typer.Option(help="Model that the student is made of.", show_default=DEFAULT_MODEL)]
Epochs = Annotated[int | None, typer.Option(min=1, help="Passes over the data.", show_default="the recipe's")]
Device = Annotated[str | None, typer.Option(help="cpu; otherwise what accelerate finds.", show_default="a GPU, if any")]


@clear_errors(INTERRUPTED)
def distill(
    recipe: Recipe = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="Folder or file of articles: txt, md, jsonl, csv, parquet.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="openai:MODEL, qianfan:MODEL, zhipu:MODEL, a model's name or folder, or a file of vectors."),
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="Address of an OpenAI-compatible server.")] = None,
    student: Student = None,
    base: Base = None,
    out: Out = None,
    max_cost: Annotated[
        float | None,
        typer.Option(min=0, help="Stop before the first call if it would cost more (USD; CNY for qianfan, zhipu)."),
    ] = None,
    epochs: Epochs = None,
    device: Device = None,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Distil an embedding API or model into a small model of your own. The teacher's key comes from the environment."""
    given: dict[str, Any] = {
        "data.corpus": corpus,
        "teacher.model": teacher,
        "teacher.base_url": base_url,
        "teacher.max_cost": max_cost,
        "student.build": student,
        "student.base": base,
        "optimizer.epochs": epochs,
        "run.out": out,
        "run.device": device,
    }
    config = _config(recipe, given, overrides, resume)
    from luotuo_integrations.training.distiller import Distiller

    _show_log()
    result = Distiller(config, on_estimate=_tell, show_progress=err.is_terminal).run(resume=resume)
    _say(result)


@clear_errors(INTERRUPTED)
def finetune(
    recipe: Recipe = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(help="File of pairs, triplets or scored pairs: jsonl, csv, parquet; field names are inferred."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to begin with.", show_default=DEFAULT_MODEL)] = None,
    student: Student = None,
    out: Out = None,
    epochs: Epochs = None,
    device: Device = None,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Fine-tune a model on your own pairs. Loss, batch size and learning rate suit the records unless they are set."""
    given: dict[str, Any] = {
        "data.records": pairs,
        "student.base": model,
        "student.build": student,
        "optimizer.epochs": epochs,
        "run.out": out,
        "run.device": device,
    }
    from luotuo_integrations.training.finetuner import FineTuner

    _show_log()
    show = err.is_terminal
    if recipe is None and out is None:
        given["run.out"] = FINETUNED
    values = {key: value for key, value in given.items() if value is not None}
    if recipe is None and pairs and not (resume and _of_run(out or FINETUNED).is_file()):
        tuner = FineTuner.from_pretrained(model or DEFAULT_MODEL, dataset=pairs, show_progress=show)
        tuner.config = tuner.config.with_values(values).with_overrides(overrides or [])
    else:
        tuner = FineTuner(_config(recipe, given, overrides, resume), show_progress=show)
    _say(tuner.run(resume=resume))


def _config(recipe: Path | None, given: dict[str, Any], overrides: list[str] | None, resume: bool) -> "TrainConfig":
    """The recipe, or the run that goes on, or the defaults; then what was given on the command line."""
    from luotuo_integrations.training.config import TrainConfig

    before = _of_run(given.get("run.out") or TrainConfig().run.out)
    if recipe is not None:
        config = TrainConfig.from_file(recipe)
    elif resume and before.is_file():
        config = TrainConfig.from_file(before)
    else:
        config = TrainConfig()
    config = config.with_values({key: value for key, value in given.items() if value is not None})
    return config.with_overrides(overrides or [])


def _of_run(out: str) -> Path:
    """The configuration that a run keeps in its folder."""
    return Path(out) / "config.json"


def _tell(estimate: "Estimate") -> None:
    err.print(f"Teacher: {escape(str(estimate))}", soft_wrap=True)


def _show_log() -> None:
    logging.getLogger("luotuo_integrations.training").setLevel(logging.INFO)


def _say(result: "RunResult") -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # one process of several speaks
    for name, value in result.after.items():
        before = result.before.get(name)
        typer.echo(f"{name}: {value:.4f}" + ("" if before is None else f" (before: {before:.4f})"))
    typer.echo(f"Model: {result.model}")
    typer.echo(f"Report: {result.report}")
    typer.echo(f"Use it: LuotuoEmbeddings(model={str(result.model)!r})")
