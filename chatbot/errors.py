"""Faults a person can cause: one sentence that says what was wrong, what was found and what to do."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable


class XianliaoError(ValueError):
    """A fault a user can cause; its message is one sentence, shown without a traceback."""


class CheckpointError(XianliaoError):
    """A checkpoint folder that cannot be found, read or written."""


class FileError(XianliaoError):
    """A dialogue file or prepared set that cannot be read."""


def first_line(error: BaseException) -> str:
    """What a library's exception says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def last_line(error: BaseException) -> str:
    """What a validator's exception says in the end, where the reason stands."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def explain_faults(
    main: Callable[[list[str] | None], int | None], extra: str = "all"
) -> Callable[[list[str] | None], int]:
    """Turns a command's main into one that prints faults as a sentence on stderr and returns the exit code.

    0 done, 1 failed run, 130 interrupted; wrong usage exits with 2 in the argument parser. Text that the terminal
    cannot show or that is not what it says is replaced, not a crash; what goes to files and pipes is UTF-8.

    Args:
        main: Main function of the command.
        extra: Extra of the package that installs what the command needs.
    """

    @functools.wraps(main)
    def command(argv: list[str] | None = None) -> int:
        for stream in (sys.stdin, sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace", **({} if stream.isatty() else {"encoding": "utf-8"}))
        try:
            return main(argv) or 0
        except XianliaoError as error:
            print(f"error: {error}", file=sys.stderr)
        except ModuleNotFoundError as error:
            print(
                f"error: The package {error.name} is not installed. Install what this command needs:"
                f' pip install "xianliao[{extra}]".',
                file=sys.stderr,
            )
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output left; there is nobody to tell
        except OSError as error:
            place = f" {error.filename}" if error.filename else ""
            print(f"error: The system refused{place}: {error.strerror or error}.", file=sys.stderr)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        return 1

    return command
