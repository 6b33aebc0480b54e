"""A built wheel, installed into a new environment in another folder, runs the commands."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.conftest import ROOT
from tests.ui.serving import free_port

pytestmark = pytest.mark.slow

PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
INSTALL = (*PIP, "install", "--no-compile", "--constraint", ROOT / "constraints.txt")  # few modules are imported
LEFT_OUT = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}


def run(*command: object, folder: Path, status: int = 0) -> str:
    """Run a command in a folder and return its stdout and stderr."""
    arguments = [str(part) for part in command]
    result = subprocess.run(arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900)
    assert result.returncode == status, f"{arguments}: {result.stdout[-2000:]}{result.stderr[-4000:]}"
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of the files that git knows, so that nothing else of this checkout gets into it."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    run(sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", built, ".", folder=source)
    return next(built.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of a new environment that holds the wheel and the packages for chatting."""
    folder = tmp_path_factory.mktemp("elsewhere")
    run(sys.executable, "-m", "venv", folder / "venv", folder=folder)
    python = folder / "venv" / "bin" / "python"
    run(python, *INSTALL, wheel, folder=folder)
    return python


@pytest.fixture(scope="module")
def complete(python, wheel) -> Path:
    """The folder of the commands, with the packages of every task."""
    run(python, *INSTALL, f"xianliao[all] @ {wheel.as_uri()}", folder=python.parent)
    return python.parent


def test_the_terminal_needs_neither_gradio_nor_datasets(python, tmp_path):
    reply = run(python.with_name("xianliao-chat"), "--message", "你好", "--seed", "1", folder=tmp_path)
    assert reply.strip()
    packages = run(python, *PIP, "list", folder=tmp_path).lower()
    assert not {"gradio", "datasets", "accelerate", "scipy", "pot"} & {
        line.split()[0] for line in packages.splitlines()
    }


@pytest.mark.parametrize(
    ("command", "extra"),
    [("serve", "serve"), ("prepare", "prepare"), ("train", "train"), ("evaluate", "eval"), ("export", "export")],
)
def test_a_missing_extra_is_named(python, tmp_path, command, extra):
    arguments = {
        "serve": ["--port", free_port()],
        "prepare": ["--input", "x.jsonl", "--output", "set"],
        "train": ["--data", "set", "--output", "run"],
        "evaluate": ["--data", "x.jsonl", "--output", "report"],
        "export": ["default", "--to", "onnx", "--output", "graphs"],
    }[command]
    (tmp_path / "x.jsonl").write_text('["你好", "你好呀"]\n' * 3, encoding="utf-8")
    output = run(python.with_name(f"xianliao-{command}"), *arguments, folder=tmp_path, status=1)
    assert f"xianliao[{extra}]" in output
    assert "Traceback" not in output


def test_the_export_for_transformers_needs_no_extra(python, tmp_path):
    run(python.with_name("xianliao-export"), "default", "--to", "hf", "--output", "bot", folder=tmp_path)
    assert {"modeling_xianliao.py", "README.md", "model.safetensors"} <= {
        path.name for path in (tmp_path / "bot").iterdir()
    }


def test_the_wheel_has_the_chinese_texts(python, tmp_path):
    code = "from chatbot.language.translation import to_chinese; print(to_chinese('stopped'))"
    assert run(python, "-X", "utf8", "-c", code, folder=tmp_path).strip() == "已停止"


def test_the_five_commands(complete, tmp_path):
    samples = run(complete / "python", "-c", "import data_prep; print(data_prep.__path__[0])", folder=tmp_path).strip()
    assert str(ROOT) not in samples
    run(
        complete / "xianliao-prepare",
        "--input",
        f"{samples}/samples",
        "--tokenizer",
        "default",
        "--output",
        "set",
        folder=tmp_path,
    )
    training = ["--data", "set", "--init", "default", "--output", "run", "--max-steps", "2", "--eval-every", "2"]
    run(complete / "xianliao-train", *training, "--batch-rows", "2", "--micro-batch-rows", "2", folder=tmp_path)
    assert run(
        complete / "xianliao-chat", "--checkpoint", "run", "--message", "你好", "--seed", "1", folder=tmp_path
    ).strip()
    (tmp_path / "few.jsonl").write_text('["你好", "你好呀"]\n["今天下雨了", "带把伞吧"]\n', encoding="utf-8")
    (tmp_path / "grid.yaml").write_text("methods:\n  sample: {}\n", encoding="utf-8")
    run(
        complete / "xianliao-evaluate",
        "--data",
        "few.jsonl",
        "--output",
        "report",
        "--grid",
        "grid.yaml",
        folder=tmp_path,
    )
    assert (tmp_path / "report" / "report.html").is_file()
    port = free_port()
    command = [str(complete / "xianliao-serve"), "--port", str(port), "--data-dir", str(tmp_path / "data")]
    with open(tmp_path / "log", "wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                assert json.load(urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2))["status"] == "ok"
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert "gradio" in urlopen(f"http://127.0.0.1:{port}/", timeout=20).read().decode()
    finally:
        server.kill()
        server.wait()
