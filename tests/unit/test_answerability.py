"""Whether documents answer a question: the evidence against naive loops, and the vectors of the bank."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from luotuo_integrations import LuotuoEmbeddings, answerability
from luotuo_integrations.answerability import (
    NEAREST,
    Answerability,
    Background,
    Evidence,
    background_texts,
    embed_background,
    read_background,
    write_background,
)

NAMES = ("passage", "sentence", "background_passage", "background_question")


class CountingEncoder:
    """Random vectors of length 3, the same for the same text and kind; counts what it is asked."""

    model = "随机"

    def __init__(self, fingerprint: str = "abc") -> None:
        self.fingerprint = fingerprint
        self.calls: Counter[str] = Counter()

    def encode(self, texts: list[str], kind: str = "passage") -> np.ndarray:
        self.calls[kind] += 1
        seeds = [[ord(character) for character in kind + text] for text in texts]
        return np.stack([3 * unit(np.random.default_rng(seed).normal(size=12)) for seed in seeds]).astype(np.float32)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_features_are_those_of_a_naive_loop() -> None:
    encoder = CountingEncoder()
    passages, questions = background_texts()
    bank_passages, bank_questions = encoder.encode(passages), encoder.encode(questions, "query")
    query = unit(np.random.default_rng(7).normal(size=12)).astype(np.float32)

    pairs = [cosine(question, passage) for question in bank_questions for passage in bank_passages]
    mean = sum(pairs) / len(pairs)
    deviation = math.sqrt(sum((pair - mean) ** 2 for pair in pairs) / len(pairs))
    nearest = [sum(sorted(cosine(query, row) for row in bank)[-5:]) / 5 for bank in (bank_passages, bank_questions)]
    expected = [(value - mean) / deviation for value in (0.9, 0.8, *nearest)]

    judge = Answerability(CountingEncoder())
    evidence = judge.evidence(query, 0.9, 0.8)
    assert NEAREST == 5
    assert (evidence.passage, evidence.sentence) == (0.9, 0.8)
    np.testing.assert_allclose(judge.background.features(evidence), expected, atol=1e-4)


def test_probability_is_the_logistic_of_the_fitted_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"passage": 2.0, "sentence": 1.0, "background_passage": -0.5, "background_question": -1.5}
    monkeypatch.setattr(answerability, "_weights", lambda: (-0.25, np.array([weights[name] for name in NAMES])))
    judge = Answerability(CountingEncoder())
    evidence = Evidence(0.9, 0.8, 0.4, 0.3)
    features = dict(zip(NAMES, judge.background.features(evidence), strict=True))
    score = -0.25 + sum(weights[name] * features[name] for name in NAMES)
    assert judge.probability(evidence) == pytest.approx(1 / (1 + math.exp(-score)))


def test_packaged_weights_rise_with_the_documents_and_fall_with_the_bank() -> None:
    judge = Answerability(CountingEncoder())
    base = judge.probability(Evidence(0.5, 0.5, 0.5, 0.5))
    assert 0 < base < 1
    assert judge.probability(Evidence(0.6, 0.5, 0.5, 0.5)) > base
    assert judge.probability(Evidence(0.5, 0.6, 0.5, 0.5)) > base
    assert judge.probability(Evidence(0.5, 0.5, 0.5, 0.6)) < base
    assert judge.probability(Evidence(1.0, 1.0, 0.0, 0.0)) > 0.9


def test_bank_is_large_distinct_and_of_both_kinds() -> None:
    passages, questions = background_texts()
    assert len(passages) >= 200
    assert len(questions) >= 400
    assert len({*passages, *questions}) == len(passages) + len(questions)
    assert min(map(len, passages)) >= 30


def test_another_model_embeds_the_bank_once(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    judge = Answerability(encoder, tmp_path)
    first = judge.background
    assert judge.background is first
    assert encoder.calls == {"passage": 1, "query": 1}

    later = CountingEncoder()
    restored = Answerability(later, tmp_path).background
    assert not later.calls
    np.testing.assert_allclose(restored.passages, first.passages, atol=1e-3)
    assert restored.mean == pytest.approx(first.mean, abs=1e-3)

    other = CountingEncoder("def")
    assert Answerability(other, tmp_path).background is not restored
    assert other.calls == {"passage": 1, "query": 1}


def test_a_cache_that_cannot_be_used_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "background.safetensors").write_bytes(b"damaged")
    encoder = CountingEncoder()
    assert len(Answerability(encoder, tmp_path).background.questions) > 0
    assert encoder.calls["query"] == 1

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "background.safetensors").unlink()
    monkeypatch.setattr(Path, "write_bytes", no_space)
    assert len(Answerability(CountingEncoder(), tmp_path).background.questions) > 0
    assert list(tmp_path.iterdir()) == []
    assert Answerability(CountingEncoder(), tmp_path / "没有").background is not None
    assert not (tmp_path / "没有").exists()


def test_background_file_keeps_the_one_before_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = embed_background(CountingEncoder())
    path = tmp_path / "向量.safetensors"
    write_background(bank, path, "abc")

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", no_space)
    with pytest.raises(OSError, match="No space"):
        write_background(bank, path, "def")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert read_background(path, "abc") is not None
    assert read_background(path, "def") is None


def test_bundled_model_needs_no_embedding_of_the_bank(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = LuotuoEmbeddings()
    stored = read_background(answerability.PACKAGED_FILE, embeddings.fingerprint)
    assert stored is not None
    passages, questions = background_texts()
    assert (len(stored.passages), len(stored.questions)) == (len(passages), len(questions))
    some = slice(0, 8)
    cosines = (stored.questions[some] * embeddings.encode(questions[some], "query")).sum(axis=1)
    assert cosines.min() > 0.999
    cosines = (stored.passages[some] * embeddings.encode(passages[some], "passage")).sum(axis=1)
    assert cosines.min() > 0.999

    monkeypatch.setattr(answerability, "embed_background", lambda _: pytest.fail("the bank was embedded"))
    assert Answerability(embeddings).background.mean == pytest.approx(stored.mean)


def test_order_of_the_bank_does_not_matter() -> None:
    generator = np.random.default_rng(3)
    passages, questions = (generator.normal(size=(n, 6)).astype(np.float32) for n in (20, 30))
    bank, mixed = Background.of(passages, questions), Background.of(passages[::-1], questions[::-1])
    evidence = Evidence(0.4, 0.3, 0.2, 0.1)
    np.testing.assert_allclose(bank.features(evidence), mixed.features(evidence), rtol=1e-5)
