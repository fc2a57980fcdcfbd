"""CPU engine: the matrix products a model runs with on the CPU, picked by measurement and proven equal.

torch multiplies float32 matrices with MKL, which on some processors leaves half of their speed unused, and lays the
weights out anew at every call. oneDNN, which comes with torch too, takes weights laid out beforehand. Where a
processor multiplies bfloat16 numbers, that is twice as fast again.
"""

import copy
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from luotuo_integrations.modeling import EmbeddingModel

logger = logging.getLogger(__name__)

LEAST_COSINE = 0.9999  # between the vectors of the model as it was and as it became
MOST_MARGIN = 1e-3  # between the margins of a reranker: a quarter of that at most between its relevances
LEAST_GAIN = 1.1
LEAST_WIDTH = 128  # in narrower models the matrix products hardly count
_TOKENS = 256  # rows of the product that is timed
_ROUNDS = 12  # the fastest of so many counts: other programs disturb some of them, hardly all
_PROBE = (40, 17, 3)  # lengths of the texts that must get the same vectors
_ATTENTION = "luotuo_bfloat16"
_SCORES = 8 * 2**20  # bytes of attention scores computed at once: they stay in the processor's caches
_MOST_SCORES = 32 * 2**20  # longer texts are left to torch, which never holds all scores of one

Model = TypeVar("Model", bound=nn.Module)


def check_backend(backend: str) -> None:
    """Raise ValueError unless it is ``"auto"``, which allows this engine, or ``"torch"``, which does not."""
    if backend not in ("auto", "torch"):
        msg = f"backend={backend!r} is unknown; use 'auto' or 'torch'"
        raise ValueError(msg)


def fastest_on_cpu(model: EmbeddingModel, *, allow_bfloat16: bool) -> tuple[EmbeddingModel, str]:
    """The model with the fastest matrix products that give the same vectors here.

    Args:
        model: In evaluation mode, on the CPU, of one floating-point type.
        allow_bfloat16: Let a float32 model become a bfloat16 one, where that is faster and the vectors agree.

    Returns:
        The model to run, and the name of what runs it: ``"torch"`` and the given model itself where nothing is faster,
        otherwise ``"onednn"`` and a copy; whoever keeps only the copy keeps the weights once.
    """
    return _fastest(model, allow_bfloat16=allow_bfloat16, difference=_cosine_below)


def fastest_reranker_on_cpu(model: Model) -> tuple[Model, str]:
    """The reranker with the fastest matrix products that give the same margins here, in the type that it has.

    A float32 reranker stays one: with bfloat16's eight bits no margin is known to ``MOST_MARGIN``.

    Args:
        model: One of ``rerank_models``, in evaluation mode, on the CPU.

    Returns:
        As ``fastest_on_cpu``.
    """
    return _fastest(model, allow_bfloat16=False, difference=_margins_apart)


def _fastest(
    model: Model, *, allow_bfloat16: bool, difference: Callable[[Model, Model], str | None]
) -> tuple[Model, str]:
    """As ``fastest_on_cpu``; ``difference`` says what parts two models, or None where they are the same."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    widest = max(linears, key=lambda linear: linear.weight.numel(), default=None)
    if widest is None or min(widest.weight.shape) < LEAST_WIDTH:
        return model, "torch"
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.bfloat16}:
        return model, "torch"
    if allow_bfloat16:
        dtypes.add(torch.bfloat16)
    try:
        for dtype in _faster_dtypes(widest, dtypes):
            packed = _packed_model(model, dtype)
            found = difference(model, packed)
            if found is None:
                return packed, "onednn"
            logger.info("oneDNN in %s is not used: %s", dtype, found)
    except (RuntimeError, NotImplementedError, AttributeError) as error:  # a torch built without oneDNN
        logger.info("oneDNN is not used: %s", error)
    return model, "torch"


class PackedLinear(nn.Module):
    """A Linear of oneDNN, its weights laid out beforehand; for inference alone.

    Args:
        linear: The Linear to replace; float32 or bfloat16.
        gelu: Apply the exact GELU to the product while it is in the processor's caches.
    """

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self.register_state_dict_pre_hook(_refuse_to_save)  # type: ignore[no-untyped-call]
        self.bias = linear.bias
        self._then: tuple[str, list[float], str] = ("gelu", [], "none") if gelu else ("none", [], "")
        # No buffer: a tensor in oneDNN's layout can neither be saved nor moved.
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TOKENS)

    def forward(self, values: Tensor) -> Tensor:
        """Multiply (..., in_features) -> (..., out_features)."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(values, self.packed, self.bias, *self._then)
        return product


def _refuse_to_save(_module: nn.Module, _prefix: str, _keep_vars: bool) -> None:
    msg = "This model runs on packed weights, which cannot be saved. To save it, load it with backend='torch'"
    raise RuntimeError(msg)


def _faster_dtypes(linear: nn.Linear, dtypes: set[torch.dtype]) -> list[torch.dtype]:
    """Types in which oneDNN is faster at such a Linear than torch as it is, fastest first; measured once a process.

    Once, so that two copies of a model in a process run alike, whatever else the machine does meanwhile.
    """
    key = (linear.in_features, linear.out_features, linear.weight.dtype, frozenset(dtypes))
    if key not in _measured:
        _measured[key] = _measure(linear, dtypes)
    return _measured[key]


_measured: dict[tuple[int, int, torch.dtype, frozenset[torch.dtype]], list[torch.dtype]] = {}


def _measure(linear: nn.Linear, dtypes: set[torch.dtype]) -> list[torch.dtype]:
    own = linear.weight.dtype
    rows = torch.zeros(_TOKENS, linear.in_features)
    products: dict[torch.dtype | None, Callable[[], Tensor]] = {None: lambda: linear(rows.to(own))}
    for dtype in dtypes:
        packed, values = PackedLinear(_cast(copy.deepcopy(linear), dtype)), rows.to(dtype)
        products[dtype] = lambda packed=packed, values=values: packed(values)  # type: ignore[misc]
    seconds = dict.fromkeys(products, float("inf"))
    with torch.inference_mode():
        for round_number in range(_ROUNDS + 1):
            for dtype_or_none, product in products.items():
                start = time.perf_counter()
                product()
                if round_number:  # the first warms up
                    taken = time.perf_counter() - start
                    seconds[dtype_or_none] = min(seconds[dtype_or_none], taken)
    most = seconds.pop(None) / LEAST_GAIN
    return [dtype for dtype, _ in sorted(seconds.items(), key=lambda item: item[1]) if seconds[dtype] <= most and dtype]


def _packed_model(model: Model, dtype: torch.dtype) -> Model:
    """A copy in another type, on packed weights; what need not change is shared."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    packed: Model = _cast(copy.deepcopy(model, shared), dtype)
    for layer in packed.modules():
        if _is_gelu(getattr(layer, "intermediate_act_fn", None)):  # of BERT and its kin
            layer.dense = PackedLinear(layer.dense, gelu=True)  # type: ignore[arg-type]
            layer.intermediate_act_fn = nn.Identity()
    for parent, name, linear in list(_linears(packed)):
        setattr(parent, name, PackedLinear(linear))
    if dtype == torch.bfloat16:
        _use_attention(packed.backbone)
    return packed


def _linears(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear:
                yield parent, name, child


def _is_gelu(activation: object) -> bool:
    from transformers.activations import GELUActivation

    if isinstance(activation, GELUActivation):
        return activation.act is nn.functional.gelu  # and not its older form in Python
    return isinstance(activation, nn.GELU) and activation.approximate == "none"


def _cast(module: Any, dtype: torch.dtype) -> Any:
    """Cast parameters; not buffers, such as rotary frequencies, which bfloat16 would misplace far tokens with."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            setattr(part, name, nn.Parameter(parameter.detach().to(dtype), requires_grad=False))
    return module


def _cosine_below(model: EmbeddingModel, other: EmbeddingModel) -> str | None:
    cosine = _least_cosine(model, other)
    # "not >=", so that NaN is a difference
    return f"a cosine of {cosine:.6f} to the model's own vectors" if not cosine >= LEAST_COSINE else None


def _least_cosine(model: EmbeddingModel, other: EmbeddingModel) -> float:
    """Least cosine between the vectors of two models for the same random tokens."""
    return float(torch.cosine_similarity(*_outputs(model, other)).min())


def _margins_apart(model: nn.Module, other: nn.Module) -> str | None:
    own, others = _outputs(model, other)
    apart = float((own - others).abs().max())
    return f"margins are {apart:.6f} apart from the model's own" if not apart <= MOST_MARGIN else None


def _outputs(model: Any, other: Any) -> tuple[Tensor, Tensor]:
    """What two models give for the same random tokens, float32."""
    tokens: int = model.backbone.get_input_embeddings().num_embeddings
    mask = (torch.arange(max(_PROBE)) < torch.tensor(_PROBE)[:, None]).long()  # (n, T)
    ids = torch.randint(tokens, mask.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(ids, mask).float(), other(ids, mask).float()


# -- attention --------------------------------------------------------------------------------------------------------


def _use_attention(backbone: Any) -> None:
    """Let a backbone use `_attention`, if its class can be told so."""
    try:
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import sdpa_mask
    except ImportError:  # an older transformers
        return
    if getattr(backbone.config, "_attn_implementation", None) != "sdpa" or not getattr(
        backbone, "_supports_attention_backend", False
    ):
        return
    AttentionInterface.register(_ATTENTION, _attention)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    backbone.set_attn_implementation(_ATTENTION)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention by oneDNN's batched products: twice as fast in bfloat16 as torch's own, which computes in float32.

    Args:
        module: The attention layer.
        query: (B, heads, T, width), as are ``key`` and ``value``.
        key: See ``query``.
        value: See ``query``.
        attention_mask: (B, 1, T, T), true where a token is seen, or None.
        dropout: 0.
        scaling: Of the scores.
        is_causal: Whether tokens see only those before them, where there is no mask.
        **kwargs: What transformers hands to any attention; handed on where torch's own is used.

    Returns:
        (B, T, heads, width), and None.
    """
    rows, heads, tokens, width = query.shape
    scores_of_a_text = heads * tokens * tokens * query.element_size()
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    sees_all = attention_mask is None and not causal
    masked = attention_mask is not None and attention_mask.dtype == torch.bool
    if not (sees_all or masked) or key.shape != query.shape or scores_of_a_text > _MOST_SCORES:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
        return result
    scale = width**-0.5 if scaling is None else scaling
    output = query.new_empty(rows, tokens, heads, width)
    step = max(1, _SCORES // scores_of_a_text)
    for start in range(0, rows, step):
        texts = slice(start, min(start + step, rows))
        queries, keys, values = (part[texts].reshape(-1, tokens, width) for part in (query, key, value))
        scores = torch.baddbmm(queries.new_empty(1, 1, 1), queries, keys.transpose(1, 2), beta=0, alpha=scale)
        if attention_mask is not None:
            _hide(scores.view(-1, heads, tokens, tokens), attention_mask[texts])
        torch.softmax(scores, dim=-1, out=scores)
        output[texts] = torch.bmm(scores, values).view(-1, heads, tokens, width).transpose(1, 2)
    return output, None


def _hide(scores: Tensor, mask: Tensor) -> None:
    """Set scores (B, heads, T, T) to minus infinity where the mask (B, 1, T, T) is false."""
    seen_by_all = mask.flatten(0, 2).all(dim=0)  # (T,): of texts padded on the right, all but the last columns
    first = int(seen_by_all.long().argmin())
    if not seen_by_all[first]:
        scores[..., first:].masked_fill_(~mask[..., first:], float("-inf"))
