"""The `luotuo` command: each command a few lines that call the rooms of this package.

Answers go to standard output, everything else to standard error. Exit codes: 0 done, 1 an error, 2 wrong usage,
3 nothing found in the documents, 130 interrupted.
"""

import io
import logging
import os
import sys
from pathlib import Path
from textwrap import indent
from typing import Annotated, Literal

import typer
from rich.markup import escape

from luotuo_integrations.atomic_file import replaced_file
from luotuo_integrations.cli_common import (
    AsJson,
    Device,
    Documents,
    Encoding,
    Llm,
    LlmModel,
    LocalLlm,
    Mapper,
    Model,
    Store,
    chat_model,
    err,
    opened,
    opened_and_synced,
    out,
)
from luotuo_integrations.cli_errors import clear_errors
from luotuo_integrations.cli_evaluate import EVALUATE_HELP, evaluate
from luotuo_integrations.cli_mapper import mapper_app
from luotuo_integrations.cli_output import (
    answer_json,
    lines_of,
    marked_snippet,
    models_table,
    print_json,
    report_json,
    result_json,
    vectors_json,
)
from luotuo_integrations.cli_questions import QUESTIONS_HELP, questions
from luotuo_integrations.cli_training import distill, finetune
from luotuo_integrations.registry import CARDS, DEFAULT_MODEL

NOTHING_FOUND = 3

app = typer.Typer(
    help="Chinese documents: index, search, ask. 中文文档的索引、搜索与问答。",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _ConsoleHandler(logging.Handler):
    """Shows what the package logs, for instance files that cannot be read."""

    def emit(self, record: logging.LogRecord) -> None:
        err.print(f"[yellow]{record.levelname.capitalize()}:[/yellow] {escape(self.format(record))}", soft_wrap=True)


_clear_errors = clear_errors("What was indexed so far is kept; the same command goes on from there.")


@app.callback()
def main(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what is going on.")] = False) -> None:
    """Set up output and threads for every command."""
    # Torch's threads wait for each other by spinning. Where another program keeps one core busy, that makes a question
    # fifty times slower (0.9 s instead of 0.02 s on two cores); waiting quietly costs next to nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that lacks a character shows a question mark
    package = logging.getLogger("luotuo_integrations")
    package.handlers = [_ConsoleHandler()]
    package.setLevel(logging.INFO if verbose else logging.WARNING)


@app.command()
@_clear_errors
def index(
    documents: Documents,
    store: Store = None,
    model: Model = None,
    device: Device = None,
    encoding: Encoding = None,
    as_json: AsJson = False,
) -> None:
    """Index a folder, or bring its index up to date: only new and changed files are read."""
    report = opened(documents, store, model, device, encoding).sync(show_progress=not as_json and err.is_terminal)
    if as_json:
        print_json(report_json(report))
        return
    out.print(
        f"{len(report.added)} files added, {len(report.updated)} updated, {len(report.removed)} removed, "
        f"{report.unchanged} unchanged; {report.chunks} passages"
    )


@app.command()
@_clear_errors
def search(
    documents: Documents,
    query: Annotated[str, typer.Argument(help="What to look for.", show_default=False)],
    k: Annotated[int, typer.Option("-k", min=1, help="How many passages.")] = 4,
    mode: Annotated[
        Literal["vector", "keyword", "hybrid"],
        typer.Option(help="By meaning, by words (names, numbers, codes), or both fused."),
    ] = "vector",
    full: Annotated[
        bool, typer.Option("--full", help="Print whole passages, not the 120 characters with most words of the query.")
    ] = False,
    mapper: Mapper = None,
    store: Store = None,
    model: Model = None,
    device: Device = None,
    encoding: Encoding = None,
    as_json: AsJson = False,
) -> None:
    """Find the passages that fit a query best; the words of the query are marked. A folder is indexed first."""
    results = opened_and_synced(documents, store, model, device, encoding, mapper=mapper).search(query, k, mode=mode)
    if as_json:
        print_json([result_json(result) for result in results])
    for number, result in enumerate([] if as_json else results, start=1):
        out.print(f"[bold]{number}. {escape(result.title)}[/bold]  {result.score_name} {result.score:.3f}")
        text = result.document.page_content
        if full:
            out.print(escape(indent(text.strip(), "   ")) + "\n")
        else:
            out.print("  ", marked_snippet(text, query, in_colour=out.is_terminal and not out.no_color), end="\n\n")
    if not results:
        err.print(f"No passage has a word of {escape(repr(query))}; try --mode vector or hybrid.", soft_wrap=True)
        raise typer.Exit(NOTHING_FOUND)


@app.command()
@_clear_errors
def ask(
    documents: Documents,
    question: Annotated[str, typer.Argument(help="The question.")],
    llm: Llm = None,
    llm_model: LlmModel = None,
    local_llm: LocalLlm = None,
    k: Annotated[int, typer.Option("-k", min=1, max=8, help="Most sources of an answer.")] = 4,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Relevance below which the answer is 'not found'; 0 answers always.")
    ] = 0.5,
    mapper: Mapper = None,
    store: Store = None,
    model: Model = None,
    device: Device = None,
    encoding: Encoding = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question from the documents, with sources. Without a language model it quotes the best sentences."""
    model_to_ask = chat_model(llm, llm_model, local_llm)
    knowledge_base = opened_and_synced(
        documents, store, model, device, encoding, mapper=mapper, llm=model_to_ask, k=k, threshold=threshold
    )
    if as_json:
        answer = knowledge_base.ask(question)
        print_json(answer_json(answer))
    else:
        stream = knowledge_base.stream(question)
        for piece in stream:
            out.print(escape(piece), end="")
        out.print("\n")
        answer = stream.answer
        for source in answer.sources:
            out.print(f"[bold]\\[{source.number}] {escape(source.title)}[/bold]")
            out.print(f"    {escape(source.quote)}")
    if not answer.found:
        raise typer.Exit(NOTHING_FOUND)


@app.command()
@_clear_errors
def embed(
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; without any, lines of --input are read.")] = None,
    source: Annotated[
        Path | None, typer.Option("--input", help="Text file, a text a line; - is standard input.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write a float32 array (N, D) to this .npy file.")] = None,
    kind: Annotated[Literal["passage", "query"], typer.Option(help="What the texts are.")] = "passage",
    model: Annotated[str, typer.Option(help="Embedding model.")] = DEFAULT_MODEL,
    device: Device = None,
    dimensions: Annotated[int | None, typer.Option(min=1, help="Keep the first so many numbers.")] = None,
) -> None:
    """Embed texts: print JSON, or write a .npy file."""
    import numpy as np

    from luotuo_integrations.encoder import Encoder

    if bool(texts) == (source is not None):
        msg = "Give texts, or --input FILE with a text a line (- for standard input)"
        raise typer.BadParameter(msg)
    if output is not None and not output.parent.is_dir():
        msg = f"The folder {str(output.parent)!r} for --output does not exist; make it first"
        raise FileNotFoundError(msg)
    if source is not None:
        texts = lines_of(sys.stdin.buffer.read() if str(source) == "-" else source.read_bytes())
    encoder = Encoder(model, device=device, dimensions=dimensions)
    vectors = encoder.encode(texts or [], kind, show_progress=output is not None and err.is_terminal)
    if output is None:
        typer.echo(vectors_json(vectors))
        return
    with replaced_file(output) as temporary, temporary.open("wb") as file:
        np.save(file, vectors)
    out.print(f"{len(vectors)} vectors of {vectors.shape[1]} numbers in {escape(str(output))}")


app.command(help=EVALUATE_HELP)(evaluate)
app.command(help=QUESTIONS_HELP)(questions)
app.command()(distill)
app.command()(finetune)
app.add_typer(mapper_app, name="mapper")


@app.command()
@_clear_errors
def models(as_json: AsJson = False) -> None:
    """List the models that are known by name. Any folder or hub name works too."""
    if as_json:
        print_json([{**vars(card), "prompts": dict(card.prompts)} for card in CARDS.values()])
        return
    for line in models_table():
        out.print(escape(line))


@app.command()
@_clear_errors
def doctor(as_json: AsJson = False) -> None:
    """Show versions and devices, and what is wrong with this installation. Exits with 1 if something is."""
    from luotuo_integrations.doctor import describe, diagnose

    diagnosis = diagnose()
    if as_json:
        print_json(vars(diagnosis))
    else:
        for line in describe(diagnosis):
            out.print(escape(line))
        for problem in diagnosis.problems:
            out.print(f"[red]Problem:[/red] {escape(problem)}")
        if not diagnosis.problems:
            out.print("[green]No problems found.[/green]")
    if diagnosis.problems:
        raise typer.Exit(1)


if __name__ == "__main__":  # accelerate launch -m luotuo_integrations.cli distill ...
    app()
