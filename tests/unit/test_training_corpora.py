"""Corpora: every kind of file and iterable, their ids, what is skipped and what is refused."""

import gzip
import json
import logging
import lzma
from collections.abc import Iterator
from pathlib import Path

import pytest

from luotuo_integrations.training.corpora import read_documents
from luotuo_integrations.training.records import Document

CAMELS = "骆驼能在沙漠里走很多天不喝水。它的驼峰里存的是脂肪，不是水。"
WHALES = "鲸鱼生活在大海里，用肺呼吸，每过一会儿就要浮上水面换气。"


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(path: Path, rows: list[dict[str, str]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def read(source: object, **options: object) -> list[Document]:
    return list(read_documents(source, **options))  # type: ignore[arg-type]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with a file of every format, and some that are none."""
    folder = tmp_path / "语料"
    (folder / "深处").mkdir(parents=True)
    (folder / ".git").mkdir()
    files = {
        "a.txt": CAMELS.encode(),
        "b.md": f"# 鲸鱼\r\n{WHALES}".encode(),
        "c.jsonl": jsonl({"text": CAMELS}, {"text": WHALES}),
        "d.json": json.dumps([{"content": WHALES}]).encode(),
        "e.csv": f"标题,正文\n骆驼,{CAMELS}\n".encode(),
        "f.tsv": f"id\tbody\n7\t{CAMELS}\n".encode(),
        "深处/g.jsonl.xz": lzma.compress(jsonl({"Text": CAMELS, "title": "沙漠之舟"})),
        "深处/h.txt.gz": gzip.compress(WHALES.encode()),
        "深处/i.txt": CAMELS.encode("gb18030"),
        "深处/j.txt.xz": lzma.compress(WHALES.encode("utf-16")),
        "z.pdf": b"%PDF",
        "y.PDF": b"%PDF",
        "x": b"",
        ".git/config.txt": b"hidden",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    parquet(folder / "k.parquet", [{"article": CAMELS, "url": "u1"}, {"article": WHALES, "url": "u2"}])
    return folder


EXPECTED = {
    "a.txt": CAMELS,
    "b.md": f"# 鲸鱼\n{WHALES}",
    "c.jsonl#1": CAMELS,
    "c.jsonl#2": WHALES,
    "d.json#1": WHALES,
    "e.csv#骆驼": CAMELS,
    "f.tsv#7": CAMELS,
    "k.parquet#u1": CAMELS,
    "k.parquet#u2": WHALES,
    "深处/g.jsonl.xz#沙漠之舟": CAMELS,
    "深处/h.txt.gz": WHALES,
    "深处/i.txt": CAMELS,
    "深处/j.txt.xz": WHALES,
}


def test_a_folder_is_read_with_all_its_formats(corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        documents = read(corpus)
    assert {document.id: document.text for document in documents} == EXPECTED
    assert len(documents) == len(EXPECTED)
    (warning,) = caplog.messages
    assert "Skipped 3 files" in warning
    assert "2 .pdf, 1 no suffix" in warning


@pytest.mark.parametrize("name", sorted({name.split("#")[0] for name in EXPECTED}))
def test_every_file_is_read_by_itself(corpus: Path, name: str) -> None:
    file = corpus / name
    expected = {key.split("/")[-1]: text for key, text in EXPECTED.items() if key.split("#")[0] == name}
    assert {document.id: document.text for document in read(file)} == expected
    assert read(str(file)) == read(file) == read([file]) == read([str(file)])


def test_files_and_folders_may_be_listed(corpus: Path) -> None:
    names = [document.id for document in read([corpus / "深处", corpus / "a.txt"])]
    assert names == ["g.jsonl.xz#沙漠之舟", "h.txt.gz", "i.txt", "j.txt.xz", "a.txt"]


def test_ids_stay_when_the_corpus_grows(corpus: Path) -> None:
    before = set(read(corpus))
    (corpus / "0.txt").write_text(WHALES, encoding="utf-8")
    with (corpus / "c.jsonl").open("ab") as file:
        file.write(jsonl({"text": "新的一行。"}))
    assert before < set(read(corpus))


def test_texts_and_mappings_are_read_with_their_index() -> None:
    assert read([CAMELS, WHALES]) == [Document("0", CAMELS), Document("1", WHALES)]
    rows = [{"内容": CAMELS, "id": 12}, {"内容": WHALES, "id": None}, {"TEXT": "", "title": " "}]
    assert read(iter(rows)) == [Document("12", CAMELS), Document("1", WHALES), Document("2", "")]
    assert read(iter([Document("x", CAMELS)])) == [Document("x", CAMELS)]


def test_long_texts_are_not_taken_for_paths() -> None:
    texts = [CAMELS * 200, "a\0b", "第一行\n第二行"]
    assert [document.text for document in read(texts)] == texts


def test_the_field_with_the_text_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl({"Story": CAMELS, "text": WHALES}))
    assert read(tmp_path, text_field="story")[0].text == CAMELS
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1: the fields are Story, text; none is 'plot'"):
        read(tmp_path, text_field="plot")


def test_unknown_fields_are_listed(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("story,plot\n一,二\n", encoding="utf-8")
    message = r"a\.csv, line 2: the fields are story, plot; none of them is text, content.*text_field="
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "a.csv")


def test_the_encoding_can_be_given(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(CAMELS.encode("utf-16-le"))
    (tmp_path / "b.csv").write_bytes(f"text\n{CAMELS}\n".encode("utf-16-le"))
    assert [document.text for document in read(tmp_path, encoding="utf-16-le")] == [CAMELS, CAMELS]


def test_traditional_text_in_big5_is_detected(tmp_path: Path) -> None:
    text = "駱駝能在沙漠裡走很多天不喝水，鯨魚則要浮上水面換氣。這是我們從小就知道的事情。" * 5
    (tmp_path / "a.txt").write_bytes(text.encode("big5"))
    assert read(tmp_path)[0].text == text


def test_hugging_face_datasets_are_read_streaming_or_not() -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list([{"text": CAMELS}, {"text": WHALES}])
    expected = [Document("0", CAMELS), Document("1", WHALES)]
    assert read(dataset) == expected
    assert read(dataset.to_iterable_dataset(), limit=1) == expected[:1]
    with pytest.raises(ValueError, match=r"give one split, as dataset\['train'\]"):
        read_documents(datasets.DatasetDict({"train": dataset}))


def test_documents_are_read_one_at_a_time_and_no_further_than_the_limit() -> None:
    asked = []

    def stream() -> Iterator[str]:
        for index in range(3):
            asked.append(index)
            yield CAMELS
        raise AssertionError

    documents = read_documents(stream(), limit=3)
    assert asked == []
    next(documents)
    assert asked == [0]
    assert len(list(documents)) == 2
    with pytest.raises(AssertionError):
        read(stream(), limit=4)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.xz", "a.csv"])
def test_rows_of_files_are_read_one_at_a_time(tmp_path: Path, name: str) -> None:
    row = "text\n好\n" if ".csv" in name else '{"text": "好"}\n'
    bad = "一,二,三\n" if ".csv" in name else '{"text": "好\n'
    data = (row + bad).encode()
    (tmp_path / name).write_bytes(lzma.compress(data) if name.endswith(".xz") else data)
    documents = read_documents(tmp_path / name)
    assert next(documents).text == "好"
    with pytest.raises(ValueError, match=rf"{name}, line [23]"):
        next(documents)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"text": "\xe9\xaa', "line 2: byte 10 is not UTF-8"),
        (b'{"text": "camel', "line 2 is not JSON"),
        (b'"camel"', "line 2 is a JSON str"),
        (b'{"text": 3}', "line 2: 'text' is int: '3'"),
        (b'{"text": null}', "line 2: 'text' is missing or null"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, row: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl({"text": CAMELS}) + row)
    with pytest.raises(ValueError, match=rf"a\.jsonl, {message}"):
        read(tmp_path)


def test_a_binary_file_is_refused_when_named_and_skipped_in_a_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    binary = tmp_path / "a.txt"
    binary.write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match=r"Cannot read .*a\.txt: byte 0 is NUL"):
        read(binary)
    with pytest.raises(ValueError, match=r"None of the 1 text files is text\. Cannot read .*a\.txt"):
        read(tmp_path)
    (tmp_path / "b.txt").write_text(CAMELS, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert read(tmp_path) == [Document("b.txt", CAMELS)]
    assert "Skipped 1 files that are no text. Cannot read" in caplog.text


def test_a_folder_without_readable_files_lists_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no files; allowed are \.txt, \.md"):
        read_documents(tmp_path)
    for name in ("a.pdf", "b.pdf", "c.docx"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=r"found 2 \.pdf, 1 \.docx; allowed are"):
        read_documents(tmp_path)
    with pytest.raises(ValueError, match=r"a\.pdf: the suffix tells how to read a file; allowed are"):
        read_documents(tmp_path / "a.pdf")


@pytest.mark.parametrize("source", ["nowhere", "nowhere.txt", ["nowhere.txt"], [Path("nowhere")]])
def test_missing_paths_are_named_at_once(source: object) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file or folder 'nowhere"):
        read_documents(source)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "'' is no path"),
        ([Path(__file__), 3], "3 is no path"),
        ({"text": "一"}, "has no rows"),
        (3, "A int cannot be read"),
    ],
)
def test_what_is_no_corpus_is_refused_at_once(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_documents(source)  # type: ignore[arg-type]


def test_items_that_are_no_texts_are_named_by_index() -> None:
    with pytest.raises(ValueError, match="Index 1 is int: '3'; every item must be a text"):
        read([CAMELS, 3])
    with pytest.raises(ValueError, match="Index 0: the fields are none"):
        read([{}])


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="limit=0 must be at least 1"):
        read_documents([CAMELS], limit=0)
