"""Processor time of each test, its fixtures and its child processes: `pytest -p tests.cpu_times -n 0 ...`.

Wall time, which `--durations` prints, says little on a busy machine. The report ends with the sum and the slowest tests.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest

SHOWN, MIN_SECONDS = 40, 1.0
seconds: Counter[str] = Counter()


def _used() -> float:
    """Return the processor time of this process and of its children that have ended, in seconds."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    started = _used()
    result = yield
    seconds[item.nodeid] += _used() - started
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("processor time")
    terminalreporter.write_line(f"{_used():8.1f} s in all, {sum(seconds.values()):.1f} s in {len(seconds):,} tests")
    files: Counter[str] = Counter()
    for name, spent in seconds.items():
        files[name.partition("::")[0]] += spent
    for counter in (seconds, files):
        for name, spent in counter.most_common(SHOWN):
            if spent >= MIN_SECONDS:
                terminalreporter.write_line(f"{spent:8.1f} s  {name}")
