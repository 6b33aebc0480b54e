"""Settings of a prepared set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the rules take time to import, and the command's --help needs the defaults only
    from data_prep.cleaning.rule import Rule

FORMS = ("array", "jsonl", "messages", "object", "table", "tsv", "labelled", "chatlog", "text")
"""Forms of input files; see `data_prep.reading.formats`."""


@dataclass(frozen=True)
class CleanSettings:
    """How turns are cleaned.

    Attributes:
        skip: Names of default rules to switch off.
        also: Names of further rules to switch on.
        words: File of blocked words, one per line, in place of the list of the package.
        max_characters: Maximum length of a turn, in characters; longer turns are removed.
    """

    skip: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    words: str | None = None
    max_characters: int = 512

    def is_on(self, rule: Rule) -> bool:
        """Whether a rule is to be applied."""
        return rule.name in self.also or (rule.is_on and rule.name not in self.skip)


@dataclass(frozen=True)
class FrequencySettings:
    """Thresholds for frequent turns, as shares of the number of all (turn, reply) pairs.

    Attributes:
        generic_share: A short reply to more different turns than this is thinned out.
        copied_share: A long reply to more different turns than this is removed.
        hot_share: If a long turn has more different replies than this, its replies are thinned out.
        least: Lower bound of each threshold, in pairs.
    """

    generic_share: float = 5e-4
    copied_share: float = 1e-4
    hot_share: float = 1e-4
    least: int = 50


@dataclass(frozen=True)
class PrepareSettings:
    """Everything besides the input files that decides the content of a prepared set.

    Attributes:
        tokenizer: Folder of an existing tokenizer; None trains one on the train split.
        vocab_size: Largest number of ids of a tokenizer trained here.
        word_count: Build a vocabulary of characters and of words that occur at least this many times; None uses byte-pair
            encoding.
        tokenizer_characters: Size of the random sample that the tokenizer is trained on; None uses all text.
        valid_share: Share of the dialogues held out, 0 to 1, if no files are given for validation.
        max_dialogues: Number of raw dialogues after which to stop reading inputs; None reads all. Held-out files are
            always read whole.
        form: Form of the input files, one of `FORMS`, or `auto`.
        bot: Name of the speaker that the bot is to imitate: dialogues begin with another speaker, and all other
            speakers are treated as one. None keeps the speakers as they are.
        seed: Seed of the order of the dialogues.
        near_duplicates: `off`; `held-out` drops train dialogues that are near a held-out one; `all` also those that are
            near each other.
        near_threshold: Minimum Jaccard similarity of trigrams for two dialogues to be near, 0 to 1.
        clean: How turns are cleaned.
        frequency: Thresholds for frequent turns.
    """

    tokenizer: str | None = None
    vocab_size: int = 4096
    word_count: int | None = None
    tokenizer_characters: int | None = 4_000_000
    valid_share: float = 0.05
    max_dialogues: int | None = None
    form: str = "auto"
    bot: str | None = None
    seed: int = 0
    near_duplicates: str = "off"
    near_threshold: float = 0.8
    clean: CleanSettings = field(default_factory=CleanSettings)
    frequency: FrequencySettings = field(default_factory=FrequencySettings)
