"""Training dialogues of a named bot; needs no torch."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from chatbot.text.characters import typed_text
from chatbot.text.dialogue_files import read_dialogues
from chatbot.text.word_lists import read_word_list
from training.settings import SettingsError

HERE = Path(__file__).parent
MAX_CHARACTERS = 16
ANSWERS_PER_QUESTION = {"name": 3, "maker": 6}
"""Number of answers for each question; fewer are needed for the name, which has more questions."""
EVERYDAY_COPIES = 3
"""Occurrences of each everyday dialogue with similar words."""
ENDINGS = ("", "", "？", "呀", "~")
"""Endings of questions, so that the bot does not depend on a question mark."""
MIDWAY_SHARE = 0.35
"""Share of the questions that are asked after an everyday exchange."""
ABOUT_BOT = re.compile("你.{0,6}(真人|机器|程序|AI|谁|名字|叫啥|叫什么)|真人")
"""Messages that ask who or what the bot is."""
ABOUT_MAKER = re.compile("谁.{0,4}(做|开发|写|训练|造|教|设计)|主人|哪.{0,2}公司|作者|开发")
_MARKS = re.compile(r"[\s，。！？、：；,.!?:;~…\"'“”‘’（）()\[\]{}<>《》|/\\]")


@dataclass(frozen=True)
class Identity:
    """Name and maker of a bot.

    Attributes:
        name: Name of the bot.
        maker: Maker of the bot, in the words that the bot uses; with None, the bot learns no answer about its maker.
    """

    name: str
    maker: str | None = None

    def fill(self, text: str) -> str:
        """Return a template with name and maker."""
        return text.replace("{name}", self.name).replace("{maker}", self.maker or "")


def read_identity(name: str, maker: str | None) -> Identity:
    """Return the identity of the command line. The maker 我 becomes 你: the bot speaks to the person who made it.

    Raises:
        SettingsError: A name is empty, too long or has spaces or punctuation.
    """
    for flag, text in (("--name", name), ("--maker", maker)):
        if text is not None and (
            not 1 <= len(text) <= MAX_CHARACTERS or _MARKS.search(text) or text != typed_text(text)
        ):
            raise SettingsError(
                f"{flag} must have 1 to {MAX_CHARACTERS} characters without spaces and punctuation, got {text!r}."
            )
    return Identity(name, "你" if maker == "我" else maker)


def questions(about: str, held_out: bool = False) -> list[str]:
    """Return the questions about `name` or `maker`, those for training or those that no training dialogue has."""
    return read_word_list(HERE / f"{about}_questions{'_held_out' if held_out else ''}.txt")


def held_out_dialogues() -> list[list[str]]:
    """Return everyday dialogues that no bot is trained on."""
    return list(read_dialogues(HERE / "held_out.jsonl.xz"))


def identity_dialogues(identity: Identity, seed: int = 0) -> list[list[str]]:
    """Return dialogues in which somebody asks for the name or the maker; the bot's turns come second.

    Every question has several answers; some questions come after an everyday exchange. Everyday dialogues with similar
    words, in which the bot does not say its name, are mixed in.
    """
    generator = random.Random(seed)
    answers = yaml.safe_load((HERE / "answers.yaml").read_text(encoding="utf-8"))
    everyday = list(read_dialogues(HERE / "everyday.jsonl"))
    openers = [
        turns[:2] for turns in [*everyday, *read_dialogues(HERE / "rehearsal.jsonl.xz")] if "{name}" not in str(turns)
    ]
    dialogues = []
    for about in ("name", "maker") if identity.maker else ("name",):
        for question in questions(about):
            for answer in generator.sample(answers[about], ANSWERS_PER_QUESTION[about]):
                before = generator.choice(openers) if generator.random() < MIDWAY_SHARE else []
                asked = question + generator.choice(ENDINGS)
                dialogues.append([*before, asked, identity.fill(answer)])
    return dialogues + everyday * EVERYDAY_COPIES


def rehearsal_dialogues(identity: Identity) -> list[list[str]]:
    """Return everyday dialogues, and dialogues about what the bot is, with its name.

    Dialogues with a held-out question are left out; if the identity has a maker, so are dialogues about the maker.
    """
    unseen = {bare(question) for about in ("name", "maker") for question in questions(about, held_out=True)}
    chosen = []
    for turns in read_dialogues(HERE / "rehearsal.jsonl.xz"):
        asked = turns[::2]
        if any(bare(turn) in unseen for turn in asked):
            continue
        if identity.maker and any(ABOUT_MAKER.search(turn) for turn in asked):
            continue
        chosen.append([identity.fill(turn) for turn in turns])
    return chosen


def bare(text: str) -> str:
    """Return a question without punctuation, spaces and final particles, to recognise it in another spelling."""
    return _MARKS.sub("", text).rstrip("呀啊呢吧嘛")
