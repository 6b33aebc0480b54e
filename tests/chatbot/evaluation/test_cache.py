"""The cache of an evaluation: results are computed once, and again when the code has changed."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from chatbot.chat import request as chat_request
from chatbot.errors import FileError
from chatbot.evaluation import cache
from chatbot.evaluation.cache import DECIDING, PACKAGE, CacheFile, ResultCache, code_hash
from chatbot.evaluation.grid import Grid
from chatbot.evaluation.run import evaluate

GRID = Grid((8,), {"default": {}}, 50, 20, 20, 1)


@pytest.fixture
def package(tmp_path):
    """A copy of the package to edit."""
    folder = tmp_path / "chatbot"
    shutil.copytree(PACKAGE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def hash_after(package, name, addition):
    """Append a text to a file of the copy and return the hash of its code."""
    with (package / name).open("a", encoding="utf-8") as file:
        file.write(addition)
    return code_hash(package)


def test_what_decides_an_answer_exists():
    assert all((PACKAGE / name).exists() for name in DECIDING)


@pytest.mark.parametrize(
    ("name", "addition"),
    [
        ("decoding/loop.py", "CHANGED = 1\n"),
        ("decoding/rules/eos_floor.py", "CHANGED = 1\n"),
        ("native/step.c", "static int changed;\n"),
        ("text/dialogue.py", "CHANGED = 1\n"),
        ("evaluation/answering.py", "BATCH_SIZE = 32\n"),
    ],
)
def test_changed_code_changes_the_hash(package, name, addition):
    assert hash_after(package, name, addition) != code_hash(PACKAGE)


@pytest.mark.parametrize(
    ("name", "addition"),
    [
        ("decoding/loop.py", "# a comment\n"),
        ("decoding/loop.py", '"""A docstring."""\n'),
        ("evaluation/report/html.py", "CHANGED = 1\n"),
        ("cli.py", "CHANGED = 1\n"),
    ],
)
def test_words_and_the_report_do_not_change_the_hash(package, name, addition):
    assert hash_after(package, name, addition) == code_hash(PACKAGE)


def test_a_changed_decoder_is_measured_again(bot, dialogues, package, tmp_path, monkeypatch):
    """A run into the same folder after a change of the code gives what a run into a fresh folder gives."""
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(turns, ensure_ascii=False) for turns in dialogues[:6]), encoding="utf-8")

    def mean_characters(output):
        report = evaluate([bot], data, tmp_path / output, grid=GRID, max_contexts=4)["report"]
        return report["checkpoints"][0]["decoding"]["default"]["mean_characters"]

    assert mean_characters("report") > 0
    run = chat_request.run

    def says_nothing(*args):
        *_, drafts = run(*args)
        for draft in drafts:
            draft.token_ids = []
        yield drafts

    monkeypatch.setattr(chat_request, "run", says_nothing)
    assert mean_characters("report") > 0  # the files are as before, so the cached replies are used
    hash_after(package, "decoding/loop.py", "CHANGED = 1\n")  # a change of the code is seen on disk
    monkeypatch.setattr(cache, "PACKAGE", package)
    assert mean_characters("report") == 0
    assert mean_characters("fresh") == 0


def test_files_of_another_code_are_removed_at_the_end(package, tmp_path, monkeypatch):
    ResultCache(tmp_path).open("bot-quality", {}).add({"nats": []})
    hash_after(package, "model/scoring.py", "CHANGED = 1\n")
    monkeypatch.setattr(cache, "PACKAGE", package)
    later = ResultCache(tmp_path)
    assert later.open("bot-quality", {}).rows == []
    later.open("bot-quality", {}).add({"nats": [1]})
    later.remove_unused()
    assert [json.loads(path.read_text()) for path in (tmp_path / "replies").iterdir()] == [{"nats": [1]}]


def cache_file(folder):
    """Return the path that a cache file has in a report folder, without the file."""
    path = ResultCache(folder).open("x", 1).path
    assert not path.exists()
    return path


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_a_cache_file_that_leads_outside_is_refused_and_its_target_is_not_changed(tmp_path, kind):
    path = cache_file(tmp_path / "report")
    target = tmp_path / "victim.txt"
    if kind == "link":
        target.write_text("not JSON\n")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
    with pytest.raises(FileError, match=r"^Cannot continue .* Remove it\.$"):
        CacheFile(path)
    assert target.read_text() == "not JSON\n" if kind == "link" else not target.exists()


def test_a_folder_of_cache_files_that_is_a_link_is_refused(tmp_path):
    """Otherwise the cache would remove the files that it does not know from another folder."""
    (tmp_path / "report").mkdir()
    (tmp_path / "dialogues").mkdir()
    (tmp_path / "dialogues" / "mine.jsonl").write_text("{}\n")
    (tmp_path / "report" / cache.FOLDER).symlink_to(tmp_path / "dialogues")
    with pytest.raises(FileError, match=r"replies is a link\. Remove it"):
        ResultCache(tmp_path / "report").remove_unused()
    assert (tmp_path / "dialogues" / "mine.jsonl").exists()


@pytest.mark.parametrize("line", [b"[" * 100_000, b"\xff", b'{"a": ' + b"9" * 5_000 + b"}", b"3", b'{"b": 1'])
def test_a_cache_file_is_cut_before_a_damaged_line(tmp_path, line):
    path = cache_file(tmp_path)
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    file = CacheFile(path)
    assert file.rows == [{"a": 1}]
    file.add({"a": "二"})
    assert CacheFile(path).rows == [{"a": 1}, {"a": "二"}]
