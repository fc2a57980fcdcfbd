"""A BM25 index of texts by row number that grows and shrinks with a store, and its file."""

import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from luotuo_integrations.chinese_tokens import KeywordTokenizer
from luotuo_integrations.errors import StoreCorruptError
from luotuo_integrations.store.table import Rows

TokenIds = npt.NDArray[np.int32]
KeywordScores = npt.NDArray[np.float32]

DEFAULT_TOKENIZER = KeywordTokenizer()
_FORMAT = "luotuo-keywords-1"


class _Matrix(NamedTuple):
    """bm25s' scores of all tokens in all texts, and the rows of these texts; None where there is no token at all."""

    bm25: Any
    rows: Rows


class KeywordIndex:
    """A BM25 index over texts with row numbers.

    The score is Lucene's BM25 (Robertson and Zaragoza, 2009, without the constant factor k1 + 1 in the numerator):
    ``sum over query tokens t of ln(1 + (N - n_t + 0.5) / (n_t + 0.5)) * f / (f + k1 * (1 - b + b * length / mean
    length))`` where N is the number of texts, n_t of them hold t, and f is the count of t in the scored text. A token
    that is twice in the query counts twice.

    Every score depends on all texts, so bm25s cannot change a part of its matrix. What is kept are the token numbers
    of each text: a change tokenizes the new texts alone, and the next search computes the matrix from the numbers.

    Searching and saving from several threads is safe; whoever changes the index must be alone with it.

    Args:
        tokenizer: What splits texts and queries.
        k1: How slowly repetitions of a token saturate, from 0.
        b: How much long texts are marked down, from 0 (not at all) to 1.

    Raises:
        TypeError: If the tokenizer is not a KeywordTokenizer.
        ValueError: If ``k1`` or ``b`` is out of range.
    """

    def __init__(self, tokenizer: KeywordTokenizer = DEFAULT_TOKENIZER, *, k1: float = 1.5, b: float = 0.75) -> None:
        if k1 < 0 or not 0 <= b <= 1:
            msg = f"k1 must be at least 0 and b between 0 and 1, but k1={k1} and b={b}"
            raise ValueError(msg)
        self.tokenizer, self._k1, self._b = _checked_tokenizer(tokenizer), k1, b
        self._documents: dict[int, TokenIds] = {}
        self._vocabulary: dict[str, int] = {}
        self._matrix: _Matrix | None = None  # None after a change
        self._file: _KeywordFile | None = None  # None once it is read
        self._mutex = threading.RLock()

    def __len__(self) -> int:
        with self._mutex:
            return len(self._documents) if self._file is None else self._file.count

    # -- changes ------------------------------------------------------------------------------------------------------

    def add(self, rows: Iterable[int], texts: Iterable[str]) -> None:
        """Add texts, all or none; a row that is there is replaced.

        Args:
            rows: N row numbers.
            texts: N texts.

        Raises:
            StoreCorruptError: If the index was opened from a file that turns out to be damaged.
            TypeError: If a text is not a string.
            ValueError: If the numbers differ.
        """
        self.add_tokens(rows, map(self.tokenizer, texts))

    def add_tokens(self, rows: Iterable[int], token_lists: Iterable[Sequence[str]]) -> None:
        """``add`` for texts that are split already."""
        self.read()
        known = self._vocabulary
        added = {
            int(row): np.array([known.setdefault(token, len(known)) for token in tokens], dtype=np.int32)
            for row, tokens in zip(rows, token_lists, strict=True)
        }
        self._documents.update(added)
        self._matrix = None

    def discard(self, rows: Iterable[int]) -> None:
        """Remove rows; those that are not there are no error."""
        self.read()
        for row in rows:
            self._documents.pop(int(row), None)
        self._matrix = None

    # -- questions ----------------------------------------------------------------------------------------------------

    def search(self, query: str, k: int, allowed: Rows | None = None) -> tuple[KeywordScores, Rows]:
        """Find the texts that share tokens with the query.

        Args:
            query: Any text.
            k: The most hits to return, from 1.
            allowed: Only these rows, int64 (A,); None for all. Scores do not depend on it.

        Returns:
            Scores, float32 (H,), and rows, int64 (H,): best first, equal scores by row. Only texts that hold a token
            of the query are hits, so that H may be less than k, or 0.

        Raises:
            StoreCorruptError: If the index was opened from a file that turns out to be damaged.
            TypeError: If the query is not a string.
            ValueError: If k is below 1.
        """
        return self.search_tokens(self.tokenizer(query), k, allowed)

    def search_tokens(self, query: Sequence[str], k: int, allowed: Rows | None = None) -> tuple[KeywordScores, Rows]:
        """``search`` for a query that is split already."""
        if k < 1:
            msg = f"k must be at least 1, but is {k}"
            raise ValueError(msg)
        bm25, rows = self._built()
        known = [self._vocabulary[token] for token in query if token in self._vocabulary]
        if bm25 is None or not known:
            return np.zeros(0, np.float32), np.zeros(0, np.int64)
        scores: KeywordScores = bm25.get_scores(known)  # (N,), 0 where no token matches
        hits = np.flatnonzero(scores > 0)
        if allowed is not None:
            hits = hits[np.isin(rows[hits], allowed)]
        if len(hits) > k:
            # Everything that ties with the k-th best stays in, so that the order of rows, not chance, decides.
            hits = hits[scores[hits] >= np.partition(scores[hits], -k)[-k]]
        hits = hits[np.argsort(-scores[hits], kind="stable")[:k]]
        return scores[hits], rows[hits]

    def ceiling(self, query: str) -> float:
        """What no score of a query reaches: the sum of ``ln(1 + (N - n_t + 0.5) / (n_t + 0.5))`` over its tokens.

        A text that held every token many times would come near it; tokens that no text holds count too. A score divided
        by it tells how much of the query a text holds, whatever the query's length: in a text of average length a token
        that stands there once counts 0.4 (1 / (1 + k1)), twice 0.57.

        Raises:
            StoreCorruptError: If the index was opened from a file that turns out to be damaged.
            TypeError: If the query is not a string.
        """
        tokens = self.tokenizer(query)
        bm25, rows = self._built()
        known = [self._vocabulary[token] for token in tokens if token in self._vocabulary]
        held = np.zeros(len(tokens), np.float64)  # in how many texts each token is
        if bm25 is not None and known:
            starts = bm25.scores["indptr"]
            numbers = np.array(known)
            held[: len(known)] = starts[numbers + 1] - starts[numbers]
        return float(np.log1p((len(rows) - held + 0.5) / (held + 0.5)).sum())

    def _built(self) -> _Matrix:
        with self._mutex:
            self.read()
            if self._matrix is None:
                rows = np.array(sorted(self._documents), dtype=np.int64)
                token_ids = [self._documents[row].tolist() for row in rows.tolist()]
                bm25: Any = None
                if any(token_ids):  # bm25s divides by the mean length
                    import bm25s  # here, because it imports scipy and tqdm where they are installed

                    # Named backends: "auto" takes whatever numba or jax happens to be installed.
                    bm25 = bm25s.BM25(k1=self._k1, b=self._b, method="lucene", backend="numpy", csc_backend="numpy")
                    bm25.index((token_ids, self._vocabulary), create_empty_token=False, show_progress=False)
                self._matrix = _Matrix(bm25, rows)
            return self._matrix

    # -- files --------------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write the index to a new file: token numbers, rows, vocabulary and settings.

        Tokens that no text holds any more are left out.

        Raises:
            OSError: If it cannot be written, for instance because the disk is full.
            StoreCorruptError: If the index was opened from a file that turns out to be damaged.
        """
        with self._mutex:
            self.read()
            rows = sorted(self._documents)
            lists = [self._documents[row] for row in rows]
            ids = np.concatenate([np.zeros(0, np.int32), *lists])
            used = np.bincount(ids, minlength=len(self._vocabulary)) > 0
            vocabulary = [token for token, number in self._vocabulary.items() if used[number]]
        tensors = {
            "token_ids": (np.cumsum(used, dtype=np.int32) - 1)[ids],
            "offsets": np.cumsum([0, *map(len, lists)], dtype=np.int64),
            "rows": np.array(rows, dtype=np.int64),
            # As bytes, because the header, where metadata lie, is limited to 100 MB.
            "vocabulary": np.frombuffer(json.dumps(vocabulary, ensure_ascii=False).encode(), dtype=np.uint8),
        }
        settings = {"tokenizer": self.tokenizer.to_dict(), "k1": self._k1, "b": self._b}
        try:
            save_file(tensors, path, {"format": _FORMAT, "settings": json.dumps(settings, ensure_ascii=False)})
        except SafetensorError as error:
            msg = f"{path} cannot be written: {error}"
            raise OSError(msg) from error

    @classmethod
    def load(cls, path: Path) -> "KeywordIndex":
        """Open a file that ``save`` wrote. Its settings are read now, the rest when it is needed.

        The file is held open: on POSIX systems it may be removed meanwhile.

        Raises:
            StoreCorruptError: If it is missing, or not such a file.
        """
        file = _KeywordFile(path)
        settings = file.settings
        try:
            index = cls(KeywordTokenizer.from_dict(settings["tokenizer"]), k1=settings["k1"], b=settings["b"])
        except (KeyError, TypeError, ValueError) as error:
            raise file.damage(error) from error
        index._file = file
        return index

    def read(self) -> None:
        """Read what ``load`` left in the file; nothing if that is done.

        Raises:
            StoreCorruptError: If the file is damaged.
        """
        with self._mutex:
            if self._file is not None:
                self._documents, self._vocabulary = self._file.contents()
                self._file = None


class _KeywordFile:
    """An open file of a KeywordIndex; whatever is wrong with it is a StoreCorruptError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._tensors = _opened(path)
            facts = self._tensors.metadata() or {}
            if facts.get("format") != _FORMAT:
                msg = f"its format is {facts.get('format')!r}, not {_FORMAT!r}"
                raise ValueError(msg)
            self.settings: dict[str, Any] = json.loads(facts["settings"])
            self.count: int = self._tensors.get_slice("rows").get_shape()[0]
        except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
            raise self.damage(error) from error

    def damage(self, problem: Exception) -> StoreCorruptError:
        """The error to raise."""
        msg = f"{self._path} cannot be read as a keyword index: {problem}. Restore the folder, or build it again"
        return StoreCorruptError(msg)

    def contents(self) -> tuple[dict[int, TokenIds], dict[str, int]]:
        """Token numbers by row, and the numbers of the tokens."""
        try:
            ids, offsets, rows, encoded = (
                self._tensors.get_tensor(name) for name in ("token_ids", "offsets", "rows", "vocabulary")
            )
            tokens = json.loads(encoded.tobytes())
            vocabulary = {token: number for number, token in enumerate(tokens)}
            lists = np.split(ids.astype(np.int32, copy=False), offsets[1:-1])
            fits = [
                len(vocabulary) == len(tokens),
                all(isinstance(token, str) for token in tokens),
                len(offsets) == len(rows) + 1 and offsets[0] == 0 and offsets[-1] == len(ids),
                bool((np.diff(offsets) >= 0).all() and (np.diff(rows) > 0).all()),
                len(ids) == 0 or (ids.min() >= 0 and ids.max() < len(tokens)),
            ]
            if not all(fits):
                msg = "its parts do not belong together"
                raise ValueError(msg)
        except (OSError, SafetensorError, TypeError, ValueError, IndexError) as error:
            raise self.damage(error) from error
        return dict(zip(rows.tolist(), lists, strict=False)), vocabulary  # of no rows, numpy makes one empty list


def _checked_tokenizer(tokenizer: object) -> KeywordTokenizer:
    if not isinstance(tokenizer, KeywordTokenizer):
        msg = f"tokenizer is {type(tokenizer).__name__}: {tokenizer!r:.80}; type KeywordTokenizer('words') or such"
        raise TypeError(msg)
    return tokenizer


def _opened(path: Path) -> Any:  # safetensors' own methods have no types
    return safe_open(path, framework="numpy")
