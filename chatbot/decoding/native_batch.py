"""A model's weights as the compiled step reads them, and decoding runs over them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import POINTER, c_float, c_int64, c_void_p

import torch
from torch import nn

from chatbot.model.int8 import round_rows
from chatbot.model.network import XianliaoForCausalLM
from chatbot.model.state import check_positions
from chatbot.native.library import library

KINDS = {"linear_decay": 0, "linear_gated": 1, "gated_delta": 2, "sliding_softmax": 3, "linear_elu1": 4}
ACTIVATIONS = {"gelu": 0, "gelu_new": 1, "relu": 2, "silu": 3}


class Matrix(ctypes.Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("weight", "packed", "scale", "sums", "bias")),
        *((name, c_int64) for name in ("rows", "columns", "stride")),
    ]


class Layer(ctypes.Structure):
    _fields_ = [
        ("kind", c_int64),
        *((name, c_void_p) for name in ("norm", "norm_bias", "norm2", "norm2_bias")),
        *((name, Matrix) for name in ("qkv", "out", "gate", "output_gate", "up", "down")),
        *((name, c_void_p) for name in ("conv", "rate")),
    ]


class State(ctypes.Structure):
    _fields_ = [(name, c_void_p) for name in ("recurrent", "normalizer", "inputs", "keys", "values")]


class Network(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("layers", "width", "heads", "head", "inner", "window")),
        *((name, c_int64) for name in ("taps", "activation", "rotates", "rotates_linear")),
        *((name, c_float) for name in ("eps", "theta")),
        *((name, c_void_p) for name in ("tokens", "speakers", "positions", "norm", "norm_bias")),
        ("head_matrix", Matrix),
        ("layer", POINTER(Layer)),
    ]


class NativeNetwork:
    """The weights of a model, laid out for the compiled step; make it anew when they change.

    Args:
        model: An XianliaoForCausalLM in fp32 on the CPU.
        int8: Multiply in int8: weights rounded with one scale a row, activations with one scale a row of the batch.
    """

    def __init__(self, model: XianliaoForCausalLM, int8: bool = False):
        self.config, self.int8 = model.config, int8
        self.group = c_int64.in_dll(library(), "xianliao_group").value  # matrix rows that lie side by side
        self._kept: list[torch.Tensor] = []  # the memory that the pointers below point into
        config = model.config
        self._layers = (Layer * config.num_hidden_layers)(*(self._layer(block) for block in model.blocks))
        positions = model.position_embedding
        self.network = Network(
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            heads=config.num_attention_heads,
            head=config.head_dim,
            inner=config.num_attention_heads * config.head_dim,
            window=config.sliding_window,
            taps=config.short_conv,
            activation=ACTIVATIONS[config.hidden_act],
            rotates=config.positions == "rope",
            rotates_linear=config.linear_rope,
            eps=config.layer_norm_eps,
            theta=config.rope_theta,
            tokens=self._point(model.token_embedding.weight),
            speakers=self._point(model.speaker_embedding.weight),
            positions=None if positions is None else self._point(positions.weight),
            norm=self._point(model.final_norm.weight),
            norm_bias=self._point(model.final_norm.bias),
            head_matrix=self._matrix(model.lm_head),
            layer=self._layers,
        )

    @staticmethod
    def supports(model: XianliaoForCausalLM) -> bool:
        """Whether the compiled step can stand for this model here."""
        config = model.config
        plain = next(model.parameters())
        if config.termination != "softmax":
            return False
        known = set(config.layer_types) <= set(KINDS) and config.hidden_act in ACTIVATIONS
        return known and plain.device.type == "cpu" and plain.dtype == torch.float32 and library() is not None

    def start(self, rows: int = 1) -> NativeSteps:
        """Empty dialogues."""
        return NativeSteps(self, rows)

    def __deepcopy__(self, memo: dict) -> None:
        """A copy of the model has weights of its own: it starts without the compiled step."""

    def __reduce__(self):
        return type(None), ()

    def _point(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.detach().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _matrix(self, linear: nn.Linear | None, float_only: bool = False) -> Matrix:
        if linear is None:
            return Matrix()
        weight = linear.weight.detach()
        rows, columns = weight.shape
        bias = None if linear.bias is None else self._point(_padded(linear.bias.detach(), self.group))
        if not self.int8 or float_only:
            groups = _padded(weight, self.group).unflatten(0, (-1, self.group)).transpose(1, 2)
            return Matrix(weight=self._point(groups), bias=bias, rows=rows, columns=columns, stride=columns)
        packed, scale = round_rows(weight)
        packed = _padded(_padded(packed, self.group).T, 4).T  # [rows, stride]
        groups = packed.unflatten(0, (-1, self.group)).unflatten(2, (-1, 4)).transpose(1, 2)
        return Matrix(
            packed=self._point(groups),
            scale=self._point(_padded(scale[:, 0], self.group)),
            sums=self._point(packed.sum(1, dtype=torch.int32)),
            bias=bias,
            rows=rows,
            columns=columns,
            stride=packed.shape[1],
        )

    def _layer(self, block: nn.Module) -> Layer:
        mixer, feed_forward = block.mixer, block.feed_forward
        kind = KINDS[self.config.layer_types[block.index]]
        rate = getattr(mixer, "log_rate", None)
        return Layer(
            kind=kind,
            norm=self._point(block.mixer_norm.weight),
            norm_bias=self._point(block.mixer_norm.bias),
            norm2=self._point(block.feed_forward_norm.weight),
            norm2_bias=self._point(block.feed_forward_norm.bias),
            qkv=self._matrix(mixer.qkv_proj),
            out=self._matrix(mixer.o_proj),
            gate=self._matrix(getattr(mixer, "gate_proj", None), float_only=True),
            output_gate=self._matrix(mixer.output_gate_proj),
            up=self._matrix(feed_forward.up_proj),
            down=self._matrix(feed_forward.down_proj),
            conv=None if mixer.convolution is None else self._point(mixer.convolution.weight),
            rate=None if rate is None else self._point(rate.exp()),
        )


class NativeSteps:
    """`chatbot.decoding.batch.Steps` through the compiled network; the rows' states are updated in place.

    Which tokens are read together changes no bit of the result.
    """

    def __init__(self, network: NativeNetwork, rows: int):
        self.network, config = network, network.config
        self.layers = [_empty(kind, config, rows) for kind in config.layer_types]
        self.positions = torch.zeros(rows, dtype=torch.int64)
        self._point_at_layers()

    def _point_at_layers(self) -> None:
        pointers = [State(**{name: t.data_ptr() for name, t in layer.items()}) for layer in self.layers]
        self._states = (State * len(pointers))(*pointers)

    def clone(self) -> NativeSteps:
        return self._copy(lambda tensor: tensor.clone())

    def select(self, rows: torch.Tensor) -> None:
        chosen = self.take(rows)
        self.layers, self.positions, self._states = chosen.layers, chosen.positions, chosen._states

    def _copy(self, change: Callable[[torch.Tensor], torch.Tensor]) -> NativeSteps:
        other = object.__new__(NativeSteps)
        other.network = self.network
        other.layers = [{name: change(tensor) for name, tensor in layer.items()} for layer in self.layers]
        other.positions = change(self.positions)
        other._point_at_layers()
        return other

    def take(self, rows: torch.Tensor) -> NativeSteps:
        """A copy of these rows; `rows` int64 `[B']`."""
        return self._copy(lambda tensor: tensor.index_select(0, rows))

    @staticmethod
    def join(parts: Sequence[NativeSteps]) -> NativeSteps:
        """The rows of several, of one network, one after the other; they are copied."""
        if len(parts) == 1:
            return parts[0].clone()
        other = object.__new__(NativeSteps)
        other.network = parts[0].network
        layers = zip(*(part.layers for part in parts), strict=True)
        other.layers = [{name: torch.cat([part[name] for part in each]) for name in each[0]} for each in layers]
        other.positions = torch.cat([part.positions for part in parts])
        other._point_at_layers()
        return other

    def nbytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.values())

    def read(self, ids: Sequence[Sequence[int]], speakers: Sequence[Sequence[int]]) -> torch.Tensor:
        counts = torch.tensor([len(row) for row in ids])
        if not counts.all():
            raise ValueError("Every row has to read at least one token.")
        rows = torch.arange(len(ids)).repeat_interleave(counts)
        ends = counts.cumsum(0)
        offsets = torch.arange(len(rows)) - (ends - counts)[rows]
        wanted = torch.full((len(rows),), -1)
        wanted[ends - 1] = torch.arange(len(ids))
        flat = [torch.tensor([token for row in values for token in row]) for values in (ids, speakers)]
        logits = self._read(rows, *flat, self.positions[rows] + offsets, wanted, len(ids))
        self.positions += counts
        return logits

    def __call__(self, ids: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(ids))
        logits = self._read(rows, ids.contiguous(), speakers.contiguous(), self.positions, rows, len(ids))
        self.positions += 1
        return logits

    def _read(self, rows, ids, speakers, positions, wanted, count: int) -> torch.Tensor:
        network, config = self.network.network, self.network.config
        if count != len(self.positions) or not len(ids) == len(speakers) == len(rows):
            raise ValueError(f"There are {len(self.positions)} rows, got ids {len(ids)} and speakers {len(speakers)}.")
        for values, size in ((ids, config.vocab_size), (speakers, config.num_speakers)):
            if values.dtype != torch.int64 or not 0 <= values.min() <= values.max() < size:
                raise IndexError(f"Ids must be int64 and from 0 to {size - 1}.")  # C would read foreign memory
        if config.positions == "learned":
            check_positions(positions, config.max_position_embeddings)
        logits = torch.empty(count, network.head_matrix.rows)
        failed = library().xianliao_read(
            ctypes.byref(network), self._states, c_int64(len(rows)),
            *(c_void_p(tensor.data_ptr()) for tensor in (rows, ids, speakers, positions, wanted, logits)),
        )  # fmt: skip
        if failed:
            raise MemoryError("There is no memory left to read on.")
        return logits


def _padded(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """x with zeros after its first dimension, up to a multiple."""
    return torch.cat([x, x.new_zeros(-len(x) % multiple, *x.shape[1:])])


def _empty(kind: str, config, rows: int) -> dict[str, torch.Tensor]:
    """The state of a mixer before the first token; keys and values are a ring, position p at p mod W."""
    heads, head = config.num_attention_heads, config.head_dim
    if kind == "sliding_softmax":
        found = {name: torch.zeros(rows, config.sliding_window, heads, head) for name in ("keys", "values")}
    else:
        found = {"recurrent": torch.zeros(rows, heads, head, head)}
    if kind == "linear_elu1":
        found["normalizer"] = torch.zeros(rows, heads, head)
    if config.short_conv:
        found["inputs"] = torch.zeros(rows, config.short_conv - 1, 3 * heads * head)
    return found
