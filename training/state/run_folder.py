"""Folder of a run: the names in it, and whether a run may write to it; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from chatbot.errors import XianliaoError
from chatbot.storage import LOCK, exclusive, first_link_out, log_entries, open_regular

STATES = "resume"
SETTINGS = "settings.yaml"
METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
BEFORE_THE_FIRST_SAVE = {METRICS, SAMPLES, STATES, LOCK, SETTINGS, "tensorboard"}
"""Names in the folder of a run that was stopped before its first save; a new run may use the folder."""


class ResumeError(XianliaoError):
    """A run that cannot be started in its folder, continued or saved."""


def saved_steps(output: Path) -> list[Path]:
    """Return the folders of the complete saved states of a run, oldest first."""
    return sorted(path for path in (output / STATES).glob("step-*") if path.is_dir())


def read_log(path: Path) -> list[dict]:
    """Return the entries of a log; a last line cut by a crash is skipped, and a missing file has no entries."""
    try:
        with open_regular(path) as file:
            return log_entries(file.read())
    except FileNotFoundError:
        return []


def check_folder(output: Path, resume: bool) -> None:
    """Check that a run may start in a folder, or that there is a run to resume in it.

    A run that ended before its first save has no state: it is resumed from its start.

    Raises:
        ResumeError: The folder holds another run or other files, or a link that leads out of it, or it holds no run and
            --resume is given.
    """
    check_links(output)
    steps = saved_steps(output)
    if resume and not steps and not (output / SETTINGS).is_file():
        raise ResumeError(f"{output} has no saved state. Start the run without --resume.")
    if resume:
        return
    if steps:
        raise ResumeError(f"{output} already holds a run; give --resume to continue it, or another --output.")
    if output.exists() and not output.is_dir():
        raise ResumeError(f"{output} is a file; give another --output.")
    if output.is_dir() and {path.name for path in output.iterdir()} - BEFORE_THE_FIRST_SAVE:
        raise ResumeError(f"{output} is not empty; give another --output.")


def check_links(output: Path) -> None:
    """Check that no file of a run is outside its folder: a run writes, replaces and removes its files.

    Raises:
        ResumeError: A link in the folder leads out of it.
    """
    if (link := first_link_out(output, output)) is not None:
        raise ResumeError(f"The link {link} leads out of {output}. Remove the link, or give another --output.")


@contextmanager
def own_folder(output: Path) -> Iterator[None]:
    """Lock the folder of a run while the context is open; the lock of a killed run is released.

    A folder that holds nothing but the lock after an error is removed.

    Raises:
        ResumeError: Another run holds the lock.
    """
    with exclusive(output, ResumeError(f"Another run is writing to {output}; wait for it or give another --output.")):
        try:
            yield
        except BaseException:
            if {path.name for path in output.iterdir()} <= {LOCK}:
                with suppress(OSError):  # a run that starts at this moment makes the folder anew
                    (output / LOCK).unlink(missing_ok=True)
                    output.rmdir()
            raise
