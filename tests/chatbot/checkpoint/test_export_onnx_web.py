"""The step graphs in onnxruntime-web (WebAssembly, run by node) compute what the model does.

The package is found in XIANLIAO_NODE_PACKAGES, the folder of `npm install onnxruntime-web`, or beside the checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from chatbot.checkpoint.export.cli import main
from chatbot.checkpoint.folder import load_model
from tests.chatbot.checkpoint.test_export_onnx import dialogue
from tests.conftest import ROOT

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.slow

RUNNER = Path(__file__).with_name("run_step_graph.mjs")
PACKAGES = Path(os.environ.get("XIANLIAO_NODE_PACKAGES", ROOT.parent))
TOKENS = 200


@pytest.fixture(scope="module")
def bundled(tmp_path_factory) -> Path:
    if shutil.which("node") is None or not (PACKAGES / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("needs node and, in the folder XIANLIAO_NODE_PACKAGES, npm install onnxruntime-web")
    path = tmp_path_factory.mktemp("onnx") / "bot"
    assert main(["default", "--to", "onnx", "--output", str(path)]) == 0
    return path


@pytest.mark.parametrize("file", ["model.onnx", "model_int8.onnx"])
def test_onnxruntime_web_gives_the_logits_of_python_over_200_tokens(bundled, file, tmp_path):
    model = load_model("default")
    ids, speakers = dialogue(1, TOKENS, model.config.vocab_size)
    with torch.no_grad():
        expected = model(ids, token_type_ids=speakers).logits[0].numpy()
    session = onnxruntime.InferenceSession(bundled / file, providers=["CPUExecutionProvider"])
    shapes = {
        value.name: [1 if size == "batch" else 0 if isinstance(size, str) else size for size in value.shape]
        for value in session.get_inputs()
        if value.name.startswith("past")
    }
    request = {"ids": ids[0].tolist(), "speakers": speakers[0].tolist(), "states": shapes}
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    command = ["node", str(RUNNER), str(PACKAGES), str(bundled / file), str(tmp_path / "request.json")]
    done = subprocess.run(
        [*command, str(tmp_path / "logits")], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    actual = np.fromfile(tmp_path / "logits", np.float32).reshape(TOKENS, -1)
    worst = np.abs(actual - expected).max()
    print(f"{file}: {done.stdout.strip()}, worst difference {worst:.1e}")
    assert worst < 1e-4
