"""Distillation and fine-tuning. Names are loaded when they are first used (PEP 562), as in the package itself."""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "Distiller": "distiller",
    "FineTuner": "finetuner",
    "TrainConfig": "config",
}

if TYPE_CHECKING:
    from luotuo_integrations.training.config import TrainConfig as TrainConfig
    from luotuo_integrations.training.distiller import Distiller as Distiller
    from luotuo_integrations.training.finetuner import FineTuner as FineTuner

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_HOMES)}"
        raise AttributeError(msg)
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
