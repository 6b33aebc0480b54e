"""The page: Gradio's components, their layout, and the event handlers of `ui.page.actions` that they call.

The browser holds the conversation as a plain value and sends it with every event. The server stores none of it, so
after a restart the page continues, and any replica can answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from chatbot.chat.worker import Worker
from ui.options import ServeOptions
from ui.page import chats
from ui.page.actions import Actions
from ui.page.handlers import CANDIDATES, ReplyCallback
from ui.page.queue import BoundedQueue
from ui.page.text import EXAMPLES, PERSONAS, TITLE
from ui.page.variants import add_variants
from ui.server.logs import LOGGER
from ui.server.work import WorkPool

CONCURRENT_CHATS = 32
"""Number of replies of the page that are decoded at the same time; more wait in Gradio's queue."""

MAX_WAITING_EVENTS = 1_000
"""Length of Gradio's queue; with more events waiting the page says that it is busy."""

QUICK: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
SLOW: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_limit": CONCURRENT_CHATS,
    "concurrency_id": "chat",
}
STORE = "window.xianliao"
"""Object of page.js: the browser's storage of conversations."""


class QuietBlocks(gr.Blocks):
    """Blocks with a bounded queue, whose errors are logged by this project's rules.

    Gradio would print tracebacks that quote the inputs.
    """

    def queue(self, *args: Any, max_size: int | None = None, **kwargs: Any) -> QuietBlocks:
        """Give the page a queue of at most `max_size` waiting events."""
        super().queue(*args, max_size=max_size, **kwargs)
        self._queue = BoundedQueue(
            live_updates=True,
            concurrency_count=self.max_threads,
            update_intervals=1,
            max_size=max_size,
            blocks=self,
        )
        return self

    async def process_api(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Run an event handler."""
        try:
            return await super().process_api(*args, **kwargs)
        except gr.Error as error:
            error.print_exception = False
            raise
        except Exception as error:
            LOGGER.error("an event of the page failed", exc_info=error)
            raise gr.Error("The server failed on this request. Reload the page.", print_exception=False) from None


class Parts:
    """Components of the page that events use, by name."""

    chat: gr.JSON
    listing: gr.JSON
    file: gr.JSON
    imported: gr.JSON
    rated: gr.JSON
    offered: gr.JSON
    new: gr.Button
    rename: gr.Button
    delete: gr.Button
    delete_all: gr.Button
    export_json: gr.Button
    export_markdown: gr.Button
    load: gr.Button
    send_feedback: gr.Button
    more: gr.Button
    divide: gr.Button
    draw: gr.Button
    saved: gr.Radio
    preset: gr.Radio
    title: gr.Textbox
    box: gr.Textbox
    comment: gr.Textbox
    persona: gr.Textbox
    reasons: gr.CheckboxGroup
    view: gr.Chatbot
    why: gr.Group
    candidates: gr.Row
    choices: list[tuple[gr.Textbox, gr.Button]]
    status: gr.Markdown
    seed: gr.Number
    temperature: gr.Slider
    top_p: gr.Slider
    model: gr.Dropdown
    persona_name: gr.Dropdown
    chart: gr.LinePlot
    table: gr.Dataframe


class Page:
    """The chat page.

    Args:
        workers: Workers by the name of their checkpoint; the first is the default.
        options: Options of the server.
        i18n: Texts in all languages.
        on_reply: Function to call after each reply.
        pool: Threads for work on texts.

    Attributes:
        blocks: Gradio's object for the page.
    """

    def __init__(
        self,
        workers: Mapping[str, Worker],
        options: ServeOptions,
        i18n: gr.I18n,
        on_reply: ReplyCallback | None,
        pool: WorkPool | None = None,
    ):
        self.workers, self.options, self.i18n = workers, options, i18n
        self.act = Actions(workers, options, on_reply, pool)
        part = self.part = Parts()
        with QuietBlocks(title=TITLE, fill_height=True) as self.blocks:
            part.chat = gr.JSON({**chats.new_chat()}, visible=False)
            part.listing = gr.JSON([], visible=False)
            part.file = gr.JSON({}, visible=False)
            self._lay_out_saved()
            self._lay_out_chat()
            varied = add_variants(part.chat, part.view, self.act, i18n, **SLOW)
            self._lay_out_settings()
            self._wire_talk()
            self._wire_changes()
            for event in varied:
                self._save_after(event)
            self._wire_saved()
            if options.feedback:
                self._wire_feedback()
        self.blocks.queue(max_size=MAX_WAITING_EVENTS)

    # Layout.

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
            leave = gr.Button(i18n("log_out"), size="sm", elem_id="log-out", visible=bool(self.options.auth))
            leave.click(None, js=f"() => {STORE}.logOut()", api_visibility="private")

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
            render_markdown=False,  # messages are text, never markup
            latex_delimiters=[],
            group_consecutive_messages=False,
            editable="user",
            feedback_options=("Like", "Dislike") if self.options.feedback else None,
            buttons=["copy", "copy_all"],  # no button that shares with another host
            placeholder=i18n("placeholder"),  # type: ignore[arg-type]  # Gradio translates it
            examples=[{"text": text} for text in EXAMPLES],
        )
        with gr.Group(visible=False, elem_id="why") as part.why:
            part.reasons = gr.CheckboxGroup([], label=i18n("why"), elem_id="reasons")
            with gr.Row():
                part.comment = gr.Textbox(placeholder=i18n("comment"), show_label=False, container=False, scale=4)
                part.send_feedback = gr.Button(i18n("send_feedback"), size="sm", elem_id="send-feedback")
            part.rated = gr.JSON({}, visible=False)
        with gr.Row(visible=False, elem_id="several") as part.candidates:
            part.offered = gr.JSON([], visible=False)
            part.choices = []
            for index in range(CANDIDATES):
                with gr.Column(min_width=160):
                    text = gr.Textbox(show_label=False, interactive=False, lines=2, elem_classes="candidate")
                    part.choices.append((text, gr.Button(i18n("use_this"), size="sm", elem_id=f"use-{index}")))
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
            part.persona_name = gr.Dropdown(
                ["—", *PERSONAS], value="—", label=i18n("persona_preset"), elem_id="persona-preset"
            )
            part.persona = gr.Textbox(label=i18n("persona"), lines=3, max_lines=8, elem_id="persona")
        with gr.Accordion(i18n("look_inside"), open=False, elem_id="inside"):
            gr.Markdown(i18n("inside_note"))
            part.draw = gr.Button(i18n("draw"), size="sm", elem_id="draw")
            part.chart = gr.LinePlot(
                x="step", y="p", color="line", height=240, visible=False, elem_id="chart", buttons=[]
            )
            part.table = gr.Dataframe(visible=False, elem_id="steps", interactive=False, wrap=True, buttons=[])

    # Events.

    @property
    def _settings(self) -> list[Any]:
        """Inputs with the settings of a reply."""
        return [self.part.model, self.part.seed, self.part.temperature, self.part.top_p]

    def _wire_talk(self) -> None:
        """Sending, trying again, editing: each prepares the conversation; then the reply is decoded and saved."""
        part, act = self.part, self.act
        prepared = [part.chat, part.view, part.box, part.candidates, part.why]
        starts = [
            part.box.submit(act.say, [part.chat, part.box, part.model], prepared, **QUICK),
            part.view.example_select(act.say_example, [part.chat, part.model], prepared, **QUICK),
            part.view.retry(act.retry, [part.chat], prepared, **QUICK),
            part.view.edit(act.edit, [part.chat, part.model], prepared, **QUICK),
        ]
        outputs = [part.chat, part.view, part.status]
        replies = [start.success(act.answer, [part.chat, *self._settings], outputs, **SLOW) for start in starts]
        for reply in replies:
            self._save_after(reply.then(act.finish, [part.chat, part.status], [*outputs, part.box], **QUICK))
        part.box.stop(None, None, None, cancels=replies, api_visibility="private")

    def _wire_changes(self) -> None:
        """Undo, the divider, several replies, the settings."""
        part, act = self.part, self.act
        changed = [part.chat, part.view, part.candidates, part.why]
        self._save_after(part.view.undo(act.undo, [part.chat, part.box], [*changed, part.box], **QUICK))
        self._save_after(part.divide.click(act.divide, [part.chat], changed, **QUICK))
        offered = [part.candidates, part.offered, *(text for text, _ in part.choices)]
        part.more.click(act.offer, [part.chat, *self._settings], offered, **SLOW)
        for index, (_, button) in enumerate(part.choices):
            inputs = [part.chat, part.offered, gr.Number(index, visible=False)]
            self._save_after(button.click(act.use, inputs, [*changed, part.status], **QUICK))
        part.draw.click(act.look_inside, [part.chat], [part.chart, part.table], **SLOW)
        for choice in (part.preset, part.model):
            choice.input(act.set_preset, [part.preset, part.model], [part.temperature, part.top_p], **QUICK)
        chosen = part.persona_name.input(act.show_persona, [part.persona_name], [part.persona], **QUICK)
        chosen.then(act.set_persona, [part.chat, part.persona], [part.chat], **QUICK)
        self._save_after(part.persona.blur(act.set_persona, [part.chat, part.persona], [part.chat], **QUICK))

    def _wire_saved(self) -> None:
        """Opening, naming, deleting, files. Functions of page.js read and write the browser's storage."""
        part, act = self.part, self.act
        shown = [part.chat, part.view, part.candidates, part.why, part.title, part.persona, part.status]
        self.blocks.load(act.show_choices, None, [part.preset, part.reasons], **QUICK)
        begun = self.blocks.load(act.begin, [part.chat], shown, js=f"() => [{STORE}.open()]", **QUICK)
        opened = part.saved.input(
            act.open, [part.chat, part.saved], shown, js=f"(chat, id) => [{STORE}.load(id), null]", **QUICK
        )
        for event in (begun, opened):
            self._list_after(event, f"(chat) => {STORE}.listed(chat)")
        for fresh in (part.new.click, part.view.clear):  # the conversation in view is saved already
            self._save_after(fresh(act.open, None, shown, **QUICK))
        self._save_after(part.rename.click(act.rename, [part.chat, part.title], [part.chat], **QUICK))
        for button, name in ((part.delete, "removeAsked"), (part.delete_all, "removeAllAsked")):
            js = f"(chat) => [{STORE}.{name}(chat)]"
            self._save_after(button.click(act.open, [part.chat], shown, js=js, **QUICK))
        for button, kind in ((part.export_json, "json"), (part.export_markdown, "md")):
            made = button.click(act.export, [part.chat, gr.Textbox(kind, visible=False)], [part.file], **QUICK)
            made.success(None, [part.file], None, js=f"(file) => {STORE}.download(file)", api_visibility="private")
        picked = f"async () => [await {STORE}.pick()]"
        self._save_after(part.load.click(act.load, [part.imported], shown, js=picked, **QUICK))

    def _wire_feedback(self) -> None:
        part, act = self.part, self.act
        asked = [part.rated, part.why, part.reasons, part.comment]
        part.view.like(act.rate, [part.chat], asked, **QUICK)
        inputs = [part.chat, part.rated, part.reasons, part.comment]
        part.send_feedback.click(act.give_reasons, inputs, [part.why], **QUICK)

    def _save_after(self, event: Any) -> None:
        """Make the browser save the conversation after an event and show the list of conversations anew."""
        self._list_after(event, f"(chat) => {STORE}.saved(chat)")

    def _list_after(self, event: Any, js: str) -> None:
        """Show the list of conversations anew after an event; `js` returns the inputs of `Actions.show_list`."""
        part = self.part
        event.then(self.act.show_list, [part.chat, part.listing], [part.chat, part.saved, part.title], js=js, **QUICK)
