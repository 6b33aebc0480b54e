"""Our model as users of transformers expect it: it infers the speakers, and `generate()` applies our decoding rules.

`chatbot.checkpoint.export.hf` writes this class and the definitions that it needs into one file.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers.utils import cached_file

from chatbot.decoding.hf_generate import reply_processors
from chatbot.decoding.rules.readable import readable_text
from chatbot.decoding.rules.repetition import last_replies
from chatbot.decoding.settings import NAMES, ReplySettings, settings_from
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.model.attention.mixer import Form
from chatbot.model.attention.tokens import dialogue_starts
from chatbot.model.end_head import EndLogProbs
from chatbot.model.network import XianliaoForCausalLM
from chatbot.model.state import DialogueState
from chatbot.text.tokenizer import bytes_of

NEUTRAL: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}
NEUTRAL_IN_SAMPLING: dict[str, Any] = {"top_k": 0, "min_p": 0.0}
"""Values that switch off the rules of transformers which have a counterpart here."""


class XianliaoForChat(XianliaoForCausalLM):
    """`XianliaoForCausalLM` for the format `[CLS] u0 [SEP] u1 [SEP] …` that the chat template writes."""

    _pieces: tuple[bytes, ...]

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        state: DialogueState | None,
        form: Form,
    ) -> tuple[torch.Tensor, EndLogProbs | None]:
        """Return hidden states `[B, T, D]`; without `token_type_ids`, turn i of a dialogue has the speaker i mod 2."""
        if token_type_ids is None:
            token_type_ids = self._speakers(input_ids, segment_ids, state)
        return super().hidden_states(input_ids, attention_mask, token_type_ids, segment_ids, state, form)

    def _speakers(
        self, input_ids: torch.Tensor, segment_ids: torch.Tensor | None, state: DialogueState | None
    ) -> torch.Tensor:
        """Return the speaker ids int64 `[B, T]`: the number of ends of turn before each token, mod 2."""
        ends = (input_ids == self.config.eos_token_id).long()
        turns = ends.cumsum(1) - ends
        if segment_ids is not None:  # each packed dialogue starts with turn 0
            index = torch.arange(input_ids.shape[1], device=input_ids.device)
            turns = turns - turns.gather(1, torch.where(dialogue_starts(segment_ids), index, 0).cummax(1).values)
        if state is not None:
            counter = state.layers[-1]
            if "turns" in counter.tensors:
                turns = turns + counter.tensors["turns"][:, None]
            counter.remember(0, turns=turns[:, -1] + ends[:, -1])
        return turns % 2

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        *args: Any,
        tokenizer: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Generate replies with transformers, under the rules of generation_config.json.

        The rules are those of this file's `ReplySettings`: bans, rules against repetition, temperature, the floor that
        bounds the length of a reply, truncation. Every field of `ReplySettings` can be passed as a keyword, and so can
        all arguments of transformers' `generate()`. `do_sample` and `num_beams` choose the method.

        Args:
            inputs: Prompts int64 `[B, T]`, padded on the left; also as `input_ids`. They end with the [SEP] of the
                message.
            generation_config: Used instead of the model's.
            logits_processor: Further rules; they run before this project's rules.
            *args: Further arguments of transformers.
            tokenizer: Tokenizer that gives the bytes of each token; default: the tokenizer in the model's folder.
            **kwargs: Settings and arguments of transformers.

        Returns:
            The result of transformers' `generate()`.

        Raises:
            ValueError: A setting cannot be used, or the prompts are missing.
        """
        prompts = kwargs.get("input_ids") if inputs is None else inputs
        if prompts is None:
            raise ValueError("Pass input_ids: the token ids of the conversation.")
        config = copy.deepcopy(self.generation_config if generation_config is None else generation_config)
        changes = {name: kwargs.pop(name) for name in NAMES if name in kwargs}
        if kwargs.get("max_length") is not None and "max_new_tokens" not in kwargs:
            config.max_new_tokens = None
        kwargs = config.update(**kwargs)  # the rest is for the model
        settings = self._settings(config, changes)
        if config.max_new_tokens is None and config.max_length is None:
            config.max_new_tokens = settings.limit_tokens + 1
        end_id = self.config.eos_token_id
        pieces = self._token_bytes(tokenizer)
        readable = readable_text(pieces, keeps_lines=False)
        vocabulary = Vocabulary(end_id, tuple(getattr(config, "banned_ids", ())), pieces, readable)

        def earlier(prompt: list[int]) -> Sequence[Sequence[int]]:
            return last_replies(turns_of(prompt, end_id, vocabulary.banned_ids))

        rules = reply_processors(settings, vocabulary, prompts.shape[1], earlier)
        for name, value in (NEUTRAL | NEUTRAL_IN_SAMPLING if config.do_sample else NEUTRAL).items():
            setattr(config, name, value)
        processors = type(rules)([*(logits_processor or []), *rules])
        if tokenizer is not None:
            kwargs["tokenizer"] = tokenizer
        parent: Any = super()  # transformers asks for more of its model class than ours declares
        return parent.generate(inputs, config, processors, *args, **kwargs)

    def _settings(self, config: Any, changes: dict[str, Any]) -> ReplySettings:
        """Return the settings of a generation config with these changes."""
        method = "sample" if config.do_sample else "beam" if (config.num_beams or 1) > 1 else "greedy"
        stored = settings_from({**config.to_dict(), "candidates": 1})
        return stored.with_changes(**{"method": method, **changes})

    def _token_bytes(self, tokenizer: Any) -> tuple[bytes, ...]:
        """Return the UTF-8 bytes of each token, empty for special tokens; they are cached."""
        if not hasattr(self, "_pieces"):
            if tokenizer is None:
                revision = getattr(self.config, "_commit_hash", None)
                path = cached_file(self.config._name_or_path, "tokenizer.json", revision=revision)
                backend = Tokenizer.from_file(str(path))
            else:
                backend = tokenizer.backend_tokenizer
            is_wordpiece = isinstance(backend.model, models.WordPiece)
            special = {index for index, token in backend.get_added_tokens_decoder().items() if token.special}
            names = {index: "" if index in special else name for name, index in backend.get_vocab().items()}
            self._pieces = tuple(bytes_of(names.get(index, ""), is_wordpiece) for index in range(max(names) + 1))
        return self._pieces


def turns_of(prompt: list[int], end_id: int, special_ids: tuple[int, ...]) -> list[list[int]]:
    """Return the token ids of the finished turns of a prompt, without special tokens."""
    turns: list[list[int]] = [[]]
    for token in prompt:
        if token == end_id:
            turns.append([])
        elif token not in special_ids:
            turns[-1].append(token)
    return turns[:-1]
