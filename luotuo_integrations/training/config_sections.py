"""The sections of a configuration: data, teacher, student, loss, batches, mining, optimizer, evaluation, run."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from luotuo_integrations.registry import DEFAULT_MODEL


@dataclass(frozen=True, slots=True)
class DataConfig:
    """Where the texts come from.

    Attributes:
        corpus: Files and folders of articles, for distillation.
        records: Files of pairs, triplets or scored pairs, for fine-tuning.
        text_field: Field that holds the text, where its name is unusual.
        encoding: Encoding of txt files; None detects it.
        least_characters: Shorter articles are left out.
        most_characters: Longer ones are read in stretches of so many characters.
        max_pairs: Most pairs of a run; None for all.
        dev_share: Share of the documents that is kept for evaluation.
        dev_count: Number of pairs kept for evaluation, in place of the share.
        near_duplicates: Jaccard similarity from which two texts count as the same; 1 turns it off.
    """

    corpus: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    text_field: str | None = None
    encoding: str | None = None
    least_characters: int = 300
    most_characters: int = 800
    max_pairs: int | None = None
    dev_share: float = 0.05
    dev_count: int | None = None
    near_duplicates: float = 0.8


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """Who gives the vectors to learn.

    Attributes:
        model: ``"openai:MODEL"``, ``"qianfan:MODEL"``, ``"zhipu:MODEL"``, a model name or folder, or a file of vectors.
        base_url: Address of an OpenAI-compatible server.
        device: Device of a local teacher.
        requests_at_once: Requests in flight.
        requests_per_minute: Limit to keep; None for none.
        tokens_per_minute: Limit to keep; None for none.
        dimensions: Ask the API for shortened vectors.
        input_types: Tell the API which texts are queries and which passages, as ``"input_type"``.
        price_per_million_tokens: Price where this package does not know it, in the provider's currency: US dollars, or
            yuan for qianfan and zhipu.
        max_cost: Stop before the first call when the estimate is above this, in the same currency.
        cache: Folder of the cache; None puts it in the run folder. Runs may share one.
    """

    model: str = ""
    base_url: str | None = None
    device: str | None = None
    requests_at_once: int = 4
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    dimensions: int | None = None
    input_types: bool = False
    price_per_million_tokens: float | None = None
    max_cost: float | None = None
    cache: str | None = None


@dataclass(frozen=True, slots=True)
class StudentConfig:
    """What is trained.

    Attributes:
        build: How it begins: ``"bert"``, ``"bert-pruned:6"``, ``"vocab:24000"``, ``"random:6x384"``, ``"glm:FOLDER"``,
            joined by ``+``.
        base: The model that is pruned or copied.
        max_tokens: Longest text in tokens, in training and afterwards; None as the base says.
        dropout: Dropout while training; 0 turns it off.
    """

    build: str = "bert"
    base: str = DEFAULT_MODEL
    max_tokens: int | None = None
    dropout: float = 0.0


@dataclass(frozen=True, slots=True)
class AlignmentConfig:
    """Learning the token states of a local teacher, before anything else.

    Attributes:
        tokens: Tokens to learn from, prompts included. 0 turns it off.
        passes: How often a text is met at most; fewer where ``tokens`` are used up before.
        tokens_per_step: Tokens of an optimizer step.
        learning_rate: Peak of AdamW's, after a linear warm-up; it falls along a cosine.
        warmup_share: Share of the steps that warm up.
        weight_decay: AdamW's.
        clip_norm: Longest gradient.
        vector_weight: Weight of 1 - cosine of the vectors, beside the token states and the neighbourhoods.
        temperature: Of the neighbourhoods.
        checkpoint_minutes: Time between checkpoints.
    """

    tokens: int = 0
    passes: int = 1
    tokens_per_step: int = 2_500
    learning_rate: float = 1e-3
    warmup_share: float = 0.05
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    vector_weight: float = 20.0
    temperature: float = 0.03
    checkpoint_minutes: float = 5.0


@dataclass(frozen=True, slots=True)
class LossConfig:
    """One part of the loss.

    Attributes:
        weights: Weight in the first, second, ... epoch; the last one stays.
        kind: Which loss; None: the part's own name.
        temperature: Divides cosines before a softmax or a sigmoid.
        teacher_temperature: The same for the teacher's cosines; None: as ``temperature``.
        prior: Share λ of the diagonal prior in the teacher's matrix, 0 to 1.
        direction: ``"forward"`` is KL(teacher || student).
        distance: Of the feature loss.
        margin: Of the margin and triplet losses, in cosine.
        scale: Of CoSENT and AnglE.
        symmetric: Contrast the positives with the queries too.
    """

    weights: tuple[float, ...] = (1.0,)
    kind: str | None = None
    temperature: float | None = None
    teacher_temperature: float | None = None
    prior: float | None = None
    direction: Literal["forward", "reverse"] | None = None
    distance: Literal["l1", "mse", "cosine"] | None = None
    margin: float | None = None
    scale: float | None = None
    symmetric: bool | None = None

    def options(self) -> dict[str, Any]:
        """What was set beside the weights and the kind."""
        return {
            name: value for name, value in asdict(self).items() if name not in {"weights", "kind"} if value is not None
        }


@dataclass(frozen=True, slots=True)
class BatchConfig:
    """How rows become steps.

    Attributes:
        size: Rows of a batch, over all devices.
        kind: ``"random"``, or ``"neighbours"``: a row and its nearest in the teacher's space.
        pool: Rows among which neighbours are looked for.
        accumulation: Batches of one optimizer step.
        tokens_per_pass: Padded tokens of one forward pass; None as the device likes it.
        tokens_in_memory: Padded tokens whose activations are kept for the backward pass. A larger batch is computed
            twice (GradCache), in the memory of this many tokens; None estimates it from the model and the device.
    """

    size: int = 96
    kind: Literal["random", "neighbours"] = "random"
    pool: int = 8192
    accumulation: int = 1
    tokens_per_pass: int | None = None
    tokens_in_memory: int | None = None


@dataclass(frozen=True, slots=True)
class MiningConfig:
    """Hard negatives.

    Attributes:
        negatives: How many a query gets; 0 turns mining off.
        margin: A passage is no negative when its cosine to the query is above the positive's minus this.
        depth: How many nearest passages are looked at.
        every_steps: Look again for negatives that became easy every so many steps; 0: never.
    """

    negatives: int = 0
    margin: float = 0.05
    depth: int = 100
    every_steps: int = 0


@dataclass(frozen=True, slots=True)
class OptimizerConfig:
    """AdamW and its schedule: linear warm-up, then cosine down to ``final_share``.

    Attributes:
        epochs: Passes over the data.
        learning_rate: Peak of the top layer's rate.
        weight_decay: Of matrices; biases and norms have none.
        warmup_share: Share of the steps in which the rate rises.
        final_share: The rate at the end, as a share of the peak.
        clip_norm: Longest gradient; 0 turns clipping off.
    """

    epochs: int = 4
    learning_rate: float = 4e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.06
    final_share: float = 0.02
    clip_norm: float = 1.0


@dataclass(frozen=True, slots=True)
class EvaluationConfig:
    """How good it is, and how often that is asked.

    Attributes:
        every_steps: Evaluate every so many steps; 0: after each epoch.
        candidates: Of pair accuracy.
        retrieval: Files of {"query", "positive"} lines.
        similarity: Files of {"sentence1", "sentence2", "label"} lines.
    """

    every_steps: int = 0
    candidates: int = 1000
    retrieval: tuple[str, ...] = ()
    similarity: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Where a run lives and what it leaves.

    Attributes:
        out: Folder of the run.
        name: Name on the model card; None: the folder's name.
        device: ``"cpu"`` or None: what accelerate finds.
        precision: ``"auto"`` is bf16 on a GPU that has it, else float32.
        checkpoint_minutes: Time between checkpoints.
        keep_checkpoints: How many stay.
        pack: ``"none"``, ``"4bit"`` or ``"8bit"``: a packed copy of the model beside the open one.
        onnx: Write ``onnx/model.onnx`` too.
        licence: Licence of the trained weights, for the card.
    """

    out: str = "runs/luotuo"
    name: str | None = None
    device: Literal["cpu"] | None = None
    precision: Literal["auto", "no", "bf16"] = "auto"
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2
    pack: Literal["none", "4bit", "8bit"] = "none"
    onnx: bool = False
    licence: str | None = None
