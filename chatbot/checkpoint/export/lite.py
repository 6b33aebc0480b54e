"""Export to one flat weights file, which the C runtime (chatbot/native/runtime) maps into memory and reads as it is.

The file begins with a header of `HEADER_BYTES`: magic, version, CRC-32 of all that follows it, size, 32 int32, 20
float64 (layer norm epsilon, rope theta, decoding settings), zeros. Arrays follow, each at a multiple of 64 bytes, in
the order of `_arrays`; their sizes follow from the header. Numbers are little-endian. Matrices are int8 with one scale
per row, 16 rows interleaved, as `chatbot/native/step.c` multiplies them on every processor. Dims: V vocabulary, D
hidden size, N layers.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from chatbot.checkpoint.export.characters import character_classes
from chatbot.checkpoint.export.rules import safety_bytes, spelled_words
from chatbot.checkpoint.export.turns import turn_tables
from chatbot.checkpoint.folder import GENERATION
from chatbot.checkpoint.own_model import checked_config
from chatbot.checkpoint.weights import read_tensors, weight_files
from chatbot.decoding.native_batch import ACTIVATIONS, KINDS
from chatbot.decoding.rules.token_lists import checked_words
from chatbot.decoding.settings import NAMES, ReplySettings, settings_from
from chatbot.errors import CheckpointError
from chatbot.model.config import XianliaoConfig
from chatbot.model.int8 import INT8_SCALE_SUFFIX, dequantize, quantize, round_rows
from chatbot.safety import Safety, default_safety
from chatbot.storage import read_json
from chatbot.text.dialogue import SPEAKERS
from chatbot.text.tokenizer import DialogueTokenizer

MAGIC, VERSION = b"xianliao", 6
HEADER_BYTES, ALIGNMENT, TILE_ROWS = 512, 64, 16
LAYER_TYPES = ("linear_elu1", "sliding_softmax")
"""Layers that the runtime computes."""

SETTINGS = (
    *("greedy", "candidates", "temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"),
    *("no_repeat_ngram", "repeat_cost", "keep_eos", "floor_start_tokens", "floor_delta_tokens", "max_reply_tokens"),
    "min_reply_tokens",
)
"""Decoding settings in the order of the file and of chatbot/native/runtime/runtime.h."""

OTHER_SETTINGS = frozenset(("method", "banned_words", "script", "beams", "top_logprobs"))
"""Settings that are not in the list: the file stores them in another form, they belong to beam search, or they do not
change a reply. A checkpoint that uses any other setting is refused."""


def export_lite(
    bot_folder: str | Path, path: str | Path, safety: Safety | Literal["default"] | None = "default"
) -> None:
    """Write the weights file of a checkpoint.

    Args:
        bot_folder: Checkpoint folder.
        path: File to write.
        safety: Rules for people in crisis that go into the file; None leaves them out, `default` takes the package's.

    Raises:
        CheckpointError: The checkpoint uses a feature that the C runtime does not support.
    """
    content = lite_bytes(Path(bot_folder), default_safety() if safety == "default" else safety)
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def lite_bytes(folder: Path, safety: Safety | None = None) -> bytes:
    """Return the weights file of a checkpoint; arguments and errors as for `export_lite`."""
    config = checked_config(folder)
    tokenizer = DialogueTokenizer.load(folder)
    settings = settings_from(read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {})
    check_support(config, tokenizer, settings)
    parts = _Parts(config, tokenizer, settings, safety)
    body = bytearray(HEADER_BYTES)
    for array in parts.arrays(_stored_tensors(folder)):
        body += bytes(-len(body) % ALIGNMENT)
        body += array.tobytes()
    numbers = struct.pack("<32i", *parts.sizes, *[0] * (32 - len(parts.sizes)))
    floats = [config.layer_norm_eps, config.rope_theta, *setting_values(settings)]
    rest = struct.pack("<Q", len(body)) + numbers + struct.pack("<20d", *floats, *[0.0] * (20 - len(floats)))
    body[16 : 16 + len(rest)] = rest
    body[:16] = MAGIC + struct.pack("<II", VERSION, zlib.crc32(memoryview(body)[16:]))
    return bytes(body)


def setting_values(settings: ReplySettings) -> list[float]:
    """Return decoding settings as the numbers of `SETTINGS`."""
    values: dict[str, Any] = {name: getattr(settings, name) for name in SETTINGS if name != "greedy"}
    values["greedy"] = settings.method == "greedy"
    values["repeat_cost"] = inf if settings.repeat_cost is None else settings.repeat_cost
    return [float(-1 if values[name] is None else values[name]) for name in SETTINGS]


def check_support(config: XianliaoConfig, tokenizer: DialogueTokenizer, settings: ReplySettings) -> None:
    """Check that the C runtime supports all features of a checkpoint.

    Raises:
        CheckpointError: A feature is not supported.
    """
    known, defaults = {*SETTINGS, *OTHER_SETTINGS}, ReplySettings()
    missing = [name for name in NAMES if name not in known and getattr(settings, name) != getattr(defaults, name)]
    faults = [
        (set(config.layer_types or []) - set(LAYER_TYPES), f"layers other than {' and '.join(LAYER_TYPES)}"),
        (getattr(config, "model_type", "") != "xianliao", "a model of another project"),
        (config.positions == "learned", "learned positions"),
        (not config.tie_word_embeddings, "input and output embeddings that differ"),
        (getattr(config, "termination", "softmax") != "softmax", "an end head"),
        (getattr(config, "direction", "forward") != "forward", "a backward model"),
        (getattr(config, "latent", "none") != "none", "a latent variable of the reply"),
        (config.hidden_act not in ACTIVATIONS, f"the activation {config.hidden_act}"),
        (tokenizer.is_wordpiece or tokenizer.layout != "dialogpt", "a tokenizer of another project"),
        (settings.method == "beam", "beam search"),
        (missing, f"the setting {', '.join(missing)}"),
        (settings.script == "asker", "the setting script: asker, which writes traditional characters"),
        (settings.max_reply_tokens == 0, "max_reply_tokens 0"),
    ]
    for fault, name in faults:
        if fault:
            raise CheckpointError(f"The lite runtime does not support {name}. Export a checkpoint without it.")


def _stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint with int8 matrices and their scales, as an int8 checkpoint stores them."""
    tensors = read_tensors(weight_files(folder))
    if not any(name.endswith(INT8_SCALE_SUFFIX) for name in tensors):
        tensors = quantize({name: tensor.float() for name, tensor in tensors.items()})
    return tensors


class _Parts:
    """Arrays of a weights file, and their sizes for the header."""

    def __init__(
        self, config: XianliaoConfig, tokenizer: DialogueTokenizer, settings: ReplySettings, safety: Safety | None
    ):
        self.config = config
        pieces = tokenizer.token_bytes()
        special = [index in tokenizer.special_ids and index != tokenizer.sep_id for index in range(len(pieces))]
        words = checked_words((*settings.banned_words, *(safety.banned_words if safety is not None else ())))
        model = tokenizer.content()["model"]
        vocabulary: dict[str, int] = model["vocab"]
        characters = sorted((ord(name), index) for name, index in vocabulary.items() if len(name) == 1)
        merges = [(vocabulary[a], vocabulary[b], vocabulary[a + b]) for a, b in map(_pair, model["merges"])]
        byte_ids = [vocabulary[f"<0x{byte:02X}>"] for byte in range(256)]
        classes = character_classes(tokenizer)
        banned = "".join(f"{word}\n" for word in spelled_words(words)).encode()
        rules = safety_bytes(safety) if safety is not None else b""
        tables = turn_tables(settings.script)
        self._text = [
            np.array([0, *np.cumsum([len(piece) for piece in pieces])], "<u4"),
            np.frombuffer(b"".join(pieces), np.uint8),
            np.array(special, np.uint8),
            np.array(byte_ids, "<i4"),
            np.array(characters, "<i4"),
            np.array(merges, "<i4"),
            np.array(classes, "<i4"),
            np.frombuffer(tables, np.uint8),
            np.frombuffer(banned, np.uint8),
            np.frombuffer(rules, np.uint8),
        ]
        self.sizes = [
            *(config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads),
            *(config.head_dim, config.intermediate_size, config.sliding_window, config.short_conv),
            *(ACTIVATIONS[config.hidden_act], config.positions == "rope", config.linear_rope, config.output_gate),
            *(config.use_bias, SPEAKERS, config.context_tokens, tokenizer.cls_id, tokenizer.sep_id),
            *(len(merges), len(characters), len(classes), sum(map(len, pieces)), len(tables)),
            *(len(banned), len(rules)),
        ]

    def arrays(self, stored: dict[str, torch.Tensor]) -> Iterator[np.ndarray]:
        """Yield all arrays of the file in order."""
        yield from self._text
        yield np.array([KINDS[name] for name in self.config.layer_types or []], "<i4")
        tensors = dequantize(stored)
        embedding = "token_embedding.weight"
        yield _floats(stored[embedding + INT8_SCALE_SUFFIX])
        yield _floats(tensors["speaker_embedding.weight"])
        yield from self._norm(tensors, "final_norm")
        yield from _matrix(tensors[embedding], None, stored[embedding])
        for index in range(self.config.num_hidden_layers):
            block = f"blocks.{index}."
            yield from self._norm(tensors, block + "mixer_norm")
            yield from self._norm(tensors, block + "feed_forward_norm")
            gate = ["mixer.output_gate_proj"] if self.config.output_gate else []
            for name in ("mixer.qkv_proj", "mixer.o_proj", *gate, "feed_forward.up_proj", "feed_forward.down_proj"):
                yield from _matrix(tensors[f"{block}{name}.weight"], tensors.get(f"{block}{name}.bias"))
            if self.config.short_conv:
                yield _floats(tensors[f"{block}mixer.convolution.weight"])

    def _norm(self, tensors: dict[str, torch.Tensor], name: str) -> Iterator[np.ndarray]:
        yield _floats(tensors[f"{name}.weight"])
        if self.config.use_bias:
            yield _floats(tensors[f"{name}.bias"])


def _pair(merge: str | list[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _floats(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().numpy().astype("<f4")


def _matrix(
    weight: torch.Tensor, bias: torch.Tensor | None, rounded: torch.Tensor | None = None
) -> Iterator[np.ndarray]:
    """Yield the packed weights, scales and sums of a matrix `[R, C]`, and its bias if it has one.

    Raises:
        CheckpointError: The int8 rows differ from those of `rounded`, which are used for the token embeddings.
    """
    packed, scale = (part.numpy() for part in round_rows(weight))
    if rounded is not None and not np.array_equal(packed, rounded.numpy()):
        raise CheckpointError("The int8 token embeddings do not use the full int8 range. Write the checkpoint again.")
    rows, columns = packed.shape
    packed = np.pad(packed, ((0, -rows % TILE_ROWS), (0, -columns % 4)))
    yield np.ascontiguousarray(packed.reshape(-1, TILE_ROWS, packed.shape[1] // 4, 4).transpose(0, 2, 1, 3))
    yield np.pad(scale[:, 0], (0, -rows % TILE_ROWS)).astype("<f4")
    yield packed.sum(1, dtype=np.int32).astype("<i4")
    if bias is not None:
        yield np.pad(_floats(bias), (0, -rows % TILE_ROWS))
