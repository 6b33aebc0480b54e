"""The C code under AddressSanitizer and UndefinedBehaviorSanitizer, driven by `fuzz`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
SEEDS, PER_PROCESS = 60, 20


def sanitizer_libraries() -> str | None:
    """Paths of the run-time libraries, for LD_PRELOAD; None where the compiler has none."""
    compiler = shutil.which("gcc")
    if compiler is None:
        return None
    paths = []
    for name in ("libasan.so", "libubsan.so"):
        path = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(path):
            return None
        paths.append(os.path.realpath(path))
    return " ".join(paths)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Cache folder of the instrumented library, which the first process builds for all."""
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize("first", range(0, SEEDS, PER_PROCESS))
def test_odd_shapes_lengths_ids_and_weights_touch_no_foreign_memory(first, cache, tmp_path):
    libraries = sanitizer_libraries()
    if libraries is None or sys.platform != "linux":
        pytest.skip("gcc with sanitizers is not installed")
    environment = {
        **os.environ,
        "LD_PRELOAD": libraries,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=77",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "XDG_CACHE_HOME": str(cache),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "2",
    }
    command = [sys.executable, "-m", "tests.chatbot.native.fuzz", str(first), str(first + PER_PROCESS)]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    report = result.stderr[-6000:]
    assert "Sanitizer" not in report, report
    assert "runtime error" not in report, report
    assert result.returncode == 0, report
    assert int(result.stdout.split()[0]) > 100
