"""Chatbot: a loaded checkpoint that answers histories. Terminal, page, API and evaluation all go through it."""

from __future__ import annotations

import copy
import random
import secrets
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from chatbot.chat.snapshots import Snapshots
from chatbot.checkpoint.folder import BACKWARD, GENERATION, load_model, resolve
from chatbot.checkpoint.location import DEFAULT
from chatbot.decoding.batch import Steps, make_native, start_steps
from chatbot.decoding.candidates import Draft
from chatbot.decoding.loop import decode, repeated
from chatbot.decoding.rerank import Answered, Ranker
from chatbot.decoding.rules.eos_floor import StopReason
from chatbot.decoding.settings import ReplySettings, settings_from
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.errors import CheckpointError, XianliaoError
from chatbot.model.device import pick_device
from chatbot.model.protocol import DialogueModel
from chatbot.safety import Fixed, Safety, default_safety, named_safety
from chatbot.similarity.token_vectors import VECTORS_FILE, TokenVectors
from chatbot.storage import read_json
from chatbot.text.dialogue import DialogueError, Prompt, clean_turn
from chatbot.text.layouts import LAYOUTS
from chatbot.text.tokenizer import DialogueTokenizer

REMEMBERED_BYTES = 256 * 2**20
"""Most memory of the states kept after turns."""

REMEMBERED_REPLIES = 3
"""The bot's last replies that the rules against repetition know of."""

ENCODED_TURNS = 8192
"""Turns whose tokens are remembered: a request brings all that has been said again."""

MAX_SEED = 2**31 - 1
"""The largest seed that may be asked for."""


@dataclass(frozen=True)
class Reply:
    """A reply, whole or as far as it got.

    Attributes:
        text: Whole characters only.
        token_ids: Tokens before the end of turn.
        stop_reason: See `chatbot.decoding.rules.eos_floor.StopReason`.
        log_prob: See `chatbot.decoding.candidates.Draft`.
        seed: Gives the same reply again for the same history and settings.
        seconds: From the call to the last token.
    """

    text: str
    token_ids: tuple[int, ...]
    stop_reason: StopReason
    log_prob: float
    seed: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return (len(self.token_ids) + 1) / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Request:
    """A reply that is asked for.

    Attributes:
        prompt: The history as the model sees it.
        answered: The history as ids.
        settings: How to decode.
        seed: Of its random numbers.
        started: When it was asked for, by `time.perf_counter`.
        fixed: The text to deliver instead of a reply of the model, or None. A request with one has an empty prompt.
    """

    prompt: Prompt
    answered: Answered
    settings: ReplySettings
    seed: int
    started: float
    fixed: Fixed | None = None


class Chatbot:
    """A model with its tokenizer and decoding settings.

    Attributes:
        safety: The rules for people in need and for words that must not come in; None switches them off.

    >>> bot = Chatbot.from_pretrained("default")
    >>> bot.reply(["你好", "你好呀", "今天心情不太好"], seed=0)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: DialogueModel,
        tokenizer: DialogueTokenizer,
        settings: ReplySettings,
        name: str = "",
        folder: Path | None = None,
        safety: Safety | Literal["default"] | None = "default",
    ):
        self.safety = default_safety() if safety == "default" else safety
        self.model, self.tokenizer, self.settings, self.name, self.folder = model, tokenizer, settings, name, folder
        self.layout = LAYOUTS[model.config.layout](tokenizer)
        self.context_tokens = model.config.context_tokens
        self.settings = self.within_limits(settings)
        if model.max_tokens is not None:
            self.context_tokens = min(self.context_tokens, model.max_tokens // 2 - 1)
        self.max_message_tokens = self.context_tokens // 2
        banned = tokenizer.special_ids - {self.layout.end_of_turn_id}
        self.vocabulary = Vocabulary(self.layout.end_of_turn_id, tuple(sorted(banned)), tokenizer.token_bytes())
        self.snapshots = Snapshots(REMEMBERED_BYTES)
        self._encode_short = lru_cache(ENCODED_TURNS)(self._encode)
        self._reading = threading.Lock()
        self._ranker: Ranker | None = None

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path = DEFAULT,
        device: str = "auto",
        dtype: str = "auto",
        safety: Safety | str | Path | None = "default",
    ) -> Chatbot:
        """Loads a checkpoint folder; `default` is the bundled one.

        Args:
            checkpoint: A folder, or `default`.
            device: auto, cpu, cuda or mps.
            dtype: auto, float32, float16, bfloat16 or int8; auto is float32 on CPU and bfloat16 on CUDA. int8 reads
                and decodes with int8 products on the CPU; where that cannot be it warns and takes float32.
            safety: A folder of safety files, or rules that are loaded; `default` takes those of the package, None none.

        Raises:
            CheckpointError, TokenizerError: What is missing or damaged.
            SafetyError: The safety files cannot be used.
        """
        safety = safety if isinstance(safety, Safety) else named_safety(safety)
        path = resolve(checkpoint)
        int8 = dtype == "int8"
        device, torch_dtype = pick_device("cpu" if int8 and device == "auto" else device, "float32" if int8 else dtype)
        settings = settings_from(read_json(path / GENERATION) if (path / GENERATION).is_file() else {})
        tokenizer = DialogueTokenizer.load(path)
        model = load_model(path, device, torch_dtype)
        if tokenizer.vocab_size != model.config.vocab_size:
            raise DialogueError(
                f"{path} has a tokenizer of {tokenizer.vocab_size} tokens but a model of {model.config.vocab_size};"
                " copy or train the checkpoint again."
            )
        if model.config.direction == "backward":
            raise CheckpointError(
                f"{path} reads dialogues backwards, to rank replies; put it into the folder {BACKWARD}/ of a checkpoint."
            )
        if not make_native(model, int8) and int8:
            warnings.warn(
                "int8 needs the CPU, a C compiler, linear or sliding-window layers and no end head: going on in float32.",
                stacklevel=2,
            )
        return cls(model, tokenizer, settings, path.name, path, safety)

    def reply(self, turns: Sequence[str], seed: int | None = None, **changes) -> str:
        """The reply to a history, oldest turn first; `changes` are fields of `ReplySettings`.

        Raises:
            DialogueError: The history is empty, or its last turn empty or too long.
        """
        return self.respond(turns, seed, **changes).text

    def respond(self, turns: Sequence[str], seed: int | None = None, **changes) -> Reply:
        """`reply` with why it stopped, its log-probability and its seed."""
        *_, reply = self.stream_replies(turns, seed, **changes)
        return reply

    def stream(self, turns: Sequence[str], seed: int | None = None, **changes) -> Iterator[str]:
        """The text so far, again after each token; it only grows and never shows a part of a character."""
        for reply in self.stream_replies(turns, seed, **changes):
            yield reply.text

    def stream_replies(self, turns: Sequence[str], seed: int | None = None, **changes) -> Iterator[Reply]:
        """The reply so far, again after each token; its reason is `stopped` until the last, which is whole."""
        request = self.request(turns, seed, **changes)
        if request.fixed is not None:
            yield self.show_fixed(request)
            return
        with self._reading:
            steps, logits = self.steps_after(request.prompt)
        for draft in self.drafts(request, steps, logits):
            yield self.show(request, draft)

    def request(self, turns: Sequence[str], seed: int | None = None, **changes) -> Request:
        """What is asked for, checked.

        Raises:
            DialogueError, XianliaoError, ReplySettingsError: The history, the seed or a setting cannot be used.
        """
        started = time.perf_counter()
        seed = secrets.randbelow(MAX_SEED) if seed is None else seed
        if not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise XianliaoError(f"A seed is a whole number from 0 to {MAX_SEED}, got {seed!r}.")
        settings = self.within_limits(self.settings.with_changes(**changes))
        self._check_turns(turns)
        if self.safety is not None:
            if (fixed := self.safety.answer(turns)) is not None:
                nothing = Prompt((), 1 - (len(turns) - 1) % 2, 0)
                return Request(nothing, Answered([], []), settings, seed, started, fixed)
            turns = self.safety.prompt(turns)
            if words := self.safety.banned_words:
                settings = settings.with_changes(banned_words=tuple(dict.fromkeys((*settings.banned_words, *words))))
        ids = self.encode_turns(turns)
        answered = Answered(ids, ids[-2::-2][:REMEMBERED_REPLIES])  # the bot's last turns
        return Request(self.layout.prompt(ids, self.context_tokens), answered, settings, seed, started)

    def show(self, request: Request, draft: Draft) -> Reply:
        """A draft as the person sees it."""
        text = self.tokenizer.decode_complete(draft.token_ids).strip()
        seconds = time.perf_counter() - request.started
        reason = draft.stop_reason or "stopped"
        return Reply(text, tuple(draft.token_ids), reason, draft.log_prob, request.seed, seconds)

    def show_fixed(self, request: Request) -> Reply:
        """The reply of a request with a fixed text."""
        return Reply(request.fixed.text, (), "safety", 0.0, request.seed, time.perf_counter() - request.started)

    def fixed_answer(self, turns: Sequence[str]) -> Fixed | None:
        """The fixed text that answers a history, or None where the model answers."""
        return None if self.safety is None else self.safety.answer(turns)

    def with_safety(self, safety: Safety | None) -> Chatbot:
        """A bot with other rules that shares the model and what it remembers; this one stays as it is."""
        bot = copy.copy(self)
        bot.safety = safety
        return bot

    def drafts(self, request: Request, steps: Steps, logits: torch.Tensor) -> Iterator[Draft]:
        """The reply after each step; where the best of several is taken it is empty until all have ended.

        Args:
            request: What is asked for.
            steps: After its prompt; used up.
            logits: `[1, V]` of the first token.
        """
        settings, answered = request.settings, request.answered
        count = settings.candidates
        logits = repeated(steps, logits, count)
        speakers, seeds = [request.prompt.reply_speaker] * count, candidate_seeds(request.seed, count)
        for drafts in decode(steps, logits, speakers, settings, self.vocabulary, seeds, [answered.own] * count):
            ended = all(draft.stop_reason is not None for draft in drafts)
            if count > 1 and not ended:
                yield Draft()
            elif count == 1:
                yield drafts[0]
        if count > 1:
            yield drafts[self.ranker(settings).best([answered], [drafts], settings)[0]]

    def ranker(self, settings: ReplySettings) -> Ranker:
        """Chooses among candidates, with the checkpoint's vectors and, where the settings ask for it, backward model.

        Raises:
            CheckpointError, XianliaoError: The backward model or the vectors are there and cannot be used.
        """
        if self._ranker is None and self.folder is not None and (self.folder / VECTORS_FILE).is_file():
            self._ranker = Ranker(self.layout, TokenVectors.load(self.folder, self.tokenizer.vocab_size))
        elif self._ranker is None:
            self._ranker = Ranker(self.layout)
        has_backward = self.folder is not None and (self.folder / BACKWARD).is_dir()
        if settings.rank_backward and self._ranker.backward is None and has_backward:
            self._ranker = replace(self._ranker, backward=self._load_backward())
        return self._ranker

    def _load_backward(self) -> DialogueModel:
        path = self.folder / BACKWARD
        model = load_model(path, str(self.model.device))
        if model.config.direction != "backward":
            raise CheckpointError(f"{path} holds no backward model; train it with xianliao-train --direction backward.")
        if DialogueTokenizer.load(path).to_json() != self.tokenizer.to_json():
            raise CheckpointError(
                f"{path} has another tokenizer than {self.folder}; train it on the same prepared sets."
            )
        return model

    def within_limits(self, settings: ReplySettings) -> ReplySettings:
        """Settings whose replies have places in a model of limited length: half of it, the prompt has the other."""
        most = self.model.max_tokens
        if most is None or settings.limit_tokens <= most // 2:
            return settings
        return settings.with_changes(max_reply_tokens=most // 2)

    def encode_turns(self, turns: Sequence[str]) -> list[list[int]]:
        """Token ids of the turns, as the model sees them.

        Raises:
            DialogueError: There are no turns, or the last one is empty or too long.
        """
        self._check_turns(turns)
        ids = [list((self._encode_short if len(turn) < 1000 else self._encode)(turn)) for turn in turns]
        if len(ids[-1]) > self.max_message_tokens:
            raise DialogueError(
                f"The message is too long: {len(turns[-1])} characters make {len(ids[-1])} tokens,"
                f" the most is {self.max_message_tokens}; send it in parts."
            )
        return ids

    @staticmethod
    def _check_turns(turns: Sequence[str]) -> None:
        """Refuses what is no history.

        Raises:
            DialogueError: There are no turns, or the last one is empty.
        """
        if isinstance(turns, str) or not all(isinstance(turn, str) for turn in turns):
            raise DialogueError("The history must be a list of strings, oldest turn first.")
        if not turns:
            raise DialogueError("There is nothing to reply to: give at least one turn.")
        if not clean_turn(turns[-1]):
            raise DialogueError("The message is empty; type something to talk about.")

    def _encode(self, turn: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(clean_turn(turn)))

    def count_tokens(self, message: str) -> int:
        """Tokens of a message, as `max_message_tokens` counts them."""
        return len(self.tokenizer.encode(clean_turn(message)))

    @torch.inference_mode()
    def steps_after(self, prompt: Prompt) -> tuple[Steps, torch.Tensor]:
        """What is remembered of a prompt and the next logits `[1, V]`, from the longest remembered beginning.

        Each turn is read by itself, whether the state is carried along or rebuilt from the text, so both give the same
        bits. The caller may use the steps up.
        """
        pieces = prompt.pieces
        done, steps, logits = self.snapshots.find(pieces)
        steps = start_steps(self.model) if steps is None else steps
        for count in range(done, len(pieces)):
            tokens, speaker = pieces[count]
            logits = steps.read([tokens], [[speaker] * len(tokens)])
            self.snapshots.keep(pieces[: count + 1], steps.clone(), logits)
        return steps, logits


def candidate_seeds(seed: int, count: int) -> list[int]:
    """Seeds of the candidates of a reply; the first is its own, so that one candidate is the reply without a choice."""
    return [seed, *(random.Random(f"{seed}/{number}").randrange(MAX_SEED) for number in range(1, count))]
