"""The command `luotuo questions`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from luotuo_integrations.cli_common import (
    AsJson,
    Device,
    Encoding,
    Llm,
    LlmModel,
    LocalLlm,
    Model,
    Store,
    chat_model,
    check_target,
    err,
    opened_and_synced,
    out,
)
from luotuo_integrations.cli_errors import clear_errors
from luotuo_integrations.cli_output import print_json

if TYPE_CHECKING:
    from luotuo_integrations.question_making import MadeQuestions
    from luotuo_integrations.store.core import FaissCore
    from luotuo_integrations.store.table import StoredDocument

# Not the docstring, whose line breaks would be shown.
QUESTIONS_HELP = (
    "Make questions out of documents: for `luotuo evaluate`, `luotuo mapper fit` and `luotuo finetune`.\n\n"
    "With a language model (--llm, --local-llm): questions as users ask them. After Ctrl-C or an error the same "
    "command goes on where it stopped.\n\n"
    "Without one, headings and first sentences take the place of questions. They share words with their passages, as "
    "users' questions often do not: all searches look better with them than they are, keywords most of all. Take them "
    "to compare settings of one kind, not as a measure of quality. Look through the file, and delete what nobody asks."
)


@clear_errors("What was finished is kept; the same command goes on from there.")
def questions(
    documents: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of documents, or of an index.")
    ],
    target: Annotated[Path, typer.Option("--out", help="File of JSON lines to write, as 问题.jsonl.")],
    llm: Llm = None,
    llm_model: LlmModel = None,
    local_llm: LocalLlm = None,
    per_passage: Annotated[int, typer.Option(min=1, help="Most questions of one passage.")] = 1,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Most questions; the passages are drawn at random.", show_default="no limit"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn at random.")] = 0,
    concurrency: Annotated[int, typer.Option(min=1, help="Passages that a server is asked about at once.")] = 4,
    store: Store = None,
    model: Model = None,
    device: Device = None,
    encoding: Encoding = None,
    as_json: AsJson = False,
) -> None:
    """Make questions out of documents."""
    check_target(target)
    if target.exists():
        msg = f"{str(target)!r} is there already, maybe with corrections of yours; delete it or give another --out"
        raise FileExistsError(msg)
    partial = target.with_name(f"{target.name}.partial")
    asked_model = chat_model(llm, llm_model, local_llm)
    if asked_model is None and partial.exists():
        msg = (
            f"{str(partial)!r} holds what a language model has written before; give its --llm and --llm-model (or "
            "--local-llm) to go on from there, delete that file, or give another --out"
        )
        raise FileExistsError(msg)
    passages = _core(documents, store, model, device, encoding).find()
    if asked_model is None:
        from luotuo_integrations.question_making import questions_from_text

        made = questions_from_text(passages, per_passage=per_passage, limit=limit, seed=seed)
        _write(made, target)
    else:
        made = _asked(
            passages,
            asked_model,
            partial,
            model_name=str(llm_model or local_llm),
            per_passage=per_passage,
            limit=limit,
            seed=seed,
            concurrency=1 if local_llm else concurrency,
        )
        _write(made, target)
        partial.unlink(missing_ok=True)
    _tell(made, target, as_json)


def _asked(passages: "list[StoredDocument]", llm: Any, partial: Path, **options: Any) -> "MadeQuestions":
    """Ask a language model; after an error say what is kept, where the same command would go on with it."""
    from luotuo_integrations.question_asking import PartialFileError, ask_questions, holds_replies
    from luotuo_integrations.question_making import QuestionMakingError

    try:
        return ask_questions(passages, llm, partial, show_progress=err.is_terminal, **options)
    except (PartialFileError, QuestionMakingError):
        raise  # the same command would end in the same way
    except Exception:
        if holds_replies(partial):
            kept = f"Finished questions are kept in {escape(str(partial))}; the same command goes on from there."
            err.print(kept, soft_wrap=True)
        raise


def _core(
    documents: Path, store: Path | None, model: str | None, device: str | None, encoding: str | None
) -> "FaissCore":
    from luotuo_integrations.store.core import FaissCore
    from luotuo_integrations.store.files import MANIFEST

    if store is None and (documents / MANIFEST).is_file():
        return FaissCore.load(documents)
    return opened_and_synced(documents, store, model, device, encoding).vectorstore.core


def _write(made: "MadeQuestions", target: Path) -> None:
    from dataclasses import asdict

    from luotuo_integrations.pair_files import write_rows

    write_rows(target, map(asdict, made.rows))


def _tell(made: "MadeQuestions", target: Path, as_json: bool) -> None:
    summary: dict[str, Any] = {
        "questions": len(made.rows),
        "passages": made.passages,
        "skipped": dict(made.skipped),
        "out": str(target),
    }
    if as_json:
        print_json(summary)
        return
    out.print(f"{len(made.rows)} questions about {made.passages} passages: {escape(str(target))}")
    for reason, count in made.skipped.most_common():
        out.print(f"  left out: {escape(reason)} ({count})")
