"""The command `luotuo mapper fit`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from luotuo_integrations.cli_errors import clear_errors
from luotuo_integrations.registry import DEFAULT_MODEL

mapper_app = typer.Typer(help="Map questions towards their answers, by a linear function.", no_args_is_help=True)
out = Console(soft_wrap=True, highlight=False, emoji=False)


@mapper_app.callback()
def _mapper() -> None:
    """Keeps `fit` a command of its own: `luotuo mapper fit`."""


@mapper_app.command()
@clear_errors("Nothing was written.")
def fit(
    pairs: Annotated[
        Path,
        typer.Option(exists=True, dir_okay=False, help='Lines of {"query": ..., "positive": ...}, or question/answer.'),
    ],
    target: Annotated[Path, typer.Option("--out", help="File to write; then: luotuo search --mapper FILE.")],
    model: Annotated[str, typer.Option(help="Embedding model.")] = DEFAULT_MODEL,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps.", show_default="the best there is")
    ] = None,
) -> None:
    """Fit a mapper on your own questions and answers. Stored documents stay as they are."""
    from luotuo_integrations.embeddings import LuotuoEmbeddings
    from luotuo_integrations.pair_files import read_pairs

    if target.is_dir() or not target.parent.is_dir():
        msg = f"--out {str(target)!r} must be a file in a folder that exists"
        raise typer.BadParameter(msg)
    mapper = LuotuoEmbeddings(model, device=device).fit_mapper(read_pairs(pairs))
    mapper.save(target)
    report = mapper.report
    if "mrr" in report:
        out.print(
            f"Held-back questions: recall@1 {report['recall@1_without']:.3f} -> {report['recall@1']:.3f}, "
            f"MRR {report['mrr_without']:.3f} -> {report['mrr']:.3f}"
        )
    if mapper.is_identity:
        out.print(f"The mapper changes nothing: {report['reason']} ({report['pairs']} pairs).")
    else:
        out.print(f"{report['method']}, strength {report['strength']}, {report['pairs']} pairs: {escape(str(target))}")
