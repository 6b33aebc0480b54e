"""The results of the training view become models of the server."""

from __future__ import annotations

import shutil
import threading

import gradio as gr
import pytest
from starlette.requests import Request

from chatbot.chat.worker import Worker
from chatbot.errors import XianliaoError
from ui.server.work import WorkPool
from ui.studio.options import StudioOptions
from ui.studio.served import MAX_RESULTS, Results
from ui.studio.studio import Studio
from ui.studio.view import StudioView


@pytest.fixture
def workers(bot):
    workers = {"tiny": Worker(bot)}
    yield workers
    for worker in workers.values():
        worker.close(0)


def test_a_result_is_served_beside_the_other_models_and_the_oldest_is_dropped(workers, checkpoint, tmp_path):
    results = Results(workers, Worker, StudioOptions(tmp_path))
    for number in range(1, MAX_RESULTS + 2):
        shutil.copytree(checkpoint, tmp_path / f"bot-{number}")
        assert results.add(tmp_path / f"bot-{number}") == f"bot-{number}"
    newest = [f"bot-{number}" for number in range(2, MAX_RESULTS + 2)]
    assert list(workers) == ["tiny", *newest]
    assert list(workers["bot-2"].stream_replies(["你好"], 1))[-1].text is not None
    before = workers["bot-2"]
    results.add(tmp_path / "bot-2")  # a run that was continued replaces its earlier state
    assert workers["bot-2"] is not before
    assert len(workers) == MAX_RESULTS + 1


def test_a_result_does_not_replace_a_model_of_the_operator(workers, checkpoint, tmp_path):
    workers["bot-1"] = workers["tiny"]
    results = Results(workers, Worker, StudioOptions(tmp_path))
    shutil.copytree(checkpoint, tmp_path / "work" / "bot-1")
    assert results.add(tmp_path / "work" / "bot-1") == "work/bot-1"
    assert workers["bot-1"] is workers["tiny"]


def test_a_damaged_result_changes_nothing(workers, tmp_path):
    with pytest.raises(XianliaoError):
        Results(workers, Worker, StudioOptions(tmp_path)).add(tmp_path / "bot-1")
    assert list(workers) == ["tiny"]


def test_an_order_waits_among_the_large_texts_because_it_reads_files(workers, tmp_path, monkeypatch):
    threads, pool, studio = [], WorkPool(), Studio(StudioOptions(tmp_path))
    show = studio.state
    monkeypatch.setattr(
        studio, "state", lambda language: threads.append(threading.current_thread().name) or show(language)
    )
    view, request = StudioView(studio, workers, str, pool), gr.Request(Request({"type": "http", "headers": []}))
    assert view.order({"do": "look"}, request)["folder"] == str(tmp_path)
    assert [name.split("_")[0] for name in threads] == ["large-texts"]
    pool.close()
    studio.close()
