"""Records: names of fields, kinds, files of every format, and what is refused."""

import csv
import gzip
import json
import lzma
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from luotuo_integrations.training.records import (
    Pair,
    Record,
    ScoredPair,
    Triplet,
    read_records,
    record_type,
    records_of,
    texts_of,
)

ROWS = [
    {"query": "怎样请年假", "positive": "年假须提前三天在系统里申请。"},
    {"query": "食堂几点开门", "positive": "食堂早上七点开门，晚上八点关门。"},
    {"query": "发票丢了怎么办", "positive": "丢失的发票可以凭记账联复印件报销。"},
]


def lines(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        (["text", "text_pos"], Pair),
        (["text", "text_pos", "text_neg"], Triplet),
        (["Query", "Positive", "source"], Pair),
        (["query", "pos", "neg"], Triplet),
        (["anchor", "positive", "negative_1", "negative_2"], Triplet),
        (["sentence1", "sentence2", "label"], ScoredPair),
        (["sentence1", "sentence2", "score"], ScoredPair),
        (["text1", "text2", "label"], ScoredPair),
        (["premise", "hypothesis", "label"], ScoredPair),
        (["question", "answer"], Pair),
        (["question", "answer", "label"], ScoredPair),
        (["question", "context"], Pair),
        (["title", "body"], Pair),
        (["title", "text", "label"], Pair),  # the label is a topic
        (["query", "positive", "score"], Pair),  # the name says that it is one
        (["instruction", "input", "output"], Pair),
    ],
)
def test_names_of_fields_tell_the_kind(fields: list[str], kind: type[Record]) -> None:
    assert record_type(fields) is kind


def test_unknown_names_are_listed_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match=r"q, a; allowed are.*query\+positive.*sentence1\+sentence2.*rename_columns"):
        record_type(["q", "a"])


@pytest.mark.parametrize("fields", [["sentence1", "sentence2"], ["premise", "hypothesis"]])
def test_sentences_without_a_label_are_not_taken_for_positives(fields: list[str]) -> None:
    with pytest.raises(ValueError, match="with label or score"):
        record_type(fields)


def test_lists_of_positives_make_a_record_each() -> None:
    row = {"query": "骆驼吃什么", "pos": ["骆驼吃草。", "骆驼也吃带刺的灌木。"], "neg": ["鲸鱼吃磷虾。", "猫吃鱼。"]}
    first, second = records_of(row)
    assert isinstance(first, Triplet)
    assert isinstance(second, Triplet)
    assert (first.query, first.positive) == ("骆驼吃什么", "骆驼吃草。")
    assert second.positive == "骆驼也吃带刺的灌木。"
    assert first.negatives == second.negatives == ("鲸鱼吃磷虾。", "猫吃鱼。")


def test_negatives_of_several_fields_are_gathered_in_order() -> None:
    (record,) = records_of(
        {"anchor": "甲", "positive": "乙", "negative_1": "丙", "negative_2": None, "negative_3": "丁"}
    )
    assert isinstance(record, Triplet)
    assert record.negatives == ("丙", "丁")


@pytest.mark.parametrize("negatives", [None, [], ""])
def test_without_negatives_a_row_is_a_pair(negatives: object) -> None:
    (record,) = records_of({"query": "甲", "positive": "乙", "negatives": negatives})
    assert type(record) is Pair


@pytest.mark.parametrize(
    ("label", "score"), [(True, 1.0), (0, 0.0), (4.5, 4.5), ("3", 3.0), (" 0.25 ", 0.25), (np.float32(0.5), 0.5)]
)
def test_labels_are_numbers_however_they_are_written(label: object, score: float) -> None:
    (record,) = records_of({"sentence1": "甲", "sentence2": "乙", "label": label})
    assert isinstance(record, ScoredPair)
    assert record.score == score


@pytest.mark.parametrize("label", [math.nan, math.inf, "entailment", None, "", [1]])
def test_labels_that_are_no_numbers_are_refused(label: object) -> None:
    with pytest.raises(ValueError, match=r"Index 0: 'label' is .*must be a finite number"):
        read_records([{"sentence1": "甲", "sentence2": "乙", "label": label}])


def test_alpaca_input_completes_the_instruction() -> None:
    rows = [
        {"instruction": "翻译成英文", "input": "骆驼", "output": "camel"},
        {"instruction": "说个笑话", "input": "", "output": "从前有座山。"},
    ]
    assert [record.query for record in read_records(rows) if isinstance(record, Pair)] == [
        "翻译成英文\n骆驼",
        "说个笑话",
    ]


def test_equal_positives_are_one_document_and_a_given_one_is_kept() -> None:
    passage = "食堂早上七点开门。"
    first, second, third, fourth = read_records(
        [
            {"query": "甲", "positive": passage},
            {"query": "乙", "positive": passage},
            {"query": "丙", "positive": "别的话。"},
            {"query": "丁", "positive": passage, "doc_id": 7},
        ]
    )
    assert first.document == second.document != ""
    assert third.document != first.document
    assert fourth.document == "7"


def write(path: Path, rows: list[dict[str, str]]) -> None:
    name = path.name
    if ".csv" in name or ".tsv" in name:
        with path.with_name("cells").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if ".tsv" in name else ",")
            writer.writeheader()
            writer.writerows(rows)
        data = path.with_name("cells").read_bytes()
    elif name.endswith(".parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    else:
        data = (json.dumps(rows, indent=1) if ".json" in name and "l" not in name else lines([*rows])).encode()
    packed = lzma.compress(data) if name.endswith(".xz") else gzip.compress(data) if name.endswith(".gz") else data
    path.write_bytes(packed)


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.xz", "A.JSONL", "a.csv.gz", "a.tsv.xz", "a.json.gz"],
)
def test_every_format_gives_the_same_records(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, ROWS)
    assert read_records(tmp_path / name) == read_records(ROWS)
    assert read_records(str(tmp_path / name), limit=2) == read_records(ROWS)[:2]


def test_json_files_with_an_object_a_line_are_read_too(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("\n" + lines([*ROWS]), encoding="utf-8-sig")
    assert read_records(file) == read_records(ROWS)


@pytest.mark.parametrize("encoding", ["gb18030", "utf-8-sig", "utf-16"])
def test_the_encoding_of_csv_files_is_detected(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.csv"
    # Long enough that the sample which is looked at ends within a character.
    rows = "".join(f"问题{index},答案{'长' * (index % 7)}\n" for index in range(9_000))
    file.write_text("query,positive\n" + rows, encoding=encoding)
    assert len(read_records(file)) == 9_000
    assert read_records(file, limit=1)[0] == records_of({"query": "问题0", "positive": "答案"})[0]


def test_a_lone_quotation_mark_in_a_tsv_file_swallows_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_text('sentence1\tsentence2\tlabel\n"骆驼\t沙漠\t1\n鲸鱼\t大海\t0\n', encoding="utf-8")
    first, second = read_records(file)
    assert list(texts_of(first)) == ['"骆驼', "沙漠"]
    assert list(texts_of(second)) == ["鲸鱼", "大海"]


def test_csv_cells_may_hold_commas_and_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('query,positive\n"一,二","上一行\n下一行"\n三,\n', encoding="utf-8")
    assert list(texts_of(read_records(file, limit=1)[0])) == ["一,二", "上一行\n下一行"]
    with pytest.raises(ValueError, match=r"a\.csv, line 4: 'positive' is blank"):
        read_records(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"query": "甲", "positive": "乙"}\n{"query": "甲", "posi', r"a\.jsonl, line 2 is not JSON"),
        ('{"query": "甲", "positive": "乙"}\n\n{"query": "丙"}\n', r"a\.jsonl, line 3: the fields are query;"),
        ('["甲", "乙"]\n', r"a\.jsonl, line 1 is a JSON list"),
        ('{"query": "甲", "positive": 3}\n', r"line 1: 'positive' is int: '3'"),
        ('{"query": null, "positive": "乙"}\n', r"line 1: 'query' is missing or null"),
        ('{"query": "甲", "positive": " \\n"}\n', r"line 1: 'positive' is blank"),
        ('{"query": "甲", "positive": []}\n', r"line 1: 'positive' is an empty list"),
        ('{"query": "\\ud83d", "positive": "乙"}\n', r"line 1: 'query' holds half a character"),
        ('{"query": "甲", "pos": "乙", "neg": ["丙", null]}\n', r"line 1: 'neg' is missing or null"),
        ('{"sentence1": "甲", "sentence2": "乙", "label": NaN}\n', r"line 1: 'label' is nan"),
        ("", r"a\.jsonl' has no records"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_records(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "查询".encode("gb18030"), "line 1: byte 0 is not UTF-8"),
        ("a.jsonl.xz", b"no xz", "is damaged, or not .xz"),
        ("a.jsonl.xz", lzma.compress(b"{}" * 999)[:-40], "is damaged, or not .xz"),
        ("a.jsonl.gz", b"no gz", "is damaged, or not .gz"),
        ("a.parquet", b"no parquet", "is no Parquet file"),
        ("a.csv", "query,positive\n甲,乙,丙\n".encode(), "line 2 has more cells than the first line has names"),
        ("a.csv", 'query,positive\n甲,"乙\n'.encode(), "unexpected end of data"),
        ("a.csv", b"query,positive\n\xff\xff,\xff\n", "pass its encoding"),
        ("a.pdf", b"%PDF", "allowed are .jsonl"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        read_records(tmp_path / name)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "a.jsonl", tmp_path / "a.parquet"):
        with pytest.raises(FileNotFoundError, match="There is no file"):
            read_records(path)
    (tmp_path / "b.jsonl").mkdir()
    with pytest.raises(FileNotFoundError, match="it is a folder, name its files"):
        read_records(tmp_path / "b.jsonl")


def test_an_unknown_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("query,positive\n1,2\n")
    with pytest.raises(ValueError, match="encoding='utf-99' is unknown"):
        read_records(tmp_path / "a.csv", encoding="utf-99")


def test_rows_of_different_kinds_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"record 1 \(from 0\) is a Triplet, those before are Pairs: give every row neg"
    ):
        read_records([ROWS[0], {**ROWS[1], "negative": "图书馆八点开门。"}])
    with pytest.raises(ValueError, match="is a ScoredPair, those before are Pairs"):
        read_records([ROWS[0], {"sentence1": "甲", "sentence2": "乙", "label": 1}])


def test_records_pass_through_and_are_checked() -> None:
    records = [Pair("甲", "乙", "一"), Pair("丙", "丁")]
    assert read_records(records) == records
    with pytest.raises(ValueError, match="Index 1: 'Pair' is blank"):
        read_records([records[0], Pair("", "乙")])


def test_a_stream_is_read_no_further_than_the_limit() -> None:
    def stream() -> Iterator[dict[str, str]]:
        yield from ROWS[:2]
        raise AssertionError

    assert len(read_records(stream(), limit=2)) == 2
    with pytest.raises(AssertionError):
        read_records(stream(), limit=3)


def test_hugging_face_datasets_are_read_streaming_or_not() -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(ROWS)
    assert read_records(dataset) == read_records(ROWS)
    assert read_records(dataset.to_iterable_dataset(), limit=2) == read_records(ROWS)[:2]
    with pytest.raises(
        ValueError, match=r"DatasetDict with 'train' has no rows: give one split, as dataset\['train'\]"
    ):
        read_records(datasets.DatasetDict({"train": dataset}))


@pytest.mark.parametrize(
    ("source", "message"), [([], "has no records"), (["甲"], "Index 0 is str"), (3, "A int cannot be read")]
)
def test_sources_without_rows_are_refused(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_records(source)  # type: ignore[arg-type]


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="limit=0 must be at least 1"):
        read_records(ROWS, limit=0)


def test_texts_of_a_record_are_all_of_them() -> None:
    assert list(texts_of(Pair("甲", "乙"))) == ["甲", "乙"]
    assert list(texts_of(Triplet("甲", "乙", ("丙", "丁")))) == ["甲", "乙", "丙", "丁"]
    assert list(texts_of(ScoredPair("甲", "乙", 1.0))) == ["甲", "乙"]
