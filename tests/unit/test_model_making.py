"""What luotuo-mini is made with: development sets, the data pack, groups of pairs, the table of measures."""

import json
import lzma
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from luotuo_integrations.texts import Kind, Vectors
from luotuo_integrations.training.table import TextTable
from training import devsets, measure, pair_groups
from training.data_pack import FORBIDDEN, TEXTS, Pack, Source, write_pack
from training.devsets import DevSets, Halves, Labelled, Retrieval, Scored

OTHER = "别的段落不算，它只是用来混淆的，训练时可以见到。"
SENTENCE = "图书馆每周一上午闭馆整理书架，读者可以在门口的还书箱还书。"


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with lzma.open(path, "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def small_sets() -> DevSets:
    texts = [f"第{number}条，员工每年可以休{number}天年假，需要提前申请。" for number in range(8)]
    queries = [f"第{number}条说年假几天" for number in range(8)]
    return DevSets(
        retrieval={"rules": Retrieval(queries[:4], texts, [[0], [1], [2], [3]], 8)},
        sts={"rules": Scored(queries[:4], queries[4:], [0.0, 1.0, 1.0, 0.0])},
        halves={"rules": Halves(queries, texts)},
        classification={"parity": Labelled(texts * 2, ["0", "1"] * 8, 8)},
    )


def test_sets_are_read_as_they_were_written(tmp_path: Path) -> None:
    sets = small_sets()
    sets.write(tmp_path / "new" / "devsets.json")
    assert DevSets.read(tmp_path / "new" / "devsets.json") == sets


def test_retrieval_sets_are_the_same_whatever_the_order() -> None:
    rows = [
        {
            "query": f"问题{number}是什么意思",
            "positive": f"这是第{number}个段落，它说明了一件事情，与别的都不同，足够长了。",
        }
        for number in range(60)
    ]
    rows.append({"query": "同一段的另一个问题", "positive": rows[0]["positive"]})
    first = devsets.retrieval_set(rows, candidates=30, queries=10)
    second = devsets.retrieval_set(rows[::-1], candidates=30, queries=10)
    assert first == second
    assert (len(first.queries), len(first.passages)) == (10, 30)
    answers = {row["query"]: row["positive"] for row in rows}
    assert [first.passages[one] for (one,) in first.positives] == [answers[query] for query in first.queries]


def test_half_of_the_documents_is_left_to_train_on_and_long_ones_fill_the_candidates() -> None:
    rows = [{"query": f"问题{number}", "positive": f"第{number}个段落，" + "说明" * 10} for number in range(10)]
    rows += [{"query": f"长问题{number}", "positive": f"第{number}个长段落，" + "说明" * 300} for number in range(30)]
    one = devsets.retrieval_set(rows, candidates=20)
    assert (one.held, len(one.passages), len(one.queries)) == (5, 20, 5)
    assert {len(passage) for passage in one.passages[5:]} == {devsets.LONGEST}


def test_a_question_of_several_candidates_has_several_right_answers() -> None:
    rows = [{"query": "疫情通报", "positive": f"第{day}天的通报，内容每天都不相同，请看正文。"} for day in range(10)]
    one = devsets.retrieval_set(rows)
    assert one.queries == ["疫情通报"]
    assert one.positives == [[0, 1, 2, 3, 4]]


def test_a_passage_that_begins_with_the_question_is_no_test() -> None:
    question = "怎样办理借书证"
    rows = [{"query": question, "positive": question + "？带身份证到一楼服务台，当天就能办好，不收费用。"}]
    assert devsets.retrieval_set(rows).passages == []


def test_a_text_is_cut_at_the_mark_nearest_its_middle() -> None:
    assert devsets.cut_in_half("一二三四五。六七八九十。") == ("一二三四五。", "六七八九十。")
    assert devsets.cut_in_half("一二三四五六七八九十") is None
    assert devsets.cut_in_half("一。二三四五六七八九十一二三四") is None


def test_sentences_are_found_again_in_longer_texts() -> None:
    sets = DevSets(retrieval={"library": Retrieval(["什么时候闭馆"], [SENTENCE, OTHER], [[0]], 1)})
    known = sets.sentences()
    assert devsets.shares_sentence(f"先说别的事情，说得足够长才行。{SENTENCE.replace('，', ' ')}然后再说别的。", known)
    assert devsets.shares_sentence("什么时候闭馆？", known)
    assert not devsets.shares_sentence("什么时候开馆，周末也开吗，晚上呢？", known)
    assert not devsets.shares_sentence(OTHER, known)
    assert devsets.shares_sentence(SENTENCE.replace("，", ",").replace("。", "!"), known)
    assert not devsets.shares_sentence("", known)


def test_classes_with_few_texts_are_left_out() -> None:
    rows = [{"text": f"好评{number}", "label": 1} for number in range(30)] + [{"text": "差评", "label": 0}]
    one = devsets.labelled_set(rows, train=10, test=10)
    assert set(one.labels) == {"1"}
    assert (len(one.texts), one.train) == (20, 10)


def test_the_pack_takes_what_is_allowed_and_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = "这一句话属于开发集，绝不可以出现在训练数据里。"
    write(
        tmp_path / "corpus" / "wiki_mrc.jsonl.xz",
        [
            {"text": SENTENCE, "source": "DuReader/demo"},
            {"text": SENTENCE, "source": "DuReader/demo"},
            {"text": "别的内容。" + held_out, "source": "DuReader/demo"},
            {"text": "这一行的许可不允许用在送人的模型里。", "source": "c3-mixed"},
        ],
    )
    write(
        tmp_path / "pairs" / "law_qa.jsonl.xz", [{"query": "怎么办？", "positive": "去问律师。", "source": "LegalQA"}]
    )
    write(tmp_path / "sts" / "stsb_train.jsonl.xz", [{"sentence1": "一只猫", "sentence2": "一只狗", "label": 2}])
    monkeypatch.setattr("training.data_pack.TEXTS", (Source("corpus/wiki_mrc"),))
    monkeypatch.setattr("training.data_pack.PAIRS", (Source("pairs/law_qa"),))
    monkeypatch.setattr("training.data_pack.SCORED", (Source("sts/stsb_train"),))
    pack = Pack(set(devsets.sentence_hashes(held_out)))
    lines = list(pack.lines(tmp_path))
    texts = [line["text"] for line in lines if line["kind"] == "text"]
    assert "".join(texts) == SENTENCE
    assert [(line["query"], line["positive"]) for line in lines if line["kind"] == "pair"] == [
        ("怎么办？", "去问律师。")
    ]
    assert [line["label"] for line in lines if line["kind"] == "scored"] == [0.4]
    assert pack.counts["corpus/wiki_mrc c3-mixed: left out"] == 1
    assert pack.counts["shares a sentence with what is held out"] == 1


def test_some_modern_texts_are_turned_traditional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Marking:
        def convert(self, text: str) -> str:
            return "繁" + text

    rows = [{"text": f"第{number}条短消息", "source": "ecom"} for number in range(400)]
    write(tmp_path / "corpus" / "queries_ecom.jsonl.xz", rows)
    write(tmp_path / "corpus" / "poetry_classical.jsonl.xz", rows)
    for name in ("PAIRS", "SCORED"):
        monkeypatch.setattr(f"training.data_pack.{name}", ())
    for file, modern in (("corpus/queries_ecom", True), ("corpus/poetry_classical", False)):
        monkeypatch.setattr("training.data_pack.TEXTS", (Source(file, modern=modern),))
        turned = [line for line in Pack(set(), Marking()).lines(tmp_path) if line["text"].startswith("繁")]
        assert (20 <= len(turned) <= 80) if modern else not turned


def test_sources_that_may_not_be_used() -> None:
    forbidden = (
        "c3-dialogue",
        "c3/m-train",
        "hello-algo",
        "ctf-wiki",
        "xin-wen-lian-bo",
        "alpaca-chinese",
        "belle_eval",
    )
    allowed = ("cmrc2018/train", "LCTT", "lawyer-llama/advice", "Laws/DLC", "OPPO-xiaobu/test (unlabelled)")
    assert [one for one in forbidden if not FORBIDDEN.search(one)] == []
    assert [one for one in allowed if FORBIDDEN.search(one)] == []
    assert not any("poetry_modern" in source.file or "xwlb" in source.file for source in TEXTS)


def test_a_pack_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "pack.jsonl.xz"
    write_pack([{"kind": "text", "text": "一"}], path)
    assert [row["text"] for row in devsets.rows_of(path)] == ["一"]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_pairs_go_to_their_domain_up_to_its_share() -> None:
    lines: list[dict[str, Any]] = [
        {"kind": "pair", "query": f"问{number}", "positive": f"答{number}", "source": source}
        for number in range(50)
        for source in ("LCTT/section", "LegalQA", "unknown")
    ]
    lines += [
        {"kind": "text", "text": SENTENCE * 3, "source": "Laws/DLC"},
        {"kind": "text", "text": "短", "source": "x"},
        {"kind": "pair", "query": "问", "positive": "长" * (pair_groups.LONGEST + 1), "source": "xiehouyu"},
    ]
    table = TextTable()
    groups = pair_groups.pair_groups(lines, table, 100)
    counts = {name: len(group.rows) for name, group in groups.items()}
    assert Counter(counts) == Counter({**dict.fromkeys(counts, 0), "technology": 15, "law": 15, "halves": 1})
    query, positive = groups["law"].rows[0]
    assert (table.texts[query], table.kinds[query], table.kinds[positive]) == ("问0", "query", "passage")
    front, back = groups["halves"].rows[0]
    assert table.texts[front] + table.texts[back] == SENTENCE * 3
    assert groups["law"].scores() is None


def test_every_fourth_modern_pair_is_turned_traditional() -> None:
    lines = [
        {"kind": "pair", "query": f"问{number}", "positive": f"答{number}", "source": source}
        for number in range(16)
        for source in ("LegalQA", "NiuTrans/史记")
    ]
    table = TextTable()
    groups = pair_groups.pair_groups(lines, table, 200, lambda text: text.replace("问", "問"))
    asked = [table.texts[query] for query, _ in groups["law"].rows]
    assert [place for place, text in enumerate(asked) if text.startswith("問")] == [0, 8]  # 4 and 12: passages alone
    table = TextTable()
    groups = pair_groups.pair_groups(lines, table, 200, lambda text: text.replace("答", "荅"))
    answers = [table.texts[passage] for _, passage in groups["law"].rows]
    assert [place for place, text in enumerate(answers) if text.startswith("荅")] == [0, 4, 8, 12]
    assert all(table.texts[passage].startswith("答") for _, passage in groups["classical"].rows)


def test_scored_pairs_are_grouped_by_scale() -> None:
    lines = [
        {"sentence1": f"甲{number}", "sentence2": f"乙{number}", "label": 1.0, "source": source}
        for number in range(20)
        for source in ("stsb_train", "atec_train")
    ]
    groups = pair_groups.scored_groups(lines, TextTable(), 10)
    assert {name: len(group.rows) for name, group in groups.items()} == {"matches": 7, "grades": 3}
    scores = groups["grades"].scores()
    assert scores is not None
    assert scores.dtype == np.float32


def encode(texts: Sequence[str], kind: Kind) -> Vectors:
    """Counts of the digits in a text: enough to find the number of a rule again."""
    rows = [[text.count(str(digit)) + 0.01 for digit in range(10)] for text in texts]
    vectors = np.array(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_measures_of_an_encoder_that_knows_numbers() -> None:
    found = measure.measure(encode, small_sets(), list(measure.TASKS), [2])
    whole, cut = found[""], found["2"]
    assert whole["retrieval/rules"] == 1
    assert whole["halves/rules"] == 1
    assert cut["retrieval/rules"] < 1
    assert set(whole) == {"retrieval/rules", "sts/rules", "halves/rules", "classification/parity"}
    assert set(measure.measure(encode, small_sets(), ["sts"], [])[""]) == {"sts/rules"}


@pytest.mark.parametrize("common", [0.0, 5.0])
def test_the_probe_reads_classes_from_vectors_whatever_their_common_direction(common: float) -> None:
    def leaning(texts: Sequence[str], kind: Kind) -> Vectors:
        vectors = np.hstack([encode(texts, kind), np.full((len(texts), 1), common, np.float32)])
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    texts = [str(number % 2) for number in range(40)]
    turned = ["1" if text == "0" else "0" for text in texts]
    right, wrong = Labelled(texts, texts, 20), Labelled(texts, texts[:20] + turned[20:], 20)
    sets = DevSets(classification={"right": right, "wrong": wrong})
    found = measure.measure(leaning, sets, ["classification"], [])[""]
    assert found == {"classification/right": 1, "classification/wrong": 0}


def test_keywords_find_rules_by_their_number() -> None:
    assert measure.measure_bm25(small_sets())["retrieval/rules"] > 0.5


def test_the_table_begins_with_the_means() -> None:
    rows = measure.table({"one": {"retrieval/a": 0.5, "retrieval/b": 1.0}, "two": {"sts/a": 0.25}}).splitlines()
    assert rows[0] == "| | one | two |"
    assert rows[2] == "| **retrieval** (nDCG@10, mean) | 0.7500 |  |"
    assert "| sts/a |  | 0.2500 |" in rows
