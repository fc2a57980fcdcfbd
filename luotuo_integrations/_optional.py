"""Optional dependencies: import one, or say which extra brings it."""

import importlib
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional module at the moment it is needed.

    Args:
        module: Import name, for instance ``"faiss"`` or ``"bs4"``.
        extra: Name of the extra of this package that installs it, for instance ``"faiss"``.

    Returns:
        The imported module.

    Raises:
        ImportError: If the module is not installed. The message holds the pip line to type.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A module that is installed but lacks a dependency of its own is another problem: show that one.
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        msg = f"{module!r} is not installed. Type: pip install 'luotuo-integrations[{extra}]'"
        raise ImportError(msg) from error
