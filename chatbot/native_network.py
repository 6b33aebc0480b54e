"""A model's weights as the compiled step reads them, and decoding runs over them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_float, c_int64, c_void_p

import torch
from torch import nn

from chatbot.model import check_positions
from chatbot.native import library
from chatbot.state import DialogueState

KINDS = {"linear_decay": 0, "linear_gated": 1, "gated_delta": 2, "sliding_softmax": 3}
ACTIVATIONS = {"gelu": 0, "gelu_new": 1, "relu": 2, "silu": 3}
LANE = 64
"""int8 rows are padded to a multiple of so many columns."""


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
    _fields_ = [(name, c_void_p) for name in ("recurrent", "inputs", "keys", "values")]


class Network(ctypes.Structure):
    _fields_ = [
        *((name, c_int64) for name in ("layers", "width", "heads", "head", "inner", "window")),
        *((name, c_int64) for name in ("taps", "activation", "rotates")),
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

    def __init__(self, model: nn.Module, int8: bool = False):
        self.config, self.int8 = model.config, int8
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
    def supports(model: nn.Module) -> bool:
        """Whether the compiled step can stand for this model here."""
        config = model.config
        plain = next(model.parameters())
        known = set(config.layer_types) <= set(KINDS) and config.hidden_act in ACTIVATIONS
        return known and plain.device.type == "cpu" and plain.dtype == torch.float32 and library() is not None

    def start(self, state: DialogueState) -> NativeSteps:
        """Decoding from a state; the state itself stays as it is."""
        return NativeSteps(self, state)

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
        bias = self._point(linear.bias)
        if not self.int8 or float_only:
            return Matrix(weight=self._point(weight), bias=bias, rows=rows, columns=columns, stride=columns)
        scale = weight.abs().amax(1).clamp_min(1e-12) / 127
        packed = torch.zeros(rows + -rows % 4, columns + -columns % LANE, dtype=torch.int8)
        packed[:rows, :columns] = (weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
        return Matrix(
            packed=self._point(packed),
            scale=self._point(scale),
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
    """A batch of replies in the making: the rows' states, updated in place at every step."""

    def __init__(self, network: NativeNetwork, state: DialogueState):
        self.network, config = network, network.config
        self.layers = [
            _buffers(state.layers[index].tensors, kind, config) for index, kind in enumerate(config.layer_types)
        ]
        rows = next(len(tensor) for layer in self.layers for tensor in layer.values())
        self.positions = state.layers[-1].tensors.get("seen", torch.zeros(rows, dtype=torch.int64)).clone()

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these rows, in this order."""
        self.layers = [{name: t.index_select(0, rows) for name, t in layer.items()} for layer in self.layers]
        self.positions = self.positions[rows]

    def __call__(self, ids: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        """Reads one token a row, ids and speakers int64 `[B]`; logits fp32 `[B, V]` of the next.

        Raises:
            DialogueError: A row is longer than the model has positions for.
        """
        network, config = self.network.network, self.network.config
        if config.positions == "learned":
            check_positions(self.positions, config.max_position_embeddings)
        logits = torch.empty(len(ids), network.head_matrix.rows)
        pointers = [State(**{name: t.data_ptr() for name, t in layer.items()}) for layer in self.layers]
        states = (State * len(pointers))(*pointers)
        arrays = [tensor.contiguous() for tensor in (ids, speakers, self.positions)]
        failed = library().xianliao_step(
            ctypes.byref(network), states, c_int64(len(ids)), *(c_void_p(a.data_ptr()) for a in arrays),
            c_void_p(logits.data_ptr()),
        )  # fmt: skip
        if failed:
            raise MemoryError("The decoding step got no memory.")
        self.positions = self.positions + 1
        return logits


def _buffers(tensors: dict[str, torch.Tensor], kind: str, config) -> dict[str, torch.Tensor]:
    """Copies of a mixer's state as the step wants them; keys and values become a ring, position p at p mod W."""
    found = {name: tensors[name].float().clone() for name in ("recurrent", "inputs") if name in tensors}
    if kind == "sliding_softmax":
        window, keep = config.sliding_window, tensors["keep"]
        places = torch.where(keep, tensors["positions"] % window, 0)[..., None, None]
        for name in ("keys", "values"):
            kept = tensors[name].float() * keep[..., None, None]  # places that nobody sees add nothing to place 0
            ring = torch.zeros_like(kept)
            found[name] = ring.scatter_add_(1, places.expand_as(kept), kept)
    return found
