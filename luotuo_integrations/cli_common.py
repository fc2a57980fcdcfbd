"""What several `luotuo` commands share: their options, and how documents and language models are opened."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from luotuo_integrations.progress import standard_error
from luotuo_integrations.registry import CARDS, DEFAULT_MODEL

if TYPE_CHECKING:
    from luotuo_integrations.knowledge_base import KnowledgeBase

out = Console(soft_wrap=True, highlight=False, emoji=False)
err = standard_error()

Documents = Annotated[
    Path,
    typer.Argument(exists=True, file_okay=False, help="Folder of txt, md, html, pdf and docx files."),
]
Store = Annotated[Path | None, typer.Option(help="Folder of the index.", show_default=".luotuo inside DOCUMENTS")]
Model = Annotated[
    str | None,
    typer.Option(help="Embedding model: see `luotuo models`.", show_default=f"the index's own, else {DEFAULT_MODEL}"),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps.", show_default="the best there is")]
Encoding = Annotated[
    str | None, typer.Option(help="Encoding of text and HTML files, as big5.", show_default="detected; later the same")
]
Mapper = Annotated[
    Path | None,
    typer.Option(exists=True, help="Query mapper: a file of `luotuo mapper fit`, or LlamaIndex's LinearLayer folder."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Llm = Annotated[
    str | None,
    typer.Option(help="Address of an OpenAI-compatible server, for instance http://localhost:11434/v1."),
]
LlmModel = Annotated[str | None, typer.Option(help="Name of the language model on that server.")]
LocalLlm = Annotated[str | None, typer.Option(help="Folder or hub name of a transformers chat model.")]


def opened(
    documents: Path,
    store: Path | None,
    model: str | None,
    device: str | None,
    encoding: str | None,
    mapper: Path | None = None,
    **options: Any,
) -> "KnowledgeBase":
    """Open a folder of documents; options are those of KnowledgeBase."""
    from luotuo_integrations.embeddings import LuotuoEmbeddings
    from luotuo_integrations.knowledge_base import KnowledgeBase, model_of_store

    model = checked_model(model) or model_of_store(documents, store) or DEFAULT_MODEL
    embeddings = LuotuoEmbeddings(model, device=device, mapper=mapper)
    return KnowledgeBase(documents, store=store, embeddings=embeddings, encoding=encoding, **options)


def opened_and_synced(
    documents: Path, store: Path | None, model: str | None, device: str | None, encoding: str | None, **options: Any
) -> "KnowledgeBase":
    """Open a folder of documents, and index what is new in it."""
    knowledge_base = opened(documents, store, model, device, encoding, **options)
    logging.getLogger("luotuo_integrations.documents").setLevel(logging.ERROR)  # `luotuo index` warns; once is enough
    report = knowledge_base.sync(retry_unreadable=False, show_progress=err.is_terminal)
    if report.changed:
        err.print(f"Indexed {escape(str(documents))}: {report.chunks} passages.", soft_wrap=True)
    return knowledge_base


def checked_model(model: str | None) -> str | None:
    """A model's name as given, but a folder with its whole path: an index remembers it, and is opened from anywhere."""
    return str(Path(model).resolve()) if model is not None and model not in CARDS and Path(model).is_dir() else model


def check_target(target: Path) -> None:
    """Refuse a file to write whose folder does not exist, before any work."""
    if target.is_dir() or not target.parent.is_dir():
        msg = f"--out {str(target)!r} must be a file in a folder that exists"
        raise typer.BadParameter(msg)


def chat_model(server: str | None, name: str | None, local: str | None) -> Any:
    """The language model that the options name; None where they name none."""
    if server and local:
        msg = "--llm and --local-llm were both given; give one"
        raise typer.BadParameter(msg)
    if local:
        from luotuo_integrations.local_chat import local_chat_model

        return local_chat_model(local)
    if not server:
        return None
    if not name:
        msg = "--llm needs --llm-model NAME: which model of that server shall answer"
        raise typer.BadParameter(msg)
    from luotuo_integrations.chat_models import openai_compatible

    return openai_compatible(server, name)
