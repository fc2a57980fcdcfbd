"""The models of rerankers: padded pairs in, one margin a pair out. Its sigmoid is the relevance.

Of a classifier with one label the margin is the logit; of one with two, the logit of label 1 minus that of label 0, as
``softmax(a, b)[1] = sigmoid(b - a)``; of a causal model, the logit of "yes" minus that of "no", which comes to
``P(yes) / (P(yes) + P(no))`` for the same reason.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from luotuo_integrations.errors import ModelFormatError
from luotuo_integrations.model_folder import read_json, read_object
from luotuo_integrations.pretrained import load_weights, quiet, read_config
from luotuo_integrations.registry import RERANKERS
from luotuo_integrations.rerank_prompts import RerankPrompt, pair_prompt, qwen_prompt, single_token
from luotuo_integrations.tokenization import TextTokenizer

_SUGGESTION = f"Rerankers are for instance {', '.join(RERANKERS)}"


class ClassifierMargin(nn.Module):
    """A sequence classifier with one or two labels."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    @property
    def backbone(self) -> nn.Module:
        """The model with its embeddings, as ``AnswerMargin`` and embedding models call it."""
        return self.classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Judge a padded batch.

        Args:
            input_ids: (B, T) int64, padding on the right.
            attention_mask: (B, T) int64, 1 for tokens.
            token_type_ids: (B, T) int64; None where the model has none.

        Returns:
            float32 (B,).
        """
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        logits: Tensor = self.classifier(input_ids=input_ids, attention_mask=attention_mask, **types).logits.float()
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]  # (B, 1 or 2) -> (B,)


class AnswerMargin(nn.Module):
    """A causal model that answers yes or no, without the rest of its vocabulary.

    Args:
        backbone: The model below its head.
        head: (2, H), the head's rows of "yes" and "no".
    """

    def __init__(self, backbone: nn.Module, head: Tensor) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Parameter(head, requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Judge a padded batch; see ``ClassifierMargin.forward``."""
        # No token looks to its right, so that padding there is never seen.
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        rows = torch.arange(len(input_ids), device=input_ids.device)
        states = output.last_hidden_state[rows, attention_mask.sum(dim=1) - 1]  # (B, T, H) -> (B, H)
        logits: Tensor = states.float() @ self.head.float().T  # (B, 2)
        return logits[:, 0] - logits[:, 1]


def load_reranker(
    folder: Path, *, instruction: str | None, dtype: torch.dtype, trust_remote_code: bool
) -> tuple[nn.Module, RerankPrompt, Any]:
    """Load a folder as the kind of reranker that its config.json names.

    Args:
        folder: The model folder.
        instruction: What a relevant passage does, for a model whose prompt has an instruction; None is its own.
        dtype: Floating-point type of the weights in memory.
        trust_remote_code: Run Python code that lies in the folder.

    Returns:
        The model, one of the two classes above; its prompt; transformers' configuration.

    Raises:
        ModelFormatError: If the folder holds no reranker, or is incomplete or damaged.
        ValueError: If an instruction is given to a model whose prompt has none.
    """
    architecture = _checked_architecture(folder)
    config = read_config(folder, trust_remote_code)
    is_causal = architecture.endswith("ForCausalLM")
    if not is_causal and config.num_labels > 2:
        msg = f"{folder} sorts texts into {config.num_labels} labels; a reranker has one or two. {_SUGGESTION}"
        raise ModelFormatError(msg)
    tokenizer = TextTokenizer(folder, literal=True, trust_remote_code=trust_remote_code)
    if config.model_type == "qwen3":  # as a classifier, too, it was trained on that prompt
        prompt = qwen_prompt(tokenizer, instruction)
        config.pad_token_id = tokenizer.pad_id  # a classifier looks for the last token that is not padding
    elif instruction is not None:
        msg = f"instruction={instruction!r}, but the prompt of {architecture} has none; leave it out"
        raise ValueError(msg)
    else:
        # XLM-R's tokenizer may give types to a model that knows one alone, and others to a model without any.
        has_types = getattr(config, "type_vocab_size", 0) > 1
        prompt = pair_prompt(
            tokenizer, has_types=has_types and "token_type_ids" in tokenizer.tokenizer.model_input_names
        )
    options = {"config": config, "trust_remote_code": trust_remote_code, "use_safetensors": True}
    with quiet():
        loaded: Any = load_weights(
            folder, AutoModelForCausalLM if is_causal else AutoModelForSequenceClassification, options
        )
    if is_causal:
        answers = [single_token(tokenizer, answer) for answer in ("yes", "no")]
        model: nn.Module = AnswerMargin(loaded.base_model, loaded.get_output_embeddings().weight.data[answers])
    else:
        model = ClassifierMargin(loaded)
    for parameter in model.parameters():  # not the buffers: rotary frequencies in bfloat16 misplace far tokens
        parameter.data = parameter.data.to(dtype)
    return model.eval(), prompt, config


def _checked_architecture(folder: Path) -> str:
    """Return the class that config.json names, or say what the folder holds instead of a reranker."""
    description = read_object(folder / "config.json")
    architectures = description.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else "a model without a name"
    # Qwen3-Embedding calls itself causal as well: what makes it an embedding model is the pooling beside it.
    modules = read_json(folder / "modules.json") if (folder / "modules.json").is_file() else []
    if "Pooling" in str(modules):
        reason = "it pools a text's tokens into one vector: an embedding model, for Encoder and LuotuoEmbeddings"
    elif name.endswith("ForSequenceClassification") or (
        name.endswith("ForCausalLM") and description.get("model_type") == "qwen3"
    ):
        return name
    elif name.endswith("ForCausalLM"):
        reason = "it writes text, and of those only Qwen3-Reranker's prompt is known here"
    else:
        reason = "its architecture must be a ...ForSequenceClassification, or Qwen3ForCausalLM"
    msg = f"{folder} holds {name}, which is no reranker: {reason}. {_SUGGESTION}"
    raise ModelFormatError(msg)
