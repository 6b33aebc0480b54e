"""Model weights in the layout of the compiled library, and batches of dialogues that the library decodes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from ctypes import c_int64, c_void_p
from typing import cast

import torch
from torch import nn

from chatbot.decoding.native_structs import Layer, Matrix, Network, State
from chatbot.model.config import XianliaoConfig
from chatbot.model.int8 import round_rows
from chatbot.model.network import Block, XianliaoForCausalLM
from chatbot.model.state import check_positions
from chatbot.native.library import library
from chatbot.text.dialogue import SPEAKERS

KINDS = {"linear_decay": 0, "linear_gated": 1, "gated_delta": 2, "sliding_softmax": 3, "linear_elu1": 4}
ACTIVATIONS = {"gelu": 0, "gelu_new": 1, "relu": 2, "silu": 3}


class NativeNetwork:
    """Weights of a model in the layout of the compiled library; create a new one when the weights change.

    Args:
        model: An XianliaoForCausalLM in fp32 on the CPU.
        int8: Multiply in int8: weights rounded with one scale per row, activations with one scale per row of the batch.
    """

    def __init__(self, model: XianliaoForCausalLM, int8: bool = False):
        self.config = cast(XianliaoConfig, model.config)
        self.int8 = int8
        self.group = c_int64.in_dll(_library(), "xianliao_group").value  # number of matrix rows that are interleaved
        self._owned: list[torch.Tensor] = []  # the memory that the pointers below point into
        config = self.config
        self._layers = (Layer * config.num_hidden_layers)(*[self._layer(cast(Block, block)) for block in model.blocks])
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
        latent = model.latent
        self.skips = None if latent is None else [cast(nn.Linear, skip).weight.detach() for skip in latent.skips]

    @staticmethod
    def supports(model: XianliaoForCausalLM) -> bool:
        """Whether the compiled library can run this model on this machine."""
        config = cast(XianliaoConfig, model.config)
        weight = next(model.parameters())
        if config.termination != "softmax":
            return False
        known = set(_layer_types(config)) <= set(KINDS) and config.hidden_act in ACTIVATIONS
        return known and weight.device.type == "cpu" and weight.dtype == torch.float32 and library() is not None

    def start(self, rows: int = 1) -> NativeBatch:
        """Return a batch of empty dialogues."""
        return NativeBatch(self, rows)

    def __deepcopy__(self, memo: dict) -> None:
        """Return None: a copied model may get other weights, so it starts without weights for the compiled library."""

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def _point(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        tensor = tensor.detach().contiguous()
        self._owned.append(tensor)
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

    def _layer(self, block: Block) -> Layer:
        mixer, feed_forward = block.mixer, block.feed_forward
        kind = KINDS[_layer_types(self.config)[block.index]]
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


class NativeBatch:
    """`chatbot.decoding.batch.DialogueBatch` through the compiled library; states are updated in place.

    The result has the same bits, however many calls the tokens are spread over and whichever rows are read with them.

    Attributes:
        layers: State tensors of every layer by name, `[B, ...]`.
        positions: Number of tokens that each row has read, int64 `[B]`.
    """

    def __init__(self, network: NativeNetwork, rows: int):
        self.network = network
        self.layers = [_empty_state(kind, network.config, rows) for kind in _layer_types(network.config)]
        width = network.config.hidden_size
        for layer in self.layers if network.skips is not None else ():
            layer["latent"] = torch.zeros(rows, width)
        if network.skips is not None:
            self.layers[-1]["hidden"] = torch.zeros(rows, width)
        self.positions = torch.zeros(rows, dtype=torch.int64)
        self._point_at_layers()

    def _point_at_layers(self) -> None:
        pointers = [State(**{name: tensor.data_ptr() for name, tensor in layer.items()}) for layer in self.layers]
        self._states = (State * len(pointers))(*pointers)

    def replace(self, other: NativeBatch) -> None:
        """Replace the states of this batch by those of another, without a copy."""
        self.layers, self.positions, self._states = other.layers, other.positions, other._states

    def clone(self) -> NativeBatch:
        return self._copy(lambda tensor: tensor.clone())

    def select(self, rows: torch.Tensor) -> None:
        self.replace(self.copy_rows(rows))

    def copy_rows(self, rows: torch.Tensor) -> NativeBatch:
        """Return a copy of these rows; `rows` int64 `[B']`."""
        return self._copy(lambda tensor: tensor.index_select(0, rows))

    def _copy(self, change: Callable[[torch.Tensor], torch.Tensor]) -> NativeBatch:
        layers = [{name: change(tensor) for name, tensor in layer.items()} for layer in self.layers]
        return self._of(self.network, layers, change(self.positions))

    @staticmethod
    def _of(network: NativeNetwork, layers: list[dict[str, torch.Tensor]], positions: torch.Tensor) -> NativeBatch:
        batch = object.__new__(NativeBatch)
        batch.network, batch.layers, batch.positions = network, layers, positions
        batch._point_at_layers()
        return batch

    def nbytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.values())

    def read(self, ids: Sequence[Sequence[int]], speakers: Sequence[Sequence[int]]) -> torch.Tensor:
        self._check_count(len(ids))
        return self.read_rows(range(len(ids)), ids, speakers)

    def __call__(self, ids: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        self._check_count(len(ids))
        rows = torch.arange(len(ids))
        logits = self._read(rows, ids.contiguous(), speakers.contiguous(), self.positions, rows, len(ids))
        self.positions += 1
        return logits

    def read_rows(
        self, rows: Sequence[int], ids: Sequence[Sequence[int]], speakers: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Read the next tokens of some rows, at least one per row.

        Args:
            rows: The N distinct rows of the batch that read tokens.
            ids: Token ids for each of these rows.
            speakers: Speaker ids of these tokens.

        Returns:
            Logits fp32 `[N, V]` of the token that follows each of these rows.
        """
        counts = torch.tensor([len(tokens) for tokens in ids])
        if not counts.all() or not len(set(rows)) == len(rows) == len(ids):
            raise ValueError("Every row must be named once and read at least one token.")
        read_by = torch.tensor(rows).repeat_interleave(counts)  # the row that reads each token
        ends = counts.cumsum(0)
        offsets = torch.arange(len(read_by)) - (ends - counts).repeat_interleave(counts)
        wanted = torch.full((len(read_by),), -1)  # output row of each token, -1 for tokens whose logits are not needed
        wanted[ends - 1] = torch.arange(len(ids))
        tokens, roles = (torch.tensor([value for row in values for value in row]) for values in (ids, speakers))
        in_range = 0 <= min(rows) <= max(rows) < len(self.positions)
        positions = self.positions[read_by] + offsets if in_range else read_by  # _read refuses other rows
        logits = self._read(read_by, tokens, roles, positions, wanted, len(ids))
        self.positions[list(rows)] += counts
        return logits

    @property
    def hidden(self) -> torch.Tensor:
        """Hidden states `[B, D]` after the last norm at the last tokens whose logits were returned; needs a latent."""
        return self.layers[-1]["hidden"]

    def set_latent(self, row: int, z: torch.Tensor) -> None:
        """Set the latent variable z, fp32 `[Z]`, with which a row reads its next tokens; the model must have one."""
        for layer, skip in zip(self.layers, self.network.skips or (), strict=True):
            layer["latent"][row] = skip @ z

    def _check_count(self, count: int) -> None:
        if count != len(self.positions):
            raise ValueError(f"The batch has {len(self.positions)} rows, got tokens for {count}.")

    def _read(
        self,
        rows: torch.Tensor,
        ids: torch.Tensor,
        speakers: torch.Tensor,
        positions: torch.Tensor,
        wanted: torch.Tensor,
        count: int,
    ) -> torch.Tensor:
        """Check the arguments, then call the compiled library; with a wrong argument it would read memory outside its
        arrays.

        Args:
            rows, ids, speakers, positions, wanted: For each token its row, id, speaker, position and output row,
                int64 `[T]`.
            count: Number of output rows N.

        Returns:
            Logits fp32 `[N, V]`.
        """
        network, config = self.network.network, self.network.config
        if not len(rows) == len(ids) == len(speakers):
            raise ValueError(f"Got {len(ids)} ids and {len(speakers)} speakers for {len(rows)} tokens.")
        limits = ((rows, len(self.positions)), (ids, config.vocab_size), (speakers, SPEAKERS))
        for values, size in limits:
            if values.dtype != torch.int64 or not 0 <= values.min() <= values.max() < size:
                raise IndexError(f"Rows, ids and speakers must be int64 and in range (here 0 to {size - 1}).")
        if config.positions == "learned":
            check_positions(positions, config.max_position_embeddings)
        logits = torch.empty(count, network.head_matrix.rows)
        pointers = [c_void_p(tensor.data_ptr()) for tensor in (rows, ids, speakers, positions, wanted, logits)]
        if _library().xianliao_read(ctypes.byref(network), self._states, c_int64(len(rows)), *pointers):
            raise MemoryError("Out of memory while reading tokens.")
        return logits


def _layer_types(config: XianliaoConfig) -> list[str]:
    return list(config.layer_types or [])


def _library() -> ctypes.CDLL:
    """Return the compiled library of a machine that has it."""
    compiled = library()
    if compiled is None:
        raise RuntimeError("The compiled library is not available; see NativeNetwork.supports.")
    return compiled


def _padded(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Return x with zeros after its first dimension, up to a multiple."""
    return torch.cat([x, x.new_zeros(-len(x) % multiple, *x.shape[1:])])


def _empty_state(kind: str, config: XianliaoConfig, rows: int) -> dict[str, torch.Tensor]:
    """Return the state of a mixer before the first token; in the ring buffers, position p has index p mod W."""
    heads, head = config.num_attention_heads, config.head_dim
    if kind == "sliding_softmax":
        state = {name: torch.zeros(rows, config.sliding_window, heads, head) for name in ("keys", "values")}
    else:
        state = {"recurrent": torch.zeros(rows, heads, head, head)}
    if kind == "linear_elu1":
        state["normalizer"] = torch.zeros(rows, heads, head)
    if config.short_conv:
        state["inputs"] = torch.zeros(rows, config.short_conv - 1, 3 * heads * head)
    return state
