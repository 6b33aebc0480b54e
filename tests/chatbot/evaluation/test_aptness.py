"""Aptness: blind sheets, ratings read back, figures with known values, a judge behind an endpoint, and choices."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from chatbot import cli
from chatbot.chat.bot import Chatbot
from chatbot.errors import FileError
from chatbot.evaluation.answering import Context
from chatbot.evaluation.aptness import choosing, judge, run
from chatbot.evaluation.aptness.judge import JudgeError, endpoint, parse_answer, question_of, rate
from chatbot.evaluation.aptness.scores import read_scores, summarise, weighted_kappa
from chatbot.evaluation.aptness.sheets import (
    RANDOM,
    REFERENCE,
    Key,
    make_rows,
    orders,
    other_replies,
    sheet_lines,
    write_sheets,
)

CONTEXTS = [Context(("你好",), "你好呀"), Context(("我累了", "怎么了", "加班"), "早点睡"), Context(("饿",), "吃饭吧")]
REPLIES = {"old": ["早点睡", "嗯", "吃饭吧"], "new": ["你好呀", "早点睡", "嗯"]}


@pytest.fixture
def key():
    rows = make_rows("plain", CONTEXTS, REPLIES, 0, 0)
    return Key(0, [REFERENCE, "old", "new", RANDOM], rows)


def rated(key, sheet, score, path):
    """Write a sheet's ratings, where `score` maps a row and a reply to a score."""
    lines = [
        {"sheet": sheet, "id": row.id, "scores": [score(row, row.replies[i]) for i in order]}
        for row, order in orders(key, sheet)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_row_holds_each_distinct_reply_once_with_all_systems_that_gave_it(key):
    row = key.rows[0]
    assert row.replies[:2] == ["你好呀", "早点睡"]
    assert row.systems[0] == [REFERENCE, "new"]
    for row in key.rows:
        assert len(set(row.replies)) == len(row.replies)
        assert sorted(system for systems in row.systems for system in systems) == sorted(key.systems)


def test_random_replies_are_the_references_of_other_contexts():
    references = [str(number) for number in range(50)]
    others = other_replies(references, 3)
    assert sorted(others) == sorted(references)
    assert all(other != reference for other, reference in zip(others, references, strict=True))


def test_sheets_do_not_tell_the_system_and_differ_in_their_order(key, tmp_path):
    write_sheets(key, tmp_path, 3)
    texts = [(tmp_path / f"sheet-{sheet}.{end}").read_text() for sheet in (1, 2, 3) for end in ("jsonl", "html")]
    for text in texts:
        assert not any(word in text for word in ("old", 'new"', REFERENCE, RANDOM, "plain"))
    assert len({tuple(line["id"] for line in sheet_lines(key, sheet)) for sheet in range(1, 20)}) > 1
    orders_of_row_0 = {tuple(order) for sheet in range(1, 20) for row, order in orders(key, sheet) if row.id == 0}
    assert len(orders_of_row_0) > 1


def test_a_page_holds_text_as_data_only(tmp_path):
    rows = make_rows("x", [Context(("</script><b>",), "a"), Context(("饿",), "b")], {}, 0, 0)
    (page,) = write_sheets(Key(0, [REFERENCE, RANDOM], rows), tmp_path, 1)
    assert page.read_text(encoding="utf-8").count("</script>") == 1


def test_the_key_is_read_back(key, tmp_path):
    key.write(tmp_path)
    assert Key.read(tmp_path) == key
    (tmp_path / "key.json").write_text('{"rows": [{"id": 1}]}')
    with pytest.raises(FileError, match="is not the key"):
        Key.read(tmp_path)


def test_scores_find_their_replies_in_any_order(key, tmp_path):
    scores = {(row.id, text): (len(text) + row.id) % 3 for row in key.rows for text in row.replies}
    for sheet in (1, 2, 5):
        path = rated(key, sheet, lambda row, text: scores[row.id, text], tmp_path / f"scores-{sheet}.jsonl")
        read = read_scores(path, key).scores
        assert read == {row.id: [scores[row.id, text] for text in row.replies] for row in key.rows}


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        "[1]",
        '{"sheet": 1, "id": 0}',
        '{"sheet": 1, "id": 99, "scores": [1]}',
        '{"sheet": 1, "id": 0, "scores": [1]}',
        '{"sheet": 1, "id": 0, "scores": [1, 1, 3]}',
        '{"sheet": 1, "id": 0, "scores": [1, 1, true]}',
        '{"sheet": 1, "id": 0, "scores": [1, NaN, 2]}',
    ],
)
def test_damaged_scores_are_refused_with_their_line(key, tmp_path, line):
    path = rated(key, 1, lambda *_: 1, tmp_path / "scores-1.jsonl")
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(FileError, match="Line 4 of"):
        read_scores(path, key)


def test_an_empty_file_of_scores_is_refused(key, tmp_path):
    (tmp_path / "scores.jsonl").write_text("\n")
    with pytest.raises(FileError, match="no rating"):
        read_scores(tmp_path / "scores.jsonl", key)


def test_the_figures_are_those_of_the_ratings(key, tmp_path):
    """Two judges: the reference gets 2, "嗯" 0 or 1, everything else 0."""

    def score(low):
        return lambda row, text: 2 if text == CONTEXTS[row.id].reference else low if text == "嗯" else 0

    judges = [read_scores(rated(key, n, score(n - 1), tmp_path / f"scores-{n}.jsonl"), key) for n in (1, 2)]
    result = summarise(key, judges, resamples=200)
    systems = result["sets"]["plain"]["systems"]
    assert systems[REFERENCE]["mean"] == 2
    assert systems[RANDOM]["mean"] == 0
    assert systems["old"]["mean"] == pytest.approx((0 + 0 + 0 + 1 + 2 + 2) / 6)
    assert systems["new"]["mean"] == pytest.approx((2 + 2 + 2 + 2 + 0 + 1) / 6)
    assert [systems["old"][f"share_{level}"] for level in (0, 1, 2)] == pytest.approx([3 / 6, 1 / 6, 2 / 6])
    new = systems["new"]["preferred_to"]["old"]
    assert (new["wins"], new["losses"], new["ties"], new["share"]) == (4, 2, 0, pytest.approx(4 / 6))
    assert systems["old"]["preferred_to"]["new"]["share"] == pytest.approx(2 / 6)
    assert systems["old"]["interval"][0] < systems["old"]["mean"] < systems["old"]["interval"][1]
    assert 0.8 < result["agreement"][0]["kappa"] < 1


def test_weighted_kappa_of_known_tables():
    assert weighted_kappa([0, 1, 2, 2], [0, 1, 2, 2]) == 1
    assert weighted_kappa([0, 2, 0, 2], [0, 0, 2, 2]) == 0
    assert weighted_kappa([0, 2], [2, 0]) == -1
    # confusion matrix [[2, 1, 0], [0, 2, 1], [1, 0, 3]]: observed 6 / 10, expected 138 / 100
    a, b = [0, 0, 0, 1, 1, 1, 2, 2, 2, 2], [0, 0, 1, 1, 1, 2, 0, 2, 2, 2]
    assert weighted_kappa(a, b) == pytest.approx(1 - 0.6 / 1.38)
    assert weighted_kappa([1, 1], [1, 1]) is None
    assert weighted_kappa([], []) is None


def test_a_judge_who_rated_a_part_counts_where_he_rated(key, tmp_path):
    path = rated(key, 1, lambda *_: 2, tmp_path / "scores-1.jsonl")
    first_line = path.read_text().splitlines()[0]
    path.write_text(first_line + "\n")
    result = summarise(key, [read_scores(path, key)], resamples=50)
    assert result["sets"]["plain"]["contexts"] == 1


def test_a_question_names_the_speakers_so_that_the_reply_is_of_the_other():
    assert question_of(["你好"], ["好", "嗯"]) == "聊天：\n甲：你好\n\n乙的候选回复：\n1. 好\n2. 嗯"
    assert question_of(["a", "b", "c"], ["d"]).splitlines()[1:4] == ["甲：a", "乙：b", "甲：c"]
    assert question_of(["a", "b"], ["d"]).splitlines()[1:3] == ["乙：a", "甲：b"]


def test_the_last_list_of_the_right_length_is_the_answer():
    assert parse_answer("候选 [1] 不好。\n[0, 2，1]", 3) == [0, 2, 1]
    assert parse_answer("<think>[2,2]</think>[0,1] [1]", 2) == [0, 1]
    for answer in ("", "0 1 2", "[0,1]", "[0,1,3]"):
        with pytest.raises(JudgeError, match="3 scores"):
            parse_answer(answer, 3)


def test_a_judge_sees_both_orders_and_a_stopped_run_goes_on(key, tmp_path):
    path, asked = tmp_path / "scores-1.jsonl", []

    def ask(question):
        replies = [line.split(". ", 1)[1] for line in question.splitlines() if line[:1].isdigit()]
        asked.append(replies)
        return json.dumps([len(reply) % 3 for reply in replies])

    rate(key, 1, ask, path, pause=0)
    assert len(asked) == 6
    assert all(replies[::-1] in asked for replies in asked)
    ratings = read_scores(path, key)
    assert ratings.scores == ratings.reversed == {row.id: [len(text) % 3 for text in row.replies] for row in key.rows}
    assert summarise(key, [ratings], 20)["judges"][0]["order_kappa"] == 1
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:10])
    rate(key, 1, ask, path, pause=0)
    assert path.read_bytes() == whole
    assert len(asked) == 10
    path.write_bytes(lines[0] + b"[" * 100_000 + b"\n")
    rate(key, 1, ask, path, pause=0)
    assert path.read_bytes() == whole


def test_ratings_are_not_written_through_a_link(key, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder" / "scores-1.jsonl").symlink_to(tmp_path / "notes.txt")
    with pytest.raises(FileError, match="Cannot continue"):
        rate(key, 1, lambda _: "[0]", tmp_path / "folder" / "scores-1.jsonl", pause=0)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_judge_that_fails_is_asked_again_and_then_given_up(key, tmp_path):
    answers = iter(["?", OSError("down"), "[1,1,1,1]"])

    def moody(_):
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    assert judge._ask(moody, ["你好"], list("abcd"), 0) == [1, 1, 1, 1]
    with pytest.raises(JudgeError, match="failed 4 times"):
        rate(key, 1, lambda _: "no", tmp_path / "scores-1.jsonl", pause=0)
    with pytest.raises(JudgeError, match="address like"):
        endpoint("file:///etc/passwd", "x")


def test_reply_hits_rank_by_what_the_context_adds(monkeypatch):
    """A reply that is likely everywhere does not win: gains are log p(r | c) - log p(r)."""
    bot = SimpleNamespace(tokenizer=SimpleNamespace(encode=lambda text: [int(text)]), model=None, layout=None)
    contexts = [Context((str(number),), str(number)) for number in range(20)]

    def nats(_model, _layout, dialogues, first_turns=None, advance=None):
        """Reply 0 costs 1 everywhere; others cost 9 alone and 5 after their own context."""
        result = []
        for *history, reply in dialogues:
            fits = history and history[-1] == reply
            result.append([0.0] * len(history) + [1.0 if reply == [0] else 5.0 if fits else 9.0])
        return result

    monkeypatch.setattr(choosing, "score_turns", nats)
    result = choosing.reply_hits(bot, contexts)
    assert result["hits"] >= 19 / 20
    assert choosing.reply_hits(bot, contexts[:9]) is None


def test_history_hits_keep_message_and_speaker(monkeypatch):
    bot = SimpleNamespace(tokenizer=SimpleNamespace(encode=lambda text: [int(text)]), model=None, layout=None)
    contexts = [Context(tuple(str(n) for _ in range(5 + 2 * (n % 2))), str(n)) for n in range(30)]
    seen = []

    def nats(_model, _layout, dialogues, first_turns, advance):
        for dialogue, first in zip(dialogues, first_turns, strict=True):
            seen.append((first + len(dialogue) - 1) % 2)
            assert dialogue[-1] == dialogue[-2]  # message and reply belong together
        return [[0.0, 1.0 if dialogue[0] == dialogue[-1] else 2.0] for dialogue in dialogues]

    monkeypatch.setattr(choosing, "score_turns", nats)
    assert choosing.history_hits(bot, contexts)["hits"] == 1
    assert set(seen) == {1}  # the reply is that of the second speaker
    monkeypatch.setattr(choosing, "score_turns", lambda *a, first_turns, advance: [[0.0, 1.0] for _ in first_turns])
    assert choosing.history_hits(bot, contexts)["hits"] == 0  # a model that ignores the history does not win by ties


def test_drawn_contexts_are_replies_of_the_bot_and_stay_when_the_file_grows(dialogues):
    few = run.draw_contexts(dialogues[:100], 1000, 0)
    more = run.draw_contexts(dialogues, 1000, 0)
    assert all(len(context.turns) % 2 for context in more)
    assert {len(context.turns) for context in more} > {1, 3, 5}
    assert set(few) <= set(more)
    assert run.draw_contexts(dialogues, 30, 0) == more[:30]


@pytest.fixture(scope="module")
def data(dialogues, tmp_path_factory):
    path = tmp_path_factory.mktemp("aptness") / "plain.jsonl"
    path.write_text("\n".join(json.dumps(turns, ensure_ascii=False) for turns in dialogues[:14]), encoding="utf-8")
    return path


def test_the_command_writes_sheets_and_reads_ratings(checkpoint, data, tmp_path, capsys):
    output = tmp_path / "report"
    command = ["--aptness", "--output", str(output)]
    arguments = [*command, "--checkpoint", str(checkpoint), "--data", str(data), "--contexts", "6", "--sheets", "2"]
    assert cli.evaluate(arguments) == 0
    first = capsys.readouterr()
    assert "No ratings yet" in first.out
    assert "sheet-2.html" in first.err
    key = Key.read(output)
    assert len(key.rows) == 6
    assert key.systems == [REFERENCE, checkpoint.name, RANDOM]
    rated(key, 1, lambda row, text: 2 if text == row.replies[0] else 0, output / "scores-1.jsonl")
    assert cli.evaluate([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["sets"]["plain"]["systems"][REFERENCE]["mean"] == 2
    assert result["choices"]["plain"][checkpoint.name]["reply"]["contexts"] == 14
    assert f"| {REFERENCE} | 2.00" in (output / "aptness.md").read_text(encoding="utf-8")
    assert cli.evaluate(arguments) == 0  # the same inputs give the same sheets, so the ratings stay valid
    assert cli.evaluate([*arguments, "--seed", "1"]) == 1
    assert "has ratings" in capsys.readouterr().err


def test_the_command_asks_an_endpoint(checkpoint, data, tmp_path, capsys, monkeypatch):
    requests = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, self.headers["Authorization"], body["model"]))
            count = sum(line[0].isdigit() for line in body["messages"][1]["content"].splitlines() if line)
            content = json.dumps({"choices": [{"message": {"content": str([1] * count)}}]}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(judge.API_KEY, "secret")
    try:
        arguments = [
            "--aptness",
            "--checkpoint",
            str(checkpoint),
            "--data",
            str(data),
            "--contexts",
            "3",
            "--sheets",
            "1",
        ]
        url = f"http://127.0.0.1:{server.server_port}/v1"
        assert cli.evaluate([*arguments, "--output", str(tmp_path), "--judge", url, "--judge-model", "strict"]) == 0
    finally:
        server.shutdown()
    assert set(requests) == {("/v1/chat/completions", "Bearer secret", "strict")}
    assert len(requests) == 6
    assert "1.00 ± 0.00" in capsys.readouterr().out


@contextmanager
def raw_endpoint(*parts: bytes, pause: float = 0.0):
    """Yield (address, requests) of a server that answers every request with the parts, the last one over and over."""
    requests: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            request = client.makefile("rb")  # read whole: closing with unread bytes would reset the connection
            head = b"".join(iter(request.readline, b"\r\n"))
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            requests.append(head + b"\r\n" + request.read(int(length[1]) if length else 0))
            for part in parts[:-1]:
                client.sendall(part)
            while parts[-1]:
                client.sendall(parts[-1])
                time.sleep(pause)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=server.accept()[:1], daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1", requests


OK = b"HTTP/1.0 200 OK\r\n\r\n"
HOSTILE = {
    "endless body": ((OK, b" " * 65536), 0, "longer than 1 MiB"),
    "nested body": ((OK, b"[" * 900_000, b""), 0, "recursion"),
    "long header": ((b"HTTP/1.0 200 OK\r\nX: " + b"a" * 100_000, b"a" * 65536), 0, "got more than 65536 bytes"),
    "not HTTP": ((b"SSH-2.0-OpenSSH\r\n", b""), 0, "SSH"),
    "slow body": ((OK, b" "), 0.02, "no whole answer within 0.5 seconds"),
    "slow header": ((b"HTTP/1.0 200 OK\r\nX: ", b"a"), 0.02, "no whole answer within 0.5 seconds"),
    "endless preamble": ((b"", b"HTTP/1.1 100 Continue\r\n\r\n"), 0.01, "no whole answer within 0.5 seconds"),
}


@pytest.mark.parametrize(("parts", "pause", "words"), HOSTILE.values(), ids=HOSTILE)
def test_an_endpoint_can_only_fail_in_one_sentence(key, tmp_path, monkeypatch, parts, pause, words):
    if pause:
        monkeypatch.setattr(judge, "SECONDS", 0.5)
    monkeypatch.setattr(judge, "ATTEMPTS", 1)
    with raw_endpoint(*parts, pause=pause) as (url, _), pytest.raises(JudgeError) as failure:
        rate(key, 1, endpoint(url, "judge"), tmp_path / "scores.jsonl", pause=0)
    assert words in str(failure.value)
    assert "\n" not in str(failure.value)
    assert str(failure.value).endswith("Check --judge; the same command continues.")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_does_not_take_the_key_elsewhere(key, tmp_path, monkeypatch, code):
    monkeypatch.setenv(judge.API_KEY, "secret")
    with raw_endpoint(OK, b"") as (elsewhere, stolen):
        answer = f"HTTP/1.0 {code} Moved\r\nLocation: {elsewhere}\r\n\r\n".encode()
        with raw_endpoint(answer, b"") as (url, requests), pytest.raises(JudgeError, match="redirects to") as failure:
            rate(key, 1, endpoint(url, "judge"), tmp_path / "scores.jsonl", pause=30)
    assert elsewhere in str(failure.value)
    assert b"secret" in requests[0]
    assert not stolen


def test_without_aptness_one_path_is_needed(capsys):
    for paths in ([], ["--data", "a", "b"]):
        with pytest.raises(SystemExit) as stop:
            cli.evaluate(["--output", "x", *paths])
        assert stop.value.code == 2
    assert "--data needs one PATH" in capsys.readouterr().err


def test_sheets_of_a_bot_are_those_of_its_replies(checkpoint, data, tmp_path):
    bot = Chatbot.from_pretrained(checkpoint)
    run.write_aptness_sheets([bot], [data], tmp_path, max_contexts=4, sheets=1, max_choices=0)
    assert json.loads((tmp_path / run.CHOICES).read_text()) == {"plain": {}}
    for index, row in enumerate(Key.read(tmp_path).rows):
        (position,) = [i for i, systems in enumerate(row.systems) if bot.name in systems]
        assert row.replies[position] == bot.reply(row.context, seed=index)


def test_every_share_of_the_report_has_its_interval_over_contexts(key, tmp_path):
    """Ratings of three judges who agree are no more evidence than those of one."""

    def score(row, text):
        return 2 if text == CONTEXTS[row.id].reference else 1 if row.id == 0 else 0

    rows = {}
    for count in (1, 3):
        judges = [
            read_scores(rated(key, n, score, tmp_path / f"scores-{count}-{n}.jsonl"), key) for n in range(1, count + 1)
        ]
        result = {**summarise(key, judges), "choices": {"plain": {"old": {"reply": CHOICE, "history": None}}}}
        text = run.to_markdown(result)
        rows[count] = [line for line in text.splitlines() if line.startswith(("| old |", "| new |", "| plain |"))]
        for line in rows[count]:
            shares = re.findall(r"\d%( \(\d+ to \d+\))?", line)
            assert shares
            assert all(shares), line
    assert [re.findall(r"\(.*?\)", line)[:3] for line in rows[1]] == [
        re.findall(r"\(.*?\)", line)[:3] for line in rows[3]
    ]


CHOICE = {"hits": 0.5, "interval": [0.2, 0.8], "contexts": 10}
