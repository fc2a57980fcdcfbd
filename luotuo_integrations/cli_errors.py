"""Errors of the `luotuo` commands: a message that says what to do, in place of a traceback."""

import logging
import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import typer
from rich.markup import escape

from luotuo_integrations.errors import LuotuoError
from luotuo_integrations.progress import standard_error

logger = logging.getLogger(__name__)
err = standard_error()

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def clear_errors(interrupted: str) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Print an error's message in place of a traceback and exit with 1; after Ctrl-C exit with 130.

    Args:
        interrupted: What to print after Ctrl-C.
    """

    def decorate(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @wraps(command)
        def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            try:
                return command(*args, **kwargs)
            except (typer.Exit, BrokenPipeError):
                raise  # click knows what to do; `luotuo search ... | head` ends quietly
            except KeyboardInterrupt as error:
                err.print(f"{str(error) or 'Interrupted'}. {interrupted}", soft_wrap=True)
                raise typer.Exit(130) from None
            except _expected_errors() as error:
                logger.info("Where it happened:", exc_info=error)
                err.print(f"[red]Error:[/red] {escape(str(error))}", soft_wrap=True)
                raise typer.Exit(1) from error

        return run

    return decorate


def _expected_errors() -> tuple[type[Exception], ...]:
    """Errors whose message is enough: this package's, and what files, servers and devices raise."""
    openai = sys.modules.get("openai")  # its errors derive from nothing better than Exception
    servers = () if openai is None else (openai.OpenAIError,)
    return (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError, LuotuoError, *servers)
