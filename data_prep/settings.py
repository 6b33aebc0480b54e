"""Settings of a prepared set."""

from __future__ import annotations

from dataclasses import dataclass, field

from data_prep.cleaning.rules import Rule


@dataclass(frozen=True)
class CleanSettings:
    """What decides how dialogues are cleaned.

    Attributes:
        skip: Names of rules that are on by default and are not to run.
        also: Names of rules that are off by default and are to run.
        words: A file of blocked words, one a line, instead of the list that comes with the package.
        max_characters: The longest turn, in characters.
    """

    skip: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    words: str | None = None
    max_characters: int = 512

    def is_on(self, rule: Rule) -> bool:
        return rule.name in self.also or (rule.is_on and rule.name not in self.skip)


@dataclass(frozen=True)
class FrequencySettings:
    """Thresholds.

    Attributes:
        generic_share: A short reply may answer at most this share of all turns that are answered ...
        copied_share: ... a long one this share ...
        hot_share: ... and a long turn may have at most this share of all replies.
        least: No threshold is below this number.
    """

    generic_share: float = 5e-4
    copied_share: float = 1e-4
    hot_share: float = 1e-4
    least: int = 50


@dataclass(frozen=True)
class PrepareSettings:
    """What decides the content of a prepared set, beside the input files.

    Attributes:
        tokenizer: Folder whose tokenizer is taken; None trains one on the train split.
        vocab_size: Most ids of a tokenizer trained here.
        word_count: A tokenizer trained here has the words that were seen so often as tokens; None has pairs merged.
        tokenizer_characters: It is trained on a random sample of about so many characters; None is all.
        valid_share: Share of the dialogues held out, 0 to 1, where no files are given for validation.
        max_dialogues: Stop reading inputs after so many raw dialogues; None reads all. Held-out files are read whole.
        form: Form of the input files, one of `data_prep.reading.formats.FORMS`, or auto.
        seed: Of the order of the dialogues.
        near_duplicates: `off`; `held-out` drops those of train that are near one held out; `all` also near each other.
        near_threshold: Jaccard similarity of trigrams from which two dialogues are near.
        clean: How turns are cleaned.
        frequency: When a text is too frequent.
    """

    tokenizer: str | None = None
    vocab_size: int = 4096
    word_count: int | None = None
    tokenizer_characters: int | None = 4_000_000
    valid_share: float = 0.05
    max_dialogues: int | None = None
    form: str = "auto"
    seed: int = 0
    near_duplicates: str = "off"
    near_threshold: float = 0.8
    clean: CleanSettings = field(default_factory=CleanSettings)
    frequency: FrequencySettings = field(default_factory=FrequencySettings)
