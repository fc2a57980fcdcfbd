"""The LangChain face of the Chinese splitter."""

import copy
from typing import Any

import pytest
from langchain_core.documents import Document

from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.splitter import ChineseTextSplitter

HANDBOOK = """# 员工手册

## 第一章 总则

为规范管理，制定本手册。本手册适用于全体员工！试用期员工也适用。

### 请假制度

试用期内不得请年假。他说：“好。”然后走了。请假须提前三天申请，并由主管审批。
"""


def test_documents_get_offsets_headings_and_pages() -> None:
    text = "第一章 总则\n第一页的内容。\n第二页的内容开头，\n第三页的内容结束。"
    page_starts = [0, text.index("第二页"), text.index("第三页")]
    document = Document(page_content=text, metadata={"source": "手册.pdf", "page_starts": page_starts, "标签": ["甲"]})
    before = copy.deepcopy(document)
    first, second = ChineseTextSplitter(20, 0).split_documents([document])
    assert document == before
    assert first.metadata == {
        "source": "手册.pdf", "标签": ["甲"], "start": 0, "end": 14, "headings": "第一章 总则", "page": 1,
    }  # fmt: skip
    assert second.metadata["page"] == 2
    assert second.metadata["page_end"] == 3
    assert first.metadata["标签"] is not document.metadata["标签"]
    for chunk in (first, second):
        assert text[chunk.metadata["start"] : chunk.metadata["end"]] == chunk.page_content


def test_pages_without_text_do_not_shift_page_numbers() -> None:
    document = Document(page_content="第三页。", metadata={"page_starts": [0, 0, 0, 4]})
    (chunk,) = ChineseTextSplitter().split_documents([document])
    assert chunk.metadata["page"] == 3
    assert "page_end" not in chunk.metadata


def test_offsets_are_right_where_the_text_recurs() -> None:
    text = "好。好的。好。好的。好。"
    for chunk in ChineseTextSplitter(3, 0, add_start_index=True).create_documents([text]):
        assert chunk.metadata["start_index"] == chunk.metadata["start"]
        assert text[chunk.metadata["start"] : chunk.metadata["end"]] == chunk.page_content


def test_metadata_of_one_chunk_is_not_shared_with_another() -> None:
    chunks_ = ChineseTextSplitter(3, 0).create_documents(["甲。乙丙。"], [{"列表": []}])
    chunks_[0].metadata["列表"].append(1)
    assert chunks_[1].metadata["列表"] == []


def test_create_documents_wants_one_metadata_for_each_text() -> None:
    with pytest.raises(ValueError, match="2 texts and 1 metadatas"):
        ChineseTextSplitter().create_documents(["甲。", "乙。"], [{}])


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "400", None])
def test_bad_chunk_size(size: Any) -> None:
    with pytest.raises(ValueError, match="give an integer from 1 up"):
        ChineseTextSplitter(size)


@pytest.mark.parametrize("overlap", [-1, 100, 101, 0.5, True])
def test_bad_chunk_overlap(overlap: Any) -> None:
    with pytest.raises(ValueError, match="give 0 to chunk_size - 1, here 99"):
        ChineseTextSplitter(100, overlap)


def test_default_overlap_follows_the_chunk_size() -> None:
    assert ChineseTextSplitter()._chunk_overlap == 60
    assert ChineseTextSplitter(50)._chunk_overlap == 7


def test_one_or_the_other_length_function() -> None:
    with pytest.raises(ValueError, match="give one of them"):
        ChineseTextSplitter(length=lambda texts: [1 for _ in texts], length_function=len)
    splitter = ChineseTextSplitter(8, 0, length_function=lambda text: 2 * len(text))
    assert splitter.split_text("甲乙丙。丁戊己。") == ["甲乙丙。", "丁戊己。"]


class FakeEmbeddings:
    """Counts two tokens a character."""

    max_tokens = 100

    def count_tokens(self, texts: Any) -> list[int]:
        return [2 * len(text) for text in texts]


def test_sizes_in_tokens_of_a_model() -> None:
    splitter = ChineseTextSplitter.from_embeddings(FakeEmbeddings(), chunk_size=10, chunk_overlap=0)
    assert splitter.split_text("甲乙丙丁。戊己庚。辛。") == ["甲乙丙丁。", "戊己庚。", "辛。"]
    with pytest.raises(ValueError, match="chunk_size=101 is more than the 100 tokens"):
        ChineseTextSplitter.from_embeddings(FakeEmbeddings(), chunk_size=101)


def test_sizes_in_tokens_of_the_bundled_model() -> None:
    embeddings = LuotuoEmbeddings()
    splitter = ChineseTextSplitter.from_embeddings(embeddings, 40, 10)
    chunks = splitter.split_text(HANDBOOK * 5)
    assert set("".join(HANDBOOK.split())) == set("".join("".join(chunks).split()))
    sizes = embeddings.count_tokens(chunks)
    assert 30 <= max(sizes) <= 40


@pytest.mark.parametrize("text", [None, 3, ["试用期。"]])
def test_what_is_no_text(text: Any) -> None:
    with pytest.raises(TypeError, match="text must be a string"):
        ChineseTextSplitter().split_text(text)


def test_lone_surrogates_are_ordinary_characters() -> None:
    assert ChineseTextSplitter(4, 0).split_text("骆\ud800驼。好。") == ["骆\ud800驼。", "好。"]


def test_works_as_a_langchain_transformer() -> None:
    documents = [Document(page_content=HANDBOOK, metadata={"source": "手册.md"})]
    splitter = ChineseTextSplitter(70, 0)
    assert splitter.transform_documents(documents) == splitter.split_documents(documents)
