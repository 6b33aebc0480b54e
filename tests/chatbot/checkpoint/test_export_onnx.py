"""Export for ONNX: graphs that compute what the model does, token by token and in pieces, for several mixers."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.export.cli import main
from chatbot.checkpoint.folder import load_model, save
from chatbot.model.network import XianliaoForCausalLM
from tests.conftest import ROOT, tiny_config

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from chatbot.checkpoint.export.onnx_graph import (  # noqa: E402  # needs the three packages
    LINEAR,
    STEP,
    STEP_INT8,
    StatefulGraph,
    quantize,
)


def example():
    """Return examples/onnx_chat.py as a module."""
    spec = importlib.util.spec_from_file_location("onnx_chat", ROOT / "examples" / "onnx_chat.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Runner:
    """A graph with its state, for rows of equal length."""

    def __init__(self, path: Path, rows: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        sizes = {"batch": rows}
        self.state = {
            value.name: np.zeros(
                [sizes.get(size, 0) if isinstance(size, str) else size for size in value.shape],
                np.int64 if "int64" in value.type else np.float32,
            )
            for value in self.session.get_inputs()
            if value.name.startswith("past")
        }

    def __call__(self, ids: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        feed = {"input_ids": ids.numpy(), "token_type_ids": speakers.numpy(), **self.state}
        names = [value.name for value in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, feed), strict=True))
        logits = outputs.pop("logits")
        self.state = {name.replace("present", "past", 1): x for name, x in outputs.items()}
        return torch.from_numpy(logits)


def dialogue(rows: int, tokens: int, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random ids with [CLS] at the start and [SEP] here and there, and their speakers."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocab_size, (rows, tokens), generator=generator)
    ids[:, 0], ids[:, 9::23] = 1, 2
    ends = (ids == 2).long()
    return ids, (ends.cumsum(1) - ends) % 2


def worst_difference(model, path: Path, pieces: list[int], rows: int = 2) -> float:
    """Return the largest difference of the logits after each piece of a dialogue."""
    ids, speakers = dialogue(rows, sum(pieces), model.config.vocab_size)
    with torch.no_grad():
        expected = model(ids, token_type_ids=speakers).logits
    run, start, worst = Runner(path, rows), 0, 0.0
    for size in pieces:
        logits = run(ids[:, start : start + size], speakers[:, start : start + size])
        start += size
        worst = max(worst, (logits - expected[:, start - 1]).abs().max().item())
    assert run.state["past_tokens"].tolist() == [start] * rows
    return worst


@pytest.fixture(scope="module")
def bundled(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "bot"
    assert main(["default", "--to", "onnx", "--output", str(path)]) == 0
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "pieces"), [(STEP, [1] * 200), (STEP_INT8, [1] * 200), (LINEAR, [1, 60, 1, 130, 7, 1]), (LINEAR, [200])]
)
def test_the_bundled_bot_gives_the_same_logits_over_200_tokens(bundled, file, pieces):
    assert worst_difference(load_model("default"), bundled / file, pieces) < 1e-4


@pytest.fixture(scope="module")
def greedy(dialogues) -> list[list[tuple[str, str, list[int]]]]:
    """Fifty conversations of two exchanges: message, the reply of Python, its tokens."""
    bot = Chatbot.from_pretrained("default", safety=None)
    conversations = []
    for turns in dialogues[:50]:
        history: list[str] = []
        exchanges = []
        for message in turns[:3:2]:
            history.append(message)
            reply = bot.respond(history, seed=0, method="greedy", banned_words=())
            exchanges.append((message, reply.text, list(reply.token_ids)))
            history.append(reply.text)
        conversations.append(exchanges)
    return conversations


@pytest.mark.slow
@pytest.mark.parametrize("file", [STEP, STEP_INT8, LINEAR])
def test_fifty_conversations_get_the_same_greedy_replies(bundled, greedy, file):
    """The example decodes with numpy; each conversation has two exchanges, the second with the state of the first."""
    chat = example().OnnxChat(bundled, file)
    for exchanges in greedy:
        for message, text, token_ids in exchanges:
            assert chat.reply(message, greedy=True) == text
            assert chat.turns[-1] == token_ids
        chat.turns.clear()  # the next conversation begins as in a new chat
        chat.forget()


@pytest.mark.slow
def test_the_example_bounds_replies_and_drops_old_turns(bundled):
    module = example()
    chat = module.OnnxChat(bundled)
    random = np.random.default_rng(0)
    read = chat.read
    chat.read = lambda ids, speaker: read(ids, speaker) - 50 * (np.arange(8192) == chat.end)  # it never wants to end
    chat.reply("你好", random=random)
    assert len(chat.turns[-1]) <= 57 + 2 * 32
    chat.read, chat.config["context_tokens"] = read, 60
    for number in range(6):
        chat.reply(f"第{number}句，今天天气怎么样", random=random)
        assert chat.state["past_tokens"][0] <= 60 + 121
    script = [sys.executable, str(ROOT / "examples" / "onnx_chat.py"), str(bundled), "--greedy", "--message", "你好"]
    result = subprocess.run(script, capture_output=True, text=True, check=True)
    bot = Chatbot.from_pretrained("default", safety=None)
    assert result.stdout.strip() == bot.reply(["你好"], seed=0, method="greedy")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixers", "has_linear"),
    [
        (["linear_gated", "softmax"], True),
        (["linear_decay", "linear_taylor2"], True),
        (["gated_delta", "sliding_softmax"], False),
        (["linear_softmax_feat", "linear_taylor1"], True),
    ],
)
def test_other_mixers(tokenizer, tmp_path, mixers, has_linear):
    torch.manual_seed(0)
    changes = {"short_conv": 4 if "softmax" in mixers else 0, "sliding_window": 8, "output_gate": True}
    changes["linear_rope"] = "linear_taylor1" in mixers
    config = tiny_config(tokenizer, layer_types=mixers, initializer_range=0.2, **changes)
    model = XianliaoForCausalLM(config).eval()
    save(tmp_path / "tiny", model, tokenizer, {}, {})
    assert main([str(tmp_path / "tiny"), "--to", "onnx", "--output", str(tmp_path / "onnx")]) == 0
    assert worst_difference(model, tmp_path / "onnx" / STEP, [1] * 40, rows=3) < 1e-4
    assert (tmp_path / "onnx" / LINEAR).is_file() == has_linear
    if has_linear:
        assert worst_difference(model, tmp_path / "onnx" / LINEAR, [1, 20, 1, 12], rows=1) < 1e-4


def test_the_wrapped_model_is_a_function_of_its_state(tokenizer):
    """Without tracing: the state of a window is what the number of tokens and the keys say."""
    torch.manual_seed(0)
    config = tiny_config(tokenizer, layer_types=["linear_elu1", "sliding_softmax"], sliding_window=6, short_conv=3)
    model = XianliaoForCausalLM(config).eval()
    graph = StatefulGraph(model)
    ids, speakers = dialogue(2, 20, config.vocab_size)
    past, past_tokens = [torch.zeros(2, *shape) for shape in graph.shapes], torch.zeros(2, dtype=torch.int64)
    with torch.no_grad():
        expected = model(ids, token_type_ids=speakers).logits
        for t in range(20):
            logits, past_tokens, *past = graph(ids[:, t : t + 1], speakers[:, t : t + 1], past_tokens, past)
            torch.testing.assert_close(logits, expected[:, t], atol=1e-5, rtol=1e-5)
    assert [name for _, name in graph.names] == ["inputs", "recurrent", "inputs", "keys", "values"]


def test_int8_matrices_are_those_of_the_checkpoint():
    """A product x @ W and a table of rows: each row of the checkpoint's matrix, a column of W, has its scale."""
    generator = np.random.default_rng(0)
    table = generator.normal(size=(80, 64)).astype(np.float32)
    weight = generator.normal(size=(64, 96)).astype(np.float32)
    weight[:, 5] *= 100  # a large column must not coarsen the others
    helper = onnx.helper
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    ids = helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, [3])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3, 96])
    stored = [onnx.numpy_helper.from_array(table, "table"), onnx.numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph(nodes, "g", [ids], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    size = model.ByteSize()
    quantize(model)
    onnx.checker.check_model(model)
    assert model.ByteSize() < 0.4 * size
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"ids": np.array([3, 0, 79])})
    rows = np.abs(table).max(1, keepdims=True) / 127
    columns = np.abs(weight).max(0, keepdims=True) / 127
    expected = (np.round(table / rows) * rows)[[3, 0, 79]] @ (np.round(weight / columns) * columns)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["linear_efficient", "softmax"]}, "layers of type linear_efficient"),
        ({"layer_types": ["synthesizer_dense", "softmax"]}, "layers of type synthesizer_dense"),
        ({"positions": "learned"}, "learned positions"),
        ({"termination": "nmst"}, r"an end head \(nmst\)"),
    ],
)
def test_models_that_have_no_graph_are_refused(tokenizer, tmp_path, capsys, changes, words):
    model = XianliaoForCausalLM(tiny_config(tokenizer, **changes))
    save(tmp_path / "tiny", model, tokenizer, {}, {})
    assert main([str(tmp_path / "tiny"), "--to", "onnx", "--output", str(tmp_path / "new")]) == 1
    error = capsys.readouterr().err
    assert words.replace("\\", "") in error
    assert [line.partition(" ")[0] for line in error.splitlines()] == ["loading", "error:"]
    assert not (tmp_path / "new").exists()
