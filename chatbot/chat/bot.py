"""Chatbot: a loaded checkpoint that replies to histories. Terminal, page, API and evaluation all use it."""

from __future__ import annotations

import copy
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import torch

from chatbot.chat.loading import load_parts, thinking_tokens
from chatbot.chat.ranking import load_backward, load_ranker
from chatbot.chat.request import (
    MAX_SEED,
    Reply,
    Request,
    answered_by,
    asked,
    bounded_turns,
    candidate_seeds,
    decode_requests,
    max_message_characters,
    next_beginning,
    shown_reply,
    system_ids,
    within_limits,
)
from chatbot.chat.snapshots import Snapshots
from chatbot.chat.turns import History, TurnReader, as_turns, asks_in_traditional, check_turns, split_system
from chatbot.chat.variants import check_point, check_variation, choose_variant, latent_of, read_request
from chatbot.checkpoint.hub import name_of, with_revision
from chatbot.checkpoint.location import DEFAULT, resolve
from chatbot.decoding.batch import DialogueBatch, start_batch
from chatbot.decoding.candidates import Draft
from chatbot.decoding.rerank import Answered, Ranker
from chatbot.decoding.rules.readable import readable_text
from chatbot.decoding.settings import ReplySettings, Script
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.errors import XianliaoError
from chatbot.model.protocol import DialogueModel
from chatbot.safety import Fixed, Safety, default_safety, named_safety
from chatbot.text.dialogue import DialogueError, Prompt
from chatbot.text.layouts import LAYOUTS, SpecialIds
from chatbot.text.tokenizer import DialogueTokenizer

__all__ = ["MAX_SEED", "Chatbot", "Reply", "Request", "candidate_seeds"]

SNAPSHOT_BYTES = 256 * 2**20
"""Maximum total size of the cached states in bytes; for a large model, half the size of its weights if that is more."""


class Chatbot:
    """A model with its tokenizer and decoding settings.

    Attributes:
        safety: Rules for people in crisis and for words in messages; None switches them off.
        context_tokens: Maximum length of the history in tokens; older turns are dropped.
        max_message_tokens: Maximum length of a message in tokens.
        max_system_tokens: Maximum length of a system prompt in tokens; 0 if the model takes none.

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
        self.model, self.tokenizer, self.name, self.folder = model, tokenizer, name, folder
        self.layout = LAYOUTS[model.config.layout](cast(SpecialIds, tokenizer))
        self.context_tokens = model.config.context_tokens
        self.max_model_tokens = model.max_tokens
        if self.max_model_tokens is not None:
            self.context_tokens = min(self.context_tokens, self.max_model_tokens // 2 - 1)
        self.settings = self.within_limits(settings)
        self.max_message_tokens = self.context_tokens // 2
        self.max_system_tokens = self.layout.system_room(self.context_tokens, self.max_message_tokens)
        end_id = self.layout.end_of_turn_id
        banned = sorted(token for token in tokenizer.special_ids if token is not None and token != end_id)
        pieces = tokenizer.token_bytes()
        readable = readable_text(pieces, tokenizer.marks is not None)
        self.vocabulary = Vocabulary(end_id, tuple(banned), pieces, readable, thinking_tokens(tokenizer))
        weight_bytes = sum(weight.nbytes for weight in model.parameters())
        self.snapshots = Snapshots(max(SNAPSHOT_BYTES, weight_bytes // 2))
        self.reader = TurnReader(tokenizer)
        self._reading = threading.Lock()
        self._ranker: Ranker | None = None

    def __repr__(self) -> str:
        parameters = sum(weight.numel() for weight in self.model.parameters())
        return (
            f"<Chatbot {self.name or '(unnamed)'}: {parameters / 1e6:.1f}M parameters on {self.model.device}, history of at"
            f" most {self.context_tokens} tokens, replies of at most {self.settings.bound_tokens} tokens>"
        )

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path = DEFAULT,
        device: str = "auto",
        dtype: str = "auto",
        safety: Safety | str | Path | None = "default",
        revision: str | None = None,
        context_tokens: int | None = None,
    ) -> Chatbot:
        """Load a checkpoint folder.

        Args:
            checkpoint: A folder, `default` for the bundled checkpoint, or `owner/name` of a model of the Hugging Face
                hub, which is downloaded if it is not on this machine yet (`chatbot.checkpoint.hub`).
            device: auto, cpu, cuda or mps.
            dtype: auto, float32, float16, bfloat16 or int8; auto is float32 on CPU and bfloat16 on CUDA. int8
                multiplies int8 matrices on the CPU; if that is not possible, a warning is shown and float32 is used.
            safety: A folder of safety files, or loaded rules; `default` uses those of the package, None switches them
                off.
            revision: Branch, tag or commit of a model of the hub; None uses the commit that was downloaded first.
            context_tokens: Maximum length of the history (`chatbot.chat.loading.limit_history`); None: the model's.

        Raises:
            CheckpointError, TokenizerError: A file of the checkpoint is missing or damaged.
            SafetyError: The safety files cannot be used.
        """
        rules = safety if isinstance(safety, Safety) else named_safety(safety)
        path = resolve(with_revision(checkpoint, revision))
        model, tokenizer, settings = load_parts(path, device, dtype, context_tokens)
        return cls(model, tokenizer, settings, name_of(path), path, rules)

    def reply(self, turns: History, seed: int | None = None, **changes: Any) -> str:
        """Return the text of the reply to a history.

        Args:
            turns: The history, oldest turn first; the last turn is the message. Strings, or messages like
                `{"role": "user", "content": "你好"}`, the first of which may have the role `system`.
            seed: Seed of the random numbers; None draws a seed at random.
            changes: Fields of `ReplySettings`, None switches a setting off; `variation`, `spread`
                and `point` (`chat.variants`); `system`, the system prompt of a chat model.

        Raises:
            DialogueError: The history is empty, its last turn empty or too long, or the system prompt cannot be read.
            ReplySettingsError: A setting is unknown, or its value cannot be used.
        """
        return self.respond(turns, seed, **changes).text

    def respond(self, turns: History, seed: int | None = None, **changes: Any) -> Reply:
        """Return the reply with its stop reason, log-probability and seed; arguments as for `reply`."""
        *_, reply = self.stream_replies(turns, seed, **changes)
        return reply

    def stream(self, turns: History, seed: int | None = None, **changes: Any) -> Iterator[str]:
        """Yield the text so far whenever it has grown; it never ends within a character.

        With several `candidates`, the best one is known only at the end, so its text is yielded once, complete.
        """
        shown = ""
        for reply in self.stream_replies(turns, seed, **changes):
            if reply.text != shown:
                shown = reply.text
                yield shown

    def stream_replies(self, turns: History, seed: int | None = None, **changes: Any) -> Iterator[Reply]:
        """Yield the reply so far after each token; its stop reason is `stopped` until the last yield."""
        request = self.request(turns, seed, **changes)
        if request.fixed is not None:
            yield self.show_fixed(request, request.fixed)
            return
        with self._reading:
            batch, logits = read_request(self, request)
        for draft in self.drafts(request, batch, logits):
            reply = self.show(request, draft)
            yield reply
        if (ahead := next_beginning(self, request, reply)) is not None:
            threading.Thread(target=self._read_ahead, args=(ahead,), name="reading ahead").start()

    def _read_ahead(self, prompt: Prompt) -> None:
        """Cache the state after a prompt; a failure is ignored, because it recurs when a message needs the state."""
        with suppress(Exception), self._reading:
            self.read_prompt(prompt)

    def request(
        self,
        turns: History,
        seed: int | None = None,
        variation: int = 0,
        spread: float = 1.0,
        system: str | None = None,
        point: Sequence[float] | None = None,
        **changes: Any,
    ) -> Request:
        """Return a checked request; arguments as for `reply`.

        Raises:
            DialogueError, XianliaoError, ReplySettingsError: The history, the seed or a setting cannot be used.
        """
        started = time.perf_counter()
        seed = secrets.randbelow(MAX_SEED) if seed is None else seed
        if not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise XianliaoError(f"The seed must be a whole number from 0 to {MAX_SEED}, got {seed!r}.")
        settings = self.within_limits(self.settings.with_changes(**changes))
        check_variation(variation, spread, settings)
        at = check_point(point, variation, latent_of(self), settings)
        turns, system = split_system(turns, system)
        turns = as_turns(turns)
        check_turns(turns)
        if (fixed := self.fixed_answer(turns)) is not None:  # decided on the whole text, before long turns are cut
            prompt = Prompt((), 1 - (len(turns) - 1) % 2, 0)
            return Request(prompt, Answered([], []), settings, seed, started, fixed)
        turns = bounded_turns(turns, self.context_tokens, self.max_message_tokens)
        if self.safety is not None:
            turns = self.safety.prompt(turns)
            if words := self.safety.banned_words:
                settings = settings.with_changes(banned_words=tuple(dict.fromkeys((*settings.banned_words, *words))))
        ids, instruction = self.encode_turns(turns, settings.script), system_ids(self, system, settings.script)
        prompt = asked(self.layout.prompt(ids, self.context_tokens, instruction), self.layout, settings)
        traditional = settings.script == "asker" and asks_in_traditional(turns)
        varied = (variation, spread, latent_of(self) is not None)
        return Request(prompt, answered_by(ids), settings, seed, started, None, traditional, *varied, instruction, at)

    def show(self, request: Request, draft: Draft) -> Reply:
        """Return a draft as text, with its seed and time."""
        return shown_reply(self, request, draft)

    def show_fixed(self, request: Request, fixed: Fixed) -> Reply:
        """Return the reply of a request that a fixed text answers."""
        return Reply(fixed.text, (), "safety", 0.0, request.seed, time.perf_counter() - request.started)

    def fixed_answer(self, turns: Sequence[str]) -> Fixed | None:
        """Return the fixed text that answers a history, or None if the model answers."""
        return None if self.safety is None else self.safety.answer(turns)

    def with_safety(self, safety: Safety | None) -> Chatbot:
        """Return a bot with other rules that shares the model and its cached states; this bot is unchanged."""
        bot = copy.copy(self)
        bot.safety = safety
        return bot

    def drafts(self, request: Request, batch: DialogueBatch, logits: torch.Tensor) -> Iterator[Draft]:
        """Yield the reply after each step; with several candidates it is empty until all have ended.

        Args:
            request: The request.
            batch: Model state after the prompt, a batch of one row; decoding changes it.
            logits: Logits `[1, V]` of the first token.
        """
        for (candidates,) in decode_requests([request], batch, logits, self.vocabulary):
            yield self.best_draft(request, candidates)

    def best_draft(self, request: Request, candidates: Sequence[Draft]) -> Draft:
        """Return the draft to show: the only candidate, or the best of several; an empty draft until all have ended.

        Raises:
            CheckpointError, XianliaoError: The backward model or the vectors of the checkpoint cannot be used.
        """
        if len(candidates) > 1 and any(draft.stop_reason is None for draft in candidates):
            return Draft()
        if request.is_chosen:
            return choose_variant(self.ranker(request.settings), request, candidates)
        return candidates[self.best_of([request.answered], [candidates], request.settings)[0]]

    def best_of(
        self, answered: Sequence[Answered], candidates: Sequence[Sequence[Draft]], settings: ReplySettings
    ) -> list[int]:
        """Return, for each history, the index of its best candidate.

        Args:
            answered: The histories.
            candidates: Finished candidates, `settings.candidates` for each history.
            settings: Settings of all candidates.

        Raises:
            CheckpointError, XianliaoError: The backward model or the vectors of the checkpoint cannot be used.
        """
        if settings.candidates == 1:
            return [0] * len(candidates)
        return self.ranker(settings).best(answered, candidates, settings)

    def ranker(self, settings: ReplySettings) -> Ranker:
        """Return the ranker, with the checkpoint's vectors and, if the settings use it, the backward model.

        Raises:
            CheckpointError, XianliaoError: The backward model or the vectors of the checkpoint cannot be used.
        """
        if self._ranker is None:
            ranker = load_ranker(self.folder, self.layout, self.tokenizer.vocab_size)
            self._ranker = replace(ranker, forward=self.model)
        if settings.rank_backward and self._ranker.backward is None:
            backward = load_backward(self.folder, self.tokenizer, str(self.model.device))
            self._ranker = replace(self._ranker, backward=backward)
        return self._ranker

    def within_limits(self, settings: ReplySettings) -> ReplySettings:
        """Limit the reply to half of the model's maximum length, if it has one; the other half is for the prompt.

        Raises:
            ReplySettingsError: `logit_bias` has a token that is not in the vocabulary.
        """
        return within_limits(settings, self.tokenizer.vocab_size, self.max_model_tokens)

    def encode_turns(self, turns: Sequence[str], script: Script = "typed") -> list[list[int]]:
        """Return the token ids of the turns, as the model sees them; `script` as in `ReplySettings`.

        Raises:
            DialogueError: The history is empty, or its last turn empty or too long.
        """
        check_turns(turns)
        ids = [self.reader.ids(turn, script) for turn in turns]
        if len(ids[-1]) > self.max_message_tokens:
            raise DialogueError(
                f"The message is too long: {len(turns[-1])} characters are {len(ids[-1])} tokens, and the maximum is"
                f" {self.max_message_tokens}. Send it in parts."
            )
        return ids

    def reads(self, message: str) -> bool:
        """Whether a message is short enough for the model to read."""
        if len(message) > max_message_characters(self.max_message_tokens):
            return False
        return len(self.reader.ids(message, self.settings.script)) <= self.max_message_tokens

    @torch.inference_mode()
    def read_prompt(self, prompt: Prompt) -> tuple[DialogueBatch, torch.Tensor]:
        """Run the model over a prompt, starting from the cached state of its longest prefix.

        The model reads each turn in a separate pass, so a cached state and one rebuilt from the text have the same
        bits. The states before and after the last turn are cached.

        Returns:
            The state as a batch of one row, which the caller may change, and the logits `[1, V]` of the next token.
        """
        pieces = prompt.pieces
        done, batch, logits = self.snapshots.find(pieces)
        batch = start_batch(self.model) if batch is None else batch
        for count in range(done, len(pieces)):
            tokens, speaker = pieces[count]
            logits = batch.read([tokens], [[speaker] * len(tokens)])
            if count >= len(pieces) - 2:
                self.snapshots.add(pieces[: count + 1], batch.clone(), logits)
        if logits is None:
            raise DialogueError("The prompt is empty: give at least one turn.")
        return batch, logits
