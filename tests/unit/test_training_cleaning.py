"""Pairs from documents: cleaning, cutting, duplicates and the split; against double loops and in random corpora."""

import random
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest

from luotuo_integrations.training.cleaning import PairSet, clean, halves, make_pairs, split_records, stretches
from luotuo_integrations.training.duplicates import SeenTexts
from luotuo_integrations.training.records import Document, Pair, Record, ScoredPair, Triplet, texts_of

SYLLABLES = "天地人山水火风云日月星光花草树木鸟鱼虫马牛羊春夏秋冬东南西北红黄蓝绿大小多少上下来去"


def sentence(generator: random.Random, length: int = 20) -> str:
    return "".join(generator.choices(SYLLABLES, k=length - 1)) + generator.choice("。。。！？")


def article(generator: random.Random, sentences: int = 20) -> str:
    return "".join(sentence(generator, generator.randint(8, 30)) for _ in range(sentences))


def corpus(count: int, seed: int = 0, sentences: int = 20) -> list[Document]:
    generator = random.Random(seed)
    return [Document(f"d{index}", article(generator, sentences)) for index in range(count)]


def without_space(text: str) -> str:
    return re.sub(r"\s", "", text)


def shingles(text: str) -> set[str]:
    return {text[start : start + 5] for start in range(len(text) - 4)}


def similarity(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("一\r\n二\r三\u2028四", "一\n二\n三\n四"),
        ("　　缩进的段落。\n\n \t\n　　下一段。  ", "缩进的段落。\n下一段。"),
        ("a \t\u00a0 b　c", "a b c"),
        ("\ufeff一\u200b二\x00三\x07\u00ad", "一二三"),
        ("ＡＢＣ，１２３：“全角”——（保留）……！？", "ＡＢＣ，１２３：“全角”——（保留）……！？"),
        ("半\ud83d个", "半个"),
        ("𠮷野家👨\u200d👩", "𠮷野家👨\u200d👩"),
        (" \n ", ""),
    ],
)
def test_cleaning_tidies_and_keeps_chinese_punctuation(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_cleaning_twice_changes_nothing() -> None:
    generator = random.Random(1)
    alphabet = "一。Ａ \n\r\t\v　\u200b\u00ad\x00\x85\u2028\ufeffx\ud83d"
    for _ in range(500):
        text = "".join(generator.choices(alphabet, k=12))
        assert clean(clean(text)) == clean(text)


@pytest.mark.parametrize(
    ("text", "front", "back"),
    [
        ("一二三四。五六七八。", "一二三四。", "五六七八。"),
        ("他说：“走吧！”我们就走了。", "他说：“走吧！”", "我们就走了。"),
        ("「真的？」」』他问我们。", "「真的？」」』", "他问我们。"),
        ("第一行没有句号\n第二行也没有", "第一行没有句号", "第二行也没有"),
        ("一二三四五六！？七八九十", "一二三四五六！？", "七八九十"),
        ("Camels walk. They drink water.", "Camels walk.", "They drink water."),
        ("价格是3.14元。图在a.b里", "价格是3.14元。", "图在a.b里"),
        ("短。这里是第二句话。这里是第三句话。尾。", "短。这里是第二句话。", "这里是第三句话。尾。"),
    ],
)
def test_articles_are_cut_at_the_sentence_end_nearest_the_middle(text: str, front: str, back: str) -> None:
    assert halves(text, least=2) == (front, back)


@pytest.mark.parametrize("text", ["", "。", "只有一句话，没有可以切开的地方。", "没有任何标点的一行字", "\n\n好。\n"])
def test_articles_of_one_sentence_have_no_halves(text: str) -> None:
    assert halves(text, least=1) is None


def test_short_articles_have_no_halves() -> None:
    text = "一二三四。五六七八。"
    assert halves(text, least=10) == ("一二三四。", "五六七八。")
    assert halves(text, least=11) is None


def test_halves_are_the_text_itself_cut_nearest_the_middle() -> None:
    generator = random.Random(2)
    for _ in range(200):
        text = article(generator, generator.randint(2, 12)).replace("？", "？\n ")
        cut = halves(text, least=2, most=10_000)
        assert cut is not None
        front, back = cut
        assert front.strip() == front != ""
        assert back.strip() == back != ""
        assert without_space(front + back) == without_space(text)
        cleaned = clean(text)
        ends = [end + 1 for end, character in enumerate(cleaned[:-1]) if character in "。！？\n"]
        nearest = min(abs(end - len(cleaned) / 2) for end in ends)
        assert abs(len(front) - len(cleaned) / 2) <= nearest + 1  # white space at the seam


def test_long_articles_are_first_cut_to_the_most_characters() -> None:
    text = article(random.Random(3), 60)
    cut = halves(text, least=50, most=200)
    assert cut is not None
    joined = "".join(cut)
    assert text.startswith(joined)
    assert joined[-1] in "。！？"
    assert 170 < len(joined) <= 200
    assert halves("长" * 300 + "。短。", least=2, most=200) is None


def test_stretches_are_consecutive_and_as_long_as_allowed() -> None:
    generator = random.Random(4)
    for _ in range(100):
        text = article(generator, generator.randint(1, 60))
        found = stretches(text, least=60, most=200)
        assert all(60 <= len(stretch) <= 200 for stretch in found)
        assert text.startswith("".join(found))
        assert len(text) - len("".join(found)) < 60
        # The next sentence would not have fitted.
        for stretch, following in pairwise(found):
            head = re.match(r"[^。！？]*[。！？]", following)
            assert head is not None
            assert len(stretch) + len(head[0]) > 200


def test_a_sentence_that_is_too_long_is_left_out() -> None:
    before, after = "前面的话。" * 20, "后面的话。" * 20
    assert stretches(before + "长" * 300 + "。" + after, least=60, most=200) == [before, after]


def test_counts_add_up() -> None:
    documents = [
        *corpus(20),
        Document("short", "太短。"),
        Document("space", "  \n" * 500),
        Document("one", "长" * 400),
        Document("again", corpus(1)[0].text),
    ]
    counts = make_pairs(documents, least=100).counts
    assert counts == {
        "documents": 24,
        "too_short": 2,
        "no_boundary": 1,
        "exact_duplicates": 1,
        "near_duplicates": 0,
        "train": counts["train"],
        "dev": counts["dev"],
    }
    assert counts["train"] + counts["dev"] == 20


def texts(pairs: list[Pair]) -> list[str]:
    return [text for pair in pairs for text in (pair.query, pair.positive)]


@pytest.mark.parametrize("seed", range(4))
def test_no_text_of_dev_is_in_train_nor_nearly(seed: int) -> None:
    generator = random.Random(seed)
    documents = corpus(60, seed)
    for index in range(40):
        original = generator.choice(documents).text
        place = generator.randrange(len(original))
        copies = [original, original[:place] + "改" + original[place + 1 :], original[: len(original) // 2] * 2]
        documents.append(Document(f"copy{index}", generator.choice(copies)))
    generator.shuffle(documents)
    pairs = make_pairs(documents, least=60, most=200, dev_share=0.3, seed=seed)
    assert pairs.dev
    assert pairs.train
    assert pairs.counts["exact_duplicates"] > 0
    assert pairs.counts["near_duplicates"] > 0
    assert len(set(texts(pairs.train + pairs.dev))) == len(texts(pairs.train + pairs.dev))
    assert not {pair.document for pair in pairs.train} & {pair.document for pair in pairs.dev}
    assert max(similarity(one, other) for one in texts(pairs.dev) for other in texts(pairs.train)) < 0.9


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_near_duplicates_are_found_as_by_counting_shingles(threshold: float) -> None:
    generator = random.Random(5)
    wrong = 0
    similarities = []
    for _ in range(200):
        one = "".join(generator.choices(SYLLABLES, k=200))
        changed, start = generator.randint(1, 100), generator.randint(0, 100)
        other = one[:start] + "".join(generator.choices(SYLLABLES, k=changed)) + one[start + changed :]
        seen = SeenTexts(threshold)
        assert seen.add([one]) == "new"
        similarities.append(similarity(one, other))
        found = seen.add([other]) != "new"
        wrong += abs(similarities[-1] - threshold) > 0.1 and found != (similarities[-1] >= threshold)
    assert min(similarities) < threshold - 0.1
    assert max(similarities) > threshold + 0.05
    assert wrong <= 2


def test_a_pair_that_is_left_out_is_not_remembered() -> None:
    generator = random.Random(6)
    one, two, three = (article(generator) for _ in range(3))
    seen = SeenTexts(0.8)
    assert seen.add([one, two]) == "new"
    assert seen.add([three, two]) == "exact"
    assert seen.add([three, two.replace("。", "；", 1)]) == "near"
    assert seen.add([three]) == "new"
    assert seen.add([one + "。", three]) == "exact"


def test_equal_texts_alone_are_found_at_threshold_one_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "rensa", None)
    documents = [Document("a", article(random.Random(7))), Document("b", article(random.Random(8)))]
    documents += [Document("c", documents[0].text.replace("。", "；", 1)), Document("d", documents[1].text)]
    # The back half of c is that of a.
    assert make_pairs(documents, least=100, near_duplicates=1).counts["exact_duplicates"] == 2
    with pytest.raises(ImportError, match=r"'rensa' is not installed.*luotuo-integrations\[train\]"):
        make_pairs(documents, least=100)


def test_documents_stay_on_their_side_when_the_corpus_grows() -> None:
    documents = corpus(300, sentences=8)
    small = make_pairs(documents[:150], least=60, dev_share=0.2)
    large = make_pairs(documents, least=60, dev_share=0.2)
    assert set(small.train) < set(large.train)
    assert set(small.dev) < set(large.dev)
    assert 30 < len({pair.document for pair in large.dev}) < 90  # 60 expected
    assert set(make_pairs(documents, least=60, dev_share=0.2, seed=1).dev) != set(large.dev)
    assert make_pairs(documents, least=60, dev_share=0.2) == large


def test_all_stretches_of_a_document_stand_on_one_side() -> None:
    pairs = make_pairs(corpus(30, sentences=100), least=100, most=200, dev_share=0.3)
    assert len(pairs.train) > 5 * len({pair.document for pair in pairs.train})
    assert not {pair.document for pair in pairs.train} & {pair.document for pair in pairs.dev}


def test_the_number_for_development_can_be_given() -> None:
    documents = corpus(40)
    pairs = make_pairs(documents, least=100, dev_count=7)
    assert (len(pairs.dev), len(pairs.train)) == (7, 33)
    assert set(make_pairs(documents, least=100, dev_count=5).dev) < set(pairs.dev)
    assert make_pairs(documents, least=100, dev_share=0).dev == []
    with pytest.raises(ValueError, match="dev_count=40 leaves nothing of 40 pairs"):
        make_pairs(documents, least=100, dev_count=40)


def test_small_corpora_have_a_document_on_each_side() -> None:
    for seed in range(20):
        for share in (0.01, 0.99):
            pairs = make_pairs(corpus(2), least=100, dev_share=share, seed=seed)
            assert (len(pairs.train), len(pairs.dev)) == (1, 1)


def test_no_more_documents_are_read_than_pairs_are_wanted() -> None:
    def stream() -> Iterator[Document]:
        yield from corpus(5)
        raise AssertionError

    pairs = make_pairs(stream(), least=100, max_pairs=5)
    assert pairs.counts["documents"] == 5
    assert len(pairs.train) + len(pairs.dev) == 5


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([], "There are no documents"),
        ([Document("a", "太短。也短。")] * 3, r"3 have fewer than least=300 characters.*lower least, as least=150"),
        ([Document("a", "长" * 400)], "1 have no end of a sentence"),
        ([Document("a", "一模一样的话。" * 50)], "1 only repeat a text"),
        (corpus(1, sentences=40), "All 1 pairs come from one document, 'd0'.*dev_share=0"),
    ],
)
def test_corpora_that_give_no_pairs_are_explained(documents: list[Document], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_pairs(documents)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"least": 900}, "least=900, most=800: least must"),
        ({"least": 1}, "least must be at least 2"),
        ({"max_pairs": 0}, "max_pairs=0: it must be at least 1"),
        ({"dev_share": 1.0}, r"dev_share=1\.0: it must be 0 to below 1"),
        ({"dev_count": 0}, "dev_count=0: it must be at least 1"),
        ({"near_duplicates": 0.0}, r"near_duplicates=0\.0: it must be above 0"),
    ],
)
def test_numbers_out_of_range_are_refused_before_reading(options: dict[str, int | float], message: str) -> None:
    def stream() -> Iterator[Document]:
        raise AssertionError
        yield

    with pytest.raises(ValueError, match=message):
        make_pairs(stream(), **options)  # type: ignore[arg-type]


def connected_texts(record: Record) -> set[str]:
    return {record.query, record.positive} if not isinstance(record, ScoredPair) else {record.first, record.second}


@pytest.mark.parametrize("seed", range(5))
def test_records_that_share_a_text_or_document_stay_together(seed: int) -> None:
    generator = random.Random(seed)
    records: list[Record] = []
    for index in range(200):
        first, second = f"问{generator.randrange(300)}", f"答{generator.randrange(300)}"
        document = f"文{generator.randrange(400)}" if generator.random() < 0.5 else ""
        records.append(
            [
                Pair(first, second, document),
                Triplet(first, second, ("到处都用的反例",), document),
                ScoredPair(first, second, index % 2, document),
            ][seed % 3]
        )
    train, dev = split_records(records, dev_share=0.2, seed=seed)
    unique = {(*texts_of(record), getattr(record, "score", 0)) for record in records}
    assert len(train) + len(dev) == len(unique)
    assert 0 < len(dev) <= round(0.2 * len(unique))
    assert sorted(train + dev, key=records.index) == [r for r in records if r in train or r in dev]
    for one in dev:
        for other in train:
            assert not connected_texts(one) & connected_texts(other)
            assert not one.document or one.document != other.document


def test_a_chain_of_shared_texts_stays_together() -> None:
    chain = [Pair(f"问{index // 2}", f"答{(index + 1) // 2}") for index in range(20)]
    single = Pair("别的问题", "别的答案")
    assert split_records([*chain, single]) == (chain, [single])
    with pytest.raises(ValueError, match=r"All 20 records share documents or texts.*correct the field 'document'"):
        split_records(chain)


def test_equal_records_are_left_out_but_for_the_first() -> None:
    records = [Pair("甲", "乙", "一"), Pair("甲", "乙", "二"), Pair("丙", "丁", "三")]
    train, dev = split_records(records)
    assert sorted([*train, *dev], key=records.index) == [records[0], records[2]]
    scored = [ScoredPair("甲", "乙", 1.0), ScoredPair("甲", "乙", 0.0), ScoredPair("丙", "丁", 1.0)]
    assert sum(map(len, split_records(scored))) == 3


def test_the_number_of_records_for_development_can_be_given() -> None:
    records = [Pair(f"问{index}", f"答{index}") for index in range(50)]
    train, dev = split_records(records, dev_count=12)
    assert (len(train), len(dev)) == (38, 12)
    assert split_records(records, dev_count=12) == (train, dev)
    assert split_records(records, dev_count=12, seed=1)[1] != dev
    assert split_records(records, dev_share=0) == (records, [])
    assert len(split_records(records[:3], dev_share=0.99)[0]) == 1
    with pytest.raises(ValueError, match="dev_count=50 leaves nothing of 50 records"):
        split_records(records, dev_count=50)
    with pytest.raises(ValueError, match=r"dev_share=-0\.1: it must be 0"):
        split_records(records, dev_share=-0.1)


def test_a_progress_bar_is_shown_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    pairs = make_pairs(corpus(3), least=100)
    assert isinstance(pairs, PairSet)
    assert make_pairs(corpus(3), least=100, show_progress=True) == pairs
    assert capsys.readouterr().out == ""
