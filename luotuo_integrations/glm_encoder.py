"""The first Luotuo design: a frozen GLM reads the text, and a small BERT learns to make vectors of what it saw.

The token states of the GLM (Du et al. 2022, "GLM: General Language Model Pretraining with Autoregressive Blank
Infilling"), which looks to the left only, go through a Linear into a BERT that looks both ways. Only the Linear and the
BERT are trained, and only they are saved: config.json names the GLM, which is read from its own folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, GlmConfig, PretrainedConfig, PreTrainedModel

from luotuo_integrations.errors import ModelFormatError

GLM_ENCODER = "luotuo-glm-encoder"
GLM_TYPES = ("glm", "glm4")
_GLM = "glm."  # the frozen part's prefix among the names of the weights
_SIZES = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


class GlmEncoderConfig(PretrainedConfig):  # type: ignore[misc]
    """What is in config.json of a GLM encoder's folder.

    Args:
        glm_source: Folder of the frozen GLM, or the name of its repository on the hub.
        glm_revision: Commit, branch or tag on the hub; None is the newest in the cache.
        glm_layer: Which of the GLM's hidden states the BERT reads: 0 the word embeddings, n the output of layer n, -1
            the last one, after the GLM's final norm.
        glm_config: Configuration of the GLM, of type ``glm`` or ``glm4``.
        bert_config: Configuration of the BERT; its word embedding is not used.
        **fields: What every transformers configuration has.

    Raises:
        ValueError: If the GLM is of another type, or has no such layer.
    """

    model_type = GLM_ENCODER

    def __init__(
        self,
        glm_source: str = "",
        glm_revision: str | None = None,
        glm_layer: int = -1,
        glm_config: Mapping[str, Any] | PretrainedConfig | None = None,
        bert_config: Mapping[str, Any] | PretrainedConfig | None = None,
        **fields: Any,
    ) -> None:
        self.glm_source = glm_source
        self.glm_revision = glm_revision
        self.glm_layer = glm_layer
        glm: Any = AutoConfig.for_model(**glm_config) if isinstance(glm_config, Mapping) else glm_config
        bert: Any = BertConfig(**bert_config) if isinstance(bert_config, Mapping) else bert_config
        self.glm_config = glm or GlmConfig()
        self.bert_config = bert or BertConfig()
        layers = self.glm_config.num_hidden_layers
        if self.glm_config.model_type not in GLM_TYPES:
            msg = f"glm_config is of type {self.glm_config.model_type!r}; supported are {', '.join(GLM_TYPES)}"
            raise ValueError(msg)
        if not -layers - 1 <= glm_layer <= layers:
            msg = f"glm_layer={glm_layer} is out of range: this GLM has {layers} layers, use 0 to {layers}, or -1"
            raise ValueError(msg)
        super().__init__(**fields)

    @property
    def hidden_size(self) -> int:
        """Width H of a token vector: the BERT's."""
        return int(self.bert_config.hidden_size)

    @property
    def max_position_embeddings(self) -> int:
        """Longest text in tokens: the BERT's."""
        return int(self.bert_config.max_position_embeddings)


class GlmEncoder(PreTrainedModel):  # type: ignore[misc]
    """A frozen GLM, a Linear and a BERT.

    The GLM stays in eval mode and without gradients whatever is asked of the whole model. ``from_pretrained`` loads
    it from ``config.glm_source``; a model made from a configuration alone has none until ``attach_glm``.

    Args:
        config: The configuration.
    """

    config_class = GlmEncoderConfig
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __init__(self, config: GlmEncoderConfig) -> None:
        super().__init__(config)
        self.glm: nn.Module | None = None
        self.projection = nn.Linear(config.glm_config.hidden_size, config.hidden_size)
        self.bert = BertModel(config.bert_config, add_pooling_layer=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=self.config.bert_config.initializer_range)
            nn.init.zeros_(module.bias)

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """Load the Linear and the BERT as transformers does, and the GLM from where the configuration says.

        Raises:
            ModelFormatError: If the GLM is not there, damaged or another one.
        """
        loaded = super().from_pretrained(*arguments, **options)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.attach_glm(load_glm(model.config))
        return loaded

    def save_pretrained(
        self, save_directory: str | Path, *, state_dict: Mapping[str, Tensor] | None = None, **options: Any
    ) -> None:
        """Save the configuration, the Linear and the BERT; the GLM has a folder of its own."""
        weights = self.state_dict() if state_dict is None else state_dict
        own = {name: tensor for name, tensor in weights.items() if not name.startswith(_GLM)}
        super().save_pretrained(save_directory, state_dict=own, **options)

    def attach_glm(self, glm: nn.Module) -> None:
        """Take a GLM, and freeze it."""
        self.glm = glm.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "GlmEncoder":
        """Set the mode of the Linear and the BERT; the GLM stays in eval mode."""
        super().train(mode)
        if self.glm is not None:
            self.glm.eval()
        return self

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False, return_dict: bool = True
    ) -> Any:
        """Give token vectors.

        Args:
            input_ids: (B, T) int64.
            attention_mask: (B, T) int64, 1 for tokens, 0 for padding, which stands on the right.
            output_hidden_states: Give ``hidden_states`` too: the BERT's input and each layer's output.
            return_dict: Give named outputs; else a tuple.

        Returns:
            The BERT's output: ``last_hidden_state`` (B, T, H), and ``hidden_states`` where asked for.

        Raises:
            RuntimeError: If no GLM is attached.
        """
        states = self._glm_states(input_ids, attention_mask)  # (B, T, G)
        # The GLM may be kept in half precision while the rest trains in single.
        inputs = self.projection(states.to(self.projection.weight.dtype))  # (B, T, H)
        return self.bert(
            inputs_embeds=inputs,
            attention_mask=attention_mask,
            output_hidden_states=output_hidden_states,
            return_dict=return_dict,
        )

    @torch.no_grad()
    def _glm_states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        if self.glm is None:
            msg = "This GlmEncoder has no GLM. Load it with from_pretrained(), or give one to attach_glm()"
            raise RuntimeError(msg)
        layer = self.config.glm_layer
        output = self.glm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            output_hidden_states=layer != -1,  # all of them at once take memory
            use_cache=False,
            return_dict=True,
        )
        states: Tensor = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        return states


def register_glm_encoder() -> None:
    """Make transformers' Auto classes know a GLM encoder's folder."""
    AutoConfig.register(GLM_ENCODER, GlmEncoderConfig, exist_ok=True)
    AutoModel.register(GlmEncoderConfig, GlmEncoder, exist_ok=True)


def find_glm(source: str | Path, revision: str | None = None) -> Path:
    """Find the folder of a GLM: a folder on this machine, or the hub's cache. Nothing is downloaded.

    Args:
        source: A folder, or a repository's name on the hub.
        revision: Commit, branch or tag on the hub.

    Returns:
        The folder.

    Raises:
        ModelFormatError: If it is in neither place.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    if str(source) and Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(str(source), revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError) as error:
        msg = (
            f"The frozen GLM {str(source)!r} is no folder on this machine and not in the hub's cache. For a GLM on the "
            "hub type: hf download OWNER/NAME; for one in another folder, correct glm_source in the student's "
            "config.json"
        )
        raise ModelFormatError(msg) from error


def read_glm_config(folder: Path) -> PretrainedConfig:
    """Read the configuration of a GLM's folder.

    Raises:
        ModelFormatError: If there is none, or the model is of another type.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        msg = f"{folder} describes no GLM that this transformers knows ({error}). Copy or download it again"
        raise ModelFormatError(msg) from error
    if config.model_type not in GLM_TYPES:
        msg = (
            f"{folder} is a {config.model_type!r}, not one of {', '.join(GLM_TYPES)}. Of a GLM that the hub has twice, "
            "take the repository whose name ends in -hf"
        )
        raise ModelFormatError(msg)
    return config


def load_glm(config: GlmEncoderConfig) -> nn.Module:
    """Load the GLM that a configuration names, without its language-model head.

    Args:
        config: The configuration.

    Returns:
        A GlmModel or Glm4Model, in the floating-point type that transformers chooses.

    Raises:
        ModelFormatError: If it is not there, lacks weights, or is another one than ``config.glm_config`` describes.
    """
    folder = find_glm(config.glm_source, config.glm_revision)
    found = read_glm_config(folder)
    for name in _SIZES:
        here, wanted = getattr(found, name), getattr(config.glm_config, name)
        if here != wanted:
            msg = f"The GLM in {folder} has {name}={here}; this model was made with one of {name}={wanted}"
            raise ModelFormatError(msg)
    try:
        glm, report = AutoModel.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # safetensors has exceptions of its own for a damaged file
        msg = f"The weights of the GLM in {folder} cannot be loaded ({error}). Copy or download the folder again"
        raise ModelFormatError(msg) from error
    missing = sorted(report["missing_keys"])
    if missing:
        msg = f"The GLM in {folder} lacks {len(missing)} tensors, {missing[0]!r} among them. Download the folder again"
        raise ModelFormatError(msg)
    loaded: nn.Module = glm
    return loaded
