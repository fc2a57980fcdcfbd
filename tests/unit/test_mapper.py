"""The query mapper: its formula, its file, its three fits against oracles, and when it stays identity."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from luotuo_integrations import LuotuoEmbeddings
from luotuo_integrations.mapper import LinearQueryMapper, MapperError
from luotuo_integrations.mapper_fit import Candidate, MapperDataError, fit_mapper
from luotuo_integrations.mapper_methods import contrastive, discriminant, procrustes, ridge
from luotuo_integrations.texts import Vectors

D = 12


def unit(vectors: np.ndarray) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random(*shape: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rotation(size: int, seed: int = 0) -> Vectors:
    return np.linalg.qr(random(size, size, seed=seed))[0].astype(np.float32)


def turned(pairs: int, noise: float = 0.0, seed: int = 0) -> tuple[Vectors, Vectors, np.ndarray]:
    """Queries that lie where a rotation puts them, away from their passages."""
    passages = unit(random(pairs, D, seed=seed))
    return unit(passages @ rotation(D) + noise * random(pairs, D, seed=seed + 1)), passages, np.arange(pairs)


def test_the_formula_against_a_loop() -> None:
    matrix, bias, queries = random(D, D, seed=1), random(D, seed=2), unit(random(3, D, seed=3))
    mapped = LinearQueryMapper(matrix, bias)(queries)
    for query, result in zip(queries, mapped, strict=True):
        moved = [
            float(query[i]) + sum(float(matrix[i, j]) * float(query[j]) for j in range(D)) + float(bias[i])
            for i in range(D)
        ]
        length = sum(one**2 for one in moved) ** 0.5
        assert result.tolist() == pytest.approx([one / length for one in moved], abs=1e-5)
    one = LinearQueryMapper(matrix, bias)(queries[0])
    assert one.shape == (D,)
    np.testing.assert_allclose(one, mapped[0], atol=1e-6)
    assert mapped.dtype == np.float32


def test_identity_changes_nothing() -> None:
    mapper = LinearQueryMapper.identity(D)
    queries = unit(random(3, D))
    assert mapper.is_identity
    assert np.array_equal(mapper(queries), queries)


def test_a_file_holds_everything(tmp_path: Path) -> None:
    mapper = LinearQueryMapper(random(D, D), random(D), "模型", "abc", {"method": "ridge", "pairs": 7, "mrr": 0.5})
    path = mapper.save(tmp_path / "新" / "faq.mapper")
    again = LinearQueryMapper.load(path)
    assert np.array_equal(again.matrix, mapper.matrix)
    assert np.array_equal(again.bias, mapper.bias)
    assert (again.model, again.fingerprint, dict(again.report)) == ("模型", "abc", dict(mapper.report))
    assert [one.name for one in path.parent.iterdir()] == ["faq.mapper"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no mapper", encoding="utf-8")
    save_file({"matrix": random(D, D)}, tmp_path / "tensors")
    LinearQueryMapper.identity(D).save(tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-9])
    for name in ("text", "tensors", "cut", "missing"):
        with pytest.raises(MapperError, match=name):
            LinearQueryMapper.load(tmp_path / name)


def test_wrong_shapes_and_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(D, D\) and \(D,\)"):
        LinearQueryMapper(random(D, D + 1), random(D))
    with pytest.raises(ValueError, match="not finite"):
        LinearQueryMapper(random(D, D) * np.nan, random(D))
    with pytest.raises(MapperError, match="for vectors of 12 numbers, not 5"):
        LinearQueryMapper.identity(D)(random(2, 5))


def test_a_linear_layer_becomes_a_mapper() -> None:
    weight, bias, queries = random(D, D, seed=1), random(D, seed=2), unit(random(4, D, seed=3))
    mapper = LinearQueryMapper.from_linear_layer(weight, bias)
    np.testing.assert_allclose(mapper(queries), unit(queries @ weight.T + bias), atol=1e-5)
    with pytest.raises(ValueError, match=r"\(12, 13\); a query mapper needs \(D, D\)"):
        LinearQueryMapper.from_linear_layer(random(D, D + 1))


# -- LlamaIndex's linear adapter --------------------------------------------------------------------------------------


def save_adapter(folder: Path, state: Any, **config: Any) -> Path:
    """The files of ``BaseAdapter.save`` of llama-index-embeddings-adapter 0.6."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def save_linear(folder: Path, layer: torch.nn.Linear) -> Path:
    shape = {"in_features": layer.in_features, "out_features": layer.out_features, "bias": layer.bias is not None}
    return save_adapter(folder, {f"linear.{name}": tensor for name, tensor in layer.state_dict().items()}, **shape)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_adapter_of_llama_index_becomes_a_mapper(tmp_path: Path, bias: bool) -> None:
    torch.manual_seed(3)
    layer = torch.nn.Linear(D, D, bias=bias)
    queries = unit(random(5, D, seed=4))
    folder = save_linear(tmp_path / "适配器", layer)
    mapper = LinearQueryMapper.from_llama_index(folder, model="模型", fingerprint="abc")
    assert (mapper.model, mapper.fingerprint) == ("模型", "abc")
    expected = unit(layer(torch.from_numpy(queries)).detach().numpy())
    np.testing.assert_allclose(mapper(queries), expected, atol=1e-6)
    np.testing.assert_allclose(LinearQueryMapper.load(folder)(queries), expected, atol=1e-6)
    np.testing.assert_allclose(LinearQueryMapper.load(mapper.save(tmp_path / "m"))(queries), expected, atol=1e-6)


def test_embeddings_take_an_adapters_folder(tmp_path: Path, embeddings: LuotuoEmbeddings) -> None:
    torch.manual_seed(3)
    size = embeddings.dimension
    layer = torch.nn.Linear(size, size)
    folder = save_linear(tmp_path / "适配器", layer.bfloat16())
    mapped = LuotuoEmbeddings(embeddings.model, device="cpu", mapper=folder)
    moved = layer.float()(torch.tensor(embeddings.embed_query("年假有几天"))).detach().numpy()
    np.testing.assert_allclose(mapped.embed_query("年假有几天"), unit(moved), atol=1e-5)
    assert mapped.embed_documents(["年假"]) == embeddings.embed_documents(["年假"])


def test_other_adapters_are_refused(tmp_path: Path) -> None:
    def refused(folder: Path, match: str) -> None:
        with pytest.raises(MapperError, match=match):
            LinearQueryMapper.from_llama_index(folder)
        if folder.is_dir():
            with pytest.raises(MapperError, match=match):
                LuotuoEmbeddings(mapper=str(folder))

    two_layers = {"linear1.weight": torch.zeros(3, D), "linear2.weight": torch.zeros(D, 3)}
    refused(save_adapter(tmp_path / "two", two_layers, hidden_features=3), "holds a TwoLayerNN.*Fit a LinearLayer")
    refused(save_adapter(tmp_path / "own", two_layers), r"holds linear1\.weight, linear2\.weight; a linear adapter")
    refused(save_adapter(tmp_path / "list", [torch.zeros(2)]), r"pytorch_model\.bin is missing or damaged")
    refused(save_linear(tmp_path / "wide", torch.nn.Linear(D, 5)), rf"wide cannot become.*\(5, {D}\).*needs \(D, D\)")
    refused(save_linear(tmp_path / "nan", one_nan(torch.nn.Linear(D, D))), "not finite")
    wrong_bias = {"linear.weight": torch.eye(D), "linear.bias": torch.zeros(3)}
    refused(save_adapter(tmp_path / "bias", wrong_bias), r"cannot become.*\(D,\)")
    refused(tmp_path / "没有", r"config\.json is missing.*LinearLayer\.save\(folder\)")
    good = save_linear(tmp_path / "good", torch.nn.Linear(D, D))
    content = (good / "pytorch_model.bin").read_bytes()
    (good / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    refused(good, "missing or damaged")
    (good / "pytorch_model.bin").unlink()
    refused(good, r"pytorch_model\.bin is missing")
    (good / "config.json").write_text("{", encoding="utf-8")
    refused(good, r"config\.json is missing or damaged")


def one_nan(layer: torch.nn.Linear) -> torch.nn.Linear:
    layer.weight.data[1, 2] = torch.nan
    return layer


class Trap:
    """What runs when a pickle of it is read."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (os.environ["LUOTUO_TEST_TRAP"],)


@pytest.mark.parametrize("in_zip", [True, False])
def test_code_in_an_adapters_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_zip: bool) -> None:
    monkeypatch.setenv("LUOTUO_TEST_TRAP", str(tmp_path / "sprung"))
    folder = save_adapter(tmp_path / "适配器", {})
    state = {"linear.weight": torch.eye(D), "linear.bias": Trap()}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=in_zip)
    with pytest.raises(MapperError, match=r"Weights only|no zip archive"):
        LinearQueryMapper.from_llama_index(folder)
    assert not (tmp_path / "sprung").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)  # the trap is one
    assert (tmp_path / "sprung").exists()


def test_mappers_need_no_torch(tmp_path: Path) -> None:
    LinearQueryMapper(random(D, D), random(D)).save(tmp_path / "m")
    code = (
        "import sys; from luotuo_integrations.mapper import LinearQueryMapper; "
        "LinearQueryMapper.load(sys.argv[1])([1.0] * 12); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "m")], check=True)


# -- fits -------------------------------------------------------------------------------------------------------------


def test_ridge_is_the_minimum_of_its_loss() -> None:
    queries, passages, positives = turned(50, noise=0.3)
    matrix, bias = ridge(queries, passages, positives, 0.1)
    spread = float(np.trace(np.cov(queries.T, bias=True))) / D

    def loss(a: np.ndarray, b: np.ndarray) -> float:
        errors = queries + queries @ a.T + b - passages[positives]
        return float(
            (errors.astype(np.float64) ** 2).sum() / len(queries) + 0.1 * spread * (a.astype(np.float64) ** 2).sum()
        )

    best = loss(matrix, bias)
    for seed in range(20):
        step = 1e-2 * random(D, D, seed=seed), 1e-2 * random(D, seed=seed + 100)
        assert loss(matrix + step[0], bias + step[1]) > best
        assert loss(matrix - step[0], bias - step[1]) > best


def test_procrustes_finds_the_rotation() -> None:
    queries, passages, positives = turned(50)
    matrix, bias = procrustes(queries, passages, positives)
    turn = matrix + np.eye(D)
    np.testing.assert_allclose(turn, rotation(D), atol=1e-4)
    np.testing.assert_allclose(turn @ turn.T, np.eye(D), atol=1e-5)
    assert not bias.any()


def disturbed(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries that are their answers, but for three directions in which they vary on their own, and a shift."""
    passages = unit(random(count, D, seed=seed))
    noise = 0.8 * random(count, 3, seed=seed + 50) @ rotation(D)[:3]
    return unit(passages + noise + rotation(D)[5]), passages, np.arange(count)


def test_the_discriminant_is_its_formula() -> None:
    queries, passages, positives = turned(40, noise=0.3)
    matrix, bias = discriminant(queries, passages, positives, 0.4)
    covariance = np.zeros((D, D))
    for rows in (queries - passages[positives], queries, passages):
        mean = sum(row.astype(np.float64) for row in rows) / len(rows)
        covariance += sum(np.outer(row - mean, row - mean) for row in rows) / (len(rows) - 1)
    weighted = 1.4 * np.linalg.inv(covariance / (np.trace(covariance) / D) + 0.4 * np.eye(D))
    expected = (queries - queries.mean(0)) @ weighted.T
    np.testing.assert_allclose(queries + queries @ matrix.T + bias, expected, atol=1e-4)


def test_what_queries_have_for_other_reasons_is_marked_down() -> None:
    queries, passages, positives = disturbed(300)
    matrix, bias = discriminant(queries[:100], passages, positives[:100], 0.3)
    moved = LinearQueryMapper(matrix, bias)(queries[100:])
    before, after = (((one @ passages.T).argmax(1) == positives[100:]).mean() for one in (queries[100:], moved))
    assert after > before + 0.3
    assert not fit_mapper(queries[:100], passages, positives[:100]).is_identity


def test_one_direction_alone_divides_by_no_zero() -> None:
    queries = np.tile(unit(random(1, D)), (12, 1))
    matrix, bias = discriminant(queries, queries, np.arange(12), 0.3)
    assert np.isfinite(matrix).all()
    assert np.isfinite(bias).all()


def test_contrast_brings_answers_to_the_front() -> None:
    queries, passages, positives = turned(60, noise=0.1)
    matrix, bias = contrastive(queries, passages, positives, 8)
    assert np.linalg.matrix_rank(matrix, tol=1e-4) <= 8
    before = (queries @ passages.T).argmax(1) == positives
    after = (LinearQueryMapper(matrix, bias)(queries) @ passages.T).argmax(1) == positives
    assert after.mean() > before.mean() + 0.3
    again = contrastive(queries, passages, positives, 8)
    assert np.array_equal(matrix, again[0])


def test_contrast_draws_among_many_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luotuo_integrations.mapper_methods.MOST_CANDIDATES", 24)
    queries, passages, positives = turned(60, noise=0.1)
    matrix, bias = contrastive(queries, passages, positives, 8, steps=200)
    after = (LinearQueryMapper(matrix, bias)(queries) @ passages.T).argmax(1) == positives
    assert after.mean() > 0.6


def test_a_mapper_helps_on_new_questions() -> None:
    queries, passages, positives = turned(300, noise=0.1)
    mapper = fit_mapper(queries[:200], passages, positives[:200], model="模型", fingerprint="abc")
    assert not mapper.is_identity
    assert (mapper.model, mapper.fingerprint) == ("模型", "abc")
    assert mapper.report["recall@1"] > mapper.report["recall@1_without"]  # type: ignore[operator]
    before, after = (
        ((one @ passages.T).argmax(1) == positives[200:]).mean() for one in (queries[200:], mapper(queries[200:]))
    )
    assert after > before + 0.3
    again = fit_mapper(queries[:200], passages, positives[:200])
    assert np.array_equal(mapper.matrix, again.matrix)


@pytest.mark.parametrize(("pairs", "reason"), [(9, "fewer than 10 pairs"), (150, "no method is surely better")])
def test_it_stays_identity(pairs: int, reason: str) -> None:
    queries, passages = unit(random(pairs, D, seed=1)), unit(random(pairs, D, seed=2))  # noise: nothing to learn
    mapper = fit_mapper(queries, passages, np.arange(pairs))
    assert mapper.is_identity
    assert reason in str(mapper.report["reason"])
    assert mapper.report["pairs"] == pairs


def test_few_different_answers_give_the_identity() -> None:
    queries, passages = unit(random(30, D, seed=1)), unit(random(40, D, seed=2))
    for places in ([0] * 15 + [1] * 15, [0] * 29 + [1], list(range(9)) + [0] * 21):
        mapper = fit_mapper(queries, passages, places)
        assert mapper.is_identity
        assert "fewer than 10 pairs with different answers" in str(mapper.report["reason"])
    assert fit_mapper(queries, passages[:2], [0] * 15 + [1] * 15).is_identity


def test_held_back_answers_are_no_negatives_and_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def spy(queries: Vectors, passages: Vectors, positives: np.ndarray) -> tuple[Vectors, Vectors]:
        seen.append((len(queries), len(passages)))
        return np.zeros((D, D), np.float32), np.zeros(D, np.float32)

    monkeypatch.setattr("luotuo_integrations.mapper_fit.CANDIDATES", (Candidate("spy", spy, (1.0,)),))
    queries, passages, positives = turned(20)
    fit_mapper(queries, np.concatenate([passages, unit(random(7, D, seed=9))]), positives)
    assert seen == [(16, 23)] * 5  # 27 passages, of which the four answers held back are left out


def test_where_vectors_are_right_already_nothing_is_changed() -> None:
    passages = unit(random(100, D))
    assert fit_mapper(passages, passages, np.arange(100)).is_identity


def test_data_that_cannot_be_used_is_refused() -> None:
    queries, passages, positives = turned(20)
    for arguments, message in (
        ((queries, passages[:, :5], positives), r"must be \(N, D\), \(P, D\) and \(N,\)"),
        ((queries, passages, positives[:5]), r"must be \(N, D\), \(P, D\) and \(N,\)"),
        ((queries, passages, positives + 1), "rows from 1 to 20, but there are 20 passages"),
        ((queries * np.nan, passages, positives), "not finite"),
    ):
        with pytest.raises(MapperDataError, match=message):
            fit_mapper(*arguments)


# -- LuotuoEmbeddings --------------------------------------------------------------------------------------------------


@pytest.fixture
def embeddings(tiny_folder: Path) -> LuotuoEmbeddings:
    return LuotuoEmbeddings(tiny_folder, device="cpu")


def mapper_of(embeddings: LuotuoEmbeddings) -> LinearQueryMapper:
    size = embeddings.dimension
    return LinearQueryMapper(random(size, size), random(size), embeddings.model, embeddings.fingerprint)


async def test_queries_are_mapped_on_every_road_and_passages_on_none(embeddings: LuotuoEmbeddings) -> None:
    text = "试用期员工可以请年假吗"
    plain, passage = embeddings.embed_query(text), embeddings.embed_documents([text])
    embeddings.mapper = mapper_of(embeddings)
    expected = embeddings.mapper(np.array(plain, np.float32)).tolist()
    assert expected != pytest.approx(plain)
    roads = [
        embeddings.embed_query(text),
        await embeddings.aembed_query(text),
        embeddings.encode([text], "query")[0].tolist(),
        embeddings.get_query_embedding(text),
        await embeddings.aget_query_embedding(text),
    ]
    for road in roads:
        assert road == pytest.approx(expected, abs=1e-5)
    assert embeddings.embed_documents([text]) == passage
    assert embeddings.get_text_embedding(text) == pytest.approx(passage[0], abs=1e-6)


def test_an_array_to_write_into_gets_mapped_queries(embeddings: LuotuoEmbeddings) -> None:
    texts = ["年假", "出差住宿"]
    embeddings.mapper = mapper_of(embeddings)
    out = np.zeros((2, embeddings.dimension), np.float32)
    embeddings.encode(texts, "query", out=out)
    np.testing.assert_allclose(out, embeddings.encode(texts, "query"), atol=1e-6)


def test_the_mapper_comes_from_a_file_and_goes_with_copies(tmp_path: Path, tiny_folder: Path) -> None:
    first = LuotuoEmbeddings(tiny_folder, device="cpu")
    path = mapper_of(first).save(tmp_path / "faq.mapper")
    mapped = LuotuoEmbeddings(tiny_folder, device="cpu", mapper=path)
    vector = mapped.embed_query("年假")
    assert vector != pytest.approx(first.embed_query("年假"))
    for copied in (copy.copy(mapped), copy.deepcopy(mapped), mapped.model_copy(), pickle.loads(pickle.dumps(mapped))):
        assert copied.embed_query("年假") == pytest.approx(vector, abs=1e-6)
    mapped.mapper = None
    assert mapped.embed_query("年假") == pytest.approx(first.embed_query("年假"), abs=1e-6)


def test_a_mapper_of_another_model_is_refused(embeddings: LuotuoEmbeddings) -> None:
    size = embeddings.dimension
    embeddings.mapper = LinearQueryMapper.identity(size, model="另一个", fingerprint="0123")
    with pytest.raises(MapperError, match=r"fitted for '另一个' \(fingerprint 0123\).*luotuo mapper fit"):
        embeddings.embed_query("年假")
    assert embeddings.embed_documents(["年假"])


def test_vectors_that_are_not_normalised_are_refused(tiny_folder: Path) -> None:
    plain = LuotuoEmbeddings(tiny_folder, device="cpu", normalize=False)
    with pytest.raises(ValueError, match="leave normalize=False out"):
        plain.mapper = LinearQueryMapper.identity(24)


def test_fitting_on_texts(embeddings: LuotuoEmbeddings) -> None:
    pairs = [("年假有几天", "员工可以请年假"), ("出差住哪里", "住宿标准每晚四百五十元")]
    mapper = embeddings.fit_mapper(pairs, passages=["报销需要发票"])
    assert mapper.is_identity
    assert mapper.report["pairs"] == 2
    assert mapper.fingerprint == embeddings.fingerprint
    with pytest.raises(TypeError, match=r"pair 1 is .*two strings"):
        embeddings.fit_mapper([("一", "二"), "三"])  # type: ignore[list-item]
