"""mteb runs LuotuoEmbeddings on two tasks of its own classes, whose texts are written here."""

import sys
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.sts import AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.model_meta import ModelMeta
from mteb.models.models_protocols import EncoderProtocol
from mteb.types import PromptType

from luotuo_integrations import LuotuoEmbeddings
from luotuo_integrations.evaluation import ranking_metrics
from luotuo_integrations.mapper import LinearQueryMapper
from luotuo_integrations.mteb_model import MtebModel, mteb_model
from luotuo_integrations.similarity_metrics import paired_cosines, spearman

QUERIES = {"问一": "试用期员工可以请年假吗", "问二": "出差住宿每晚不超过多少元", "问三": "在哪里报销发票"}
PASSAGES = {
    "文一": "员工试用期可以请年假",
    "文二": "出差住宿标准每晚不超过四百五十元",
    "文三": "报销发票在公司",
    "文四": "今天天气很好",
    "文五": "你是谁",
}
RELEVANT = {"问一": {"文一": 1}, "问二": {"文二": 1}, "问三": {"文三": 1, "文五": 1}}
FIRST = ["今天天气很好", "试用期可以请假吗", "报销需要什么材料", "你是谁"]
SECOND = ["天气很好今天", "出差住宿标准", "报销要什么材料", "员工可以在哪里报销"]
SCORES = [5.0, 0.0, 4.0, 1.0]


def metadata(kind: Any, name: str, main_score: str) -> TaskMetadata:
    return TaskMetadata(
        type=kind,
        name=name,
        description="短文本若干",
        dataset={"path": "luotuo/无", "revision": "1"},
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["zho-Hans"],
        main_score=main_score,
    )


class SmallRetrieval(AbsTaskRetrieval):
    metadata = metadata("Retrieval", "SmallRetrieval", "ndcg_at_10")

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        split = {
            "queries": Dataset.from_list([{"id": one, "text": text} for one, text in QUERIES.items()]),
            "corpus": Dataset.from_list([{"id": one, "text": text} for one, text in PASSAGES.items()]),
            "relevant_docs": RELEVANT,
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class SmallSimilarity(AbsTaskSTS):
    metadata = metadata("STS", "SmallSimilarity", "cosine_spearman")
    min_score, max_score = 0, 5

    def load_data(self, num_proc: int | None = None, **_: Any) -> None:
        columns = {"sentence1": FIRST, "sentence2": SECOND, "score": SCORES}
        self.dataset = DatasetDict({"test": Dataset.from_dict(columns)})
        self.data_loaded = True


@pytest.fixture(scope="module")
def embeddings(tiny_folder: Path) -> LuotuoEmbeddings:
    return LuotuoEmbeddings(tiny_folder, device="cpu", dtype="float32", backend="torch")


def scores(model: MtebModel, task: Any, **settings: Any) -> dict[str, Any]:
    result = mteb.evaluate(model, task, cache=None, co2_tracker=False, show_progress_bar=False, **settings)
    return result.task_results[0].scores["test"][0]


def test_a_retrieval_task_has_our_own_numbers(embeddings: LuotuoEmbeddings) -> None:
    queries = embeddings.encode(list(QUERIES.values()), "query")
    passages = embeddings.encode(list(PASSAGES.values()), "passage")
    order = np.argsort(-(queries @ passages.T), axis=1)
    ranked = [[list(PASSAGES)[place] for place in row] for row in order]
    expected = ranking_metrics(ranked, list(RELEVANT.values()), cutoffs=(1, 3))
    found = scores(mteb_model(embeddings), SmallRetrieval())
    assert 0 < expected["ndcg@3"] < 1
    for name, their_name in {"ndcg@3": "ndcg_at_3", "map@3": "map_at_3", "recall@1": "recall_at_1"}.items():
        assert found[their_name] == pytest.approx(expected[name], abs=1e-4), name


def test_a_similarity_task_has_our_own_number(embeddings: LuotuoEmbeddings) -> None:
    cosines = paired_cosines(embeddings.encode(FIRST, "query"), embeddings.encode(SECOND, "query"))
    found = scores(mteb_model(embeddings), SmallSimilarity())
    assert found["cosine_spearman"] == pytest.approx(spearman(cosines, SCORES), abs=1e-6)


def test_queries_and_passages_get_their_prompts(embeddings: LuotuoEmbeddings) -> None:
    model = mteb_model(embeddings)
    batches = [{"text": FIRST[:3]}, {"text": FIRST[3:]}]
    expected = {kind: embeddings.encode(FIRST, kind) for kind in ("query", "passage")}
    assert not np.allclose(expected["query"], expected["passage"], atol=1e-3)
    for prompt_type, kind in ((PromptType.query, "query"), (PromptType.document, "passage"), (None, "query")):
        vectors = model.encode(
            batches,
            task_metadata=SmallSimilarity.metadata,
            hf_split="test",
            hf_subset="default",
            prompt_type=prompt_type,
            batch_size=1,
            show_progress_bar=False,
        )
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, expected[kind], atol=1e-6)


def test_the_metadata_tell_the_model(embeddings: LuotuoEmbeddings, tiny_folder: Path) -> None:
    model = mteb_model(embeddings)
    meta = model.mteb_model_meta
    assert isinstance(model, EncoderProtocol)
    assert ModelMeta.model_validate(meta.model_dump()) == meta  # create_empty itself checks nothing
    assert meta.name == f"luotuo-integrations/{tiny_folder.name}"
    assert meta.revision == embeddings.fingerprint
    assert (meta.max_tokens, meta.embed_dim, meta.languages) == (128, 24, ["zho-Hans"])
    assert (meta.similarity_fn_name.value, meta.use_instructions) == ("cosine", True)


def test_no_two_settings_share_their_results(embeddings: LuotuoEmbeddings) -> None:
    half = LinearQueryMapper(np.eye(24, dtype=np.float32) / 2, np.ones(24, np.float32))
    variants = [
        embeddings,
        embeddings.model_copy(update={"query_prompt": "问题："}),
        embeddings.model_copy(update={"passage_prompt": "正文："}),
        embeddings.model_copy(update={"dimensions": 8}),
        embeddings.model_copy(update={"mapper": LinearQueryMapper.identity(24)}),
        embeddings.model_copy(update={"mapper": half}),
    ]
    metas = [mteb_model(one).mteb_model_meta for one in variants]
    assert len({(meta.name, meta.revision, meta.experiment_name) for meta in metas}) == len(variants)


def test_results_are_kept_and_found_again(embeddings: LuotuoEmbeddings, tmp_path: Path) -> None:
    cache = mteb.ResultCache(tmp_path / "结果")
    first, again = (
        mteb.evaluate(
            mteb_model(embeddings), SmallSimilarity(), cache=cache, overwrite_strategy=strategy, show_progress_bar=False
        ).task_results[0]
        for strategy in ("always", "only-cache")
    )
    assert again.get_score() == pytest.approx(first.get_score())
    assert list(tmp_path.rglob(f"*/{embeddings.fingerprint}/SmallSimilarity.json"))


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("luotuo-mini", "luotuo-integrations/luotuo-mini"),
        ("BAAI/bge-small-zh-v1.5", "BAAI/bge-small-zh-v1.5"),
        ("/模型/甲/小模型/", "luotuo-integrations/小模型"),
        ("C:\\models\\mini", "luotuo-integrations/mini"),
    ],
)
def test_every_model_has_an_owner(model: str, name: str) -> None:
    from luotuo_integrations.mteb_model import _owned_name

    assert _owned_name(model) == name


def test_another_precision_is_refused(embeddings: LuotuoEmbeddings) -> None:
    with pytest.raises(ValueError, match="precision='int8'"):
        scores(mteb_model(embeddings), SmallSimilarity(), encode_kwargs={"precision": "int8"})


def test_without_mteb_the_pip_line_is_told(embeddings: LuotuoEmbeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mteb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ImportError, match=r"pip install 'luotuo-integrations\[mteb\]'"):
        mteb_model(embeddings)
