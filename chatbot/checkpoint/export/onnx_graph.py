"""Export for ONNX: graphs that read tokens and carry the state of the dialogues as inputs and outputs.

torch.onnx traces the model itself, which avoids a second implementation. The output folder has these files:

    model.onnx           one token per call and dialogue, opset 18, fp32
    model_int8.onnx      the same; matrices are int8 with one scale per row and become fp32 when the graph is loaded
    model_opset27.onnx   any number of tokens per call, with the operator LinearAttention of opset 27; not for every mixer
    tokenizer.json  config.json  generation_config.json  README.md

Dims: B batch, T tokens, V vocabulary, W window.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnxscript  # noqa: F401  # torch.onnx needs it: fail at once where it is missing
import torch
from onnx import helper, numpy_helper
from torch import nn

from chatbot.checkpoint.export.hf import banned_ids, load_exportable
from chatbot.checkpoint.folder import CONFIG, GENERATION
from chatbot.errors import CheckpointError
from chatbot.model.attention import linear
from chatbot.model.int8 import round_rows
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import read_json, replacing, write_json
from chatbot.text.tokenizer import TOKENIZER_FILE

STEP, STEP_INT8, LINEAR = "model.onnx", "model_int8.onnx", "model_opset27.onnx"
STEP_OPSET, LINEAR_OPSET = 18, 27
DERIVED = ("positions", "keep")
"""Parts of a window's state that follow from the number of tokens read."""

WITHOUT_OPERATOR = ("gated_delta",)
"""Mixers that the step graph supports and `model_opset27.onnx` does not."""

EXPERIMENTAL = ("linear_efficient", "synthesizer")
MIN_QUANTIZED = 4096
"""Minimum number of elements of a matrix that is stored as int8."""

README = Path(__file__).with_name("onnx.md")


class StatefulGraph(nn.Module):
    """The model as a function of tokens and tensors; see `forward`.

    Attributes:
        names: Layer and name of each tensor of the state.
        shapes: Shapes of the state tensors of one dialogue before its first token; the growing dimension of softmax
            attention is 0.
    """

    def __init__(self, model: XianliaoForCausalLM):
        super().__init__()
        self.model = model
        self.layer_types = list(model.config.layer_types or [])
        state = model.new_state()
        one = torch.tensor([[model.config.bos_token_id or 0]])
        with torch.no_grad():
            model(one, token_type_ids=torch.zeros_like(one), past_key_values=state)
        self.names: list[tuple[int, str]] = []
        self.shapes: list[tuple[int, ...]] = []
        for layer, kind in enumerate(self.layer_types):
            for name, tensor in state.layers[layer].tensors.items():
                if name not in DERIVED:
                    grows = kind == "softmax" and name in ("keys", "values")
                    self.names.append((layer, name))
                    self.shapes.append((0, *tensor.shape[2:]) if grows else tuple(tensor.shape[1:]))

    def forward(
        self,
        input_ids: torch.Tensor,
        token_type_ids: torch.Tensor,
        past_tokens: torch.Tensor,
        past: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Read tokens.

        Args:
            input_ids: int64 `[B, T]`.
            token_type_ids: Speakers, int64 `[B, T]`.
            past_tokens: Number of tokens that each dialogue has read, int64 `[B]`.
            past: The state, in the order of `names`; zeros before the first token.

        Returns:
            Logits `[B, V]` of the next token, the new `past_tokens`, and the new state.
        """
        state = self.model.new_state()
        for (layer, name), tensor in zip(self.names, past, strict=True):
            state.layers[layer].tensors[name] = tensor
        window = self.model.config.sliding_window
        for layer, kind in enumerate(self.layer_types):
            if kind == "sliding_softmax":  # entries from before the first token are outside of every window
                positions = past_tokens[:, None] - window + torch.arange(window)
                state.layers[layer].tensors["positions"] = torch.where(positions < 0, -window, positions)
        state.layers[-1].tensors["seen"] = past_tokens
        output = self.model(input_ids, token_type_ids=token_type_ids, past_key_values=state, logits_to_keep=1)
        tensors = [state.layers[layer].tensors[name] for layer, name in self.names]
        return output.logits[:, -1], past_tokens + input_ids.shape[1], *tensors


def linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    form: str = "auto",
    chunk_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace `chatbot.model.attention.recurrence.recurrence` by ONNX's operator LinearAttention of opset 27."""
    assert segment_ids is None
    assert state is not None
    heads = q.shape[2]
    inputs = [q.flatten(2), k.flatten(2), v.flatten(2), state]
    rule = "linear" if log_decay.shape[2] != heads else "gated"
    inputs += [log_decay] if rule == "gated" else []
    attributes: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": heads, "scale": 1.0, "update_rule": rule}
    shapes = [(*v.shape[:2], heads * v.shape[3]), tuple(state.shape)]
    output, after = torch.onnx.ops.symbolic_multi_out(
        "LinearAttention", inputs, attributes, dtypes=[v.dtype, v.dtype], shapes=shapes
    )
    return output.unflatten(2, (heads, -1)), after


def export_onnx(folder: Path, path: Path) -> None:
    """Write a folder of ONNX graphs with the tokenizer and the settings.

    Args:
        folder: Checkpoint folder.
        path: New folder.

    Raises:
        CheckpointError: The checkpoint cannot be read, or has mixers, positions or an end head that the graphs lack.
    """
    model, tokenizer = load_exportable(folder)
    check_supported(model)
    path.mkdir(parents=True, exist_ok=True)
    graph = StatefulGraph(model).eval()
    step = trace(graph, tokens=1)
    _write(step, path / STEP)
    quantize(step)
    _write(step, path / STEP_INT8)
    if not set(graph.layer_types) & set(WITHOUT_OPERATOR):
        with _replaced(linear, "recurrence", linear_attention):
            reader = trace(graph, tokens=5)
        reader.opset_import[0].version = LINEAR_OPSET  # its other operators mean the same in both
        _write(reader, path / LINEAR)
    (path / TOKENIZER_FILE).write_text(tokenizer.to_json(), encoding="utf-8")
    config = model.config
    settings = ("layer_types", "vocab_size", "context_tokens", "bos_token_id", "eos_token_id", "pad_token_id", "layout")
    write_json(path / CONFIG, {"model_type": "xianliao", **{name: getattr(config, name) for name in settings}})
    stored = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
    write_json(path / GENERATION, {**stored, "banned_ids": banned_ids(tokenizer)})
    (path / "README.md").write_text(README.read_text(encoding="utf-8"), encoding="utf-8")


def check_supported(model: XianliaoForCausalLM) -> None:
    """Check that a model can become a graph.

    Raises:
        CheckpointError: The model has a part that is not supported.
    """
    kinds = sorted({kind for kind in model.config.layer_types or [] if kind.startswith(EXPERIMENTAL)})
    if kinds:
        fault = f"layers of type {kinds[0]}"
    elif model.config.positions == "learned":
        fault = "learned positions"
    elif model.config.termination != "softmax":
        fault = f"an end head ({model.config.termination})"
    else:
        return
    raise CheckpointError(f"The model has {fault}, which the ONNX export does not support. Use --to hf.")


def trace(graph: StatefulGraph, tokens: int) -> onnx.ModelProto:
    """Return the graph of a model, in the operators of `STEP_OPSET`.

    Args:
        graph: The model.
        tokens: 1 for one token per call, more for any number.
    """
    batch, length, grown = (torch.export.Dim(name, min=1) for name in ("batch", "tokens", "remembered"))
    width: dict[int, Any] = {0: batch} if tokens == 1 else {0: batch, 1: length}
    growing = [shape[0] == 0 for shape in graph.shapes]
    past = [torch.zeros(3, *((7, *shape[1:]) if shape[0] == 0 else shape)) for shape in graph.shapes]
    ids = torch.ones(3, tokens, dtype=torch.int64)
    inputs = (ids, torch.zeros_like(ids), torch.full((3,), 7), past)
    dynamic = (width, width, {0: batch}, [{0: batch, 1: grown} if grows else {0: batch} for grows in growing])
    parts = [f"{layer}.{name}" for layer, name in graph.names]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names of axes, and torch's own deprecations
        program = torch.onnx.export(
            graph,
            inputs,
            dynamo=True,
            opset_version=STEP_OPSET,
            dynamic_shapes=dynamic,
            input_names=["input_ids", "token_type_ids", "past_tokens", *(f"past.{part}" for part in parts)],
            output_names=["logits", "present_tokens", *(f"present.{part}" for part in parts)],
            verbose=False,
        )
    assert program is not None
    return program.model_proto


def quantize(graph: onnx.ModelProto) -> None:
    """Store the matrices of a graph as int8 with one fp32 scale per row of the checkpoint's matrix, in place.

    The products are still computed in fp32, because a runtime converts the constants to fp32 when it loads the graph.
    DequantizeLinear would allow onnxruntime to round the activations as well, which changes logits by about 1.
    """
    initializers = {tensor.name: tensor for tensor in graph.graph.initializer}
    products = {node.input[1] for node in graph.graph.node if node.op_type == "MatMul"}
    for name, tensor in initializers.items():
        matrix = numpy_helper.to_array(tensor)
        if matrix.ndim != 2 or matrix.size < MIN_QUANTIZED or matrix.dtype != "float32":
            continue
        is_transposed = name in products  # x @ W^T of torch: the rows of W are the columns here
        rounded, scale = round_rows(torch.tensor(matrix.T if is_transposed else matrix))
        parts = [(f"{name}.int8", rounded), (f"{name}.scale", scale)]
        graph.graph.initializer.remove(tensor)
        graph.graph.initializer.extend(
            numpy_helper.from_array((part.T if is_transposed else part).contiguous().numpy(), label)
            for label, part in parts
        )
        wide = helper.make_node("Cast", [f"{name}.int8"], [f"{name}.float"], to=onnx.TensorProto.FLOAT)
        product = helper.make_node("Mul", [f"{name}.float", f"{name}.scale"], [name])
        graph.graph.node.insert(0, product)
        graph.graph.node.insert(0, wide)


def _write(graph: onnx.ModelProto, path: Path) -> None:
    onnx.checker.check_model(graph)
    with replacing(path) as temporary:
        temporary.write_bytes(graph.SerializeToString(deterministic=True))


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Replace a name of a module while the block runs."""
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
