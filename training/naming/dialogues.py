"""Training dialogues of a named bot; needs no torch."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from chatbot.text.characters import typed_text
from chatbot.text.dialogue_files import read_dialogues
from chatbot.text.word_lists import read_word_list
from training.settings import SettingsError

HERE = Path(__file__).parent
Part = Literal["training", "tuning", "held_out"]
"""Part of the questions: for the training, for the choice of the weights (`mixing`), or for the guard's measurement."""
UNSEEN: tuple[Part, ...] = ("tuning", "held_out")
MAX_CHARACTERS = 16
ANSWERS_PER_QUESTION = 3
EVERYDAY_COPIES = 2
"""Number of copies of each dialogue in everyday.jsonl, whose words are like those of the questions."""
ENDINGS = ("", "", "？", "呀", "~")
"""Endings of questions, so that the bot does not depend on a question mark."""
MIDWAY_SHARE = 0.35
"""Share of the questions that are asked after an everyday exchange."""
ABOUT_BOT = re.compile("你.{0,6}(真人|机器|程序|AI|谁|名字|叫啥|叫什么)|真人")
"""Messages that ask who or what the bot is."""
ABOUT_MAKER = re.compile(
    "谁.{0,4}(做|作|制|开发|写|训练|造|教|设计|发明)|主人|哪.{0,2}公司|作者|开发|你.{0,3}(爸|妈|老板)"
)
"""Messages that ask who made the bot."""
CLAIM = re.compile("语言模型|开源|训练出来|公开的")
"""Words by which a reply of the bundled bot says who made the bot."""
_MARKS = re.compile(r"[\s，。！？、：；,.!?:;~…\"'“”‘’（）()\[\]{}<>《》|/\\]")


@dataclass(frozen=True)
class Identity:
    """Name and maker of a bot.

    Attributes:
        name: Name of the bot.
        maker: Maker of the bot, in the words that the bot uses; None if the bot is not taught who made it.
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


def questions(about: str, part: Part = "training") -> list[str]:
    """Return the questions of a part about `name` or `maker`; no two parts have the same question."""
    return read_word_list(HERE / f"{about}_questions{'' if part == 'training' else '_' + part}.txt")


def unseen_dialogues(part: Part = "held_out") -> list[list[str]]:
    """Return everyday dialogues that no bot is trained on, of the part `tuning` or `held_out`."""
    return list(read_dialogues(HERE / f"{part}.jsonl.xz"))


def identity_dialogues(identity: Identity, seed: int = 0) -> list[list[str]]:
    """Return dialogues in which somebody asks the bot for its name or its maker, and the bot answers.

    Every question has several answers; some questions come after an everyday exchange.
    """
    generator = random.Random(seed)
    answers = yaml.safe_load((HERE / "answers.yaml").read_text(encoding="utf-8"))
    openers = [turns[:2] for turns in rehearsal_dialogues(identity)]
    dialogues = []
    for about in ("name", "maker") if identity.maker else ("name",):
        for question in questions(about):
            for answer in generator.sample(answers[about], ANSWERS_PER_QUESTION):
                before = generator.choice(openers) if generator.random() < MIDWAY_SHARE else []
                asked = question + generator.choice(ENDINGS)
                dialogues.append([*before, asked, identity.fill(answer)])
    return dialogues + [
        [identity.fill(turn) for turn in turns] for turns in _allowed(identity) if "{name}" in str(turns)
    ]


def rehearsal_dialogues(identity: Identity) -> list[list[str]]:
    """Return everyday dialogues that the bot keeps answering as before; some have words like those of the questions."""
    everyday = list(read_dialogues(HERE / "everyday.jsonl")) * EVERYDAY_COPIES
    return everyday + [turns for turns in _allowed(identity) if "{name}" not in str(turns)]


def _allowed(identity: Identity) -> Iterator[list[str]]:
    """Yield the dialogues of rehearsal.jsonl.xz without a question of the parts tuning and held_out.

    If the bot has a maker, dialogues about a maker are left out too.
    """
    unseen = {bare(text) for part in UNSEEN for about in ("name", "maker") for text in questions(about, part)}
    for turns in read_dialogues(HERE / "rehearsal.jsonl.xz"):
        if any(bare(turn) in unseen for turn in turns[::2]):
            continue
        if identity.maker and (any(map(ABOUT_MAKER.search, turns[::2])) or any(map(CLAIM.search, turns[1::2]))):
            continue
        yield turns


def bare(text: str) -> str:
    """Return a question without punctuation, spaces and final particles, so that two spellings of a question are equal."""
    return _MARKS.sub("", text).rstrip("呀啊呢吧嘛")
