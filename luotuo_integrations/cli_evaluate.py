"""The command `luotuo evaluate`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from luotuo_integrations.atomic_file import write_text_whole
from luotuo_integrations.cli_common import AsJson, Device, Mapper, check_target, checked_model, err, out
from luotuo_integrations.cli_errors import clear_errors
from luotuo_integrations.cli_output import print_json
from luotuo_integrations.registry import DEFAULT_MODEL

if TYPE_CHECKING:
    from luotuo_integrations.retrieval_report import RetrievalReport
    from luotuo_integrations.vectorstores import FAISS

# Not the docstring, whose line breaks would be shown.
EVALUATE_HELP = (
    "Measure how well the searches of an index find what answers your questions. The index is not changed.\n\n"
    "Vectors, keywords and both fused, side by side, with 95 % intervals; then whether each differs from the vectors "
    "by more than chance. A passage answers a question if it holds the answering text; of a text that was cut when "
    "the documents were split, the passages that hold most of it."
)
_SHOWN = 5  # questions that no passage answers
_FEW = 50


@clear_errors("Nothing was written.")
def evaluate(
    store: Annotated[
        Path, typer.Option(exists=True, file_okay=False, help="Folder of an index, or of documents that are indexed.")
    ],
    questions: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            help='Lines of {"query": ..., "positive": ANSWERING TEXT, "source": FILE}; source may be missing. Or of '
            '{"query": ..., "ids": [PASSAGE, ...]}.',
        ),
    ],
    mapper: Mapper = None,
    rerank: Annotated[
        str | None, typer.Option(help="Reranker: a folder or a hub name, as BAAI/bge-reranker-base.")
    ] = None,
    rerank_k: Annotated[int, typer.Option(min=1, help="Passages of a question that the reranker is given.")] = 20,
    cutoffs: Annotated[str, typer.Option("--recall", help="The k of recall@k, joined by commas.")] = "1,5,10",
    tokenizer: Annotated[
        Literal["bigrams", "words", "both"] | None,
        typer.Option(help="How the keyword search splits texts.", show_default="as the index does"),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first so many questions only.")] = None,
    target: Annotated[
        Path | None, typer.Option("--out", help="Also write all numbers, and the rank of each question, as JSON.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Embedding model.", show_default=f"the index's own, else {DEFAULT_MODEL}")
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well the searches of an index find what answers your questions."""
    recalls = _whole_numbers(cutoffs)
    if target is not None:
        check_target(target)
    from luotuo_integrations.pair_files import read_questions

    asked = read_questions(questions)[:limit]
    opened = _opened(store, model, device, mapper)
    if tokenizer is not None:
        from luotuo_integrations.chinese_tokens import KeywordTokenizer

        opened.core.use_keywords(KeywordTokenizer(tokenizer))
    from luotuo_integrations.retrieval_report import evaluate_retrieval

    reranker = None
    if rerank is not None:
        from luotuo_integrations.cross_encoder import CrossEncoder

        reranker = CrossEncoder(rerank, device=device)
    report = evaluate_retrieval(
        opened, asked, cutoffs=recalls, reranker=reranker, rerank_k=rerank_k, show_progress=err.is_terminal
    )
    _tell(report, target, as_json)


def _opened(store: Path, model: str | None, device: str | None, mapper: Path | None) -> "FAISS":
    from luotuo_integrations.knowledge_base import find_store, model_of_store

    folder = find_store(store)
    name = checked_model(model) or model_of_store(folder, folder) or DEFAULT_MODEL
    from luotuo_integrations.embeddings import LuotuoEmbeddings
    from luotuo_integrations.vectorstores import FAISS

    return FAISS.load_local(folder, LuotuoEmbeddings(name, device=device, mapper=mapper, show_progress=err.is_terminal))


def _tell(report: "RetrievalReport", target: Path | None, as_json: bool) -> None:
    if target is not None:
        write_text_whole(target, json.dumps(report.to_dict(), ensure_ascii=False, indent=2) + "\n")
    if as_json:
        print_json(report.to_dict())
        return
    for line in _lines(report):
        out.print(escape(line))
    if target is not None:
        out.print(f"\nEvery number is in {escape(str(target))}")


def _lines(report: "RetrievalReport") -> list[str]:
    """The report in lines of less than 80 characters, as long as there are not more than three recalls."""
    count, wide = len(report.queries), max(map(len, report.values)) + 2
    lines = [f"{count} questions, {report.passages} passages, model {report.model}"]
    if report.cut:
        lines.append(f"{report.cut} of them have an answer that was cut: the passages that hold most of it count")
    if report.unanswered:
        lines.append(f"{len(report.unanswered)} more were left out, because no passage holds their answer:")
        lines += [f"  {query}" for query in report.unanswered[:_SHOWN]]
        lines += ["  ..."] if len(report.unanswered) > _SHOWN else []
    names = [name.replace("mrr", "MRR").replace("ndcg", "nDCG") for name in report.measures]
    lines += ["", " " * wide + "".join(f"{name:>11}" for name in names)]
    for search, measured in report.means.items():
        lines.append(f"{search:{wide}}" + "".join(f"{one['mean']:11.3f}" for one in measured.values()))
        spans = (f"{one['low']:.2f}-{one['high']:.2f}" for one in measured.values())
        lines.append(" " * wide + "".join(f"{span:>11}" for span in spans))
    lines += ["", f"{'nDCG@10 minus vector':{max(wide, 20)}}  difference   95 % interval         p"]
    for search, one in report.differences.items():
        span = f"{one['low']:+.3f} to {one['high']:+.3f}"
        lines.append(f"{search:{max(wide, 20)}}  {one['difference']:+10.3f}  {span:>16}  {one['p']:8.4f}")
    compared = len(report.differences)
    lines += [
        "",
        f"Below each mean its 95 % bootstrap interval. p: paired randomization test; with {compared} comparisons, take",
        f"a difference for real where p is below 0.05 / {compared} = {0.05 / compared:.3f}.",
    ]
    if count < _FEW:
        lines.append(f"Under {_FEW} questions even a large difference is often chance: look at the intervals.")
    return lines


def _whole_numbers(text: str) -> list[int]:
    try:
        numbers = [int(one) for one in text.replace("，", ",").split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        msg = f"--recall {text!r} must be whole numbers from 1 on, joined by commas, as 1,5,10"
        raise typer.BadParameter(msg)
    return numbers
