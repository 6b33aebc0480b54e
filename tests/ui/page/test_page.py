"""What the page does, without a browser."""

from __future__ import annotations

import itertools
import json
import re
import socket
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.chat.bot import candidate_seeds
from chatbot.chat.trace import TracedStep
from chatbot.chat.worker import BusyError, Worker
from chatbot.errors import XianliaoError
from tests.conftest import ROOT
from tests.records import read_records
from ui.cli import listen, main
from ui.language import language_of
from ui.options import ServeOptions
from ui.page.charts import shown_step, trace_reply
from ui.page.chat_files import from_text, to_json, to_markdown
from ui.page.chats import (
    ChatError,
    check_room,
    checked,
    new_chat,
    persona_turns,
    turns_of,
    with_message,
    without_last_exchange,
)
from ui.page.feedback import Feedback, FeedbackError, rated_turns
from ui.page.handlers import (
    PageSettings,
    answer,
    candidates,
    explain,
    preset,
    with_user_message,
)
from ui.page.script import page_script
from ui.page.text import PERSONAS, STYLE_EXAMPLES, TEXT


def chat_of(*messages: tuple[str, str], persona=()) -> dict:
    chat = new_chat(persona)
    for role, text in messages:
        chat = with_message(chat, {"role": role, "text": text})
    return chat


@pytest.fixture
def worker(bot):
    worker = Worker(bot)
    yield worker
    worker.close(0)


def last(worker, chat) -> tuple[str, str]:
    *_, (chat, line) = answer(worker, chat, PageSettings(seed=7), "zh")
    return chat["messages"][-1]["text"], line


@pytest.mark.parametrize(
    ("messages", "persona", "turns"),
    [
        ([], (), []),
        ([("user", "你好"), ("assistant", "嗨")], (), ["你好", "嗨"]),
        ([("user", "一"), ("user", "二"), ("assistant", "三")], (), ["一\n二", "三"]),
        ([("assistant", "欢迎"), ("user", "一")], (), ["一"]),
        ([("user", "一"), ("assistant", ""), ("user", "二")], (), ["一\n二"]),
        ([("user", "一"), ("assistant", "二"), ("divider", ""), ("user", "三")], (), ["三"]),
        ([("user", "一"), ("divider", ""), ("user", "三")], ("你", "我"), ["你", "我", "三"]),
        ([("assistant", "欢迎"), ("user", "一")], ("你", "我"), ["你", "我", "一"]),
    ],
)
def test_what_the_model_reads(messages, persona, turns):
    assert turns_of(chat_of(*messages, persona=persona)) == turns


def test_the_page_gives_the_reply_that_python_gives(bot, worker):
    chat = chat_of(("user", "你好"), ("assistant", "你好呀"))
    steps = list(answer(worker, with_user_message(bot, chat, "今天吃什么"), PageSettings(seed=7), "zh"))
    texts = [chat["messages"][-1]["text"] for chat, _ in steps]
    assert texts[-1] == bot.reply(["你好", "你好呀", "今天吃什么"], seed=7)
    assert "种子 7" in steps[-1][1]
    assert str(bot.settings.limit_tokens) in steps[-1][1]
    assert steps[-1][0]["messages"][-1]["seed"] == 7
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))


def test_every_reply_is_noted_also_one_that_was_stopped(bot, worker):
    noted = []
    chat = chat_of(("user", "你好"))
    list(answer(worker, chat, PageSettings(seed=7), "zh", lambda *details: noted.append(details)))
    model, reply, first, ident, message = noted.pop()
    assert (model, reply.text, ident, message) == ("tiny", bot.reply(["你好"], seed=7), chat["id"], "你好")
    assert 0 < first <= reply.seconds
    seed = next(seed for seed in range(50) if len(bot.respond(["你好"], seed=seed).token_ids) > 5)
    steps = answer(worker, chat, PageSettings(seed=seed), "zh", lambda *details: noted.append(details))
    next(steps)
    steps.close()
    assert noted[0][1].stop_reason == "stopped"


def test_persona_and_divider_change_what_is_answered(bot, worker):
    chat = chat_of(("user", "我养猫"), ("assistant", "真好"), ("divider", ""), ("user", "它呢"), persona=("嗨", "喵"))
    assert last(worker, chat)[0] == bot.reply(["嗨", "喵", "它呢"], seed=7)


def test_several_replies_differ_from_each_other_and_from_the_one_shown(bot, worker, monkeypatch):
    """Although the bot would say the same: the seeds are equal here."""
    monkeypatch.setattr("ui.page.handlers.candidate_seeds", lambda seed, count: [seed] * count)
    shown = {"role": "assistant", "text": bot.reply(["你好"], 3)}
    chat = with_message(chat_of(("user", "你好")), shown)
    *_, offered = candidates(worker, chat, PageSettings(seed=3))
    texts = [message["text"] for message in offered]
    assert len({shown["text"], *texts}) == 4
    assert texts == [bot.reply(["你好"], 3, variation=message["variation"], spread=1.0) for message in offered]


def test_several_replies_are_those_of_their_seeds(bot, worker):
    chat = chat_of(("user", "你好"), ("assistant", "嗨"))
    *_, offered = candidates(worker, chat, PageSettings(seed=3))
    assert [each["seed"] for each in offered] == candidate_seeds(3, 4)[1:]
    assert [each["text"] for each in offered] == [bot.reply(["你好"], seed=each["seed"]) for each in offered]
    assert worker.busy_rows == 0
    with pytest.raises(ChatError):
        next(candidates(worker, new_chat(), PageSettings()))


def test_who_may_be_in_danger_gets_the_fixed_reply_alone(worker):
    chat = chat_of(("user", "我不想活了"))
    steps = list(answer(worker, chat, PageSettings(), "zh"))
    assert len(steps) == 1
    assert "12356" in steps[0][0]["messages"][-1]["text"]
    assert steps[0][1] == TEXT["zh"]["fixed"]
    with pytest.raises(ChatError):
        next(candidates(worker, chat, PageSettings()))


def test_the_messages_after_it_are_those_of_python(bot, worker):
    chat = chat_of(("user", "我不想活了"))
    noted = []
    for message in ("嗯", "吃几片", "今天吃什么"):
        *_, (chat, line) = answer(worker, chat, PageSettings(seed=7), "zh", lambda *details: noted.append(details))
        assert chat["messages"][-1]["text"] == bot.reply(turns_of(chat)[:-1], seed=7)
        assert "seed" not in chat["messages"][-1]
        assert line == TEXT["zh"]["fixed"]
        chat = with_user_message(bot, chat, message)
        with pytest.raises(ChatError):
            next(candidates(worker, chat, PageSettings()))
    assert [details[1].stop_reason for details in noted] == ["safety"] * 3
    forged = {**chat, "messages": [*chat["messages"], {"role": "assistant", "text": "x", "seed": 1}]}
    with pytest.raises(ChatError):
        trace_reply(lambda name: worker, forged, len(forged["messages"]) - 1)


def test_whoever_is_in_need_is_answered_however_long_the_message_is(bot, worker):
    chat = with_user_message(bot, chat_of(), "我不想活了" + "太长了" * 2000)
    assert last(worker, chat) == (bot.safety.crisis_reply, TEXT["zh"]["fixed"])
    assert chat["title"] == "…"  # a list of chats does not show the words of the person
    assert with_user_message(bot, chat_of(), "我不想活了", "新对话")["title"] == "新对话"
    assert with_user_message(bot, chat_of(), "你好", "新对话")["title"] == "你好"


def test_a_message_that_is_too_long_is_told_how_many_characters_can_be_read(bot):
    text = "今天我们去公园散步吧" * 2_000
    with pytest.raises(ChatError) as caught:
        with_user_message(bot, chat_of(), text)
    assert bot.reads(text[: caught.value.values["limit"]])
    assert not bot.reads(text[: caught.value.values["limit"] + 100])


def test_a_message_that_was_never_answered_joins_the_next_unless_that_is_too_much(bot, worker):
    chat = chat_of(("user", "你好"))
    assert last(worker, with_user_message(bot, chat, "在吗"))[0] == bot.reply(["你好\n在吗"], seed=7)
    bot.max_message_tokens = 20
    chat = with_user_message(bot, chat_of(("user", "很长" * 10)), "在吗")
    assert last(worker, chat)[0] == bot.reply(["在吗"], seed=7)


def test_taking_back(bot):
    chat = chat_of(("user", "一"), ("assistant", "二"), ("user", "三"), ("assistant", "四"), ("divider", ""))
    chat, text = without_last_exchange(chat)
    assert (len(chat["messages"]), text) == (4, "")
    chat, text = without_last_exchange(chat)
    assert ([m["text"] for m in chat["messages"]], text) == (["一", "二"], "三")
    assert without_last_exchange(new_chat()) == (new_chat(), "")


TEXTS = st.text(st.sampled_from("你好 #\\-\n一<&>\t\"'"), max_size=12)
CHATS = st.builds(
    lambda title, persona, system, messages: {
        "id": "",
        "title": title,
        "persona": persona,
        "system": system.strip(),
        "messages": [{"role": role, "text": "" if role == "divider" else text} for role, text in messages],
    },
    st.sampled_from(["", "名字", "# 一"]),
    st.lists(TEXTS, max_size=4).filter(lambda turns: len(turns) % 2 == 0),
    TEXTS,
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "divider"]), TEXTS), min_size=1, max_size=6),
)


@settings(max_examples=200, deadline=None)
@given(CHATS)
def test_files_give_the_same_conversation_back(chat):
    assert from_text(to_json(chat)) == chat
    assert from_text(to_markdown(chat)) == chat


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[1]",
        "[" * 100_000,
        None,
        {"text": "[]"},
        b"[]",
        "# a\n",
        "随便写写",
        '{"messages": [{"role": "cat", "text": "a"}]}',
        '{"messages": [], "persona": ["a"]}',
        '{"messages": [{"role": "user", "text": 1}]}',
        "## 谁\n\n你好",
        '{"messages": [{"role": "user", "text": "a", "seed": ' + "9" * 5000 + "}]}",
    ],
)
def test_other_files_are_refused_in_a_sentence(content):
    with pytest.raises(ChatError) as caught:
        from_text(content)
    assert str(caught.value).endswith(".")


def test_what_comes_from_outside_is_checked():
    huge = checked({"messages": [{"role": "user", "text": "长" * 500_001}]})  # can still be exported
    with pytest.raises(ChatError, match="too long"):
        from_text(to_json(huge))
    with pytest.raises(ChatError, match="too long"):
        check_room(huge)
    assert checked({"messages": [{"role": "user", "text": "\ud800你"}]})["messages"][0]["text"] == "�你"
    with pytest.raises(ChatError):
        checked(None)
    odd = {
        "id": "../../etc",
        "title": ["x"],
        "messages": [{"role": "assistant", "text": "a", "seed": "b", "x": 1}],
        "y": 2,
    }
    message = {"role": "assistant", "text": "a"}
    assert checked(odd) == {"id": "", "title": "", "persona": [], "system": "", "messages": [message]}
    with pytest.raises(ChatError, match="even number"):
        persona_turns("一\n\n二\n三")


def test_feedback_is_dialogues_for_prepare(tmp_path):
    feedback = Feedback(tmp_path / "new")
    feedback.write(["你好", "嗨"], "dislike")
    feedback.write(["你好", "嗨"], "like", ["funny", "nonsense"], "好", {"seed": 1})
    feedback.write(["你好", "滚"], "dislike")
    path = tmp_path / "new" / "feedback.jsonl"
    line = json.loads(path.read_text().strip().splitlines()[0])
    assert (line["rating"], line["reasons"]) == ("like", ["funny"])  # the last word about a reply
    assert path.stat().st_mode & 0o77 == 0
    with pytest.raises(FeedbackError, match="like or dislike"):
        feedback.write(["你好", "嗨"], "anything")
    assert [record[1:] for record in read_records(path)] == [(["你好", "嗨"], None), (None, "disliked")]
    (tmp_path / "file").write_text("")
    with pytest.raises(FeedbackError, match="could not be written"):
        Feedback(tmp_path / "file" / "below").write(["你好", "嗨"], "like")


def test_messages_that_cannot_be_sent_are_explained_in_the_pages_language(bot):
    for message, language, words in ((" \n", "zh", TEXT["zh"]["empty"]), ("长" * 100_000, "en", "100000")):
        with pytest.raises(ChatError) as caught:
            with_user_message(bot, new_chat(), message)
        assert words in explain(caught.value, language)
    assert explain(BusyError("Too many."), "zh") == TEXT["zh"]["busy"]
    assert explain(XianliaoError("Other."), "zh") == "Other."


@pytest.mark.parametrize("values", [(-1, 1, 1), (2**31, 1, 1), ("x", 1, 1), (1, "x", 1), (float("nan"), 1, 1)])
def test_fields_that_are_no_numbers_are_said(values):
    with pytest.raises(ChatError, match="whole number"):
        PageSettings.from_fields(*values)
    assert PageSettings.from_fields(3.0, 0.5, None) == PageSettings(3, 0.5)


def test_only_what_the_model_said_can_be_rated(bot, worker):
    *_, (chat, _) = answer(worker, chat_of(("user", "你好")), PageSettings(seed=7), "zh")
    assert rated_turns(chat, 1) == ["你好", chat["messages"][1]["text"]]
    assert (chat["messages"][1]["seed"], chat["messages"][1]["model"]) == (7, "tiny")
    for index, text in ((0, None), (2, None), (-1, None), (1, "别的")):
        with pytest.raises(ChatError, match="rated"):
            rated_turns(chat, index, text)


def test_markdown_of_a_person_loses_nothing():
    chat = from_text("# x\n## 我\n你好\n## 闲聊\n嗨嗨\n")
    assert [message["text"] for message in chat["messages"]] == ["你好", "嗨嗨"]


def test_what_goes_wrong_is_a_notice_and_prints_nothing(bot, worker, capfd, tmp_path):
    import gradio as gr

    from ui.page.actions import Actions

    act = Actions({"tiny": worker}, ServeOptions(data_dir=tmp_path), None)
    for call in (lambda: act.finish(None, "", None), lambda: act.retry(7, None)):
        with pytest.raises(gr.Error) as caught:
            call()
        assert not caught.value.print_exception
        assert not caught.value.visible  # nothing has failed: the page shows a short notice
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_the_steps_of_a_reply_have_the_chosen_token_among_their_candidates(bot, worker, tmp_path):
    from ui.page.actions import Actions

    act = Actions({"tiny": worker}, ServeOptions(data_dir=tmp_path), None)
    *_, (chat, _) = answer(worker, chat_of(("user", "你好")), PageSettings(seed=7), "en")
    *_, (chat, _) = answer(worker, with_message(chat, {"role": "user", "text": "再见"}), PageSettings(seed=8), "en")
    for reply in (1, 3):  # any reply, not only the last one
        turns = [message["text"] for message in chat["messages"][:reply]]
        index, steps = act.look_inside(chat, type("Event", (), {"index": reply})(), None)
        assert index == reply
        assert len(steps) == len(bot.respond(turns, seed=chat["messages"][reply]["seed"]).token_ids) + 1
        assert steps[-1]["token"] == ""
        for step in steps:
            assert step["candidates"][step["chosen"]] == (step["token"], pytest.approx(step["p"]))
        json.dumps(steps)


def test_a_token_beyond_the_listed_candidates_is_listed_last():
    step = TracedStep("稀", 0.01, (("常", 0.6), ("见", 0.3)), 90, 0.0, 0.0, 0.0)
    assert (shown_step(step)["candidates"][-1], shown_step(step)["chosen"]) == (("稀", 0.01), 2)
    assert shown_step(replace(step, token="见", probability=1.0))["chosen"] == 1  # chosen by the hard limit
    parts = replace(step, token="\ufffd", likeliest=(("\ufffd", 0.6), ("\ufffd", 0.01)))
    assert [shown_step(replace(parts, probability=p))["chosen"] for p in (0.6, 0.01, 0.002)] == [0, 1, 2]


def test_no_seed_is_another_seed_each_time_also_after_the_settings_were_opened():
    for empty in (None, ""):
        assert PageSettings.from_fields(empty, None, None).seed is None
    assert PageSettings.from_fields("0", None, None).seed == 0


def test_presets(bot):
    assert preset("balanced", bot.settings) == (bot.settings.temperature, bot.settings.top_p)
    assert preset("careful", bot.settings)[0] < preset("free", bot.settings)[0]


def test_personas_are_pairs_of_turns_and_have_a_name_and_a_line_and_a_face():
    faces = (ROOT / "ui" / "page" / "script" / "base.js").read_text(encoding="utf-8")
    for name, turns in PERSONAS.items():
        assert len(turns) % 2 == 0
        assert all(len(TEXT[language][f"persona_{name}"].split("\n")) == 2 for language in TEXT)
        assert f"\n    {name}: " in faces


def test_both_languages_say_the_same_things():
    assert TEXT["zh"].keys() == TEXT["en"].keys()


def test_every_word_of_the_script_is_a_text_of_the_page():
    script = page_script()
    words = set(re.findall(r'\bsay\("(\w+)"', script)) | set(re.findall(r'name: "(\w+)", icon', script))
    assert len(words) > 30
    assert words <= TEXT["zh"].keys()
    code = re.sub(r"//.*", "", script.split("\n", 1)[1])
    assert not re.findall(
        "[\u4e00-\u9fff]", code.replace("闲", "", 1).replace("PingFang", "")
    )  # the face is the only one


def test_texts_never_become_markup_in_the_script():
    script = page_script(texts=TEXT, studio=True, name="</script><script>alert(1)")
    assert "</script" not in script
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)


def test_each_style_has_a_line_and_an_example(worker, tmp_path):
    from ui.page.actions import PRESETS, Actions

    workers = {"tiny": worker}
    act = Actions(workers, ServeOptions(data_dir=tmp_path), None)
    radio, _, _ = act.show_choices(None)
    assert [value for _, value in radio.choices] == list(PRESETS)
    for label, name in radio.choices:
        assert label.split("\n")[:2] == [TEXT["en"][name], TEXT["en"][name + "_note"]]
        assert STYLE_EXAMPLES[name][2] in label.split("\n")[2]
    workers["bot-1"] = worker  # a model that was added while the server runs is offered to a page that is loaded
    _, model, names = act.show_choices(None)
    assert ([name for name, _ in model.choices], model.visible) == (["tiny", "bot-1"], True)
    assert names == ["tiny", "bot-1"]


@pytest.mark.parametrize(
    ("header", "language"), [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en-US,zh", "en"), (None, "en"), ("", "en")]
)
def test_language_follows_the_browser(header, language):
    assert language_of(header) == language


@pytest.mark.parametrize(("chosen", "language"), [("en", "en"), ("zh", "zh"), ("fr", "zh"), ("", "zh"), (None, "zh")])
def test_a_language_chosen_on_the_page_wins(chosen, language):
    assert language_of("zh-CN", chosen) == language


def test_the_server_answers(bot):
    from ui.server.app import create_app

    with TestClient(create_app(bot), base_url="http://localhost") as client:
        assert client.get("/healthz").json() == {"status": "ok", "checkpoint": "tiny", "version": "0.1.0"}
        page = client.get("/")
        assert page.status_code == 200
        assert "闲聊" in page.text


@pytest.mark.parametrize("language", ["zh", "en"])
def test_the_source_of_the_page_has_its_own_title_and_no_image_of_another_host(bot, language):
    from ui.page.text import TITLE
    from ui.server.app import create_app

    with TestClient(create_app(bot), base_url="http://localhost") as client:
        source = client.get("/", headers={"Accept-Language": language}).text
    titles = re.findall(r"""<meta[^>]*(?:og|twitter):title[^>]*content="([^"]*)">""", source)
    assert titles == [TITLE]
    assert not re.findall(r"(?:og|twitter):(?:image|url|creator)", source)
    assert "githubusercontent" not in source


def test_telemetry_is_off():
    import os

    import ui.page.layout  # noqa: F401

    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_a_taken_port_is_one_sentence(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(XianliaoError, match=str(port)):
            listen("127.0.0.1", port)
        assert main(["--port", str(port)]) == 1
    assert "Choose another --host or --port" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        main(["--port", "99999"])
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("feedback", [True, False])
def test_without_feedback_there_is_no_way_to_write_it(worker, feedback, tmp_path):
    import gradio as gr

    from ui.page.layout import Page

    options = ServeOptions(data_dir=tmp_path, feedback=feedback)
    page = Page({"tiny": worker}, options, gr.I18n(en=TEXT["en"], zh=TEXT["zh"]), None)
    names = {function.name for function in page.blocks.fns.values()}
    assert ("rate" in names) is feedback
    assert ("give_reasons" in names) is feedback
    assert "say" in names
