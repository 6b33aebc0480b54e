"""The commands xianliao-chat and xianliao-evaluate."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot.chat.options import (
    add_model_options,
    add_safety_option,
    add_script_option,
    add_thinking_option,
    check_model_options,
)
from chatbot.decoding.settings import OPTIONS, settings_from
from chatbot.errors import FileError, XianliaoError, explain_faults
from chatbot.language.parser import Parser
from chatbot.language.translation import announce, labelled, printable, translate

if TYPE_CHECKING:  # importing torch takes seconds, which --help does not need
    from chatbot.chat.session import ChatSession

WITHOUT_OPTION = {
    "method": "--greedy and --beams choose it",
    "keep_eos": "if it is False, top-k or top-p may remove the end of turn; only for experiments in Python",
    "logit_bias": "its values belong to token ids, which the terminal does not show; use Python or the API",
    "top_logprobs": "the terminal shows no log-probabilities; Python and the API return them",
}
"""Fields of ReplySettings that are not options of xianliao-chat, each with the reason."""

DECODING = tuple(
    (option.name, option.kind, option.help) for option in OPTIONS if option.name not in (*WITHOUT_OPTION, "beams")
)
"""Fields of ReplySettings that become options of the same name; the other options are added one by one below."""

COMMANDS = (
    "/another a reply unlike those shown  /retry draw again at random  /undo take back  /clear start again  /help list"
    "  /quit leave"
)
"""Commands of the interactive chat."""


def build_chat_parser() -> argparse.ArgumentParser:
    """Return the argument parser of xianliao-chat."""
    parser = Parser(prog="xianliao-chat", description="Chat in the terminal.")
    add_model_options(parser)
    add_safety_option(parser)
    add = parser.add_argument
    add("--message", nargs="+", metavar="TEXT", help="send these messages in order, print the replies and exit")
    add("--system", metavar="TEXT", help="system prompt: instructions that a chat model gets before the conversation")
    add("--seed", type=int, help="seed of every reply; the same history and seed give the same reply (default: random)")
    decoding = parser.add_argument_group("decoding", "defaults come from the checkpoint")
    for name, kind, text in DECODING:
        decoding.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar=kind.__name__.upper()[0], help=text)
    decoding.add_argument(
        "--spread",
        type=float,
        metavar="F",
        help="how much /another differs from the replies already shown, 0 (little) to 2 (much) (default: 1)",
    )
    add_script_option(decoding)
    add_thinking_option(decoding)
    decoding.add_argument("--banned-words", nargs="+", metavar="WORD", help="words that no reply contains")
    method = decoding.add_mutually_exclusive_group()
    method.add_argument("--greedy", action="store_true", help="always take the most likely token")
    method.add_argument("--beams", type=int, metavar="I", help="beam search with this many hypotheses")
    add("--json", action="store_true", help="print a JSON object per reply: text, stop_reason, seed, tokens, log_prob")
    return parser


@explain_faults
def chat(argv: list[str] | None = None) -> int | None:
    """Run xianliao-chat."""
    args = build_chat_parser().parse_args(argv)
    changes: dict[str, Any] = {name: getattr(args, name) for name, *_ in DECODING}
    changes |= {"banned_words": args.banned_words, "beams": args.beams, "script": args.script}
    changes["thinking"] = args.thinking
    changes["method"] = "greedy" if args.greedy else "beam" if args.beams is not None else None
    changes = {name: value for name, value in changes.items() if value is not None}
    check_model_options(args)
    from chatbot.chat.turns import check_turns
    from chatbot.checkpoint.location import GENERATION, resolve
    from chatbot.storage import read_json
    from chatbot.text.tokenizer import DialogueTokenizer

    generation = resolve(args.checkpoint) / GENERATION
    settings_from(read_json(generation) if generation.is_file() else {}).with_changes(**changes)
    for message in args.message or []:
        check_turns([message])
    if args.system and DialogueTokenizer.load(resolve(args.checkpoint)).marks is None:
        raise XianliaoError(f"{args.checkpoint} takes no system prompt. Remove --system, or name a chat model.")
    announce(f"loading {args.checkpoint} …")
    from chatbot.chat.bot import Chatbot
    from chatbot.chat.request import system_ids
    from chatbot.chat.session import ChatSession
    from chatbot.chat.variants import check_variation

    spread = {} if args.spread is None else {"spread": args.spread}
    bot = Chatbot.from_pretrained(args.checkpoint, args.device, args.dtype, args.safety)
    session = ChatSession(bot, system=args.system or "", **changes, **spread)
    system_ids(bot, session.system, bot.settings.script)
    check_variation(0, args.spread or 0.0, bot.settings.with_changes(**changes))  # before the first message
    if args.message is None:
        return _converse(session, args)
    for message in args.message:
        session.reply(message, args.seed)
        _show(session, args.json)
    return 0


def _show(session: ChatSession, as_json: bool) -> None:
    """Print the last reply as text or as a JSON object."""
    reply = session.last_reply
    assert reply is not None
    if not as_json:
        print(reply.text, flush=True)
        return
    shown = {
        "text": reply.text,
        "stop_reason": reply.stop_reason,
        "seed": reply.seed,
        "tokens": len(reply.token_ids),
        "log_prob": reply.log_prob,
    }
    if reply.thoughts:
        shown["thoughts"] = reply.thoughts
    print(json.dumps(shown, ensure_ascii=False), flush=True)


def _converse(session: ChatSession, args: argparse.Namespace) -> int:
    """Run the interactive chat: a line is a message, a line that begins with / is a command."""
    print(translate(COMMANDS), file=sys.stderr)
    while True:
        try:
            line = input(translate("you: ")).strip()
        except EOFError:
            return 0
        if line == "/quit":
            return 0
        try:
            if line == "/undo":
                print(translate("taken back: ") + session.undo(), file=sys.stderr)
            elif line == "/clear":
                session.clear()
                print(translate("The conversation starts again."), file=sys.stderr)
            elif line == "/help":
                print(translate(COMMANDS), file=sys.stderr)
            elif line == "/retry":
                _say(session, session.stream_retry())
            elif line == "/another":
                _say(session, session.stream_another())
            elif line.startswith("/"):
                print(translate(f"Unknown command {line}."), translate(COMMANDS), sep="\n", file=sys.stderr)
            else:
                _say(session, session.stream(line, args.seed))
        except XianliaoError as error:
            print(translate(str(error)), file=sys.stderr)


def _say(session: ChatSession, stream: Generator[str, None, None]) -> None:
    """Print a reply as it grows. Ctrl+C stops it, and the session keeps the text that was printed."""
    printed: str | None = None
    is_stopped = False
    try:
        for text in stream:
            sys.stdout.write(translate("xianliao: ") + text if printed is None else text[len(printed) :])
            sys.stdout.flush()
            printed = text
    except KeyboardInterrupt:
        stream.close()
        is_stopped = True
    thoughts = session.last_reply.thoughts if session.last_reply is not None and not is_stopped else ""
    reason = "stopped" if is_stopped or session.last_reply is None else session.last_reply.stop_reason
    print(f"  [{translate(reason)}]" if reason != "eos" else "")
    if thoughts:
        print(printable(translate("thoughts: ") + thoughts), file=sys.stderr)


class PrintGrid(argparse.Action):
    """Print the default grid and exit, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        from chatbot.evaluation.grid import DEFAULT

        print(DEFAULT.read_text(encoding="utf-8"), end="")
        parser.exit()


def build_evaluate_parser() -> argparse.ArgumentParser:
    """Return the argument parser of xianliao-evaluate."""
    parser = Parser(
        prog="xianliao-evaluate",
        description="Measure checkpoints and decoding methods; write report.json, report.md and report.html.",
    )
    add_model_options(parser)
    add = parser.add_argument
    add(
        "--data",
        nargs="+",
        default=[],
        metavar="PATH",
        help="dialogue JSONL, a folder of such files, or a prepared set (its valid split); several with --aptness",
    )
    add("--output", required=True, metavar="DIR", help="folder for the report; a stopped evaluation continues in it")
    add(
        "--baseline",
        nargs="?",
        const="",
        metavar="PATH",
        help="add a unigram and a Witten-Bell trigram baseline, trained on PATH (default: the train split of --data)",
    )
    add("--compare", nargs="+", default=[], metavar="DIR|OWNER/NAME", help="further checkpoints for the same report")
    add("--grid", metavar="FILE", help="YAML file of decoding methods (default: what --print-grid prints)")
    add(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="methods of the grid to compare, or all (default: all; for fewer than 30 contexts those of its line `few`)",
    )
    add("--print-grid", action=PrintGrid, nargs=0, help="print the default decoding methods, to be edited, and exit")
    add(
        "--vectors", metavar="DIR", help="checkpoint folder with the token vectors for likeness (default: --checkpoint)"
    )
    add("--contexts", type=int, help="maximum number of contexts to answer (default: 1000, with --aptness 200)")
    add("--max-dialogues", type=int, help="maximum number of dialogues to read (default: all)")
    add("--seed", type=int, default=0, help="seed of the first context (default: %(default)s)")
    add("--json", action="store_true", help="print the report as JSON instead of its verdict")
    aptness = parser.add_argument_group("aptness", "do the replies make sense? rated blind by people or a model")
    add = aptness.add_argument
    add("--aptness", action="store_true", help="write rating sheets; with ratings, report means and agreement")
    add("--sheets", type=int, default=3, help="number of sheets, one for each judge (default: %(default)s)")
    add(
        "--choices",
        type=int,
        default=500,
        help="dialogues for the choice of a true reply among ten, without judges; 0: none (default: %(default)s)",
    )
    add("--scores", nargs="+", default=[], metavar="FILE", help="ratings to read (default: scores*.jsonl in --output)")
    add("--judge", metavar="URL", help="OpenAI-compatible endpoint that rates the sheets; its key is in OPENAI_API_KEY")
    add("--judge-model", default="default", metavar="NAME", help="model of the endpoint (default: %(default)s)")
    return parser


@partial(explain_faults, extra="eval")
def evaluate(argv: list[str] | None = None) -> int | None:
    """Run xianliao-evaluate."""
    parser = build_evaluate_parser()
    args = parser.parse_args(argv)
    for name in ("contexts", "max_dialogues", "sheets"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.seed < 0:
        parser.error("--seed must be at least 0")
    if args.choices < 0:
        parser.error("--choices must be at least 0")
    if not args.aptness and len(args.data) != 1:
        parser.error("--data needs one PATH; several only with --aptness")
    if args.data:
        check_model_options(args, *args.compare)
    for path in (*args.data, args.baseline):
        if path and not Path(path).exists():
            raise FileError(f"{path} does not exist. Check the path.")
    if args.aptness:
        return _evaluate_aptness(args)
    from chatbot.evaluation.grid import Grid
    from chatbot.text.prepared_set import is_prepared_set

    data, baseline, grid = args.data[0], args.baseline, Grid.read(args.grid)
    grid = grid if args.methods is None else grid.only(args.methods)
    if baseline == "":
        if not is_prepared_set(Path(data)):
            parser.error("--baseline needs a PATH, because --data is not a prepared set")
        baseline = data
    announce(f"loading {', '.join((args.checkpoint, *args.compare))} …")
    from chatbot.chat.bot import Chatbot
    from chatbot.evaluation.run import PAGE
    from chatbot.evaluation.run import evaluate as run

    bots = [Chatbot.from_pretrained(path, args.device, args.dtype) for path in (args.checkpoint, *args.compare)]
    announce(f"measuring on {data} … (minutes; a stopped evaluation continues in {args.output})")
    result = run(
        bots,
        data,
        args.output,
        baseline=baseline,
        grid=grid,
        max_contexts=args.contexts or 1000,
        max_dialogues=args.max_dialogues,
        seed=args.seed,
        vectors=args.vectors,
    )
    if args.json:
        print(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        _print_verdict(result["report"], Path(args.output) / PAGE)
    return 0


def _print_verdict(report: dict[str, Any], page: Path) -> None:
    """Print what a report says in at most ten lines, and the path of its page."""
    names = ", ".join(part["name"] for part in report["checkpoints"])
    methods = len(report["checkpoints"][0]["decoding"])
    print(translate(f"{names} on {report['data']}; contexts: {report['contexts']}; decoding methods: {methods}"))
    print(*(translate(line) for line in report["verdict"]), sep="\n")
    print(
        *(labelled("warning: ", line) for line in report["warnings"]), sep="\n", end="\n" if report["warnings"] else ""
    )
    print(page)


def _evaluate_aptness(args: argparse.Namespace) -> int:
    """Write rating sheets if there is data, let the judge rate them if there is one, and report the ratings."""
    announce(f"loading {', '.join((args.checkpoint, *args.compare)) if args.data else args.output} …")
    from chatbot.evaluation.aptness import run
    from chatbot.evaluation.aptness.judge import endpoint

    ask = None if args.judge is None else endpoint(args.judge, args.judge_model)
    if args.data:
        from chatbot.chat.bot import Chatbot
        from chatbot.evaluation.grid import Grid

        grid = None if args.grid is None and args.methods is None else Grid.read(args.grid)
        grid = grid if grid is None or args.methods is None else grid.only(args.methods)
        bots = [Chatbot.from_pretrained(path, args.device, args.dtype) for path in (args.checkpoint, *args.compare)]
        sheets = run.write_aptness_sheets(
            bots, args.data, args.output, grid, args.contexts or 200, args.sheets, args.seed, args.choices
        )
        print(translate("Rate the sheets in a browser:"), *sheets, sep="\n  ", file=sys.stderr)
    if ask is not None:
        run.judge_sheets(args.output, ask, args.sheets)
    result = run.report_aptness(args.output, args.scores)
    print(json.dumps(result, ensure_ascii=False, indent=2) if args.json else run.to_markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(chat(None))
