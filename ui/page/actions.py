"""Event handlers of the page, with Gradio's values as inputs and outputs. The work is done in `ui.page.handlers`.

Every value comes from a browser, so each conversation passes `chats.checked` first and every other value is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from html import escape
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from chatbot.chat.request import system_ids
from chatbot.chat.worker import Worker
from chatbot.errors import XianliaoError
from ui.language import language_of_request
from ui.options import ServeOptions
from ui.page import chat_files, chats, handlers
from ui.page.charts import ShownStep, shown_steps, trace_reply
from ui.page.feedback import MAX_COMMENT_CHARACTERS, Feedback, FeedbackError, Rating, rated_turns, reasons_of
from ui.page.handlers import PageSettings, ReplyCallback
from ui.page.signature import SIGNED_FIELDS
from ui.page.text import PERSONAS, STYLE_EXAMPLES, TEXT
from ui.page.variants import spread_of, variant
from ui.server.logs import FAILURES
from ui.server.work import LARGE_CHARACTERS, SENDER, WorkPool

PRESETS = ("careful", "balanced", "free")


@contextmanager
def notices(language: str) -> Iterator[None]:
    """Turn errors into notices on the page; Gradio would print a traceback with the user's messages. An error that the
    person can correct, such as an empty message, is not shown as a failure."""
    title = TEXT[language]["error_title"]
    try:
        yield
    except gr.Error:
        raise
    except XianliaoError as error:
        text, is_slip = handlers.explain(error, language), handlers.is_slip(error)
        if is_slip:
            _inform(language, text)
        raise gr.Error(escape(text, quote=False), title=title, visible=not is_slip, print_exception=False) from None
    except Exception as error:
        FAILURES.log(SENDER.get(), "the page failed", "error", error)
        raise gr.Error(TEXT[language]["failed"], title=title, print_exception=False) from None


def guarded(method: Callable, least_size: int = 0) -> Callable:
    """Make a method run in the pool for texts, and show its errors as notices.

    Args:
        method: Method of `Actions`, or of a class with a `pool`.
        least_size: Minimum size of its work, which chooses the thread; the size is usually that of its inputs.
    """

    @wraps(method)
    def call(self, *values, **named):
        request = next((value for value in (*values, *named.values()) if isinstance(value, gr.Request)), None)
        SENDER.set(sender_of(request))
        with notices(language_of_request(request)):
            return self.pool.run(max(least_size, size_of(values)), method, self, *values, **named)

    return call


def sender_of(request: gr.Request | None) -> str:
    """Return the user or address of a request; the page's events run outside the context of their request."""
    user, client = getattr(request, "username", None), getattr(request, "client", None)
    return f"user {user}" if user else str(getattr(client, "host", ""))


def _inform(language: str, text: str) -> None:
    """Show a notice on the page, as text: Gradio takes it for HTML, and it can quote a file of the user. Outside an event
    Gradio would print it."""
    if LocalContext.event_id.get(None) is not None:
        gr.Info(escape(text, quote=False), title=TEXT[language]["info_title"])


def size_of(values: Iterable[object]) -> int:
    """Return the number of characters and values in some inputs and their event, or a number above `LARGE_CHARACTERS`."""
    waiting, size = list(values), 0
    while waiting and size <= LARGE_CHARACTERS:
        value = waiting.pop()
        value = value._data if isinstance(value, gr.EventData) else value
        size += len(value) if isinstance(value, str) else 1
        if isinstance(value, (dict, list, tuple)):
            waiting += value.values() if isinstance(value, dict) else value
    return size


def _index(value: object) -> int:
    """Return the index of a message; some of Gradio's events send it inside a pair."""
    first = value[0] if isinstance(value, (list, tuple)) else value
    if not isinstance(first, (int, float)):
        raise chats.ChatError("not_a_chat")
    return int(first)


def _shown(chat: chats.Chat) -> tuple[Any, ...]:
    """Return the conversation, and hide the reasons of a rating, which belong to another message."""
    return chat, gr.Group(visible=False)


class Actions:
    """Event handlers of a page; `ui.page.layout.Page` connects them.

    Args:
        workers: Workers by the name of their checkpoint; the first is the default.
        options: Options of the server.
        on_reply: Function to call after each reply.
        pool: Threads in which texts are read.
    """

    def __init__(
        self,
        workers: Mapping[str, Worker],
        options: ServeOptions,
        on_reply: ReplyCallback | None,
        pool: WorkPool | None = None,
    ):
        self.workers, self.on_reply, self.pool = workers, on_reply, pool or WorkPool()
        self.feedback = Feedback(options.data_dir)

    def worker(self, model: object) -> Worker:
        """Return the worker of a checkpoint, or the default one if no checkpoint has that name."""
        first = next(iter(self.workers.values()))
        return self.workers.get(model, first) if isinstance(model, str) else first

    # Messages and replies.

    @guarded
    def say(self, chat: Any, message: str, model: str, request: gr.Request) -> tuple[Any, ...]:
        """Add a message of the user."""
        return self._say(chats.checked(chat), message, model, request, value="")

    @guarded
    def say_example(self, chat: Any, model: str, data: gr.SelectData, request: gr.Request) -> tuple[Any, ...]:
        """Add an example that the user clicked."""
        return self._say(chats.checked(chat), str(data.value["text"]), model, request)

    @guarded
    def retry(self, chat: Any, request: gr.Request) -> tuple[Any, ...]:
        """Remove the last reply, and remember its versions, so that the next one differs from them."""
        before = chats.up_to_last_user(chats.checked(chat))
        return self._prepared({**before, "avoid": sorted(chats.texts_to_avoid(chat))})

    @guarded
    def edit(self, chat: Any, model: str, data: gr.EditData, request: gr.Request) -> tuple[Any, ...]:
        """Change a message of the user and remove the messages after it."""
        checked = chats.checked(chat)
        before: chats.Chat = {**checked, "messages": checked["messages"][: _index(data.index)]}
        return self._say(before, str(data.value), model, request)

    def _say(self, chat: chats.Chat, text: str, model: str, request: gr.Request, **box: Any) -> tuple[Any, ...]:
        title = TEXT[language_of_request(request)]["new_chat"]
        return self._prepared(handlers.with_user_message(self.worker(model).bot, chat, text, title), **box)

    def _prepared(self, chat: chats.Chat, **box: Any) -> tuple[Any, ...]:
        return *_shown(chat), gr.Textbox(submit_btn=False, stop_btn=True, **box)

    def answer(
        self, chat: Any, model: str, seed: Any, temperature: Any, top_p: Any, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        """Stream the reply to the last message. After an error the status line explains it."""
        SENDER.set(sender_of(request))
        language = language_of_request(request)
        try:
            checked = self.pool.run(size_of([chat]), chats.checked, chat)
            settings = PageSettings.from_fields(seed, temperature, top_p)
        except XianliaoError as error:
            yield gr.skip(), handlers.explain(error, language)
            return
        latest = checked
        try:
            avoid = chats.texts_to_avoid(chat)
            for latest, line in handlers.answer(self.worker(model), checked, settings, language, self.on_reply, avoid):
                yield latest, line
        except XianliaoError as error:
            yield chats.without_empty_reply(latest), handlers.explain(error, language)
        except Exception as error:
            FAILURES.log(SENDER.get(), "a reply of the page failed", "error", error)
            yield chats.without_empty_reply(latest), TEXT[language]["failed"]

    @guarded
    def finish(self, chat: Any, line: str, request: gr.Request) -> tuple[Any, ...]:
        """Restore the message box after a reply has ended, failed, or was stopped (then the status line is empty)."""
        checked = chats.without_empty_reply(chats.checked(chat))
        ready = gr.Textbox(submit_btn=True, stop_btn=False)
        return checked, line or TEXT[language_of_request(request)]["stopped"], ready

    # Changes of the conversation.

    @guarded
    def undo(self, chat: Any, draft: str, request: gr.Request) -> tuple[Any, ...]:
        """Remove the last exchange and put its message into the message box, unless the box has a draft."""
        shortened, message = chats.without_last_exchange(chats.checked(chat))
        return *_shown(shortened), draft or message

    @guarded
    def divide(self, chat: Any, request: gr.Request) -> tuple[Any, ...]:
        """Add a divider: the model does not read the messages before it."""
        checked = chats.checked(chat)
        if checked["messages"] and checked["messages"][-1]["role"] != "divider":
            checked = chats.with_message(checked, {"role": "divider", "text": ""})
        return _shown(checked)

    def offer(
        self, chat: Any, model: str, seed: Any, temperature: Any, top_p: Any, request: gr.Request
    ) -> Iterator[list[chats.ChatMessage]]:
        """Stream several replies to the last message; the page's script keeps them as versions of the last reply."""
        SENDER.set(sender_of(request))
        with notices(language_of_request(request)):
            settings = PageSettings.from_fields(seed, temperature, top_p)
            worker = self.worker(model)
            checked = self.pool.run(size_of([chat]), chats.checked, chat)
            yield from handlers.candidates(worker, checked, settings, self.on_reply)

    def another(self, chat: Any, spread: Any, data: gr.SelectData, request: gr.Request) -> list[chats.ChatMessage]:
        """Return another variant of the last reply, which the page's script keeps as one of its versions.

        The index of the event is the difference between the numbers of the new variant and of the one shown.
        """
        SENDER.set(sender_of(request))
        with notices(language_of_request(request)):
            step, distance = _index(data.index), spread_of(spread)
            checked = self.pool.run(size_of([chat]), chats.checked, chat)
            return variant(self.worker, checked, step, distance, self.on_reply)["messages"][-1:]

    # Settings, and how a reply was chosen.

    @guarded
    def show_choices(self, request: gr.Request) -> tuple[gr.Radio, gr.Dropdown, list[str]]:
        """Return the styles in the language of the page, with a line about each and an example, and the models."""
        texts = TEXT[language_of_request(request)]

        def label(name: str) -> str:
            message, _, reply = STYLE_EXAMPLES[name]
            example = texts["style_example"].format(message=message, reply=reply)
            return f"{texts[name]}\n{texts[name + '_note']}\n{example}"

        names = list(self.workers)
        return gr.Radio([(label(name), name) for name in PRESETS]), gr.Dropdown(names, visible=len(names) > 1), names

    @guarded
    def set_preset(self, name: str, model: str) -> tuple[float, float]:
        """Return temperature and top-p of a style."""
        return handlers.preset(name, self.worker(model).bot.settings)

    @guarded
    def choose_persona(self, chat: Any, data: gr.SelectData, request: gr.Request) -> tuple[chats.Chat, str]:
        """Set a persona of the library, or none; return its lines as well."""
        turns = PERSONAS.get(str(data.value), [])
        return {**chats.checked(chat), "persona": list(turns)}, "\n".join(turns)

    @guarded
    def show_system(self, model: str) -> gr.Textbox:
        """Show the field of the system prompt for a model that takes one."""
        return gr.Textbox(visible=self.worker(model).bot.layout.takes_system)

    @guarded
    def set_system(self, chat: Any, text: str, model: str, request: gr.Request) -> chats.Chat:
        """Set the system prompt of the conversation."""
        checked: chats.Chat = {**chats.checked(chat), "system": chats.checked_system(text)}
        bot = self.worker(model).bot
        if bot.layout.takes_system:
            system_ids(bot, checked["system"], bot.settings.script)
        return checked

    @guarded
    def set_persona(self, chat: Any, text: str, request: gr.Request) -> chats.Chat:
        """Set the persona of the conversation."""
        return {**chats.checked(chat), "persona": chats.persona_turns(text)}

    def look_inside(self, chat: Any, data: gr.SelectData, request: gr.Request) -> tuple[int, list[ShownStep]]:
        """Return the index of a reply and how it was chosen."""
        SENDER.set(sender_of(request))
        with notices(language_of_request(request)):
            index = _index(data.index)
            checked = self.pool.run(size_of([chat]), chats.checked, chat)
            return index, shown_steps(trace_reply(self.worker, checked, index))

    # Saved conversations.

    @guarded
    def begin(self, chat: Any, request: gr.Request) -> Any:
        """Open the conversation that was open before the page was reloaded."""
        return gr.skip() if chat is None else self._open(chats.checked(chat))

    def _open(self, chat: chats.Chat) -> tuple[Any, ...]:
        return *_shown(chat), "\n".join(chat["persona"]), chat["system"], ""

    @guarded
    def export(self, chat: Any, kind: str, request: gr.Request) -> dict[str, str]:
        """Return the conversation as a file: name and text."""
        checked = chats.checked(chat)
        text = chat_files.to_json(checked) if kind == "json" else chat_files.to_markdown(checked)
        suffix = "json" if kind == "json" else "md"
        return {"name": f"xianliao-{checked['id'] or 'chat'}.{suffix}", "text": text}

    @guarded
    def load(self, file: Any, request: gr.Request) -> tuple[Any, ...]:
        """Open the conversation of a file that the browser has read: `{"text": ...}`."""
        chat = chat_files.from_text(file.get("text") if isinstance(file, dict) else None)
        language = language_of_request(request)
        _inform(language, TEXT[language]["imported"].format(count=len(chat["messages"])))
        return self._open(chats.with_new_id(chat))

    # Feedback.

    @guarded
    def rate(self, chat: Any, data: gr.LikeData, request: gr.Request) -> tuple[Any, ...]:
        """Record a like or dislike and ask for reasons."""
        checked, index = chats.checked(chat), _index(data.index)
        rating: Rating = "like" if data.liked is True else "dislike"
        self._record(checked, index, rating)
        rated = {"index": index, "rating": rating, "text": checked["messages"][index]["text"]}
        texts = TEXT[language_of_request(request)]
        choices = [(texts[name], name) for name in reasons_of(rating)]
        return rated, gr.Group(visible=True), gr.CheckboxGroup(choices, value=[]), ""

    @guarded
    def give_reasons(self, chat: Any, rated: Any, reasons: list[str], comment: str, request: gr.Request) -> gr.Group:
        """Record the reasons of the last rating."""
        rating: Rating = "like" if rated["rating"] == "like" else "dislike"
        named = [reason for reason in reasons_of(rating) if reason in reasons]
        comment = comment[:MAX_COMMENT_CHARACTERS]
        self._record(chats.checked(chat), _index(rated["index"]), rating, named, comment, str(rated["text"]))
        language = language_of_request(request)
        _inform(language, TEXT[language]["thanks"])
        return gr.Group(visible=False)

    def _record(
        self,
        chat: chats.Chat,
        index: int,
        rating: Rating,
        reasons: Sequence[str] = (),
        comment: str = "",
        text: str | None = None,
    ) -> None:
        turns = rated_turns(chat, index, text)
        message = chat["messages"][index]
        generation = {name: value for name, value in message.items() if name in SIGNED_FIELDS}
        if chat["system"] and self.worker(message.get("model")).bot.layout.takes_system:
            generation["system"] = chat["system"]
        try:
            self.feedback.write(turns, rating, reasons, comment, generation, SENDER.get())
        except FeedbackError as error:  # its message has a path of the server, which is for the operator
            FAILURES.log(SENDER.get(), str(error), "warning")
            raise chats.ChatError("not_recorded") from None
