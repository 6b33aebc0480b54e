"""The page: Gradio's parts, where they are and which of them does what; what happens then is in `ui.page.actions`.

The conversation is a plain value that the browser holds and sends along, so the server keeps nothing of it: after a restart
the page goes on where it was, and any replica can answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
from fastapi import FastAPI

from chatbot.chat.worker import Worker
from ui.options import ServeOptions
from ui.page import chats
from ui.page.actions import Actions
from ui.page.handlers import CANDIDATES
from ui.page.text import EXAMPLES, PERSONAS, TEXT, TITLE

CONCURRENT_CHATS = 32
"""Replies of the page that are under way at the same time; more wait in Gradio's queue."""

CSS = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")
QUICK = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
SLOW = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_limit": CONCURRENT_CHATS,
    "concurrency_id": "chat",
}


def mount_page(app: FastAPI, workers: Mapping[str, Worker], options: ServeOptions) -> FastAPI:
    """Puts the page on a server, at /; the first of the workers is the default."""
    chinese = ("zh", "zh-CN", "zh-TW", "zh-HK", "zh-MO", "zh-SG", "zh-Hans", "zh-Hant")
    i18n = gr.I18n(en=TEXT["en"], **dict.fromkeys(chinese, TEXT["zh"]))
    script = SCRIPT.read_text(encoding="utf-8").replace("KEEP_CHATS", str(options.saved_chats).lower())
    blocks = Page(workers, options, i18n, getattr(app.state, "note_reply", None)).blocks
    mounted = gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        i18n=i18n,
        css_paths=[CSS],
        head=f"<script>\n{script}</script>",
        footer_links=[],
        enable_monitoring=False,
        run_history=False,
        auth=list(options.auth) or None,
    )
    # launch() sets this; without it Gradio skips its check that a file named by a client was uploaded by one. No request
    # that names a file gets this far (ui.server.page_routes); this is the second lock.
    blocks.has_launched = True
    return mounted


class Page:
    """The chat page of some bots; `note` is told of every reply, see `ui.page.handlers.answer`.

    Attributes:
        blocks: What Gradio serves.
    """

    def __init__(
        self,
        workers: Mapping[str, Worker],
        options: ServeOptions,
        i18n: gr.I18n,
        note: Callable[..., None] | None,
    ):
        self.workers, self.options, self.i18n = workers, options, i18n
        self.act = Actions(workers, options, note)
        part = self.part = SimpleNamespace()
        with gr.Blocks(title=TITLE, fill_height=True) as self.blocks:
            part.chat = gr.JSON(chats.new_chat(), visible=False)
            part.listing = gr.JSON([], visible=False)
            part.file = gr.JSON({}, visible=False)
            self._lay_out_saved()
            self._lay_out_chat()
            self._lay_out_settings()
            self._wire_talk()
            self._wire_changes()
            self._wire_saved()
            if options.feedback:
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
            part.load = gr.Button(i18n("import"), size="sm", elem_id="import")
            part.imported = gr.JSON(visible=False)
            part.delete_all = gr.Button(i18n("delete_all"), size="sm", variant="stop", elem_id="delete-all")

    def _lay_out_chat(self) -> None:
        part, i18n = self.part, self.i18n
        gr.Markdown(i18n("heading"), elem_id="heading")
        gr.Markdown(i18n("description"), elem_id="description")
        gr.Markdown(i18n("feedback_note"), elem_id="feedback-note", visible=self.options.feedback)
        part.view = gr.Chatbot(
            elem_id="chat",
            scale=1,
            min_height="30vh",
            show_label=False,
            render_markdown=False,  # what is said is text, never markup
            latex_delimiters=[],
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
        part, i18n, settings = self.part, self.i18n, self.act.worker(None).bot.settings
        with gr.Accordion(i18n("settings"), open=False, elem_id="settings"):
            part.preset = gr.Radio([], label=i18n("presets"), elem_id="preset")
            with gr.Row():
                part.seed = gr.Number(label=i18n("seed"), precision=0, value=None, elem_id="seed")
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
        part, act = self.part, self.act
        prepared = [part.chat, part.view, part.box, part.several, part.why]
        starts = [
            part.box.submit(act.say, [part.chat, part.box, part.model], prepared, **QUICK),
            part.view.example_select(act.say_example, [part.chat, part.model], prepared, **QUICK),
            part.view.retry(act.retry, [part.chat], prepared, **QUICK),
            part.view.edit(act.edit, [part.chat, part.model], prepared, **QUICK),
        ]
        outputs = [part.chat, part.view, part.status]
        replies = [start.success(act.answer, [part.chat, *part.wish], outputs, **SLOW) for start in starts]
        for reply in replies:
            self._saves(reply.then(act.finished, [part.chat, part.status], [*outputs, part.box], **QUICK))
        part.box.stop(None, None, None, cancels=replies, api_visibility="private")

    def _wire_changes(self) -> None:
        """Taking back, the divider, several replies, the settings."""
        part, act = self.part, self.act
        changed = [part.chat, part.view, part.several, part.why]
        self._saves(part.view.undo(act.undo, [part.chat, part.box], [*changed, part.box], **QUICK))
        self._saves(part.divide.click(act.divide, [part.chat], changed, **QUICK))
        shown = [part.several, part.found, *(text for text, _ in part.options)]
        part.more.click(act.more, [part.chat, *part.wish], shown, **SLOW)
        for place, (_, button) in enumerate(part.options):
            inputs = [part.chat, part.found, gr.Number(place, visible=False)]
            self._saves(button.click(act.use, inputs, [*changed, part.status], **QUICK))
        part.draw.click(act.look_inside, [part.chat], [part.chart, part.table], **SLOW)
        for choice in (part.preset, part.model):
            choice.input(act.set_preset, [part.preset, part.model], [part.temperature, part.top_p], **QUICK)
        part.mask.input(lambda name: "\n".join(PERSONAS.get(name, ())), [part.mask], [part.persona], **QUICK).then(
            act.wear, [part.chat, part.persona], [part.chat], **QUICK
        )
        self._saves(part.persona.blur(act.wear, [part.chat, part.persona], [part.chat], **QUICK))

    def _wire_saved(self) -> None:
        """Opening, naming, deleting, files. The browser's storage is reached by the functions of page.js."""
        part, act, store = self.part, self.act, "window.xianliao"
        shown = [part.chat, part.view, part.several, part.why, part.title, part.persona, part.status]
        self.blocks.load(act.greet, None, [part.preset, part.reasons], **QUICK)
        begun = self.blocks.load(act.begin, [part.chat], shown, js=f"() => [{store}.open()]", **QUICK)
        opened = part.saved.input(
            act.open, [part.chat, part.saved], shown, js=f"(chat, id) => [{store}.load(id), null]", **QUICK
        )
        for event in (begun, opened):
            self._lists(event, f"(chat) => [chat, [true, {store}.list(), false]]")
        for fresh in (part.new.click, part.view.clear):  # what is in the view stays among the saved ones
            self._saves(fresh(act.open, None, shown, **QUICK))
        self._saves(part.rename.click(act.rename, [part.chat, part.title], [part.chat], **QUICK))
        for button, call in (
            (part.delete, f"(chat) => [{store}.confirmed('delete') ? {store}.remove(chat.id) : chat]"),
            (part.delete_all, f"(chat) => [{store}.confirmed('delete all') ? {store}.removeAll() : chat]"),
        ):
            self._saves(button.click(act.open, [part.chat], shown, js=call, **QUICK))
        for button, kind in ((part.export_json, "json"), (part.export_markdown, "md")):
            made = button.click(act.export, [part.chat, gr.Textbox(kind, visible=False)], [part.file], **QUICK)
            made.success(None, [part.file], None, js=f"(file) => {store}.download(file)", api_visibility="private")
        self._saves(
            part.load.click(act.load, [part.imported], shown, js=f"async () => [await {store}.pick()]", **QUICK)
        )

    def _wire_feedback(self) -> None:
        part, act = self.part, self.act
        asked = [part.rated, part.why, part.reasons, part.comment]
        part.view.like(act.rate, [part.chat], asked, **QUICK)
        inputs = [part.chat, part.rated, part.reasons, part.comment]
        part.explain.click(act.explain, inputs, [part.why], **QUICK)

    def _saves(self, event) -> None:
        """After this event the browser saves the conversation, and the list of them is made anew."""
        store = "window.xianliao"
        save = f"(chat) => {{ const [kept, done, forked] = {store}.save(chat);"
        save += f" return [kept, [done, {store}.list(), forked]]; }}"
        self._lists(event, save)

    def _lists(self, event, js: str) -> None:
        """After this event the list of saved conversations is made anew, from what `js` gives `Actions.show_list`."""
        part = self.part
        event.then(self.act.show_list, [part.chat, part.listing], [part.chat, part.saved, part.title], js=js, **QUICK)
