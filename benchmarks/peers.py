"""What the encoder benchmarks share: one model folder, one set of texts, and every library that embeds with them.

A peer that is not installed, or does not load the folder, is left out and named.
"""

import asyncio
import importlib.metadata
import logging
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from luotuo_integrations import DEFAULT_MODEL, LuotuoEmbeddings
from luotuo_integrations.documents import load_documents
from luotuo_integrations.encoder import Encoder
from luotuo_integrations.texts import Vectors
from luotuo_integrations.training.onnx_export import export_onnx

DATA = Path(__file__).parents[1] / "examples" / "data"
SHORTEST, LONGEST = 10, 2_000
ONNX = "model.onnx"
TUNINGS = (4, 8, 16, 64, 128)  # batch sizes that a tuned peer may choose from
TUNED_ON = 64  # texts

Embed = Callable[[list[str]], Any]


class Peer(NamedTuple):
    """A way to embed passages."""

    name: str
    embed: Embed
    exact: bool = True  # float32 all the way


class Folder(NamedTuple):
    """A model as a folder of float32 weights."""

    path: Path
    query_prompt: str
    passage_prompt: str
    max_length: int


def mixed_texts(count: int, seed: int) -> list[str]:
    """Cut texts of mixed lengths, 10 to 2,000 characters (log-uniform), from the example documents."""
    source = "".join("".join(document.page_content.split()) for document in load_documents(DATA).documents)
    generator = random.Random(seed)
    texts = []
    for _ in range(count):
        length = round(SHORTEST * (LONGEST / SHORTEST) ** generator.random())
        start = generator.randrange(len(source) - length)
        texts.append(source[start : start + length])
    return texts


def export(folder: Path, model: str = DEFAULT_MODEL, *, onnx: bool = False) -> Folder:
    """Write a model as every peer can load it, on request with an ONNX file beside the weights."""
    encoder = Encoder(model, device="cpu", dtype="float32", backend="torch")
    path = encoder.model.save(folder, encoder.tokenizer.tokenizer)
    if onnx:
        export_onnx(encoder.model, path / ONNX)
    return Folder(path, encoder.prompts["query"], encoder.prompts["passage"], encoder.max_length)


def all_peers(folder: Folder, texts: list[str], device: str | None) -> tuple[list[Peer], dict[str, str]]:
    """Every system that works here, our own first; and why the others do not."""
    makers = [luotuo, luotuo_float32, hugging_face, llama_index, sentence_transformers, infinity]
    if device in (None, "cpu"):
        makers += [onnx_runtime, openvino, fastembed]
    peers: list[Peer] = []
    missing: dict[str, str] = {}
    for maker in makers:
        try:
            peers += maker(folder, texts[:TUNED_ON], device)
        except Exception as error:  # noqa: BLE001, PERF203 - whatever keeps a peer from running is its own affair
            missing[maker.__name__] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    return peers, missing


def luotuo(folder: Folder, texts: list[str], device: str | None) -> list[Peer]:
    """This package as it comes."""
    del texts
    return [Peer("LuotuoEmbeddings", LuotuoEmbeddings(folder.path, device=device).embed_documents, exact=False)]


def luotuo_float32(folder: Folder, texts: list[str], device: str | None) -> list[Peer]:
    """This package in float32."""
    del texts
    model = LuotuoEmbeddings(folder.path, device=device, dtype="float32")
    return [Peer("LuotuoEmbeddings, float32", model.embed_documents)]


def hugging_face(folder: Folder, texts: list[str], device: str | None) -> list[Peer]:
    """langchain-huggingface, told what it does not read from the folder."""
    from langchain_huggingface import HuggingFaceEmbeddings

    def make(batch_size: int) -> Embed:
        embed: Embed = HuggingFaceEmbeddings(
            model_name=str(folder.path),
            model_kwargs={"device": device} if device else {},
            encode_kwargs={"prompt": folder.passage_prompt, "normalize_embeddings": True, "batch_size": batch_size},
        ).embed_documents
        return embed

    return _default_and_tuned("HuggingFaceEmbeddings", make, 32, texts)


def llama_index(folder: Folder, texts: list[str], device: str | None) -> list[Peer]:
    """LlamaIndex's own."""
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    def make(batch_size: int) -> Embed:
        embed: Embed = HuggingFaceEmbedding(
            str(folder.path), text_instruction=folder.passage_prompt, embed_batch_size=batch_size, device=device
        ).get_text_embedding_batch
        return embed

    return _default_and_tuned("HuggingFaceEmbedding (LlamaIndex)", make, 10, texts)


def sentence_transformers(folder: Folder, texts: list[str], device: str | None) -> list[Peer]:
    """sentence-transformers itself."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder.path), device=device)

    def make(batch_size: int) -> Embed:
        return lambda given: model.encode(
            given, prompt=folder.passage_prompt, normalize_embeddings=True, batch_size=batch_size
        ).tolist()

    return _default_and_tuned("sentence-transformers", make, 32, texts)


def infinity(folder: Folder, texts: list[str], device: str | None) -> list[Peer]:
    """The engine of infinity, with its own batches."""
    del texts
    os.environ.setdefault("DO_NOT_TRACK", "1")
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    arguments = EngineArgs(
        model_name_or_path=str(folder.path),
        engine="torch",
        device=device or "auto",
        dtype="float32",
        bettertransformer=False,
        model_warmup=False,
    )
    engine = AsyncEmbeddingEngine.from_args(arguments)

    async def answer(given: list[str]) -> list[Any]:
        async with engine:
            vectors, _ = await engine.embed(sentences=[folder.passage_prompt + text for text in given])
            return [vector.tolist() for vector in vectors]

    peer = Peer("infinity", lambda given: asyncio.run(answer(given)))
    peer.embed(["你好"])
    return [peer]


def onnx_runtime(folder: Folder, texts: list[str], device: str | None) -> list[Peer]:
    """ONNX Runtime, in our own batches: what the engine alone can do."""
    del texts, device
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder.path / ONNX, options, providers=["CPUExecutionProvider"])
    return [Peer("ONNX Runtime, our batches", _in_our_batches(folder, lambda inputs: session.run(None, inputs)[0]))]


def openvino(folder: Folder, texts: list[str], device: str | None) -> list[Peer]:
    """OpenVINO, in our own batches, in float32 and in bfloat16."""
    del texts, device
    import openvino as runtime

    core = runtime.Core()
    peers = []
    for name, precision in (("float32", "f32"), ("bfloat16", "bf16")):
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        request = core.compile_model(core.read_model(folder.path / ONNX), "CPU", options).create_infer_request()

        def infer(inputs: dict[str, Any], request: Any = request) -> Any:
            return np.array(request.infer(inputs)[0])  # its own memory is written over by the next call

        embed = _in_our_batches(folder, infer)
        peers.append(Peer(f"OpenVINO {name}, our batches", embed, exact=precision == "f32"))
    return peers


def fastembed(folder: Folder, texts: list[str], device: str | None) -> list[Peer]:
    """fastembed, on the ONNX file, whose output is the finished vector."""
    del device
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    TextEmbedding.add_custom_model(
        model="benchmark/luotuo",
        pooling=PoolingType.DISABLED,
        normalization=False,
        sources=ModelSource(url="http://localhost"),
        dim=384,
        model_file=ONNX,
    )
    model = TextEmbedding("benchmark/luotuo", specific_model_path=str(folder.path), threads=torch.get_num_threads())

    def make(batch_size: int) -> Embed:
        return lambda given: [
            vector.tolist()
            for vector in model.embed([folder.passage_prompt + text for text in given], batch_size=batch_size)
        ]

    return _default_and_tuned("fastembed", make, 256, texts)


def _default_and_tuned(name: str, make: Callable[[int], Embed], default: int, texts: list[str]) -> list[Peer]:
    """A peer with the batch size it comes with, and with the one that is fastest on some of the texts."""
    seconds = {}
    for batch_size in TUNINGS:
        embed = make(batch_size)
        embed(texts[:8])
        start = time.perf_counter()
        embed(texts)
        seconds[batch_size] = time.perf_counter() - start
    best = min(seconds, key=lambda batch_size: seconds[batch_size])
    return [Peer(name, make(default)), Peer(f"{name}, batches of {best}", make(best))]


class _Network(torch.nn.Module):
    """An engine in the place of the encoder's model."""

    def __init__(self, infer: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__()
        self.infer = infer

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        found: Vectors = self.infer({"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()})
        return torch.from_numpy(found)


def _in_our_batches(folder: Folder, infer: Callable[[dict[str, Any]], Any]) -> Embed:
    encoder = Encoder(folder.path, device="cpu", dtype="float32", backend="torch")
    encoder.model = _Network(infer)  # type: ignore[assignment]
    return lambda given: encoder.encode(given).tolist()


def least_cosines(peers: list[Peer], texts: list[str]) -> dict[str, float]:
    """Least cosine of each peer's vectors to the first exact one's; this warms them up too."""
    vectors = {peer.name: np.array(peer.embed(texts)) for peer in peers}
    reference = vectors[next(peer.name for peer in peers if peer.exact)]
    return {name: float((found * reference).sum(axis=1).min()) for name, found in vectors.items()}


def measure(peers: list[Peer], texts: list[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of each round; each round begins with another system."""
    seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for first in range(rounds):
        for position in range(len(peers)):
            peer = peers[(first + position) % len(peers)]
            start = time.perf_counter()
            peer.embed(texts)
            seconds[peer.name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median of each row."""
    return {name: statistics.median(times) for name, times in seconds.items()}


def quiet() -> None:
    """Silence what is known: texts that are cut, and progress bars."""
    logging.getLogger("luotuo_integrations").setLevel(logging.ERROR)
    logging.getLogger("transformers").setLevel(logging.ERROR)


def machine() -> dict[str, Any]:
    """The machine and the versions that numbers depend on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    names = ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "fastembed", "infinity-emb")
    installed = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    known = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile")
    return {
        "processor": model or platform.processor() or platform.machine(),
        "instructions": [name for name in known if name in flags],
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in names if name in installed},
    }
