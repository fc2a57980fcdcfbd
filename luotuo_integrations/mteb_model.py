"""The encoder that ``mteb`` asks for, around any LuotuoEmbeddings: ``mteb.evaluate(mteb_model(embeddings), tasks)``."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from luotuo_integrations._optional import require
from luotuo_integrations.embeddings import LuotuoEmbeddings
from luotuo_integrations.texts import Kind, Vectors

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def mteb_model(embeddings: LuotuoEmbeddings, *, languages: Sequence[str] = ("zho-Hans",)) -> "MtebModel":
    """Wrap embeddings for ``mteb.evaluate``.

    Args:
        embeddings: What to measure, with its prompts, dimensions, mapper and vector cache.
        languages: What the model is for, as mteb writes them: ISO 639-3 and script.

    Returns:
        An encoder of mteb 2.

    Raises:
        ImportError: If mteb is not installed.
    """
    return MtebModel(embeddings, languages)


class MtebModel:
    """mteb's EncoderProtocol.

    Documents are embedded as passages. All else is embedded as queries: questions, and the texts of tasks whose sides
    are alike, as similarity, pairs, classification and clustering, as the E5 models and those trained from them ask.

    Args:
        embeddings: See :func:`mteb_model`.
        languages: See :func:`mteb_model`.
    """

    def __init__(self, embeddings: LuotuoEmbeddings, languages: Sequence[str] = ("zho-Hans",)) -> None:
        self._embeddings = embeddings
        self._similarities = require("mteb.similarity_functions", extra="mteb")
        self.mteb_model_meta = _metadata(embeddings, languages)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int = 32,
        show_progress_bar: bool = True,
        precision: str | None = None,
    ) -> Vectors:
        """Embed the texts of a task.

        Args:
            inputs: mteb's DataLoader: batches, each with a list of N texts under ``"text"``.
            task_metadata: The task; prompts do not depend on it.
            hf_split: Its split; makes no difference.
            hf_subset: Its subset; makes no difference.
            prompt_type: mteb's PromptType: ``document`` for passages, ``query`` or None.
            batch_size: Of the DataLoader; the encoder makes its own batches, by tokens.
            show_progress_bar: Show a progress bar.
            precision: None or ``"float32"``.

        Returns:
            float32 (N, D), in the order of the texts.

        Raises:
            ValueError: If another precision is asked for.
        """
        del task_metadata, hf_split, hf_subset, batch_size
        if precision not in (None, "float32"):
            msg = f"precision={precision!r} is not among what the embeddings give; leave it out"
            raise ValueError(msg)
        texts = (text for batch in inputs for text in batch["text"])
        kind: Kind = "passage" if prompt_type is not None and prompt_type.value == "document" else "query"
        return self._embeddings.encode(texts, kind, show_progress=show_progress_bar)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of all pairs: arrays or tensors (N, D) and (M, D) to a float tensor (N, M)."""
        return self._similarities.cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines of row i with row i: arrays or tensors (N, D) and (N, D) to a float tensor (N,)."""
        return self._similarities.pairwise_cos_sim(embeddings1, embeddings2)


def _metadata(embeddings: LuotuoEmbeddings, languages: Sequence[str]) -> Any:
    """The ModelMeta. mteb keeps results under name, revision and experiment: no two settings may share all three.

    The fingerprint covers what decides a passage's vector; the query's own settings are the experiment.
    """
    models = require("mteb.models.model_meta", extra="mteb")
    experiment: dict[str, str] = {}
    if embeddings.query_prompt is not None:
        experiment["query_prompt"] = embeddings.query_prompt
    if embeddings.mapper is not None:
        numbers = embeddings.mapper.matrix.tobytes() + embeddings.mapper.bias.tobytes()
        experiment["mapper"] = hashlib.sha256(numbers).hexdigest()[:16]
    return models.ModelMeta.create_empty(
        {
            "name": _owned_name(embeddings.model),
            "revision": embeddings.fingerprint,
            "languages": list(languages),
            "max_tokens": embeddings.max_tokens,
            "embed_dim": embeddings.dimension,
            "similarity_fn_name": models.ScoringFunction.COSINE,
            "framework": ["PyTorch"],
            "use_instructions": any(embeddings.encoder.prompts.values()),
            "experiment_kwargs": experiment or None,
        }
    )


def _owned_name(model: str) -> str:
    """``owner/name``, as mteb insists: a repository's own name, else the last part of a name or a folder."""
    if _REPOSITORY.fullmatch(model):
        return model
    last = re.split(r"[\\/]", model.rstrip("\\/"))[-1]
    return f"luotuo-integrations/{last}"
