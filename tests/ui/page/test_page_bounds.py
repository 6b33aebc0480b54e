"""Bounds of the page's values, signatures of replies, and the feedback file."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from time import thread_time

import gradio as gr
import pytest

from chatbot.chat.request import CHARACTERS_PER_TOKEN, MessageTooLongError, bounded_turns, shorten
from chatbot.chat.worker import Worker
from chatbot.text.dialogue import fit
from tests.ui.page.test_page import chat_of
from ui.options import ServeOptions
from ui.page import chats, feedback
from ui.page.actions import Actions, size_of
from ui.page.ball.actions import BallActions
from ui.page.charts import trace_reply
from ui.page.chat_files import from_text, to_json
from ui.page.chats import ChatError, check_room, checked, new_chat, persona_turns, too_large
from ui.page.feedback import Feedback, FeedbackError, rated_turns
from ui.page.handlers import PageSettings, answer, candidates, with_user_message
from ui.page.signature import is_signed, sign
from ui.server.work import LARGE_CHARACTERS, SHORT_CHARACTERS, WorkPool
from ui.turns import join_messages


@pytest.fixture
def worker(bot):
    worker = Worker(bot)
    yield worker
    worker.close(0)


@pytest.fixture
def act(worker, tmp_path):
    return Actions({"tiny": worker}, ServeOptions(data_dir=tmp_path), None)


def message(text: str, role: str = "user") -> dict:
    return {"role": role, "text": text}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"messages": [message("a")] * (chats.MAX_MESSAGES + chats.SPARE_MESSAGES + 1)}, "too long"),
        ({"messages": [message("长" * 300_000)] * 3}, "too long"),
        ({"messages": [message("a")], "persona": ["a", "b"] * 33}, "persona is too long"),
        ({"messages": [message("a")], "persona": ["长" * 5_001] * 2}, "persona is too long"),
    ],
)
def test_what_is_too_large_is_refused_by_every_function(act, changes, words):
    value = {"id": "", "title": "", "persona": [], **changes}
    with pytest.raises(ChatError, match=words):
        checked(value)
    event = type("Event", (), {"index": 0, "value": {"text": "a"}, "liked": True})()
    calls = {
        "say": (value, "a", None, None),
        "say_example": (value, None, event, None),
        "retry": (value, None),
        "edit": (value, None, event, None),
        "finish": (value, "", None),
        "undo": (value, "", None),
        "divide": (value, None),
        "set_persona": (value, "", None),
        "choose_persona": (value, event, None),
        "set_system": (value, "", "", None),
        "look_inside": (value, event, None),
        "another": (value, 1, event, None),
        "begin": (value, None),
        "export": (value, "json", None),
        "rate": (value, event, None),
        "give_reasons": (value, {"index": 0, "rating": "like", "text": "a"}, [], "", None),
    }
    ball = BallActions(act)
    pictured = {"encode": (value, ["a"], None), "reply_at": (value, [0.0], None)}
    pairs = [*((act, *call) for call in calls.items()), *((ball, *call) for call in pictured.items())]
    for handlers, name, arguments in pairs:
        with pytest.raises(gr.Error, match=words):
            getattr(handlers, name)(*arguments)
    with pytest.raises(gr.Error, match=words):
        next(act.offer(value, None, None, None, None, None))
    *_, line = next(act.answer(value, None, None, None, None, None))
    assert words in line


LONG = "好" * 490_000
USER = message("你好")


def test_a_long_conversation_or_list_of_the_picture_never_runs_beside_short_ones(worker, tmp_path):
    sizes = []

    class Pool(WorkPool):
        def run(self, size, function, /, *values, **named):
            sizes.append(size)
            raise ChatError("empty")

    ball = BallActions(Actions({"tiny": worker}, ServeOptions(data_dir=tmp_path), None, Pool()))
    for call in (ball.encode, ball.reply_at):
        for arguments in (({"messages": [message(LONG)]}, []), (chat_of(), [LONG])):
            with pytest.raises(gr.Error):
                call(*arguments, None)
    assert len(sizes) == 4
    assert min(sizes) > LARGE_CHARACTERS


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("say", (chat_of(), LONG, "tiny", None)),
        ("say", ({"messages": [message(LONG)]}, "你好", "tiny", None)),
        ("say", ({"messages": [{"role": "user", "content": LONG}]}, "你好", "tiny", None)),
        ("say", ({"messages": [{**USER, "thoughts": [{"a": (LONG,)}]}]}, "你好", "tiny", None)),
        ("say", ({"messages": [], "system": LONG}, "你好", "tiny", None)),
        ("say", ({"messages": [], "persona": [LONG, "b"]}, "你好", "tiny", None)),
        ("say", ({"messages": [[]] * 49_000}, "你好", "tiny", None)),
        ("retry", ({"messages": [USER], "avoid": [LONG[:9_000]] * 64}, None)),
        ("say_example", (chat_of(), "tiny", gr.SelectData(None, {"index": 0, "value": {"text": LONG}}), None)),
        (
            "edit",
            ({"messages": [USER]}, "tiny", gr.EditData(None, {"index": 0, "value": LONG, "previous_value": ""}), None),
        ),
        ("load", ({"text": LONG}, None)),
        ("set_system", (chat_of(), LONG, "tiny", None)),
        ("set_persona", (chat_of(), LONG, None)),
        ("give_reasons", (chat_of(), {"index": 0, "rating": "like", "text": LONG}, [], "", None)),
        ("give_reasons", (chat_of(), {"index": 0, "rating": "like", "text": ""}, [LONG], "", None)),
    ],
)
def test_long_inputs_never_run_beside_short_ones(worker, tmp_path, monkeypatch, name, arguments):
    sizes = []

    class Pool(WorkPool):
        def run(self, size, function, /, *values, **named):
            sizes.append(size)
            raise ChatError("empty")

    act = Actions({"tiny": worker}, ServeOptions(data_dir=tmp_path), None, Pool())
    with pytest.raises(gr.Error):
        getattr(act, name)(*arguments)
    assert sizes[0] > LARGE_CHARACTERS


def test_an_ordinary_conversation_is_short(worker, tmp_path):
    reply = {**message("嗯" * 10, "assistant"), "seed": 1, "model": "default", "signature": "s" * 64, "top_p": 0.9}
    chat = {"id": "a" * 16, "title": "你好", "persona": [], "system": "", "messages": [message("你好" * 8), reply] * 15}
    assert size_of([chat, "你好", "default", None]) <= SHORT_CHARACTERS


def test_a_full_conversation_can_still_be_exported_and_shortened():
    full = chat_of(("user", "长" * 499_990), ("assistant", "长" * 50_000))
    assert checked(full)["messages"] == full["messages"]
    with pytest.raises(ChatError, match="too long"):
        check_room(full)
    long_chat = {**new_chat(), "messages": [message("a")] * chats.MAX_MESSAGES}
    checked(long_chat)
    with pytest.raises(ChatError, match="too long"):
        check_room(long_chat)
    assert str(chats.MAX_MESSAGES) in str(too_large())


def test_titles_names_and_signatures_are_cut():
    reply = {"role": "assistant", "text": "a", "model": "m" * 500, "signature": "s" * 500}
    chat = checked({"id": "a" * 40, "title": "  长" * 500_000, "messages": [reply]})
    assert (chat["id"], len(chat["title"])) == ("", 100)
    assert [len(chat["messages"][0][name]) for name in ("model", "signature")] == [100, 100]


def test_a_persona_is_bounded_before_it_is_cut_into_lines():
    with pytest.raises(ChatError, match="persona is too long"):
        persona_turns("\n" * 30_000)
    with pytest.raises(ChatError, match="persona is too long"):
        persona_turns("a\nb\n" * 40)
    assert persona_turns("a\nb\n" * 32) == ["a", "b"] * 32


def test_long_messages_are_refused_before_they_are_tokenized(bot, worker, monkeypatch):
    limit = CHARACTERS_PER_TOKEN * bot.max_message_tokens

    def tokenize(text):
        assert len(text) <= limit
        return []

    monkeypatch.setattr(bot.tokenizer, "encode", tokenize)
    long = "长" * (limit + 1)
    with pytest.raises(ChatError, match=f"{limit + 1} characters"):
        with_user_message(bot, new_chat(), long)
    asked = chat_of(("user", long))
    for call in (
        lambda: next(answer(worker, asked, PageSettings(), "en")),
        lambda: next(candidates(worker, asked, PageSettings())),
        lambda: trace_reply(
            lambda name: worker,
            {**asked, "messages": [*asked["messages"], {**message("a", "assistant"), "seed": 1}]},
            1,
        ),
    ):
        with pytest.raises(MessageTooLongError, match="too long"):
            call()


def test_a_person_in_need_is_answered_however_long_the_message_is(bot, worker):
    limit = CHARACTERS_PER_TOKEN * bot.max_message_tokens
    for text in ("我不想活了" + "嗯" * 2 * limit, "嗯" * 2 * limit + "我不想活了"):
        chat = with_user_message(bot, new_chat(), text)
        *_, (chat, _) = answer(worker, chat, PageSettings(), "zh")
        assert chat["messages"][-1]["text"] == bot.safety.crisis_reply


def test_old_turns_are_cut_to_what_can_matter(bot):
    overfull = CHARACTERS_PER_TOKEN * bot.context_tokens
    turns = ["嗯", "长" * (3 * overfull), "好", "行", "你好"]
    sizes = (bot.context_tokens, bot.max_message_tokens)
    bounded = bounded_turns(turns, *sizes)
    assert [len(turn) for turn in bounded] == [1, overfull + 1, 1, 1, 2]
    assert bot.request(turns, 1).prompt == bot.request(bounded, 1).prompt
    assert bounded_turns(turns[2:], *sizes) == turns[2:]
    with pytest.raises(MessageTooLongError):
        bounded_turns(turns[:2], *sizes)
    lengths = [7, overfull + 1, 3, 2, 5]
    assert fit(lengths, bot.context_tokens) == fit([7, 3 * overfull, 3, 2, 5], bot.context_tokens)


def test_shortened_texts_keep_both_ends():
    assert shorten("abcdef", 6) == "abcdef"
    assert shorten("abcdefg", 5) == "ab\nefg"
    assert shorten("abcdefg", 4) == "ab\nfg"


def test_messages_are_joined_in_linear_time():
    turns, left_out = join_messages([("user", "长" * 100)] * 4_000)
    assert (len(turns), len(turns[0]), left_out) == (1, 4_000 * 101 - 1, False)
    assert join_messages([("assistant", "a"), ("user", "b")]) == (["b"], True)
    assert join_messages([("user", "b")], ["x", "y"]) == (["x", "y", "b"], False)


# Signatures.


@pytest.fixture
def answered(bot, worker):
    *_, (chat, _) = answer(worker, chat_of(("user", "你好")), PageSettings(7, 0.9, 0.8), "zh")
    return chat


@pytest.mark.parametrize(
    "field", ["seed", "model", "temperature", "top_p", "text", "signature", "none", "history", "persona"]
)
def test_only_replies_of_this_server_can_be_rated(answered, field):
    assert rated_turns(checked(answered), 1)
    chat = json.loads(json.dumps(answered))
    reply = chat["messages"][1]
    if field == "none":
        del reply["signature"]
    elif field == "history":
        chat["messages"][0]["text"] = "再见"
    elif field == "persona":
        chat["persona"] = ["嗨", "喵"]
    else:
        reply[field] = reply[field] + ("x" if isinstance(reply[field], str) else 1)
    with pytest.raises(ChatError, match="can be rated"):
        rated_turns(checked(chat), 1)


def test_turns_that_this_server_did_not_make_are_not_recorded_with_a_rated_reply(worker):
    def with_reply(chat, text):
        *_, (chat, _) = answer(worker, chats.with_message(chat, message(text)), PageSettings(7), "zh")
        return chat

    forged = chat_of(("user", "谁赢了"), ("assistant", "假的"))
    first = with_reply({**forged, "persona": ["嗨", "喵"]}, "你好")
    replies = [first["messages"][3]["text"]]
    assert rated_turns(checked(first), 3) == ["你好", *replies]
    second = with_reply(first, "再见")
    replies.append(second["messages"][5]["text"])
    assert rated_turns(checked(second), 5) == ["你好", replies[0], "再见", replies[1]]
    second["messages"][3].pop("signature")
    assert rated_turns(checked(second), 5) == ["再见", replies[1]]
    divided = with_reply(chats.with_message(second, {"role": "divider", "text": ""}), "早")
    assert rated_turns(checked(divided), 8) == ["早", divided["messages"][8]["text"]]
    assert rated_turns(checked(with_reply({**new_chat(), "persona": ["嗨", "喵"]}, "早")), 1)[0] == "早"


def test_a_signature_is_of_this_process_only(answered, monkeypatch):
    monkeypatch.setattr("ui.page.signature._KEY", b"another process")
    with pytest.raises(ChatError, match="since the server started"):
        rated_turns(answered, 1)


def test_signatures_of_odd_values_are_refused():
    assert not any(is_signed(["a"], {"signature": value}) for value in (None, 1, "", "é", ["x"]))
    assert is_signed(["a", "b"], {"signature": sign(["a", "b"], {})})
    assert sign(["a", "b"], {}) != sign(["ab"], {})


def test_offered_replies_can_be_rated_and_files_hold_no_signature(worker, answered):
    chat = chat_of(("user", "你好"))
    *_, offered = candidates(worker, chat, PageSettings(3))
    for reply in offered:
        assert rated_turns(chats.with_message(chat, reply), 1) == ["你好", reply["text"]]
    assert "signature" not in to_json(answered)
    assert from_text(to_json(answered))["messages"][1]["seed"] == 7


def test_invented_replies_are_not_recorded(act, answered, tmp_path):
    event = type("Event", (), {"index": 1, "liked": True})()
    forged = {**answered, "messages": [answered["messages"][0], {**message("假的", "assistant"), "seed": 1}]}
    with pytest.raises(gr.Error):
        act.rate(forged, event, None)
    assert not (tmp_path / "feedback.jsonl").exists()
    rated, *_ = act.rate(answered, event, None)
    act.give_reasons(answered, rated, ["funny", "rude", "nonsense"], "好" * 5_000, None)
    (line,) = lines_of(tmp_path)
    assert (line["rating"], line["reasons"], len(line["comment"]), line["seed"]) == ("like", ["funny"], 1_000, 7)
    assert [part["content"] for part in line["messages"]] == ["你好", answered["messages"][1]["text"]]


def test_a_rating_that_cannot_be_saved_shows_no_path(act, answered, tmp_path, caplog):
    (tmp_path / "feedback.jsonl").mkdir()
    with pytest.raises(gr.Error, match="tell the operator") as caught:
        act.rate(answered, type("Event", (), {"index": 1, "liked": True})(), None)
    assert caught.value.visible
    assert str(tmp_path) not in str(caught.value)
    assert str(tmp_path) in caplog.text


# The feedback file.


def lines_of(folder) -> list[dict]:
    lines = (folder / "feedback.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]  # a replaced line is blank


def test_a_line_of_feedback_is_bounded(tmp_path):
    store = Feedback(tmp_path)
    turns = [str(number) + "长" * 1_000 for number in range(60)]
    store.write(turns, "like")
    (line,) = lines_of(tmp_path)
    assert (tmp_path / "feedback.jsonl").stat().st_size <= feedback.MAX_LINE_BYTES
    contents = [part["content"] for part in line["messages"]]
    assert contents == turns[-len(contents) :]
    assert len(contents) in range(10, 50, 2)
    assert line["messages"][-1]["role"] == "assistant"
    with pytest.raises(FeedbackError, match="64 KiB"):
        store.write(["长" * 30_000, "嗯"], "like")
    assert len(lines_of(tmp_path)) == 1


def test_the_feedback_file_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(feedback, "MAX_FILE_BYTES", 300)
    store = Feedback(tmp_path)
    store.write(["一", "二"], "like")
    store.write(["三", "四"], "like")
    size = sum(len(json.dumps(line, ensure_ascii=False).encode()) for line in lines_of(tmp_path))
    with pytest.raises(FeedbackError, match="full"):
        store.write(["五", "六"], "like")
    store.write(["一", "二"], "dislike")  # a change still has room
    assert sum(len(json.dumps(line, ensure_ascii=False).encode()) for line in lines_of(tmp_path)) <= size + 3
    assert [line["rating"] for line in lines_of(tmp_path)] == ["like", "dislike"]


def test_one_client_cannot_fill_the_feedback_file_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(feedback, "MAX_FILE_BYTES", 3_000)
    store = Feedback(tmp_path)
    with suppress(FeedbackError):
        for number in range(100):
            store.write([f"问{number}", "答"], "like", sender="one")
    assert 1_000 < (tmp_path / "feedback.jsonl").stat().st_size <= 1_500
    for number in range(3):
        store.write([f"另{number}", "答"], "like", sender="two")
    store.write(["问0", "答"], "like", ["funny"], sender="two")  # and now it counts for the second one
    with pytest.raises(FeedbackError, match="share"):
        store.write(["新" * 100, "答"], "like", sender="one")


def test_a_rating_does_not_wait_for_the_whole_file(tmp_path, monkeypatch):
    """A change costs two small writes, also in a file of an earlier process, which a thread reads."""
    path = tmp_path / "feedback.jsonl"
    store = Feedback(tmp_path)
    store.write(["一", "二"], "like")
    line = path.read_text(encoding="utf-8")
    path.write_text("".join(line.replace("一", f"一{number}") for number in range(12_000)), encoding="utf-8")
    copied = []
    monkeypatch.setattr(feedback, "replacing", lambda *args, **kwargs: copied.append(args))
    store = Feedback(tmp_path)
    used = thread_time()
    store.write(["一5", "二"], "dislike")
    assert thread_time() - used < 0.05
    store.settle()
    for number in range(100):
        store.write([f"一{number * 100}", "二"], "dislike")
    assert thread_time() - used < 0.1
    assert not copied
    lines = lines_of(tmp_path)
    assert len(lines) == len({part["messages"][0]["content"] for part in lines}) == 12_000
    assert sum(part["rating"] == "dislike" for part in lines) == 101


def test_blank_lines_are_removed_by_a_thread_while_ratings_arrive(tmp_path, monkeypatch):
    monkeypatch.setattr(feedback, "MAX_BLANK_BYTES", 20_000)
    store = Feedback(tmp_path)
    with (tmp_path / "feedback.jsonl").open("w") as file:
        file.write("a line of another program\n")
    for number in range(3_000):
        store.write([f"问{number % 100}", "答"], ("like", "dislike")[number // 100 % 2], comment=str(number))
        if number % 150 == 149:
            store.settle()
    store.settle()
    text = (tmp_path / "feedback.jsonl").read_text(encoding="utf-8")
    assert text.startswith("a line of another program\n")
    assert len(text.encode()) < 100 * 200 + 3 * 20_000
    ratings = [json.loads(line) for line in text.splitlines()[1:] if line.strip()]
    assert sorted(int(line["comment"]) for line in ratings) == list(range(2_900, 3_000))
    assert (tmp_path / "feedback.jsonl").stat().st_mode & 0o777 == 0o600


def test_changed_ratings_replace_their_lines_wherever_they_are(tmp_path):
    store = Feedback(tmp_path)
    pairs = [[f"问{number}" * (number + 1), "答"] for number in range(5)]
    for pair in pairs:
        store.write(pair, "like")
    for number in (2, 0, 4, 2):
        store.write(pairs[number], "dislike")
        store = Feedback(tmp_path) if number == 0 else store  # after a restart, too
    ratings = {line["messages"][0]["content"]: line["rating"] for line in lines_of(tmp_path)}
    assert len(lines_of(tmp_path)) == len(ratings) == 5
    assert [ratings[pair[0]] for pair in pairs] == ["dislike", "like", "dislike", "like", "dislike"]
    assert (tmp_path / "feedback.jsonl").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["feedback.jsonl"]


def test_a_line_without_its_end_is_removed(tmp_path):
    store = Feedback(tmp_path)
    store.write(["一", "二"], "like")
    path = tmp_path / "feedback.jsonl"
    with path.open("ab") as file:
        file.write(b'{"messages": [{"role": "us')
    store.write(["三", "四"], "dislike")
    assert [line["rating"] for line in lines_of(tmp_path)] == ["like", "dislike"]
    with path.open("ab") as file:
        file.write(b"not JSON\n")
    store.write(["一", "二"], "dislike")
    assert [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][1] == "not JSON"
    assert path.read_bytes().count(b"\n") == 4  # with the blank one


def test_two_processes_that_write_in_turn_lose_nothing(tmp_path):
    one, two = Feedback(tmp_path), Feedback(tmp_path)
    one.write(["一", "二"], "like")
    two.write(["三", "四"], "like")
    one.write(["五", "六"], "like")
    two.write(["一", "二"], "dislike")
    one.write(["三", "四"], "dislike")
    assert [line["rating"] for line in lines_of(tmp_path)] == ["like", "dislike", "dislike"]


def test_a_change_that_dies_leaves_the_old_file(tmp_path, monkeypatch):
    store = Feedback(tmp_path)
    store.write(["一", "二"], "like")
    store.write(["三", "四"], "like")
    before = (tmp_path / "feedback.jsonl").read_bytes()

    class Full(io.FileIO):
        """A file on a full disk: half of a line fits."""

        def write(self, content):
            return super().write(content[: len(content) // 2])

    monkeypatch.setattr(feedback, "open", lambda path, *_, opener, **__: Full(path, "r+", opener=opener), raising=False)
    with pytest.raises(FeedbackError, match="No space"):
        store.write(["一", "二"], "dislike")
    assert (tmp_path / "feedback.jsonl").read_bytes() == before
