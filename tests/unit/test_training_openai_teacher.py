"""The teacher behind an OpenAI-compatible server, against a stub on loopback."""

import logging
import os
import signal
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import numpy as np
import pytest

from luotuo_integrations.texts import Kind, Vectors
from luotuo_integrations.training.openai_teacher import OpenAICompatibleTeacher
from luotuo_integrations.training.teachers import TeacherError, embed
from tests.embedding_stub import BAD_ANSWERS, EmbeddingStub, stub_vector

TEXTS = [f"第{number}条规定写在员工手册里" for number in range(10)]
SECRET = "sk-stub-7f3a91c2"


class Sleeper:
    """Notes the seconds in place of sleeping."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.slept.append(seconds)


def expected(texts: list[str], **options: int | str) -> Vectors:
    return np.stack([stub_vector(text, **options) for text in texts])  # type: ignore[arg-type]


def serial(server: EmbeddingStub, sleep: Sleeper | None = None, **options: object) -> OpenAICompatibleTeacher:
    """A teacher that makes one request after the other, four texts each."""
    settings = {"max_items": 4, "requests_at_once": 1, "attempts": 3, **options}
    return OpenAICompatibleTeacher("stub", base_url=server.base_url, sleep=sleep or Sleeper(), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["", "shuffled"])
@pytest.mark.parametrize("base64_always", [False, True])
def test_vectors_come_back_in_the_order_of_the_texts(fault: str, base64_always: bool) -> None:
    with EmbeddingStub(always=fault, base64_always=base64_always) as server:
        teacher = serial(server, requests_at_once=3)
        assert np.array_equal(embed(teacher, TEXTS, "passage"), expected(TEXTS))
        assert sorted(len(request["input"]) for request in server.requests) == [2, 4, 4]
        assert server.requests[0]["model"] == "stub"
        assert "input_type" not in server.requests[0]


def test_a_later_call_goes_through_the_same_teacher() -> None:
    with EmbeddingStub() as server:
        teacher = serial(server)
        assert np.array_equal(embed(teacher, TEXTS[:2], "query"), expected(TEXTS[:2]))
        assert np.array_equal(embed(teacher, TEXTS[2:], "query"), expected(TEXTS[2:]))
        assert list(teacher.embed_batches([], "query")) == []
        assert len(server.requests) == 3


def test_batches_keep_to_the_token_limit() -> None:
    with EmbeddingStub() as server:
        embed(serial(server, max_items=100, max_tokens_per_request=50), TEXTS, "passage")
        assert [len(request["input"]) for request in server.requests] == [2] * 5  # 19 to 20 tokens a text


@pytest.mark.parametrize("fault", ["429", "500", "503", "408"])
def test_passing_faults_are_tried_again_after_what_the_server_asks(fault: str) -> None:
    sleep = Sleeper()
    with EmbeddingStub(faults=[fault, fault], retry_after="7") as server:
        assert np.array_equal(embed(serial(server, sleep), TEXTS[:4], "passage"), expected(TEXTS[:4]))
        assert len(server.requests) == 3
    if fault != "408":
        assert sleep.slept == [7.0, 7.0]


def test_a_date_in_retry_after_is_understood() -> None:
    sleep = Sleeper()
    until = datetime.now(timezone.utc) + timedelta(seconds=100)
    with EmbeddingStub(faults=["429"], retry_after=format_datetime(until, usegmt=True)) as server:
        embed(serial(server, sleep), TEXTS[:1], "passage")
    assert len(sleep.slept) == 1
    assert 50 < sleep.slept[0] <= 100


def test_without_retry_after_the_waits_grow_and_are_uneven() -> None:
    sleep = Sleeper()
    with EmbeddingStub(always="500") as server, pytest.raises(TeacherError, match="answered 500"):
        embed(serial(server, sleep, attempts=5), TEXTS[:1], "passage")
    assert len(server.requests) == 5
    assert all(2**step <= waited <= 2**step + 1 for step, waited in enumerate(sleep.slept))
    assert len({waited % 1 for waited in sleep.slept}) == 4


def test_a_server_that_asks_for_hours_is_not_waited_for() -> None:
    sleep = Sleeper()
    with EmbeddingStub(always="429", retry_after="7200") as server, pytest.raises(TeacherError, match="429"):
        embed(serial(server, sleep), TEXTS[:1], "passage")
    assert (len(server.requests), sleep.slept) == (1, [])


def test_a_lost_connection_is_tried_again() -> None:
    with EmbeddingStub(faults=["hang up", "hang up"]) as server:
        assert np.array_equal(embed(serial(server), TEXTS[:4], "passage"), expected(TEXTS[:4]))
        assert len(server.requests) == 3


def test_a_dead_server_is_named_after_the_last_attempt() -> None:
    sleep = Sleeper()
    with EmbeddingStub() as server:
        server.die()
        with pytest.raises(TeacherError, match=r"127\.0\.0\.1.*cannot be reached"):
            embed(serial(server, sleep), TEXTS[:1], "passage")
    assert len(sleep.slept) == 2


def test_a_slow_server_is_given_up_after_the_timeout() -> None:
    released = threading.Event()

    def stall(number: int) -> None:
        released.wait(5)

    with EmbeddingStub(on_request=stall) as server:
        with pytest.raises(TeacherError, match=r"within 0\.1 seconds, 2 times"):
            embed(serial(server, timeout=0.1, attempts=2), TEXTS[:1], "passage")
        released.set()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("401", "OPENAI_API_KEY"),
        ("403", "OPENAI_API_KEY"),
        ("404", "has no model 'stub'.*offers stub"),
        ("quota", "quota.*Add credit"),
        ("405", "answered 405"),
    ],
)
def test_lasting_refusals_are_not_tried_again(fault: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    sleep = Sleeper()
    with EmbeddingStub(always=fault) as server, pytest.raises(TeacherError, match=message):
        embed(serial(server, sleep, api_key_variable="OPENAI_API_KEY"), TEXTS[:4], "passage")
    assert (len(server.requests), sleep.slept) == (1, [])


@pytest.mark.parametrize("fault", sorted(BAD_ANSWERS))
def test_a_bad_answer_is_refused_and_its_text_named(fault: str) -> None:
    with EmbeddingStub(faults=["", fault]) as server:
        given: list[tuple[list[int], Vectors]] = []
        with pytest.raises(TeacherError) as caught:
            given.extend(serial(server).embed_batches(TEXTS, "passage"))
    assert [0, 1, 2, 3] in [positions for positions, _ in given]
    message = str(caught.value)
    if fault in ("half json", "web page"):
        assert "no JSON" in message
    elif fault in ("dimension", "fewer", "same index", "no data"):
        assert "texts[4]" in message
    else:
        assert "texts[7]" in message
        assert TEXTS[7] in message


def test_the_dimension_asked_for_is_insisted_on() -> None:
    with EmbeddingStub() as server:
        teacher = serial(server, dimensions=6)
        assert np.array_equal(embed(teacher, TEXTS, "query"), expected(TEXTS, dimension=6))
        assert "dimensions=6" in teacher.name
    with EmbeddingStub(always="dimension") as server, pytest.raises(TeacherError, match="7 numbers in place of 6"):
        embed(serial(server, dimensions=6), TEXTS, "query")


@pytest.mark.parametrize("place", [0, 5, 9])
def test_a_text_that_spoils_its_batch_is_found_and_named(place: int) -> None:
    with EmbeddingStub(poison=TEXTS[place]) as server:
        given: list[tuple[list[int], Vectors]] = []
        with pytest.raises(TeacherError, match=rf"400.*texts\[{place}\] '{TEXTS[place]}'$"):
            given.extend(serial(server).embed_batches(TEXTS, "passage"))
        assert sum(len(positions) for positions, _ in given) == sum(server.answered.values())


def test_a_batch_that_is_too_large_is_halved_until_it_passes() -> None:
    with EmbeddingStub(most_texts=3) as server:
        assert np.array_equal(embed(serial(server, max_items=8), TEXTS, "passage"), expected(TEXTS))
        assert sorted(len(request["input"]) for request in server.requests) == [2, 2, 2, 2, 2, 4, 4, 8]
        assert set(server.answered.values()) == {1}


def test_empty_and_broken_texts_are_refused_before_any_call() -> None:
    with EmbeddingStub() as server:
        with pytest.raises(ValueError, match=r"texts\[2\] is empty"):
            serial(server).embed_batches([*TEXTS[:2], "", ""], "passage")
        with pytest.raises(ValueError, match=r"texts\[1\].*surrogate"):
            serial(server).embed_batches([TEXTS[0], "坏\ud800字"], "passage")
        with pytest.raises(TypeError, match=r"texts\[0\]"):
            serial(server).embed_batches([7], "passage")  # type: ignore[list-item]
        assert server.requests == []


def test_long_texts_are_cut_with_one_warning_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    texts = ["短句", "长" * 100, "久" * 200]
    with EmbeddingStub() as server:
        with caplog.at_level(logging.WARNING):
            embed(serial(server, max_tokens_per_text=30), texts, "passage")
        assert server.requests[0]["input"] == ["短句", "长" * 20, "久" * 20]
        assert [record.getMessage().split(",")[0] for record in caplog.records] == [
            "2 of 3 texts have more than about 30 tokens"
        ]
        with pytest.raises(TeacherError, match=r"2 of 3 texts.*texts\[1\] first"):
            serial(server, max_tokens_per_text=30, cut_long_texts=False).embed_batches(texts, "passage")
        assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["query", "passage"])
def test_prompts_and_input_types_reach_the_server(kind: Kind) -> None:
    prompts: dict[Kind, str] = {"query": "问题：", "passage": "段落："}
    with EmbeddingStub() as server:
        teacher = serial(server, prompts=prompts, input_types=True)
        sent = [prompts[kind] + text for text in TEXTS]
        assert np.array_equal(embed(teacher, TEXTS, kind), expected(sent, input_type=kind))
        assert server.requests[0]["input_type"] == kind
        assert len({teacher.name, serial(server).name, serial(server, input_types=True).name}) == 3


def test_requests_run_at_once_and_never_more_than_allowed() -> None:
    with EmbeddingStub(meet=3) as server:
        teacher = serial(server, requests_at_once=3, max_items=1, attempts=1)
        assert np.array_equal(embed(teacher, TEXTS[:9], "passage"), expected(TEXTS[:9]))
        assert server.most_at_once == 3


def test_the_pace_is_kept_and_estimated() -> None:
    sleep = Sleeper()
    with EmbeddingStub() as server:
        teacher = serial(server, sleep, requests_per_minute=30)
        assert teacher.estimate(TEXTS).seconds == 6.0
        embed(teacher, TEXTS, "passage")
    assert len(sleep.slept) == 2
    assert sleep.slept[0] == pytest.approx(2, abs=1)


def test_what_was_answered_is_given_before_an_error_is_raised() -> None:
    with EmbeddingStub(meet=2, faults=["401"]) as server:
        given: list[tuple[list[int], Vectors]] = []
        with pytest.raises(TeacherError, match="refuses the key"):
            given.extend(serial(server, requests_at_once=2, max_items=1).embed_batches(TEXTS[:2], "passage"))
        assert [TEXTS[positions[0]] for positions, _ in given] == list(server.answered)
        assert len(given) == 1


def test_after_ctrl_c_nothing_new_is_asked_and_finished_batches_were_given() -> None:
    two_given, over = threading.Event(), threading.Event()
    given = []

    def interrupt(number: int) -> None:
        if number == 3:
            two_given.wait(5)
            os.kill(os.getpid(), signal.SIGINT)
            over.wait(5)

    def read(teacher: OpenAICompatibleTeacher) -> None:
        for batch in teacher.embed_batches(TEXTS, "passage"):
            given.append(batch)
            if len(given) == 2:
                two_given.set()

    with EmbeddingStub(on_request=interrupt) as server:
        with pytest.raises(KeyboardInterrupt):
            read(serial(server, max_items=1))
        over.set()
        time.sleep(0.05)
        assert len(server.requests) == 3
    assert [positions for positions, _ in given] == [[0], [1]]


def test_leaving_early_stops_what_has_not_begun() -> None:
    with EmbeddingStub() as server:
        batches = serial(server, max_items=1).embed_batches(TEXTS, "passage")
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        time.sleep(0.05)
        assert len(server.requests) < len(TEXTS)


def test_a_loopback_server_gets_no_key_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with EmbeddingStub() as server:
        embed(serial(server), TEXTS[:1], "query")
        assert server.headers[0]["authorization"] == "Bearer none"
        embed(serial(server, api_key_variable="OPENAI_API_KEY"), TEXTS[:1], "query")
        assert server.headers[1]["authorization"] == f"Bearer {SECRET}"


def test_the_key_is_in_no_message_repr_or_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STUB_KEY", SECRET)
    with EmbeddingStub(api_key="another", faults=["500"]) as server, caplog.at_level(logging.INFO):
        teacher = serial(server, api_key_variable="STUB_KEY")
        with pytest.raises(TeacherError, match="STUB_KEY") as caught:
            embed(teacher, TEXTS[:1], "query")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    told = [str(caught.value), repr(teacher), teacher.name, str(vars(teacher)), caplog.text]
    assert not any(SECRET in text for text in told)
    assert "***" in str(caught.value)


def test_estimates_use_known_prices_and_can_be_overridden() -> None:
    small = OpenAICompatibleTeacher("text-embedding-3-small")
    estimate = small.estimate(["年" * 1000] * 1000)
    assert (estimate.tokens, estimate.currency) == (1_500_000, "USD")
    assert estimate.cost == pytest.approx(0.03)
    assert estimate.requests == 1000 // (100_000 // 1500) + 1
    assert OpenAICompatibleTeacher("new-model").estimate(TEXTS).cost is None
    assert OpenAICompatibleTeacher("new-model", price_per_million_tokens=0).estimate(TEXTS).cost == 0
    elsewhere = OpenAICompatibleTeacher("text-embedding-3-small", base_url="https://example.org/v1")
    assert elsewhere.estimate(TEXTS).cost is None
    assert "example.org" in elsewhere.name
    assert OpenAICompatibleTeacher("tao-8k", provider="qianfan").estimate(TEXTS).requests == len(TEXTS)


@pytest.mark.parametrize(
    "options",
    [
        {"requests_at_once": 0},
        {"attempts": 0},
        {"max_items": -1},
        {"timeout": float("nan")},
        {"dimensions": 0},
        {"max_tokens_per_text": 0},
        {"requests_per_minute": 0},
        {"tokens_per_minute": -5},
        {"price_per_million_tokens": -1},
        {"prompts": {"document": "段落："}},
        {"base_url": "localhost:8000"},
        {"provider": "nobody"},
    ],
)
def test_bad_arguments_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        OpenAICompatibleTeacher("stub", **options)  # type: ignore[arg-type]
