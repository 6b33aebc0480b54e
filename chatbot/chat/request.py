"""Request for a reply, its seeds and history, and the reply."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

import torch

from chatbot.chat.turns import in_traditional
from chatbot.chat.variants import candidate_settings, pool_size
from chatbot.decoding.batch import DialogueBatch
from chatbot.decoding.candidates import Draft, TokenScore
from chatbot.decoding.loop import Search, repeat_rows, run, start_search
from chatbot.decoding.rerank import Answered
from chatbot.decoding.rules.eos_floor import StopReason
from chatbot.decoding.rules.repetition import last_replies
from chatbot.decoding.rules.thinking import split_thinking
from chatbot.decoding.settings import ReplySettings, Script
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.errors import ReplySettingsError
from chatbot.safety import Fixed
from chatbot.text.dialogue import DialogueError, Prompt
from chatbot.text.layouts import Layout

if TYPE_CHECKING:
    from chatbot.chat.bot import Chatbot

MAX_SEED = 2**31 - 1
"""Largest seed."""

MAX_MESSAGE_CHARACTERS = 100_000
"""Longest message that is tokenized, also for a model with a long context."""

CHARACTERS_PER_TOKEN = 32
"""Upper bound on the characters per token of ordinary text: more than 32 n characters are more than n tokens."""


class MessageTooLongError(DialogueError):
    """The message to answer is too long to be tokenized.

    Attributes:
        characters: Length of the message.
        max_tokens: Longest message that the model reads, in tokens.
    """

    def __init__(self, message: str, characters: int, max_tokens: int):
        super().__init__(message)
        self.characters, self.max_tokens = characters, max_tokens


class SystemPromptError(DialogueError):
    """A system prompt is too long.

    Attributes:
        characters: Length of the system prompt.
        max_tokens: Longest system prompt that the model reads, in tokens.
    """

    def __init__(self, message: str, characters: int, max_tokens: int):
        super().__init__(message)
        self.characters, self.max_tokens = characters, max_tokens


@dataclass(frozen=True)
class Reply:
    """A finished or unfinished reply.

    Attributes:
        text: Text without unfinished characters.
        token_ids: Tokens before the end of turn.
        stop_reason: See `chatbot.decoding.rules.eos_floor.StopReason`.
        log_prob: See `chatbot.decoding.candidates.Draft`.
        seed: Seed that gives the same reply again for the same history and settings.
        seconds: Time from the call to the last token.
        scores: Log-probability of each token, if the setting `top_logprobs` is on.
        thoughts: Text of the thinking block before the answer, if the setting `thinking` is `shown`.
    """

    text: str
    token_ids: tuple[int, ...]
    stop_reason: StopReason
    log_prob: float
    seed: int
    seconds: float
    scores: tuple[TokenScore, ...] = ()
    thoughts: str = ""

    @property
    def generated_tokens(self) -> int:
        """Number of tokens that the model generated, including the end of turn unless it was forced."""
        return len(self.token_ids) + (self.stop_reason in ("eos", "floor"))

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens per second."""
        return self.generated_tokens / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Request:
    """A checked request for a reply.

    Attributes:
        prompt: The history as the model sees it; empty if the reply is a fixed text.
        answered: The history as token ids.
        settings: Decoding settings.
        seed: Seed of the random numbers.
        started: Time of the request, by `time.perf_counter`.
        fixed: Text to deliver instead of a reply of the model, or None.
        traditional: Whether the reply is shown in traditional characters.
        variation: Index of the variant of the reply (`chatbot.chat.variants`); 0 is the original reply.
        spread: How different the variants are from each other, 0 (little) to 2 (much).
        has_latent: Whether the model has a latent variable, from which it decodes variants without further candidates.
        system: Token ids of the system prompt.
        point: Point of the message's unit ball at which the reply is decoded; empty for none.
    """

    prompt: Prompt
    answered: Answered
    settings: ReplySettings
    seed: int
    started: float
    fixed: Fixed | None = None
    traditional: bool = False
    variation: int = 0
    spread: float = 1.0
    has_latent: bool = False
    system: tuple[int, ...] = ()
    point: tuple[float, ...] = ()

    @property
    def has_z(self) -> bool:
        """Whether the model reads the end of the message and the reply with a latent variable z."""
        return bool(self.point) or (self.has_latent and self.variation > 0)

    @property
    def is_chosen(self) -> bool:
        """Whether the reply is a variant (another way to say it) that must be chosen among sampled candidates."""
        return self.variation > 0 and not self.has_latent

    @property
    def candidates(self) -> int:
        """Number of replies to sample."""
        count = self.settings.candidates
        return max(count, pool_size(self.variation)) if self.is_chosen else count


def answered_by(ids: Sequence[Sequence[int]]) -> Answered:
    """Return a history together with the bot's last replies in it.

    Args:
        ids: Token ids of the turns, oldest first; the last is the message.
    """
    return Answered(ids, last_replies(ids))


def candidate_seeds(seed: int, count: int) -> list[int]:
    """Return the seeds of the candidates of a reply; the first is `seed`, so one candidate is the reply of `seed`."""
    return [seed, *(random.Random(f"{seed}/{number}").randrange(MAX_SEED) for number in range(1, count))]


def searches_of(request: Request) -> list[Search]:
    """Return new searches for the candidates of a request."""
    earlier, speaker = request.answered.earlier_replies, request.prompt.reply_speaker
    seeds = candidate_seeds(request.seed, request.candidates)
    pairs = zip(candidate_settings(request), seeds, strict=True)
    return [start_search(settings, seed, earlier, speaker) for settings, seed in pairs]


@torch.inference_mode()
def decode_requests(
    requests: Sequence[Request], batch: DialogueBatch, logits: torch.Tensor, vocabulary: Vocabulary
) -> Iterator[list[list[Draft]]]:
    """Yield the candidates of every request after each step; in the last yield all candidates have ended.

    Args:
        requests: The B requests.
        batch: Model states after the prompts, B rows; decoding changes them.
        logits: Logits `[B, V]` of the first tokens.
        vocabulary: Properties of the tokens.
    """
    counts = [request.candidates for request in requests]
    searches = [search for request in requests for search in searches_of(request)]
    for drafts in run(batch, repeat_rows(batch, logits, counts), searches, vocabulary):
        remaining = iter(drafts)
        yield [list(islice(remaining, count)) for count in counts]


def system_ids(bot: Chatbot, system: str, script: Script) -> tuple[int, ...]:
    """Return the token ids of a system prompt, without special tokens; a blank text gives no tokens.

    Raises:
        SystemPromptError, DialogueError: The system prompt is too long, or the model takes none.
    """
    most = bot.max_system_tokens
    if not system.strip():
        return ()
    if not most:
        raise DialogueError(
            "The system prompt cannot be used: this model takes none. Leave it out, or begin with example turns."
        )
    ids = bot.reader.ids(system, script) if len(system) <= max_message_characters(most) else None
    if ids is None or len(ids) > most:
        raise SystemPromptError(
            f"The system prompt is too long: {len(system)} characters, at most {most} tokens are read. Shorten it.",
            len(system),
            most,
        )
    return tuple(ids)


def shown_reply(bot: Chatbot, request: Request, draft: Draft) -> Reply:
    """Return a draft as text, with its seed and time."""
    text, thoughts = bot.tokenizer.decode_complete(draft.token_ids).strip(), ""
    if request.settings.thinks:
        thinking = bot.vocabulary.thinking
        is_opened = thinking is not None and thinking.is_opened
        thoughts, text = split_thinking(text, is_opened, draft.stop_reason is not None)
        thoughts = thoughts if request.settings.thinking == "shown" else ""
    if request.traditional:
        text = in_traditional(text, draft.stop_reason is not None)
    seconds = time.perf_counter() - request.started
    reason = draft.stop_reason or "stopped"
    scores = tuple(draft.scores)
    return Reply(text, tuple(draft.token_ids), reason, draft.log_prob, request.seed, seconds, scores, thoughts)


def max_message_characters(max_tokens: int) -> int:
    """Return the number of characters above which a message is refused without counting its tokens."""
    return min(MAX_MESSAGE_CHARACTERS, CHARACTERS_PER_TOKEN * max_tokens)


def bounded_turns(turns: Sequence[str], context_tokens: int, max_message_tokens: int) -> list[str]:
    """Return turns that give the same reply and can be tokenized in bounded time.

    An old turn that is too long for the model's context is shortened, but remains too long for it. The part of the
    history that the model sees (`chatbot.text.dialogue.fit`) does not depend on how much too long the turn is.

    Args:
        turns: History, oldest turn first; the last turn is the message.
        context_tokens: Longest history that the model reads.
        max_message_tokens: Longest message that the model reads.

    Raises:
        MessageTooLongError: The message is too long.
    """
    if len(turns[-1]) > max_message_characters(max_message_tokens):
        raise MessageTooLongError(
            f"The message is too long: {len(turns[-1])} characters, at most {max_message_tokens} tokens are read. Send it in"
            " parts.",
            len(turns[-1]),
            max_message_tokens,
        )
    overfull = CHARACTERS_PER_TOKEN * context_tokens
    return [shorten(turn, overfull) for turn in turns]


def shorten(text: str, characters: int) -> str:
    """Return the beginning and the end of a text longer than `characters`, any other text unchanged.

    A shortened text has `characters` characters and a line break, so it is still longer than `characters`.
    """
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]}\n{text[len(text) - (characters - half) :]}"


def asked(prompt: Prompt, layout: Layout, settings: ReplySettings) -> Prompt:
    """Append the ids that ask for a reply with or without a thinking block to a prompt; see `TurnMarks.asks`."""
    ask = () if settings.thinking == "plain" else layout.asks[settings.thinks]
    if not ask:
        return prompt
    ids, speaker = prompt.pieces[-1]
    return replace(prompt, pieces=(*prompt.pieces[:-1], ((*ids, *ask), speaker)))


def next_beginning(bot: Chatbot, request: Request, reply: Reply) -> Prompt | None:
    """Return the known beginning of the next prompt if old turns will be dropped from it, else None.

    Dropped turns make the cached states useless. The caller reads the beginning in the background, so that the next
    message need not wait for this.
    """
    ids = [*request.answered.turns, bot.reader.ids(reply.text, request.settings.script)]
    following = bot.layout.prompt([*ids, []], bot.context_tokens, request.system)
    if following.first_turn == request.prompt.first_turn or len(following.pieces) == 1:
        return None
    return replace(following, pieces=following.pieces[:-1])


def within_limits(settings: ReplySettings, vocab_size: int, max_model_tokens: int | None) -> ReplySettings:
    """Limit the reply to half of the model's maximum length, if it has one; see `Chatbot.within_limits`."""
    if settings.logit_bias and (last := settings.logit_bias[-1][0]) >= vocab_size:
        raise ReplySettingsError(
            f"Decoding: logit_bias has token {last}, and the vocabulary has 0 to {vocab_size - 1}."
        )
    if max_model_tokens is None:
        return settings
    room = max_model_tokens // 2
    if settings.thinks:
        thinking_tokens = min(settings.thinking_tokens, room // 2)
        settings, room = settings.with_changes(thinking_tokens=thinking_tokens), room - thinking_tokens - 2
    return settings if settings.limit_tokens <= room else settings.with_changes(max_reply_tokens=room)
