"""`xianliao-evaluate --aptness`: sheets from contexts, ratings by judges, and the report."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from chatbot.chat.bot import Chatbot
from chatbot.errors import FileError
from chatbot.evaluation.answering import Context, answer_all, make_contexts
from chatbot.evaluation.aptness.choosing import history_hits, reply_hits, scored_by_choices
from chatbot.evaluation.aptness.judge import Ask, rate
from chatbot.evaluation.aptness.scores import HIGHEST, Judge, read_scores, summarise
from chatbot.evaluation.aptness.sheets import KEY, RANDOM, REFERENCE, Key, Row, make_rows, write_sheets
from chatbot.evaluation.cache import FOLDER, ResultCache, hash_of
from chatbot.evaluation.grid import Grid
from chatbot.evaluation.run import read_fitting, replies_of, unique_names
from chatbot.language.translation import translate
from chatbot.storage import exclusive, read_json, replacing, write_json
from chatbot.text.dialogue import clean_turn

RESULT, MARKDOWN, CHOICES = "aptness.json", "aptness.md", "choices.json"
CHOICES_DEFAULT = 200
"""Number of dialogues for the measurement without a judge."""


def write_aptness_sheets(
    bots: Sequence[Chatbot],
    data: Sequence[str | Path],
    output: str | Path,
    grid: Grid | None = None,
    max_contexts: int = 200,
    sheets: int = 3,
    seed: int = 0,
    max_choices: int = CHOICES_DEFAULT,
) -> list[Path]:
    """Let all systems reply to held-out contexts. Write the rating sheets, their key, and the results of `choosing`.

    Args:
        bots: The checkpoints.
        data: Sets of contexts: dialogue JSONL, folders of such files, or prepared sets (their valid splits).
        output: Folder for the sheets; a stopped run continues in it.
        grid: Decoding methods; None answers with the settings of each checkpoint.
        max_contexts: Maximum number of contexts of each set.
        sheets: Number of sheets, one for each judge, in different orders.
        seed: Context i is answered with seed `seed + i`; the orders depend on it as well.
        max_choices: Maximum number of dialogues of each set for the measurement of `choosing`; 0 skips it.

    Returns:
        The HTML pages of the sheets.

    Raises:
        FileError, GridError: An input cannot be used, or the folder has sheets of other inputs with ratings.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    names = [Path(path).name.split(".")[0] or str(path) for path in data]
    error = FileError(f"Another evaluation is writing to {output}. Wait for it or give another --output.")
    with exclusive(output / FOLDER, error):
        rows: list[Row] = []
        choices: dict[str, Any] = {}
        systems: list[str] = []
        cache = ResultCache(output)
        for name, path in zip(unique_names(names), data, strict=True):
            dialogues, _ = read_fitting(bots, path, None)
            contexts, whole = (
                draw_contexts(dialogues, max_contexts, seed),
                make_contexts(dialogues, max_choices) if max_choices else [],
            )
            if len(contexts) < 2:
                raise FileError(f"{path} has fewer than two dialogues of at least two turns. Check --data.")
            replies: dict[str, list[str]] = {}
            choices[name] = {}
            for bot_name, bot in zip(unique_names([bot.name for bot in bots]), bots, strict=True):
                methods = {"": bot.settings} if grid is None else grid.settings(bot.settings, bot.within_limits)
                answers, _ = answer_all(bot, contexts, methods, seed, cache)
                for method, given in answers.items():
                    system = f"{bot_name}: {method}" if method else bot_name
                    replies[system] = list(replies_of(bot, contexts, given).texts)
                if whole:
                    choices[name][bot_name] = _choose(bot, whole)
            rows += make_rows(name, contexts, replies, len(rows), seed)
            systems = [REFERENCE, *replies, RANDOM]
        key = Key(seed, systems, rows)
        _protect_ratings(output, key)
        key.write(output)
        write_json(output / CHOICES, choices)
        return write_sheets(key, output, sheets)


def _choose(bot: Chatbot, contexts: Sequence[Context]) -> dict[str, Any]:
    """Let a bot choose among replies and among histories, with a progress bar."""
    text, total = translate(f"{bot.name}: choosing among replies"), scored_by_choices(contexts)
    with tqdm(total=total, desc=text, file=sys.stderr, mininterval=1) as bar:
        return {
            "reply": reply_hits(bot, contexts, advance=bar.update),
            "history": history_hits(bot, contexts, advance=bar.update),
        }


def draw_contexts(dialogues: Sequence[Sequence[str]], count: int, seed: int) -> list[Context]:
    """Return contexts of all lengths: one random reply of the second speaker in each of `count` random dialogues.

    Which reply is drawn depends on the seed and the dialogue alone, so that a larger file keeps the contexts of a
    smaller one.
    """
    drawn = []
    for turns in dialogues:
        cleaned = [clean_turn(turn) for turn in turns]
        if len(turns) > 1 and all(cleaned):
            draw = random.Random(f"{seed}/{hash_of(list(turns))}")
            reply = draw.randrange(1, len(turns), 2)
            drawn.append((draw.random(), Context(tuple(turns[:reply]), cleaned[reply])))
    return [context for _, context in sorted(drawn, key=lambda item: item[0])[:count]]


def _protect_ratings(output: Path, key: Key) -> None:
    """Raise FileError if the folder has ratings that belong to another key."""
    ratings = [path.name for path in _score_files(output)]
    if ratings and (output / KEY).is_file() and Key.read(output) != key:
        raise FileError(
            f"{output} has ratings ({', '.join(ratings)}) of other sheets. Give another --output, or move them away."
        )


def _score_files(output: Path) -> list[Path]:
    return sorted(output.glob("scores*.jsonl"))


def judge_sheets(output: str | Path, ask: Ask, sheets: int, pause: float = 1.0) -> None:
    """Let a language model rate the sheets of a folder; the ratings are in scores-N.jsonl beside them.

    Raises:
        FileError: The folder has no sheets.
        JudgeError: The judge failed; the same call continues.
    """
    output = Path(output)
    key = Key.read(output)
    for sheet in range(1, sheets + 1):
        rate(key, sheet, ask, output / f"scores-{sheet}.jsonl", pause)


def report_aptness(output: str | Path, scores: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Read the ratings of a folder of sheets and write aptness.json and aptness.md.

    Args:
        output: Folder of the sheets.
        scores: Files of ratings; none means scores*.jsonl in the folder.

    Raises:
        FileError: The sheets or ratings are missing or damaged.
    """
    output = Path(output)
    key = Key.read(output)
    judges: list[Judge] = [read_scores(Path(path), key) for path in (scores or _score_files(output))]
    result = summarise(key, judges)
    choices = output / CHOICES
    result["choices"] = read_json(choices, FileError, "write the sheets again") if choices.is_file() else {}
    write_json(output / RESULT, result)
    with replacing(output / MARKDOWN) as temporary:
        temporary.write_text(to_markdown(result), encoding="utf-8")
    return result


def to_markdown(result: dict[str, Any]) -> str:
    """Return the report as Markdown; all other checkpoints are compared with the first."""
    lines = ["# Aptness", ""]
    if result["judges"]:
        lines += [
            f"Mean of {len(result['judges'])} blind judges, 0 does not fit, 1 acceptable, {HIGHEST} apt;"
            " ± is half of the 95 % interval of the mean, and brackets hold that of a share; both are over contexts.",
            "",
        ]
    else:
        lines += [
            "No ratings yet: open the sheets (sheet-1.html, ...), rate them, and put the downloads beside them.",
            "",
        ]
    for name, part in result["sets"].items():
        lines += _set_table(name, part)
    if any(result["choices"].values()):
        lines += _choice_table(result["choices"])
    if result["agreement"]:
        kappas = [f"{' and '.join(pair['judges'])} {_number(pair['kappa'])}" for pair in result["agreement"]]
        lines += [f"Agreement of the judges (weighted kappa): {'; '.join(kappas)}."]
    swapped = [f"{judge['name']} {_number(judge['order_kappa'])}" for judge in result["judges"] if judge["order_kappa"]]
    if swapped:
        lines += [f"Agreement of each judge with itself in the opposite order: {'; '.join(swapped)}."]
    return "\n".join(lines).rstrip() + "\n"


def _set_table(name: str, part: dict[str, Any]) -> list[str]:
    systems = part["systems"]
    first = next(system for system in systems if system != REFERENCE)
    lines = [
        f"## {name}, {part['contexts']} contexts",
        "",
        f"| system | mean | 0 | 1 | 2 | preferred to {first}, of decided |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for system, row in systems.items():
        half = (row["interval"][1] - row["interval"][0]) / 2
        shares = " | ".join(
            _share(row[f"share_{level}"], row[f"share_{level}_interval"]) for level in range(HIGHEST + 1)
        )
        preferred = row["preferred_to"].get(first)
        decided = ""
        if preferred is not None and preferred["share"] is not None:
            cases = preferred["wins"] + preferred["losses"]
            decided = f"{_share(preferred['share'], preferred['interval'])} of {cases}"
        lines.append(f"| {system} | {row['mean']:.2f} ± {half:.2f} | {shares} | {decided} |")
    return [*lines, ""]


def _choice_table(choices: dict[str, Any]) -> list[str]:
    lines = [
        "## Without judges: the right one of ten (by chance 10 %)",
        "",
        "| set | checkpoint | reply, by log p(r given c) − log p(r) | history of the reply, turn 6 and later |",
        "|---|---|--:|--:|",
    ]
    for name, by_bot in choices.items():
        for bot, row in by_bot.items():
            cells = [
                "" if part is None else f"{_share(part['hits'], part['interval'])} of {part['contexts']}"
                for part in (row["reply"], row["history"])
            ]
            lines.append(f"| {name} | {bot} | {' | '.join(cells)} |")
    return [*lines, ""]


def _share(share: float, interval: Sequence[float]) -> str:
    """Return a share in per cent with its interval: 35% (26 to 45)."""
    low, high = (round(100 * bound) for bound in interval)
    return f"{share:.0%} ({low} to {high})"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
