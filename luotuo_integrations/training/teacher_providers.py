"""What is known of the services that sell embeddings: facts as data. Limits change: each can be overridden."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class SoldModel:
    """What is known of one model of a provider.

    Attributes:
        max_tokens: Longest text in tokens; None where unknown.
        max_items: The most texts in one request; None for the provider's number.
        price_per_million_tokens: In the provider's currency; None where unknown.
    """

    max_tokens: int | None = None
    max_items: int | None = None
    price_per_million_tokens: float | None = None


@dataclass(frozen=True, slots=True)
class Provider:
    """What is known of one OpenAI-compatible service.

    Attributes:
        base_url: The root of its API.
        key_variable: Environment variable that holds the key.
        max_items: The most texts to put in one request.
        max_tokens_per_request: The most tokens to put in one request.
        tokens_per_character: Tokens for one character outside ASCII, rather too many.
        encoding_format: ``"float"``, or ``"base64"``, which is a quarter as long and exact.
        currency: ISO 4217 code of its prices.
        models: What is known of its models.
    """

    base_url: str
    key_variable: str
    max_items: int
    max_tokens_per_request: int
    tokens_per_character: float = 1.0
    encoding_format: str = "float"
    currency: str = "USD"
    models: Mapping[str, SoldModel] = field(default_factory=lambda: MappingProxyType({}))


# OpenAI allows 2,048 texts and 300,000 tokens in one request; smaller ones lose less when one fails. Its prices, in USD
# a million tokens, as published at platform.openai.com/docs/pricing in 2025.
_OPENAI = Provider(
    "https://api.openai.com/v1",
    "OPENAI_API_KEY",
    max_items=256,
    max_tokens_per_request=100_000,
    tokens_per_character=1.5,
    encoding_format="base64",
    models=MappingProxyType(
        {
            "text-embedding-3-small": SoldModel(8191, price_per_million_tokens=0.02),
            "text-embedding-3-large": SoldModel(8191, price_per_million_tokens=0.13),
            "text-embedding-ada-002": SoldModel(8191, price_per_million_tokens=0.10),
        }
    ),
)

# The service's manual of POST /v2/embeddings, 2025; it bills in yuan.
_QIANFAN = Provider(
    "https://qianfan.baidubce.com/v2",
    "QIANFAN_API_KEY",
    max_items=16,
    max_tokens_per_request=16_384,
    currency="CNY",
    models=MappingProxyType(
        {
            "embedding-v1": SoldModel(384),
            "bge-large-zh": SoldModel(512),
            "bge-large-en": SoldModel(512),
            "tao-8k": SoldModel(8192, max_items=1),
        }
    ),
)

# docs.bigmodel.cn, 2025: 64 texts at most; embedding-2 takes 8,000 tokens in one request.
_ZHIPU = Provider(
    "https://open.bigmodel.cn/api/paas/v4",
    "ZHIPUAI_API_KEY",
    max_items=64,
    max_tokens_per_request=64_000,
    currency="CNY",
    models=MappingProxyType({"embedding-2": SoldModel(512, max_items=15), "embedding-3": SoldModel(3072)}),
)

PROVIDERS: Mapping[str, Provider] = MappingProxyType({"openai": _OPENAI, "qianfan": _QIANFAN, "zhipu": _ZHIPU})

# A server of one's own behind base_url: nothing is known of it. Small requests keep several at work, and where it takes
# one at a time on a processor, those that wait in line are still answered in time.
OWN_SERVER_ITEMS = 16
OWN_SERVER_TOKENS = 16_000
