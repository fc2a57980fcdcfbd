"""The errors of this package. Each message says what was given, what is allowed and what to type next."""


class LuotuoError(Exception):
    """Base class of every error that this package defines."""


class ModelNotFoundError(LuotuoError, FileNotFoundError):
    """A model name or folder cannot be resolved, here or on the hub."""


class ModelFormatError(LuotuoError, ValueError):
    """A model folder is incomplete, damaged, or of a kind that cannot be loaded."""


class StoreMismatchError(LuotuoError, ValueError):
    """A store was built by another model, in another dimension or with another metric."""


class StoreCorruptError(LuotuoError, ValueError):
    """A store folder is damaged: a file is missing, truncated or edited."""


class DocumentError(LuotuoError, ValueError):
    """A document cannot be read."""
