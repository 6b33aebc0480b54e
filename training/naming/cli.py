"""xianliao-name: teach a bot its name and its maker, and measure what it says."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from chatbot.checkpoint.location import resolve
from chatbot.errors import explain_faults
from chatbot.language.parser import Parser
from chatbot.language.translation import announce, translate
from chatbot.model.device import check_device
from chatbot.storage import write_json
from training.naming.dialogues import Identity, identity_dialogues, read_identity, rehearsal_dialogues
from training.settings import TrainSettings
from training.state.run_folder import SETTINGS, STATES, ResumeError, check_folder, own_folder, saved_steps

KEPT_RULES = ("echo", "generic_replies", "copied_replies", "hot_posts", "blocked_words", "no_chinese", "advertisement")
"""Cleaning rules that are switched off for these dialogues, because the same answer follows many questions on
purpose."""
MAX_CHECKED, MAX_TUNED = 300, 100
"""Number of dialogues of each --check file that the guard scores, and of those after them that choose the share."""
RECORD = "naming.json"
SAVE_EVERY = 20
"""Optimizer steps between saved states; Ctrl-C and SIGTERM save one as well."""
SOURCES = {"named": ":1.5:replies", "rehearsal": ":0.3"}
"""Ends of the --data sources: how often a dialogue occurs per epoch, and `replies` if only the bot's turns are learnt.
Without `replies`, all turns keep the bot's distribution (`objective`)."""
SHOWN_REPLIES = 5


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="xianliao-name",
        description="Teach a bot to say its name when asked, and only then, and to forget little else; measure all three.",
    )
    add = parser.add_argument
    add("--name", required=True, help="name of the bot, such as 小满")
    add(
        "--maker",
        help='name of the bot\'s maker, as the bot should say it, e.g. 阿哲; if you give 我 ("me"), the bot'
        ' answers 你 ("you") (default: the bot is not taught who made it)',
    )
    add("--bot", default="default", metavar="DIR", help="checkpoint to start from (default: the bundled bot)")
    add("--output", required=True, metavar="DIR", help="folder of the new checkpoint; it must not exist yet")
    add("--resume", action="store_true", help="continue the same command that was stopped, in --output")
    add(
        "--check",
        nargs="+",
        default=[],
        metavar="PATH",
        help="dialogues that the bot must not forget, such as those of LCCC: JSONL files or prepared sets",
    )
    add(
        "--max-loss",
        type=float,
        default=0.05,
        help="maximum rise of the loss on any set, in nats/unit (default: %(default)s)",
    )
    add("--epochs", type=float, default=1.5, help="passes over the dialogues (default: %(default)s)")
    add("--learning-rate", type=float, default=5e-4, help="peak learning rate (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed of the dialogues and of the training (default: %(default)s)")
    add("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
    add("--json", action="store_true", help="print the measurements as JSON")
    return parser


@partial(explain_faults, extra="all")
def main(argv: list[str] | None = None) -> int | None:
    """Run the command. The exit code is 1 if a limit is exceeded; the checkpoint is kept nevertheless."""
    parser = build_parser()
    args = parser.parse_args(argv)
    identity = read_identity(args.name, args.maker)
    check_device(args.device)
    resolve(args.bot)
    output = Path(args.output)
    _check_output(output, args.resume)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with own_folder(output):
            return _teach(args, identity, output)
    except KeyboardInterrupt:
        is_begun = bool(saved_steps(output)) or (output / SETTINGS).is_file()
        _say("Stopped; the same command with --resume continues it." if is_begun else "Stopped; nothing was saved.")
        return 130


def _check_output(output: Path, resume: bool) -> None:
    """Check that the command may start, or with `resume` continue, in a folder.

    Raises:
        ResumeError: The folder holds something else, or with `resume` nothing to continue.
    """
    if resume and (output / RECORD).is_file() and not saved_steps(output):
        raise ResumeError(f"{output} holds a finished bot; leave out --resume and give another --output for a new one.")
    check_folder(output, resume)


def _teach(args: argparse.Namespace, identity: Identity, output: Path) -> int:
    """Train and measure the bot in a locked folder, print the measurements and return the exit code."""
    announce(f"loading {args.bot} …")
    from chatbot.text.dialogue_files import read_dialogues
    from training.naming.dialogues import unseen_dialogues
    from training.naming.guard import (
        OTHERS,
        count_replies,
        count_scored,
        find_failures,
        measure_identity,
        measure_knowledge,
    )
    from training.naming.mixing import count_work, keep_best_share
    from training.naming.objective import NamingRun
    from training.naming.progress import expected_time, shown
    from training.naming.results import Results
    from training.run import train

    read = {Path(path).stem: list(read_dialogues(path)) for path in args.check}
    sets = {OTHERS: unseen_dialogues()} | {name: dialogues[:MAX_CHECKED] for name, dialogues in read.items()}
    tuning = {OTHERS: unseen_dialogues("tuning")[:MAX_TUNED]}
    tuning |= {name: (dialogues[MAX_CHECKED:] or dialogues)[:MAX_TUNED] for name, dialogues in read.items()}
    from chatbot.chat.bot import Chatbot

    scored, (mixed, tuned), asked = count_scored(sets), count_work(identity, tuning), count_replies(identity)
    start = Chatbot.from_pretrained(args.bot, args.device)
    with tempfile.TemporaryDirectory() as temporary:
        settings = training_settings(args, prepare_dialogues(identity, args, Path(temporary)))
        if not saved_steps(output):
            _say(expected_time(settings, start, sets[OTHERS], 2 * scored + mixed, asked + tuned))
            _say("Ctrl-C saves the work; the same command with --resume continues it.")
        if train(settings, NamingRun, is_locked=True)["stopped_by"]:
            return 130
    results = Results(output)
    with shown(translate("choosing how much of the training to keep"), mixed + tuned) as advance:
        mixture = keep_best_share(output, args.bot, identity, tuning, args.max_loss, args.device, advance, results)
    with shown(translate("measuring the bot before and after the training"), 2 * scored + asked) as advance:
        before = measure_knowledge(start, sets, advance=advance, results=results.of("before"))
        bot = Chatbot.from_pretrained(args.output, args.device)
        after = measure_knowledge(bot, sets, advance=advance, results=results.of("after"))
        answers = measure_identity(bot, identity, advance=advance, results=results.of("after"))
    failures = find_failures(answers, before, after, args.max_loss)
    record = {
        "identity": vars(identity),
        **mixture,
        **answers,
        "before": vars(before),
        "after": vars(after),
        "failures": failures,
    }
    write_json(output / RECORD, record)
    shutil.rmtree(output / STATES, ignore_errors=True)
    if args.json:
        print(json.dumps(record, ensure_ascii=False, indent=2))
    else:
        print("\n".join(map(translate, _lines(record, args.output, bot))))
    return 1 if failures else 0


def prepare_dialogues(identity: Identity, args: argparse.Namespace, folder: Path) -> list[str]:
    """Write the dialogues of an identity as prepared sets in a folder; only the bot's turns carry loss.

    Returns:
        The sets, as `--data` of a training.

    Raises:
        CheckpointError: The tokenizer of the bot cannot be read.
    """
    from data_prep.pipeline import build
    from data_prep.settings import CleanSettings, PrepareSettings

    parts = {"named": identity_dialogues(identity, args.seed), "rehearsal": rehearsal_dialogues(identity)}
    _say(f"training on {len(parts['named'])} dialogues about the bot and {len(parts['rehearsal'])} others")
    data = []
    for part, dialogues in parts.items():
        path = folder / f"{part}.jsonl"
        lines = (json.dumps(turns, ensure_ascii=False) + "\n" for turns in dialogues)
        path.write_text("".join(lines), encoding="utf-8")
        clean = CleanSettings(skip=KEPT_RULES)
        settings = PrepareSettings(tokenizer=str(resolve(args.bot)), valid_share=0.0, form="jsonl", clean=clean)
        build([str(path)], folder / part, settings, is_quiet=True)
        data.append(f"{folder / part}{SOURCES[part]}")
    return data


def training_settings(args: argparse.Namespace, data: Sequence[str]) -> TrainSettings:
    """Return the settings of the training, without a validation split: the guard measures the result."""
    never = 10**6
    return TrainSettings(
        data=list(data),
        output=args.output,
        init=args.bot,
        epochs=args.epochs,
        batch_rows=4,
        learning_rate=args.learning_rate,
        warmup_steps=5,
        eval_every=never,
        save_every=SAVE_EVERY,
        resume=args.resume,
        seed=args.seed,
        device=args.device,
    )


def _say(text: str) -> None:
    print(translate(text), file=sys.stderr)


def _lines(record: dict[str, Any], output: str, bot: Any) -> list[str]:
    """Return the measurements in words, two replies and the next command."""
    before, after = record["before"], record["after"]
    lines = [f"share of the training that is kept: {record['share']:.0%}"]
    lines.append(f"says its name when asked in words it was not trained on: {record['name']:.0%}")
    if "maker" in record:
        lines.append(f"names its maker when asked: {record['maker']:.0%}")
    lines.append(f"says its name unasked: {record['unasked']:.1%} of {record['messages']} everyday messages")
    for name, nats in after["nats"].items():
        lines.append(f"{name}: {before['nats'][name]:.3f} -> {nats:.3f} nats/unit")
    lines.append(f"prefers the true reply to nine others: {before['choice']:.0%} -> {after['choice']:.0%}")
    lines += [f"  {message} -> {bot.reply([message], seed=0)}" for message in ("你是谁", "今天好累啊")]
    for reply in [*record["wrong"], *record.get("wrong_maker", []), *record["said_unasked"]][:SHOWN_REPLIES]:
        lines.append(f"  missed: {reply}")
    lines += [f"guard: {failure}" for failure in record["failures"]]
    if record["failures"]:
        lines.append(
            f"The guard failed; {output} is kept. Try --epochs 2, or --learning-rate 1e-4 if too much is forgotten."
        )
    else:
        lines.append("All limits are met.")
        lines.append(f"next: xianliao-chat --checkpoint {output}")
    return lines


if __name__ == "__main__":
    sys.exit(main(None))
