"""The page: Gradio's parts and which of them does what; what happens then is in `ui.handlers`.

The conversation is a plain value that the browser holds and sends along, so the server keeps nothing of it: after a restart
the page goes on where it was, and any replica can answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: no telemetry, no look-ups

import gradio as gr
import pandas as pd
from fastapi import FastAPI

from chatbot.batching import Worker
from chatbot.errors import XianliaoError
from chatbot.trace import TracedStep
from ui import chats, handlers
from ui.feedback import REASONS, write_feedback
from ui.handlers import CANDIDATES, Wish
from ui.logs import LOGGER
from ui.options import ServeOptions
from ui.safety import Safety
from ui.text import EXAMPLES, PERSONAS, TEXT, TITLE, language_of

CONCURRENT_CHATS = 32
"""Replies of the page that are under way at the same time; more wait in Gradio's queue."""

PRESETS = ("careful", "balanced", "free")
CSS = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")
QUICK = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
SLOW = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_limit": CONCURRENT_CHATS,
    "concurrency_id": "chat",
}


def mount_page(app: FastAPI, workers: Mapping[str, Worker], safety: Safety, options: ServeOptions) -> FastAPI:
    """Puts the page on a server, at /; the first of the workers is the default."""
    i18n = gr.I18n(en=TEXT["en"], zh=TEXT["zh"], **{"zh-CN": TEXT["zh"], "zh-TW": TEXT["zh"]})
    script = SCRIPT.read_text(encoding="utf-8").replace("KEEP_CHATS", str(options.saved_chats).lower())
    return gr.mount_gradio_app(
        app,
        Page(workers, safety, options, i18n, getattr(app.state, "note_reply", None)).blocks,
        path="/",
        i18n=i18n,
        css_paths=[CSS],
        head=f"<script>\n{script}</script>",
        footer_links=[],
        enable_monitoring=False,
        auth=list(options.auth) or None,
        max_file_size="4mb",
    )


class Page:
    """The chat page of some bots; `note` is told of every reply, see `ui.handlers.answer`.

    Attributes:
        blocks: What Gradio serves.
    """

    def __init__(
        self,
        workers: Mapping[str, Worker],
        safety: Safety,
        options: ServeOptions,
        i18n: gr.I18n,
        note: Callable[..., None] | None,
    ):
        self.workers, self.safety, self.options, self.i18n, self.note = workers, safety, options, i18n, note
        self.default = next(iter(workers))
        part = self.part = SimpleNamespace()
        with gr.Blocks(title=TITLE, fill_height=True, delete_cache=(600, 600)) as self.blocks:
            part.chat = gr.JSON(chats.new_chat(), visible=False)
            part.listing = gr.JSON([], visible=False)
            part.file = gr.JSON({}, visible=False)
            self._lay_out_saved()
            self._lay_out_chat()
            self._lay_out_settings()
            self._wire_talk()
            self._wire_changes()
            self._wire_saved()
            self._wire_feedback()

    # What is where.

    def _lay_out_saved(self) -> None:
        part, i18n = self.part, self.i18n
        with gr.Sidebar(open=False, elem_id="sidebar", label=i18n("chats")):
            part.new = gr.Button(i18n("new_chat"), elem_id="new", variant="primary", size="sm")
            part.saved = gr.Radio([], label=i18n("saved"), elem_id="saved", visible=self.options.saved_chats)
            gr.Markdown(i18n("not_saved"), visible=not self.options.saved_chats)
            part.title = gr.Textbox(label=i18n("title"), max_length=100, elem_id="title")
            with gr.Row():
                part.rename = gr.Button(i18n("rename"), size="sm", elem_id="rename")
                part.delete = gr.Button(i18n("delete"), size="sm", elem_id="delete")
            with gr.Row():
                part.export_json = gr.Button(i18n("export_json"), size="sm", elem_id="export-json")
                part.export_markdown = gr.Button(i18n("export_markdown"), size="sm", elem_id="export-markdown")
            part.load = gr.UploadButton(
                "导入 / Import", file_types=[".json", ".md"], type="filepath", size="sm", elem_id="import"
            )
            part.delete_all = gr.Button(i18n("delete_all"), size="sm", variant="stop", elem_id="delete-all")

    def _lay_out_chat(self) -> None:
        part, i18n = self.part, self.i18n
        gr.Markdown(i18n("heading"), elem_id="heading")
        gr.Markdown(i18n("description"), elem_id="description")
        part.view = gr.Chatbot(
            elem_id="chat",
            scale=1,
            min_height="30vh",
            show_label=False,
            render_markdown=False,  # what is said is text, never markup
            group_consecutive_messages=False,
            editable="user",
            feedback_options=("Like", "Dislike") if self.options.feedback else None,
            buttons=["copy", "copy_all"],  # no button that shares with another host
            placeholder=i18n("placeholder"),
            examples=[{"text": text} for text in EXAMPLES],
        )
        with gr.Group(visible=False, elem_id="why") as part.why:
            part.reasons = gr.CheckboxGroup([], label=i18n("why"), elem_id="reasons")
            with gr.Row():
                part.comment = gr.Textbox(placeholder=i18n("comment"), show_label=False, container=False, scale=4)
                part.explain = gr.Button(i18n("send_feedback"), size="sm", elem_id="send-feedback")
            part.rated = gr.JSON({}, visible=False)
        with gr.Row(visible=False, elem_id="several") as part.several:
            part.found = gr.JSON([], visible=False)
            part.options = []
            for place in range(CANDIDATES):
                with gr.Column(min_width=160):
                    text = gr.Textbox(show_label=False, interactive=False, lines=2, elem_classes="candidate")
                    part.options.append((text, gr.Button(i18n("use_this"), size="sm", elem_id=f"use-{place}")))
        part.box = gr.Textbox(
            elem_id="message",
            label=i18n("message"),
            placeholder=i18n("input_placeholder"),
            show_label=False,
            container=False,
            max_lines=6,
            submit_btn=True,
            autofocus=True,
        )
        with gr.Row(elem_id="tools"):
            part.more = gr.Button(i18n("more"), size="sm", elem_id="more", min_width=80)
            part.divide = gr.Button(i18n("clear_context"), size="sm", elem_id="divide", min_width=80)
        part.status = gr.Markdown(elem_id="status")

    def _lay_out_settings(self) -> None:
        part, i18n, settings = self.part, self.i18n, self.workers[self.default].bot.settings
        with gr.Accordion(i18n("settings"), open=False, elem_id="settings"):
            part.preset = gr.Radio([], label=i18n("presets"), elem_id="preset")
            with gr.Row():
                part.seed = gr.Number(label=i18n("seed"), precision=0, value=None, minimum=0, elem_id="seed")
                part.temperature = gr.Slider(
                    0.1, 2, settings.temperature, step=0.05, label=i18n("temperature"), elem_id="temperature"
                )
                part.top_p = gr.Slider(0.05, 1, settings.top_p, step=0.05, label=i18n("top_p"), elem_id="top-p")
            names = list(self.workers)
            part.model = gr.Dropdown(
                names, value=names[0], label=i18n("checkpoint"), visible=len(names) > 1, elem_id="checkpoint"
            )
            part.mask = gr.Dropdown(["—", *PERSONAS], value="—", label=i18n("persona_preset"), elem_id="persona-preset")
            part.persona = gr.Textbox(label=i18n("persona"), lines=3, max_lines=8, elem_id="persona")
        with gr.Accordion(i18n("look_inside"), open=False, elem_id="inside"):
            gr.Markdown(i18n("inside_note"))
            part.draw = gr.Button(i18n("draw"), size="sm", elem_id="draw")
            part.chart = gr.LinePlot(
                x="step", y="p", color="line", height=240, visible=False, elem_id="chart", buttons=[]
            )
            part.table = gr.Dataframe(visible=False, elem_id="steps", interactive=False, wrap=True, buttons=[])
        part.wish = [part.model, part.seed, part.temperature, part.top_p]

    # What does what.

    def _wire_talk(self) -> None:
        """Sending, trying again, editing: each prepares the conversation, then the reply is decoded, then it is saved."""
        part = self.part
        prepared = [part.chat, part.view, part.box]
        starts = [
            part.box.submit(self.say, [part.chat, part.box, part.model], prepared, **QUICK),
            part.view.example_select(self.say_example, [part.chat, part.model], prepared, **QUICK),
            part.view.retry(self.retry, [part.chat], prepared, **QUICK),
            part.view.edit(self.edit, [part.chat, part.model], prepared, **QUICK),
        ]
        outputs = [part.chat, part.view, part.status]
        replies = [start.success(self.answer, [part.chat, *part.wish], outputs, **SLOW) for start in starts]
        for reply in replies:
            self._saves(reply.then(self.finished, [part.chat, part.status], [*outputs, part.box], **QUICK))
        part.box.stop(None, None, None, cancels=replies, api_visibility="private")

    def _wire_changes(self) -> None:
        """Taking back, the divider, several replies, the settings."""
        part = self.part
        self._saves(part.view.undo(self.undo, [part.chat], [part.chat, part.view, part.box], **QUICK))
        self._saves(part.view.clear(self.start_over, [part.chat], [part.chat, part.view, part.status], **QUICK))
        self._saves(part.divide.click(self.divide, [part.chat], [part.chat, part.view], **QUICK))
        shown = [part.several, part.found, *(text for text, _ in part.options)]
        part.more.click(self.more, [part.chat, *part.wish], shown, **SLOW)
        for place, (_, button) in enumerate(part.options):
            inputs = [part.chat, part.found, gr.Number(place, visible=False)]
            outputs = [part.chat, part.view, part.several, part.status]
            self._saves(button.click(self.use, inputs, outputs, **QUICK))
        part.draw.click(self.look_inside, [part.chat, part.model], [part.chart, part.table], **SLOW)
        part.preset.input(self.set_preset, [part.preset, part.model], [part.temperature, part.top_p], **QUICK)
        part.mask.input(lambda name: "\n".join(PERSONAS.get(name, ())), [part.mask], [part.persona], **QUICK).then(
            self.wear, [part.chat, part.persona], [part.chat], **QUICK
        )
        self._saves(part.persona.blur(self.wear, [part.chat, part.persona], [part.chat], **QUICK))

    def _wire_saved(self) -> None:
        """Opening, naming, deleting, files. The browser's storage is reached by the functions of page.js."""
        part, store = self.part, "window.xianliao"
        shown = [part.chat, part.view, part.title, part.persona, part.status, part.several, part.why]
        lists = {
            "fn": self.show_list,
            "inputs": [part.chat, part.listing],
            "outputs": [part.saved, part.title],
            **QUICK,
        }
        self.blocks.load(self.greet, None, [part.preset, part.reasons], **QUICK)
        self.blocks.load(self.begin, [part.chat], shown, js=f"() => [{store}.open()]", **QUICK).then(
            **{**lists, "js": f"(chat) => [chat, [true, {store}.list()]]"}
        )
        opened = part.saved.input(
            self.open, [part.chat, part.saved], shown, js=f"(chat, id) => [{store}.load(id), null]", **QUICK
        )
        opened.then(**{**lists, "js": f"(chat) => [chat, [true, {store}.list()]]"})
        self._saves(part.new.click(self.open, None, shown, **QUICK))
        self._saves(part.rename.click(self.rename, [part.chat, part.title], [part.chat], **QUICK))
        for button, call in (
            (part.delete, f"(chat) => {{ {store}.remove(chat.id); return [null]; }}"),
            (
                part.delete_all,
                f"(chat) => {{ if (!confirm('全部删除？Delete all?')) return [chat]; {store}.removeAll(); return [null]; }}",
            ),
        ):
            self._saves(button.click(self.open, [part.chat], shown, js=call, **QUICK))
        for button, kind in ((part.export_json, "json"), (part.export_markdown, "md")):
            made = button.click(self.export, [part.chat, gr.Textbox(kind, visible=False)], [part.file], **QUICK)
            made.success(None, [part.file], None, js=f"(file) => {store}.download(file)", api_visibility="private")
        self._saves(part.load.upload(self.load, [part.load], shown, **QUICK))

    def _wire_feedback(self) -> None:
        part = self.part
        inputs = [part.chat, part.model]
        part.view.like(self.rate, inputs, [part.rated, part.why, part.reasons, part.comment], **QUICK)
        inputs += [part.rated, part.reasons, part.comment]
        part.explain.click(self.explain, inputs, [part.why], **QUICK)

    def _saves(self, event) -> None:
        """After this event the browser saves the conversation, and the list of them is made anew."""
        part, store = self.part, "window.xianliao"
        save = f"(chat) => {{ const done = {store}.save(chat); return [chat, [done, {store}.list()]]; }}"
        event.then(self.show_list, [part.chat, part.listing], [part.saved, part.title], js=save, **QUICK)

    # What the server does. `chat` is what the browser sends.

    def say(self, chat: dict, message: str, model: str, request: gr.Request):
        with _in_words():
            chat = handlers.said(self._worker(model).bot, chats.checked(chat), message, _language(request))
        return self._prepared(chat, request)

    def say_example(self, chat: dict, model: str, data: gr.SelectData, request: gr.Request):
        return self.say(chat, data.value["text"], model, request)

    def retry(self, chat: dict, request: gr.Request):
        with _in_words():
            return self._prepared(handlers.unanswered(chats.checked(chat)), request)

    def edit(self, chat: dict, model: str, data: gr.EditData, request: gr.Request):
        with _in_words():
            chat = chats.checked(chat)
            place = data.index if isinstance(data.index, int) else data.index[0]
            before = {**chat, "messages": chat["messages"][:place]}
            text = handlers.as_typed(data.value if isinstance(data.value, str) else str(data.value))
            chat = handlers.said(self._worker(model).bot, before, text, _language(request))
        return self._prepared(chat, request)

    def _prepared(self, chat: dict, request: gr.Request):
        view = handlers.view_of(chat, _language(request))
        return chat, view, gr.Textbox(value="", submit_btn=False, stop_btn=True)

    def answer(self, chat: dict, model: str, seed, temperature, top_p, request: gr.Request) -> Iterator:
        language = _language(request)
        wish = Wish(None if seed is None else int(seed), temperature, top_p)
        try:
            asked = chats.checked(chat)
            for chat, line in handlers.answer(self._worker(model), self.safety, asked, wish, language, self.note):
                yield chat, handlers.view_of(chat, language), line
        except XianliaoError as error:
            yield chats.without_empty(chat), gr.skip(), str(error)
        except Exception:
            LOGGER.exception("a reply of the page failed")
            yield chats.without_empty(chat), gr.skip(), TEXT[language]["failed"]

    def finished(self, chat: dict, line: str, request: gr.Request):
        """After a reply has ended, was stopped (then there is no status line yet), or has failed."""
        chat, language = chats.without_empty(chats.checked(chat)), _language(request)
        ready = gr.Textbox(submit_btn=True, stop_btn=False)
        return chat, handlers.view_of(chat, language), line or TEXT[language]["stopped"], ready

    def undo(self, chat: dict, request: gr.Request):
        chat, message = chats.without_last(chats.checked(chat))
        return chat, handlers.view_of(chat, _language(request)), message

    def start_over(self, chat: dict):
        chat = chats.checked(chat)
        return {**chat, "messages": []}, [], ""

    def divide(self, chat: dict, request: gr.Request):
        chat = chats.checked(chat)
        if chat["messages"] and chat["messages"][-1]["role"] != "divider":
            chat = chats.with_message(chat, "divider")
        return chat, handlers.view_of(chat, _language(request))

    def more(self, chat: dict, model: str, seed, temperature, top_p, request: gr.Request) -> Iterator:
        wish = Wish(None if seed is None else int(seed), temperature, top_p)
        with _in_words():
            chat = chats.checked(chat)
            for found in handlers.several(self._worker(model), self.safety, chat, wish, _language(request)):
                yield gr.Row(visible=True), found, *(each["text"] for each in found)

    def use(self, chat: dict, found: list, place: float, request: gr.Request):
        with _in_words():
            chat = handlers.unanswered(chats.checked(chat))
            chosen = found[int(place)]
            chat = chats.checked({**chat, "messages": [*chat["messages"], {**chosen, "role": "assistant"}]})
        return chat, handlers.view_of(chat, _language(request)), gr.Row(visible=False), ""

    def look_inside(self, chat: dict, model: str, request: gr.Request):
        language = _language(request)
        with _in_words():
            steps = handlers.inside(self._worker(model), self.safety, chats.checked(chat), language)
        return draw(steps, TEXT[language])

    def set_preset(self, name: str, model: str):
        return handlers.preset(name, self._worker(model).bot.settings)

    def wear(self, chat: dict, text: str):
        with _in_words():
            return {**chats.checked(chat), "persona": chats.persona_turns(text)}

    def greet(self, request: gr.Request):
        words = TEXT[_language(request)]
        presets = gr.Radio([(words[name], name) for name in PRESETS], value="balanced")
        return presets, gr.CheckboxGroup([(words[name], name) for name in REASONS])

    def begin(self, chat: dict | None, request: gr.Request):
        """The conversation that was open before the page was loaded anew."""
        return gr.skip() if chat is None else self.open(chat, request=request)

    def open(self, chat: dict | None = None, _=None, request: gr.Request = None):
        """Shows a conversation of the browser's, or an empty one where it has none."""
        with _in_words():
            chat = chats.new_chat() if chat is None else chats.checked(chat)
        view = handlers.view_of(chat, _language(request))
        hidden = gr.Row(visible=False), gr.Group(visible=False)
        return chat, view, chat["title"], "\n".join(chat["persona"]), "", *hidden

    def show_list(self, chat: dict, listing: list, request: gr.Request):
        saved, entries = listing
        if not saved:
            gr.Warning(TEXT[_language(request)]["full"])
        return gr.Radio([(title, ident) for title, ident in entries], value=chat["id"] or None), chat["title"]

    def rename(self, chat: dict, title: str):
        return chats.checked({**chat, "title": title})

    def export(self, chat: dict, kind: str):
        chat = chats.checked(chat)
        text = chats.to_json(chat) if kind == "json" else chats.to_markdown(chat)
        return {"name": f"xianliao-{chat['id'] or 'chat'}.{kind}", "text": text}

    def load(self, path: str, request: gr.Request):
        with _in_words():
            try:
                chat = chats.from_file(Path(path).read_bytes())
            finally:
                Path(path).unlink(missing_ok=True)
        gr.Info(TEXT[_language(request)]["imported"].format(count=len(chat["messages"])))
        return self.open(chats.with_id(chat), request=request)

    def rate(self, chat: dict, model: str, data: gr.LikeData, request: gr.Request):
        rated = {"place": data.index, "rating": "like" if data.liked else "dislike"}
        self._write(chat, model, rated)
        gr.Info(TEXT[_language(request)]["thanks"])
        return rated, gr.Group(visible=True), [], ""

    def explain(self, chat: dict, model: str, rated: dict, reasons: list, comment: str, request: gr.Request):
        self._write(chat, model, rated, reasons, comment)
        gr.Info(TEXT[_language(request)]["thanks"])
        return gr.Group(visible=False)

    def _write(self, chat: dict, model: str, rated: dict, reasons=(), comment: str = "") -> None:
        with _in_words():
            chat = chats.checked(chat)
            messages = chat["messages"][: int(rated["place"]) + 1]
            turns = chats.turns_of({**chat, "messages": messages})
            seed = {"seed": messages[-1]["seed"]} if messages and "seed" in messages[-1] else None
            write_feedback(self.options.data_dir, turns, rated["rating"], model, reasons, comment, seed)

    def _worker(self, model: str | None) -> Worker:
        return self.workers.get(model, self.workers[self.default])


def draw(steps: Sequence[TracedStep], words: Mapping[str, str]) -> tuple[gr.LinePlot, gr.Dataframe]:
    """The steps of a reply as a chart of probabilities and a table of candidates."""
    named = {"line_kept": "probability", "line_end": "end", "line_end_kept": "end_kept", "line_floor": "floor"}
    lines = [
        {"step": number, "p": getattr(step, name), "line": words[line]}
        for number, step in enumerate(steps, 1)
        for line, name in named.items()
    ]
    rows = [
        [
            handlers.shown_as_text(step.token) or words["end_mark"],
            step.count,
            "  ".join(f"{handlers.shown_as_text(text) or words['end_mark']} {share:.2f}" for text, share in step.kept),
        ]
        for step in steps
    ]
    headers = [words[name] for name in ("table_token", "table_count", "table_kept")]
    labels = {"x_title": words["chart_step"], "y_title": words["chart_p"], "color_title": " "}
    return (
        gr.LinePlot(pd.DataFrame(lines), y_lim=[0, 1], visible=True, **labels),
        gr.Dataframe(rows, headers=headers, visible=True),
    )


@contextmanager
def _in_words() -> Iterator[None]:
    """What goes wrong is a notice on the page."""
    try:
        yield
    except XianliaoError as error:
        raise gr.Error(str(error), print_exception=False) from None


def _language(request: gr.Request | None) -> str:
    return language_of(request.headers.get("accept-language") if request else None)
