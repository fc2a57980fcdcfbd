"""The LlamaIndex face of the Chinese splitter."""

import json
import pickle
from typing import Any

import pytest
from llama_index.core import Document, MockEmbedding, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import MetadataMode, NodeRelationship, TextNode

from luotuo_integrations.node_parser import ChineseNodeParser
from luotuo_integrations.splitter import ChineseTextSplitter

TEXT = "# 员工手册\n\n## 休假\n\n年假五天。病假十天。年假五天。病假十天。\n\n## 报销\n\n住宿每晚四百五十元。"


class FakeEmbeddings:
    """Counts two tokens a character."""

    max_tokens = 100
    model_name = "假模型"

    def count_tokens(self, texts: Any) -> list[int]:
        return [2 * len(text) for text in texts]


def test_nodes_are_the_chunks_of_the_langchain_splitter_with_true_offsets() -> None:
    document = Document(text=TEXT, metadata={"source": "手册.md"})
    nodes = ChineseNodeParser(24, 6)([document])
    chunks = ChineseTextSplitter(24, 6).create_documents([TEXT])
    assert [node.text for node in nodes] == [chunk.page_content for chunk in chunks]
    assert [(node.start_char_idx, node.end_char_idx) for node in nodes] == [
        (chunk.metadata["start"], chunk.metadata["end"]) for chunk in chunks
    ]
    for node in nodes:
        assert TEXT[node.start_char_idx : node.end_char_idx] == node.text
    assert [node.metadata for node in nodes][-1] == {"source": "手册.md", "headings": "员工手册 > 报销"}


def test_offsets_are_true_where_text_recurs() -> None:
    text = "好的。你好。好的。好。好的。"
    nodes = ChineseNodeParser(3, 0)([Document(text=text)])
    assert [(node.start_char_idx, node.text) for node in nodes] == [
        (0, "好的。"), (3, "你好。"), (6, "好的。"), (9, "好。"), (11, "好的。"),
    ]  # fmt: skip


def test_relationships() -> None:
    documents = [Document(text="一一。二二。三三。", id_="甲"), Document(text="四四。", id_="乙")]
    first, second, third, other = ChineseNodeParser(3, 0)(documents)
    assert first.next_node.node_id == second.node_id == third.prev_node.node_id
    assert NodeRelationship.NEXT not in third.relationships
    assert NodeRelationship.PREVIOUS not in other.relationships
    assert [node.ref_doc_id for node in (first, second, third, other)] == ["甲", "甲", "甲", "乙"]
    (alone, *_) = ChineseNodeParser(3, 0, include_prev_next_rel=False)(documents)
    assert NodeRelationship.NEXT not in alone.relationships


def test_pages_and_the_page_table() -> None:
    text = "第一页的内容。第二页的内容，第三页的内容。"
    document = Document(text=text, metadata={"source": "手册.pdf", "page_starts": [0, 7, 14]})
    first, second = ChineseNodeParser(14, 0)([document])
    assert document.metadata["page_starts"] == [0, 7, 14]
    assert first.metadata == {"source": "手册.pdf", "page": 1}
    assert second.metadata == {"source": "手册.pdf", "page": 2, "page_end": 3}
    for node in (first, second):
        assert "page_starts" not in json.dumps(node.to_dict(), ensure_ascii=False)
        assert "page" not in node.get_content(MetadataMode.EMBED)
        assert "page: " in node.get_content(MetadataMode.LLM)


def test_headings_are_embedded_with_the_text() -> None:
    node = ChineseNodeParser()([Document(text=TEXT)])[0]
    assert "员工手册 > 休假" in node.get_content(MetadataMode.EMBED)
    bare = ChineseNodeParser(include_metadata=False)([Document(text=TEXT, metadata={"source": "手册.md"})])[0]
    assert bare.metadata == {}


def test_nodes_can_be_split_further() -> None:
    (node,) = ChineseNodeParser(24, 0)([TextNode(text="一一。二二。")])
    parts = ChineseNodeParser(3, 0)([node])
    assert [part.text for part in parts] == ["一一。", "二二。"]


def test_in_a_pipeline_and_an_index() -> None:
    documents = [Document(text=TEXT, id_="手册")]
    nodes = IngestionPipeline(transformations=[ChineseNodeParser(24, 0), MockEmbedding(embed_dim=4)]).run(
        documents=documents
    )
    assert len(nodes) == 3
    assert all(len(node.embedding) == 4 for node in nodes)
    index = VectorStoreIndex.from_documents(
        documents, transformations=[ChineseNodeParser(24, 0)], embed_model=MockEmbedding(embed_dim=4)
    )
    found = index.as_retriever(similarity_top_k=10).retrieve("年假")
    assert {result.node.metadata["headings"] for result in found} == {"员工手册 > 休假", "员工手册 > 报销"}
    index.delete_ref_doc("手册", delete_from_docstore=True)
    assert index.as_retriever().retrieve("年假") == []


async def test_async_gives_the_same() -> None:
    documents = [Document(text=TEXT)]
    parser = ChineseNodeParser(24, 0)
    nodes = await parser.acall(documents)
    assert [node.text for node in nodes] == parser.split_text(TEXT)


def test_serialised_and_back() -> None:
    parser = ChineseNodeParser(24, 6)
    data = json.loads(json.dumps(parser.to_dict()))
    assert (data["class_name"], data["chunk_size"], data["chunk_overlap"], data["size_unit"]) == (
        "ChineseNodeParser", 24, 6, "characters",
    )  # fmt: skip
    for other in (ChineseNodeParser.from_dict(data), pickle.loads(pickle.dumps(parser))):
        assert other.split_text(TEXT) == parser.split_text(TEXT)


def test_sizes_in_tokens() -> None:
    parser = ChineseNodeParser.from_embeddings(FakeEmbeddings(), 10, 0)
    assert parser.split_text("甲乙丙丁。戊己庚。辛。") == ["甲乙丙丁。", "戊己庚。", "辛。"]
    assert parser.to_dict()["size_unit"] == "tokens of 假模型"
    assert pickle.loads(pickle.dumps(parser)).split_text("甲乙丙丁。戊。") == ["甲乙丙丁。", "戊。"]
    without_function = ChineseNodeParser.from_dict(parser.to_dict())
    with pytest.raises(ValueError, match=r"counts tokens of 假模型, but lost the function .*from_embeddings"):
        without_function([Document(text="甲。")])
    with pytest.raises(ValueError, match="chunk_size=101 is more than the 100 tokens"):
        ChineseNodeParser.from_embeddings(FakeEmbeddings(), 101)


def test_own_ids() -> None:
    nodes = ChineseNodeParser(3, 0, id_func=lambda index, document: f"{document.node_id}-{index}")(
        [Document(text="一一。二二。", id_="甲")]
    )
    assert [node.node_id for node in nodes] == ["甲-0", "甲-1"]


@pytest.mark.parametrize(("size", "overlap"), [(0, None), (-1, None), (10, 10), (10, -1), ("10", None)])
def test_bad_sizes(size: Any, overlap: Any) -> None:
    with pytest.raises(ValueError, match="is not allowed: give"):
        ChineseNodeParser(size, overlap)


def test_blank_documents_have_no_nodes() -> None:
    assert ChineseNodeParser()([Document(text=" \n")]) == []
