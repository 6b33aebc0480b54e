"""The training view's project: its data, its cleaning, its run. One command runs at a time."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chatbot.checkpoint.location import resolve
from chatbot.errors import XianliaoError
from chatbot.language.translation import to_chinese
from chatbot.storage import exclusive, write_json
from chatbot.text.dialogue import valid_text
from ui.page.chats import ChatError
from ui.studio import commands
from ui.studio.jobs import Job
from ui.studio.options import StudioOptions
from ui.studio.results import Curves, record_of, report_of, result_of, sendable
from ui.studio.text import REASONS

WORK = "work"
"""Folder for results, in the folder of the operator."""

SUFFIXES = (".conv", ".csv", ".json", ".jsonl", ".tsv", ".txt")
MAX_FILES, MAX_TEXTS, MAX_TEXT_CHARACTERS, MAX_NAME_CHARACTERS = 200, 50, 2_500_000, 100
SHOWN_MESSAGES = 6
EMPTY: dict[str, Any] = {
    **{"set": 0, "inputs": [], "names": [], "person": "", "is_prepared": False, "preview": ""},
    **{"preset": "", "estimate": [], "bot": 0, "outcome": "", "error": ""},
}
"""Record of a new project: number of the prepared set, its inputs and their names, the speaker to imitate, the output of the
preview; the preset, the lines of the dry run, number and outcome of the run (running, finished, stopped or failed); the
last error."""


class Studio:
    """The project.

    Args:
        options: Options of the view.
        run: Function that returns the arguments of the process for a command; a test passes a harmless program.

    Raises:
        XianliaoError: The folder cannot be used, or another server uses it.
    """

    def __init__(self, options: StudioOptions, run: Callable[[commands.Command], list[str]] = commands.arguments_of):
        self.options, self._run = options, run
        self.work = options.folder.resolve() / WORK
        self._lock = threading.RLock()
        self._held = contextlib.ExitStack()
        taken = XianliaoError(
            f"Another server is already using this folder for its training view: {self.work}. Give --studio another folder."
        )
        if self.work.is_symlink() or (self.work.exists() and not self.work.is_dir()):
            raise XianliaoError(
                f"{self.work} is not a folder of {self.work.parent}. Remove it, or give another --studio."
            )
        self.work.mkdir(mode=0o700, parents=True, exist_ok=True)  # chats of people are in it
        self._held.enter_context(exclusive(self.work, taken))
        self._job: Job | None = None
        self._task = ""
        self._curves: Curves | None = None
        self._record = EMPTY | self._stored()
        if self._record["outcome"] == "running":  # the server ended before the run
            self._record["outcome"] = "stopped"

    def close(self) -> None:
        """Stop the command, which ends with the server; a run saves first if it has the time."""
        job = self._job
        if job is not None:
            job.close()
        self._held.close()

    # Orders of the person.

    def order(self, value: object) -> None:
        """Follow an order from the browser: `{"do": NAME, …}`; an unknown one changes nothing.

        Raises:
            ChatError: The order cannot be followed.
        """
        if not isinstance(value, Mapping):
            return
        orders: dict[object, Callable[[Mapping], None]] = {
            "prepare": self._prepare,
            "estimate": self._estimate,
            "train": self._train,
            "resume": lambda _: self._resume(),
            "again": lambda _: self._begin_again(),
        }
        name = value.get("do")
        if name == "stop":
            if self._job is not None:
                self._job.stop()
        elif isinstance(name, str) and name in orders:
            with self._lock:
                if self._is_busy:
                    raise ChatError("studio_busy")
                orders[name](value)

    def _prepare(self, value: Mapping) -> None:
        person = value.get("person")
        person = (
            "".join(filter(str.isprintable, person))[:MAX_NAME_CHARACTERS].strip() if isinstance(person, str) else ""
        )
        texts, chosen = _texts_of(value.get("texts")), self._chosen(value.get("chosen"))
        if not texts and not chosen:
            raise ChatError("studio_nothing")
        number = self._next("set")
        inputs, names = [str(path) for path in chosen], [path.name for path in chosen]
        if texts:
            folder = self.work / f"data-{number}"
            folder.mkdir()
            for count, (name, suffix, text) in enumerate(texts, 1):
                path = folder / f"{count}{suffix}"
                names.append(name)
                path.write_text(text, encoding="utf-8", errors="replace", newline="")
                inputs.append(str(path))
        self._save(**EMPTY | {"set": number, "inputs": inputs, "names": names, "person": person})
        self._curves = None
        self._start("prepare", self._prepare_command())

    def _estimate(self, value: Mapping) -> None:
        self._choose(value)
        commands.check_links(self._set_folder)
        self._save(estimate=[], outcome="", error="", bot=self._next("bot"))
        self._curves = None
        self._start("estimate", self._train_command("--dry-run"))

    def _train(self, value: Mapping) -> None:
        self._choose(value)
        self._begin_run(self._next("bot"))

    def _resume(self) -> None:
        if self._record["outcome"] not in ("stopped", "failed"):
            raise ChatError("studio_nothing_to_resume")
        self._begin_run(self._record["bot"])

    def _begin_run(self, bot: int) -> None:
        commands.check_links(self._set_folder, self.work / f"bot-{bot}")
        self._save(bot=bot, outcome="running", error="")
        self._curves = Curves(self._run_folder)
        self._start("train", self._train_command(*self._switches))

    def _begin_again(self) -> None:
        self._save(**EMPTY)
        self._curves = None

    def _choose(self, value: Mapping) -> None:
        """Take the preset of an order.

        Raises:
            ChatError: The dialogues are not prepared, or the preset cannot be used.
        """
        if not self._record["is_prepared"]:
            raise ChatError("studio_not_prepared")
        name = commands.find_preset(self.work.parent, value.get("preset")).name
        if name != self._record["preset"]:
            self._save(preset=name, estimate=[])

    def _chosen(self, names: object) -> list[Path]:
        """Return the files of the operator's folder that have these names. A name is compared, never opened.

        Raises:
            ChatError: The folder has no such file.
        """
        names = names if isinstance(names, list) else []
        files = {path.name: path for path in self._files}
        if any(not isinstance(name, str) or name not in files for name in names):
            raise ChatError("studio_no_file")
        return [path for name, path in files.items() if name in names]

    # The commands.

    @property
    def _is_busy(self) -> bool:
        return self._job is not None and self._job.is_running

    @property
    def _files(self) -> list[Path]:
        """Files of the operator's folder that may be chosen."""
        entries = sorted(self.work.parent.iterdir())
        return [path for path in entries if path.suffix.lower() in SUFFIXES and commands.is_own_file(path)][:MAX_FILES]

    @property
    def _presets(self) -> list[commands.Preset]:
        return commands.find_presets(self.work.parent)

    @property
    def _set_folder(self) -> Path:
        return self.work / f"set-{self._record['set']}"

    @property
    def _run_folder(self) -> Path:
        return self.work / f"bot-{self._record['bot']}"

    @property
    def _switches(self) -> list[str]:
        return ["--resume"] if any((self._run_folder / "resume").glob("step-*")) else []

    @property
    def _checkpoint(self) -> str:
        given = self.options.checkpoint
        return given if given == "default" else str(resolve(given).resolve())

    def _prepare_command(self) -> commands.Command:
        record = self._record
        inputs = [Path(text) for text in record["inputs"]]
        return commands.prepare_command(inputs, self._set_folder, self._checkpoint, record["person"])

    def _train_command(self, *switches: str) -> commands.Command:
        preset, device = commands.find_preset(self.work.parent, self._record["preset"]), self.options.device
        data = f"{self._set_folder}:replies" if self._record["person"] else str(self._set_folder)
        return commands.train_command(data, self._run_folder, self._checkpoint, preset, device, *switches)

    def _next(self, kind: str) -> int:
        """Return a number that no folder of this kind has."""
        pattern = re.compile(rf"(?:data|{kind})-(\d+)" if kind == "set" else rf"{kind}-(\d+)")
        taken = [int(match[1]) for path in self.work.iterdir() if (match := pattern.fullmatch(path.name))]
        return max(taken, default=0) + 1

    def _start(self, task: str, command: commands.Command) -> None:
        self._task = task
        self._job = Job(self._run(command), self.work.parent, commands.environment(), self._ended)
        self._job.start()

    def _ended(self, job: Job, code: int) -> None:
        """Record how a command ended."""
        with self._lock:
            error = "" if code == 0 or job.stopping else _error_of(job)
            if self._task == "prepare":
                self._save(is_prepared=code == 0, preview=job.output if code == 0 else "", error=error)
            elif self._task == "estimate":
                self._save(estimate=job.output.splitlines()[:10] if code == 0 else [], error=error)
            else:
                is_stopped = code == 130 or (code != 0 and job.stopping)
                outcome = "finished" if code == 0 else "stopped" if is_stopped else "failed"
                self._save(outcome=outcome, error="" if is_stopped else error)

    # What the view shows.

    def state(self, language: str) -> dict[str, Any]:
        """Return everything that the view shows, in its language; plain JSON."""
        say = _chinese if language == "zh" else str
        with self._lock:
            record, job, is_busy = dict(self._record), self._job, self._is_busy
            report = report_of(self._set_folder, record["preview"]) if record["is_prepared"] else None
            has_run = bool(record["outcome"])
            if has_run and self._curves is None:
                self._curves = Curves(self._run_folder)
            progress = job.progress if job is not None and is_busy else None
            if report is not None:
                report["reasons"] = [
                    (kind, name, count, say(text).replace("`", "")) for kind, name, count, text in report["reasons"]
                ]
            shown = {
                "folder": str(self.work.parent),
                "work": str(self.work),
                "files": [path.name for path in self._files],
                "task": self._task if is_busy else "",
                "stopping": bool(job and is_busy and job.stopping),
                "seconds": job.seconds if job is not None and is_busy else 0,
                "progress": progress and [progress.done, progress.total, progress.left],
                "messages": [say(line) for line in list(job.messages)[-SHOWN_MESSAGES:]] if job and is_busy else [],
                "error": say(record["error"]),
                "inputs": record["names"],
                "report": report,
                "presets": [[preset.name, preset.is_new] for preset in self._presets],
                "preset": record["preset"],
                "estimate": [_labelled(say(line)) for line in record["estimate"]],
                "outcome": record["outcome"],
                "curves": self._curves.read() if has_run and self._curves else None,
                "result": result_of(self._run_folder, not is_busy) if has_run else None,
                "commands": self._commands(),
            }
        return sendable(shown)

    def result_folder(self) -> Path:
        """Return the folder of the run's checkpoint.

        Raises:
            ChatError: The run has not saved one.
        """
        if not self._record["outcome"] or result_of(self._run_folder) is None:
            raise ChatError("studio_no_result")
        commands.check_links(self._run_folder)
        return self._run_folder

    def _commands(self) -> dict[str, str]:
        """Return the commands of the project so far, for copying."""
        record, lines = self._record, {}
        if record["set"]:
            lines["prepare"] = commands.shown(self._prepare_command())
        if record["preset"] and record["bot"]:
            with contextlib.suppress(ChatError):
                lines["estimate"] = commands.shown(self._train_command("--dry-run"))
                lines["train"] = commands.shown(self._train_command())
                lines["resume"] = commands.shown(self._train_command("--resume"))
        return lines

    def _stored(self) -> dict[str, Any]:
        """Return the record of the last server in this folder; none if its inputs are outside the folder."""
        record = record_of(self.work / "project.json", EMPTY)
        return record if all(commands.is_inside(text, self.work.parent) for text in record.get("inputs", [])) else {}

    def _save(self, **changes: Any) -> None:
        self._record |= changes
        write_json(self.work / "project.json", self._record)


def _texts_of(value: object) -> list[tuple[str, str, str]]:
    """Return (name, suffix, text) of the texts that a browser sent; a name is only shown, and its suffix used if known.

    Raises:
        ChatError: They are too large.
    """
    parts = [part for part in value if isinstance(part, Mapping)] if isinstance(value, list) else []
    texts = []
    for part in parts:
        text, name = part.get("text"), part.get("name")
        if not isinstance(text, str) or not text.strip():
            continue
        name = valid_text(name[:MAX_NAME_CHARACTERS]) if isinstance(name, str) else ""
        suffix = Path(name).suffix.lower()
        texts.append((name, suffix if suffix in SUFFIXES else ".txt", text))
    if len(texts) > MAX_TEXTS or sum(len(text) for *_, text in texts) > MAX_TEXT_CHARACTERS:
        raise ChatError("studio_too_large", characters=MAX_TEXT_CHARACTERS)
    return texts


def _chinese(text: str) -> str:
    """Return the Chinese of a message, or of a reason in a cleaning report."""
    return REASONS.get(text) or to_chinese(text)


def _error_of(job: Job) -> str:
    """Return the error that a command printed, without its label."""
    lines = list(job.messages)
    errors = [match[1] for line in lines if (match := re.search(r"\berror: (.*)", line))]
    return errors[-1] if errors else lines[-1] if lines else "The command ended without a message."


def _labelled(line: str) -> list[str]:
    """Return the label of a line, or an empty one, and the rest."""
    label, _, rest = line.replace("：", ": ", 1).partition(": ")
    return [label, rest] if rest and len(label) <= 20 else ["", line]
