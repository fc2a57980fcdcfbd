"""How a query and a passage stand together before a reranker: token ids of fixed parts, query and passage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.tokenization import TextTokenizer

_PROBE = "你 a 1"
_PASSAGE_SHARE = 4  # a fourth of the room is a passage's own, whatever the query's length

# The format and the default instruction that https://huggingface.co/Qwen/Qwen3-Reranker-0.6B documents. The model was
# trained with them: another wording costs accuracy, a translation too.
QWEN_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
_QWEN_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
_QWEN_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
_QWEN_DOCUMENT = "\n<Document>:"


class Row(NamedTuple):
    """One pair before the model: token ids, and the type of each token, none where the model has no types."""

    ids: list[int]
    types: list[int]


class PartTypes(NamedTuple):
    """Token types of the five parts of a row."""

    prefix: list[int]
    query: int
    middle: list[int]
    passage: int
    suffix: list[int]


@dataclass(frozen=True)
class RerankPrompt:
    """A row is prefix + query + middle + passage + suffix.

    Attributes:
        tokenizer: The model's tokenizer, which takes every text literally.
        prefix: Token ids before the query.
        middle: Token ids between query and passage.
        suffix: Token ids after the passage.
        types: Token types of the parts; None where the model has none.
        query_frame: Text around a query, tokenized together with it.
        query_end: Token ids that end a query's part, cut or not: the second text of the frame.
        passage_start: Text before a passage, tokenized together with it.
    """

    tokenizer: TextTokenizer
    prefix: list[int]
    middle: list[int]
    suffix: list[int]
    types: PartTypes | None = None
    query_frame: tuple[str, str] = ("", "")
    query_end: tuple[int, ...] = ()
    passage_start: str = ""

    @property
    def least(self) -> int:
        """The fewest tokens that a row may be cut to: its fixed parts, and one token of each side's share."""
        return self._fixed() + self._frame_length() + _PASSAGE_SHARE

    def rows(self, pairs: Sequence[tuple[str, str]], max_length: int) -> tuple[list[Row], int]:
        """Write pairs as token ids.

        What is too long loses the end of its passage. A query is cut only where it would leave its passage less than a
        fourth of the tokens that both have together.

        Args:
            pairs: Queries with passages; either may be empty.
            max_length: Longest row in tokens, from ``least``.

        Returns:
            One row a pair, and how many were cut.
        """
        before, after = self.query_frame
        queries = list(dict.fromkeys(query for query, _ in pairs))  # one query usually meets many passages
        ids_of = dict(zip(queries, self.tokenizer.encode([before + query + after for query in queries]), strict=True))
        passages = self.tokenizer.encode([self.passage_start + passage for _, passage in pairs])
        room = max_length - self._fixed()
        share = (room - self._frame_length()) // _PASSAGE_SHARE
        rows, cut = [], 0
        for (query, _), passage_ids in zip(pairs, passages, strict=True):
            query_ids = ids_of[query]
            cut += len(query_ids) + len(passage_ids) > room
            most = room - min(len(passage_ids), share)
            if len(query_ids) > most:
                query_ids = [*query_ids[: most - len(self.query_end)], *self.query_end]
            rows.append(self._row(query_ids, passage_ids[: room - len(query_ids)]))
        return rows, cut

    def _row(self, query: list[int], passage: list[int]) -> Row:
        ids = [*self.prefix, *query, *self.middle, *passage, *self.suffix]
        if self.types is None:
            return Row(ids, [])
        of = self.types
        return Row(ids, [*of.prefix, *[of.query] * len(query), *of.middle, *[of.passage] * len(passage), *of.suffix])

    def _fixed(self) -> int:
        return len(self.prefix) + len(self.middle) + len(self.suffix)

    def _frame_length(self) -> int:
        return len(self.tokenizer.encode(["".join(self.query_frame)])[0])


def pair_prompt(tokenizer: TextTokenizer, *, has_types: bool) -> RerankPrompt:
    """Make the prompt of a classifier: the special tokens that its tokenizer puts around and between two texts.

    Args:
        tokenizer: The model's tokenizer.
        has_types: Whether the model tells query and passage apart by token types.

    Raises:
        ModelFormatError: If the tokenizer puts nothing between two texts, as those of decoders do.
    """
    bare = tokenizer.encode([_PROBE])[0]
    encoded = tokenizer.tokenizer(_PROBE, _PROBE, return_token_type_ids=True)
    full, types = list(encoded["input_ids"]), list(encoded["token_type_ids"])
    starts = [i for i in range(len(full)) if full[i : i + len(bare)] == bare]
    if len(starts) != 2 or starts[1] <= starts[0] + len(bare):
        msg = (
            f"The tokenizer in {tokenizer.tokenizer.name_or_path} puts no special token between a query and a passage: "
            "this reranker wants a prompt of its own, which is not known here. Known are Qwen3-Reranker's and those of "
            "encoders such as BAAI/bge-reranker-base"
        )
        raise ModelFormatError(msg)
    first, second = starts
    middle, end = first + len(bare), second + len(bare)
    parts = PartTypes(types[:first], types[first], types[middle:second], types[second], types[end:])
    return RerankPrompt(tokenizer, full[:first], full[middle:second], full[end:], types=parts if has_types else None)


def qwen_prompt(tokenizer: TextTokenizer, instruction: str | None) -> RerankPrompt:
    """Make the prompt of Qwen3-Reranker: a chat that ends where the answer, yes or no, begins.

    Query and passage are tokenized with the text that touches them, as the model's own code does, because a tokenizer
    may join a mark with the line break after it, or a word with the space before it.

    Args:
        tokenizer: The model's tokenizer.
        instruction: What a relevant passage does; None is the model's own words.

    Raises:
        ModelFormatError: If the tokenizer does not know the marks of a chat.
    """
    for mark in ("<|im_start|>", "<|im_end|>"):
        single_token(tokenizer, mark)
    prefix, suffix = (_ids(tokenizer, text) for text in (_QWEN_PREFIX, _QWEN_SUFFIX))
    before = f"<Instruct>: {QWEN_INSTRUCTION if instruction is None else instruction}\n<Query>: "
    return RerankPrompt(
        tokenizer,
        prefix,
        [],
        suffix,
        query_frame=(before, _QWEN_DOCUMENT),
        query_end=tuple(_ids(tokenizer, _QWEN_DOCUMENT)),
        passage_start=" ",
    )


def single_token(tokenizer: TextTokenizer, text: str) -> int:
    """Return the id of a text that must be one token.

    Raises:
        ModelFormatError: If it is not.
    """
    ids = _ids(tokenizer, text)
    if len(ids) != 1 or ids[0] == tokenizer.tokenizer.unk_token_id:
        msg = (
            f"The tokenizer in {tokenizer.tokenizer.name_or_path} has no token {text!r}, which Qwen3-Reranker's prompt "
            "needs: this is another model, or its tokenizer is damaged. Copy or download the folder again"
        )
        raise ModelFormatError(msg)
    return ids[0]


def _ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Tokenize a text of ours, in which special tokens are meant."""
    return list(tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"])
