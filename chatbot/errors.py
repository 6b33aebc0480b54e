"""Errors that a user can cause; their messages name the fault, the value and the remedy."""

from __future__ import annotations

import functools
import io
import reprlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from chatbot.language.translation import labelled, translate

_OWN = ("chatbot", "data_prep", "training", "ui", "checkpoints")
"""Packages of this project. If one of their modules is missing, this copy is incomplete; `pip install` of an extra does
not help."""


class XianliaoError(ValueError):
    """An error that a user can cause; its message is shown without a traceback."""


class XianliaoWarning(UserWarning):
    """A warning for the user; commands show it as one line."""


class CheckpointError(XianliaoError):
    """A checkpoint folder cannot be found, read or written."""


class FileError(XianliaoError):
    """A dialogue file or prepared set cannot be read."""


class TokenizerError(XianliaoError):
    """A tokenizer cannot be read or trained."""


class ReplySettingsError(XianliaoError):
    """Decoding settings that cannot be used."""


def shown(value: object) -> str:
    """Return a value as Python writes it, in one line of a few hundred characters at most, for an error message."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its class if the message is empty."""
    return _lines(error)[0][:_LONGEST_LINE]


def last_line(error: BaseException) -> str:
    """Return the last line of an exception's message, where validators give the reason."""
    return _lines(error)[-1][:_LONGEST_LINE]


_LONGEST_LINE = 400  # characters; messages of other packages may quote a value of any length


def _lines(error: BaseException) -> list[str]:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines or [type(error).__name__]


class Command(Protocol):
    """Main function of a command: takes the arguments (None: those of the process) and returns the exit code."""

    def __call__(self, argv: list[str] | None = None) -> int: ...


def explain_faults(main: Callable[[list[str] | None], int | None], extra: str = "all") -> Command:
    """Decorate the main function of a command: print errors as one line on stderr and return an exit code.

    The code is 0 for success, 1 for an error and 130 for an interrupt; the argument parser exits with 2 for wrong
    usage. Characters that the terminal cannot show and input that cannot be decoded are replaced. Files and pipes get
    UTF-8.

    Args:
        main: Main function of the command.
        extra: Optional dependencies that the command needs, as in `pip install "xianliao[extra]"`.
    """

    @functools.wraps(main)
    def command(argv: list[str] | None = None) -> int:
        _replace_undecodable()
        try:
            with warnings.catch_warnings():
                _show_warnings_in_words()
                return main(argv) or 0
        except XianliaoError as error:
            print(labelled("error: ", str(error)), file=sys.stderr)
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] in _OWN:
                fault = f"The module {error.name} is missing in this copy of xianliao. Install xianliao again."
            else:
                advice = f'Install what this command needs: pip install "xianliao[{extra}]".'
                fault = f"The package {error.name} is not installed. {advice}"
            print(labelled("error: ", fault), file=sys.stderr)
        except BrokenPipeError:
            sys.stderr.close()  # the process that read our output is gone
        except OSError as error:
            what = f"Cannot open {error.filename}" if error.filename else "The operating system reports an error"
            print(labelled("error: ", f"{what}: {error.strerror or error}."), file=sys.stderr)
        except KeyboardInterrupt:
            print(translate("stopped"), file=sys.stderr)
            return 130
        return 1

    return command


def _show_warnings_in_words() -> None:
    """Print each `XianliaoWarning` as one line, without file and line number."""
    otherwise = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, XianliaoWarning):
            print(labelled("warning: ", str(message)), file=sys.stderr)
        else:
            otherwise(message, category, *where, **more)

    warnings.showwarning = show


def _replace_undecodable() -> None:
    """Let the standard streams replace characters that they cannot encode or decode."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace", encoding=None if stream.isatty() else "utf-8")
