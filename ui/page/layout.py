"""The page: Gradio's components, their layout, and the event handlers of `ui.page.actions` that they call.

The browser holds the conversation as a plain value and sends it with every event. The server stores none of it, so
after a restart the page continues, and any replica can answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from chatbot.chat.variants import MAX_SPREAD
from chatbot.chat.worker import Worker
from ui.options import ServeOptions
from ui.page import chats, handlers
from ui.page.actions import Actions, sender_of
from ui.page.ball.actions import BallActions
from ui.page.ball.replies import has_ball
from ui.page.handlers import ReplyCallback
from ui.page.queue import BoundedQueue
from ui.page.text import TITLE
from ui.server.logs import FAILURES
from ui.server.work import WorkPool
from ui.studio.view import StudioView

CONCURRENT_CHATS = 32
"""Number of replies of the page that are decoded at the same time; more wait in Gradio's queue."""

MAX_WAITING_EVENTS = 1_000
"""Length of Gradio's queue; with more events waiting the page says that it is busy."""

QUICK: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
BROWSER: dict[str, Any] = {"api_visibility": "private"}
"""Options of events that run in the browser alone."""

SLOW: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "concurrency_limit": CONCURRENT_CHATS,
    "concurrency_id": "chat",
}
SCRIPT = "window.xianliao"
"""JavaScript object of the page's script (`ui.page.script`), which draws the conversation and stores it in the
browser."""


class QuietBlocks(gr.Blocks):
    """Blocks with a bounded queue, whose errors are logged by this project's rules.

    Gradio would print tracebacks that quote the inputs.
    """

    def queue(self, *args: Any, max_size: int | None = None, **kwargs: Any) -> QuietBlocks:
        """Give the page a queue of at most `max_size` waiting events.

        Gradio's method, which its constructor calls too, would also build an application that no server uses.
        """
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
            sender = sender_of(kwargs.get("request"))
            FAILURES.log(sender, "an event of the page failed", "error", error)
            raise gr.Error("The server failed on this request. Reload the page.", print_exception=False) from None


class Parts:
    """Components of the page that events use, by name."""

    chat: gr.HTML
    file: gr.JSON
    imported: gr.JSON
    exported: gr.JSON
    rated: gr.JSON
    offered: gr.JSON
    looked_at: gr.JSON
    steps: gr.JSON
    models: gr.JSON
    wanted: gr.JSON
    ball: gr.JSON
    studio: gr.HTML
    send_feedback: gr.Button
    more: gr.Button
    divide: gr.Button
    reset: gr.Button
    preset: gr.Radio
    box: gr.Textbox
    comment: gr.Textbox
    persona: gr.Textbox
    system: gr.Textbox
    reasons: gr.CheckboxGroup
    why: gr.Group
    status: gr.Markdown
    seed: gr.Textbox
    temperature: gr.Slider
    top_p: gr.Slider
    spread: gr.Slider
    model: gr.Dropdown
    cards: gr.HTML


class Page:
    """The chat page.

    Args:
        workers: Workers by the name of their checkpoint; the first is the default.
        options: Options of the server.
        i18n: Texts in all languages.
        on_reply: Function to call after each reply.
        pool: Threads for work on texts.
        studio: The training view, or None.

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
        studio: StudioView | None = None,
    ):
        self.workers, self.options, self.i18n, self.studio = workers, options, i18n, studio
        self.act = Actions(workers, options, on_reply, pool)
        self.ball = BallActions(self.act)
        part = self.part = Parts()
        with QuietBlocks(title=TITLE, fill_height=True) as self.blocks:
            for name in [name for name, kind in Parts.__annotations__.items() if kind == "gr.JSON"]:
                setattr(part, name, gr.JSON(visible=False))
            drawn("side")
            with gr.Column(elem_id="main"):
                drawn("top")
                part.chat = drawn("chat", {**chats.new_chat()})
                self._lay_out_composer()
            with gr.Column(elem_id="panel"):
                self._lay_out_settings()
            if studio is not None:
                part.studio = drawn("studio")
            self._wire_talk()
            self._wire_changes()
            if any(map(has_ball, workers.values())):
                self._wire_ball()
            self._wire_settings()
            self._wire_saved()
            if options.feedback:
                self._wire_feedback()
            if studio is not None:
                self._wire_studio(studio)
        self.blocks.queue(max_size=MAX_WAITING_EVENTS)

    # Layout.

    def _lay_out_composer(self) -> None:
        part, i18n = self.part, self.i18n
        with gr.Group(visible=False, elem_id="why") as part.why:
            part.reasons = gr.CheckboxGroup([], label=i18n("why"), elem_id="reasons")
            with gr.Row():
                part.comment = gr.Textbox(
                    label=i18n("comment"), placeholder=i18n("comment"), show_label=False, container=False, scale=4
                )
                part.send_feedback = gr.Button(i18n("send_feedback"), size="sm", elem_id="send-feedback")
            gr.Markdown(i18n("feedback_note"), elem_id="feedback-note")
        part.status = gr.Markdown(elem_id="status")
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
            gr.Markdown(i18n("description"), elem_id="description")

    def _lay_out_settings(self) -> None:
        part, i18n, settings = self.part, self.i18n, self.act.worker(None).bot.settings
        drawn("settings")
        part.preset = gr.Radio([], label=i18n("presets"), elem_id="preset")
        names = list(self.workers)
        part.model = gr.Dropdown(
            names, value=names[0], label=i18n("checkpoint"), visible=len(names) > 1, elem_id="checkpoint"
        )
        part.cards = drawn("personas")
        part.system = gr.Textbox(
            label=i18n("system"),
            info=i18n("system_note"),
            lines=3,
            max_lines=10,
            visible=self.act.worker(None).bot.layout.takes_system,
            elem_id="system",
        )
        with gr.Accordion(i18n("more_settings"), open=False, elem_id="more-settings"):
            part.seed = gr.Textbox(label=i18n("seed"), max_length=20, max_lines=1, elem_id="seed")
            part.temperature = gr.Slider(
                0.1, 2, settings.temperature, step=0.05, label=i18n("temperature"), elem_id="temperature"
            )
            part.top_p = gr.Slider(0.05, 1, settings.top_p, step=0.05, label=i18n("top_p"), elem_id="top-p")
            part.spread = gr.Slider(
                0, MAX_SPREAD, 1, step=0.1, label=i18n("spread"), info=i18n("spread_note"), elem_id="spread"
            )
        with gr.Accordion(i18n("own_persona"), open=False, elem_id="own-persona"):
            part.persona = gr.Textbox(label=i18n("persona"), lines=3, max_lines=8, elem_id="persona")
        part.reset = gr.Button(i18n("reset"), size="sm", elem_id="reset")
        drawn("keys")

    # Events.

    @property
    def _settings(self) -> list[Any]:
        """Inputs with the settings of a reply."""
        return [self.part.model, self.part.seed, self.part.temperature, self.part.top_p]

    def _wire_talk(self) -> None:
        """Sending, trying again, editing: each prepares the conversation; then the reply is decoded and saved."""
        part, act = self.part, self.act
        prepared = [part.chat, part.why, part.box]
        starts = [
            part.box.submit(act.say, [part.chat, part.box, part.model], prepared, **QUICK),
            part.chat.example_select(act.say_example, [part.chat, part.model], prepared, **QUICK),
            part.chat.retry(act.retry, [part.chat], prepared, **QUICK),
            part.chat.edit(act.edit, [part.chat, part.model], prepared, **QUICK),
        ]
        outputs = [part.chat, part.status]
        replies = [start.success(act.answer, [part.chat, *self._settings], outputs, **SLOW) for start in starts]
        for reply in replies:
            ended = reply.then(act.finish, [part.chat, part.status], [*outputs, part.box], **QUICK)
            ended.then(None, outputs, [part.chat], js=f"(chat, line) => {SCRIPT}.replied(chat, line)", **BROWSER)
        part.box.stop(None, None, None, cancels=replies, **BROWSER)

    def _wire_changes(self) -> None:
        """Undo, the divider, several replies, another way to say one, how a reply was chosen."""
        part, act = self.part, self.act
        changed = [part.chat, part.why]
        self._save_after(part.chat.undo(act.undo, [part.chat, part.box], [*changed, part.box], **QUICK))
        self._save_after(part.divide.click(act.divide, [part.chat], changed, **QUICK))
        more = part.more.click(act.offer, [part.chat, *self._settings], [part.offered], **SLOW)
        another = part.chat.option_select(act.another, [part.chat, part.spread], [part.offered], **SLOW)
        offered_js, inputs = f"(...values) => {SCRIPT}.offered(...values)", [part.chat, part.offered]
        for offered in (more, another):
            offered.success(None, inputs, [part.offered], js=offered_js, **BROWSER)
            offered.failure(None, None, None, js=f"() => {SCRIPT}.chat.offering(false)", **BROWSER)
        looked = part.chat.select(act.look_inside, [part.chat], [part.looked_at, part.steps], **SLOW)
        looked.success(
            None, [part.looked_at, part.steps], None, js=f"(...values) => {SCRIPT}.inside.show(...values)", **BROWSER
        )

    def _wire_ball(self) -> None:
        """The picture of replies: the distributions of the replies that are shown, and the reply at a point."""
        part, ball = self.part, self.ball
        values = [part.chat, part.ball]
        asked = part.chat.expand(ball.encode, values, [part.ball], js=f"() => {SCRIPT}.ball.asked()", **SLOW)
        dropped = part.chat.release(ball.reply_at, values, [part.ball], js=f"() => {SCRIPT}.ball.dropped()", **SLOW)
        for event, name in ((asked, "encoded"), (dropped, "decoded")):
            event.success(None, [part.ball], None, js=f"(value) => {SCRIPT}.ball.{name}(value)", **BROWSER)
            event.failure(None, None, None, js=f"() => {SCRIPT}.ball.{name}(null)", **BROWSER)

    def _wire_settings(self) -> None:
        """Styles and personas. The browser remembers the settings, but no seed."""
        part, act, worker = self.part, self.act, self.act.worker(None)
        remembered = [part.preset, part.temperature, part.top_p, part.model, part.spread]
        style = handlers.preset("balanced", worker.bot.settings)
        standard: list[Any] = ["balanced", *style, next(iter(self.workers)), 1]
        read = f"(models, ...now) => {SCRIPT}.settings.read({json.dumps(standard)}, models, now)"
        shown = self.blocks.load(act.show_choices, None, [part.preset, part.model, part.models], **QUICK)
        shown.then(None, [part.models, *remembered], remembered, js=read, **BROWSER)
        for choice in (part.preset, part.model):
            chosen = choice.input(act.set_preset, [part.preset, part.model], [part.temperature, part.top_p], **QUICK)
            chosen.then(None, remembered, None, js=f"(...values) => {SCRIPT}.settings.write(values)", **BROWSER)
        for slider in (part.temperature, part.top_p, part.spread):
            slider.release(None, remembered, None, js=f"(...values) => {SCRIPT}.settings.write(values)", **BROWSER)
        forget = f"() => [...{SCRIPT}.settings.forget({json.dumps(standard)}), '']"
        part.reset.click(None, None, [*remembered, part.seed], js=forget, **BROWSER)
        persona = [part.chat, part.persona]
        self._save_after(part.cards.select(act.choose_persona, [part.chat], persona, **QUICK))
        self._save_after(part.persona.blur(act.set_persona, persona, [part.chat], **QUICK))
        system = [part.chat, part.system, part.model]
        self._save_after(part.system.blur(act.set_system, system, [part.chat], **QUICK))
        part.model.change(act.show_system, [part.model], [part.system], **QUICK)
        part.model.change(None, [part.model], None, js=f"(name) => {SCRIPT}.chat.named(name)", **BROWSER)
        fields = "(chat) => [chat.persona.join('\\n'), chat.system || '']"
        part.chat.load(None, [part.chat], [part.persona, part.system], js=fields, **BROWSER)

    def _wire_saved(self) -> None:
        """The conversation that was open before, and files. The script opens, renames and deletes without the server."""
        part, act = self.part, self.act
        shown = [part.chat, part.why, part.persona, part.system, part.status]
        self.blocks.load(act.begin, [part.chat], shown, js=f"() => [{SCRIPT}.store.open()]", **QUICK)
        pending = f"() => {SCRIPT}.files.pending()"
        made = part.chat.download(act.export, [part.chat, part.exported], [part.file], js=pending, **QUICK)
        made.success(None, [part.file], None, js=f"(file) => {SCRIPT}.files.download(file)", **BROWSER)
        self._save_after(part.chat.upload(act.load, [part.imported], shown, js=pending, **QUICK))

    def _wire_feedback(self) -> None:
        part, act = self.part, self.act
        rated = part.chat.like(act.rate, [part.chat], [part.rated, part.why, part.reasons, part.comment], **QUICK)
        rated.success(None, [part.rated], None, js=f"(rated) => {SCRIPT}.rated(rated)", **BROWSER)
        inputs = [part.chat, part.rated, part.reasons, part.comment]
        part.send_feedback.click(act.give_reasons, inputs, [part.why], **QUICK)

    def _wire_studio(self, studio: StudioView) -> None:
        """The training view: one event for its orders and for looking at a run, one for the chat with the result."""
        part, act = self.part, self.act
        next_order = f"() => {SCRIPT}.studio.nextOrder()"
        order = part.studio.submit(studio.order, [part.wanted], [part.studio], js=next_order, **QUICK)
        opened = part.studio.select(studio.open_result, None, [part.model, part.models], **SLOW)
        styled = opened.success(act.set_preset, [part.preset, part.model], [part.temperature, part.top_p], **QUICK)
        remembered = [part.preset, part.temperature, part.top_p, part.model, part.spread]
        styled.then(None, remembered, None, js=f"(...values) => {SCRIPT}.studio.opened(values)", **BROWSER)
        for event in (order, opened):
            event.failure(None, None, None, js=f"() => {SCRIPT}.studio.failed()", **BROWSER)

    def _save_after(self, event: Any) -> None:
        """Make the browser save the conversation after an event."""
        event.then(None, [self.part.chat], [self.part.chat], js=f"(chat) => {SCRIPT}.saved(chat)", **BROWSER)


def drawn(name: str, value: Any = None) -> gr.HTML:
    """Return a component that the page's script draws: `xianliao.NAME(element, props, trigger, watch)`.

    Its value is never part of the template, so no text can become markup.
    """
    return gr.HTML(
        value,
        elem_id=name,
        html_template="<div></div>",
        js_on_load=f"{SCRIPT}.draw.{name}(element.firstElementChild, props, trigger, watch)",
        apply_default_css=False,
    )
