"""What the server does when a part of the page is used: Gradio's values in and out, the work itself in `ui.page.handlers`.

`chat` is always what the browser sends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps

import gradio as gr
import pandas as pd

from chatbot.chat.trace import TracedStep
from chatbot.chat.worker import Worker
from chatbot.errors import XianliaoError
from ui.options import ServeOptions
from ui.page import chats, handlers
from ui.page.feedback import REASONS, write_feedback
from ui.page.handlers import Wish
from ui.page.text import TEXT, language_of
from ui.server.logs import LOGGER

PRESETS = ("careful", "balanced", "free")


@contextmanager
def _in_words(language: str) -> Iterator[None]:
    """What goes wrong is a notice on the page; Gradio itself would print what was said."""
    try:
        yield
    except gr.Error:
        raise
    except XianliaoError as error:
        raise gr.Error(handlers.in_words(error, language), print_exception=False) from None
    except Exception:
        LOGGER.exception("the page failed")
        raise gr.Error(TEXT[language]["failed"], print_exception=False) from None


def guarded(method: Callable) -> Callable:
    """A method of `Actions` whose faults are notices."""

    @wraps(method)
    def call(self, *values, **named):
        request = next((value for value in (*values, *named.values()) if isinstance(value, gr.Request)), None)
        with _in_words(_language(request)):
            return method(self, *values, **named)

    return call


def _language(request: gr.Request | None) -> str:
    return language_of(request.headers.get("accept-language") if request else None)


def _shown(chat: Mapping, request: gr.Request) -> tuple:
    """Chat, view, and what belongs to another message hidden: several replies, reasons of a rating."""
    return chat, handlers.view_of(chat, _language(request)), gr.Row(visible=False), gr.Group(visible=False)


class Actions:
    """The actions of a page; see `ui.page.layout.Page`."""

    def __init__(
        self,
        workers: Mapping[str, Worker],
        options: ServeOptions,
        note: Callable[..., None] | None,
    ):
        self.workers, self.options, self.note = workers, options, note

    def worker(self, model: str | None) -> Worker:
        """The worker of a checkpoint, of the default one where there is none of that name."""
        return self.workers.get(model) or next(iter(self.workers.values()))

    # Talking.

    @guarded
    def say(self, chat: dict, message: str, model: str, request: gr.Request):
        chat = handlers.said(self.worker(model).bot, chats.checked(chat), message)
        return self._prepared(chat, request, value="")

    @guarded
    def say_example(self, chat: dict, model: str, data: gr.SelectData, request: gr.Request):
        return self.say(chat, data.value["text"], model, request)

    @guarded
    def retry(self, chat: dict, request: gr.Request):
        return self._prepared(handlers.unanswered(chats.checked(chat)), request)

    @guarded
    def edit(self, chat: dict, model: str, data: gr.EditData, request: gr.Request):
        chat = chats.checked(chat)
        place = data.index if isinstance(data.index, int) else data.index[0]
        before = {**chat, "messages": chat["messages"][:place]}
        text = handlers.as_typed(data.value if isinstance(data.value, str) else str(data.value))
        chat = handlers.said(self.worker(model).bot, before, text)
        return self._prepared(chat, request)

    def _prepared(self, chat: dict, request: gr.Request, **box):
        shown, view, *hidden = _shown(chat, request)
        return shown, view, gr.Textbox(submit_btn=False, stop_btn=True, **box), *hidden

    def answer(self, chat: dict, model: str, seed, temperature, top_p, request: gr.Request) -> Iterator:
        language = _language(request)
        try:
            asked, wish = chats.checked(chat), Wish.of(seed, temperature, top_p)
            for chat, line in handlers.answer(self.worker(model), asked, wish, language, self.note):
                yield chat, handlers.view_of(chat, language), line
        except XianliaoError as error:
            yield chats.without_empty(chat), gr.skip(), handlers.in_words(error, language)
        except Exception:
            LOGGER.exception("a reply of the page failed")
            yield chats.without_empty(chat), gr.skip(), TEXT[language]["failed"]

    @guarded
    def finished(self, chat: dict, line: str, request: gr.Request):
        """After a reply has ended, was stopped (then there is no status line yet), or has failed."""
        chat, language = chats.without_empty(chats.checked(chat)), _language(request)
        ready = gr.Textbox(submit_btn=True, stop_btn=False)
        return chat, handlers.view_of(chat, language), line or TEXT[language]["stopped"], ready

    # Changing what was said.

    @guarded
    def undo(self, chat: dict, draft: str, request: gr.Request):
        chat, message = chats.without_last(chats.checked(chat))
        return *_shown(chat, request), draft or message

    @guarded
    def divide(self, chat: dict, request: gr.Request):
        chat = chats.checked(chat)
        if chat["messages"] and chat["messages"][-1]["role"] != "divider":
            chat = chats.with_message(chat, "divider")
        return _shown(chat, request)

    def more(self, chat: dict, model: str, seed, temperature, top_p, request: gr.Request) -> Iterator:
        language = _language(request)
        with _in_words(language):
            chat, wish = chats.checked(chat), Wish.of(seed, temperature, top_p)
            for found in handlers.several(self.worker(model), chat, wish, language, self.note):
                yield gr.Row(visible=True), found, *(each["text"] for each in found)

    @guarded
    def use(self, chat: dict, found: list, place: float, request: gr.Request):
        chat = handlers.unanswered(chats.checked(chat))
        chat = chats.checked({**chat, "messages": [*chat["messages"], {**found[int(place)], "role": "assistant"}]})
        return *_shown(chat, request), ""

    # Settings, and how a reply was chosen.

    @guarded
    def greet(self, request: gr.Request):
        words = TEXT[_language(request)]
        presets = gr.Radio([(words[name], name) for name in PRESETS], value="balanced")
        return presets, gr.CheckboxGroup([(words[name], name) for name in REASONS])

    @guarded
    def set_preset(self, name: str, model: str):
        return handlers.preset(name, self.worker(model).bot.settings)

    @guarded
    def wear(self, chat: dict, text: str, request: gr.Request):
        return {**chats.checked(chat), "persona": chats.persona_turns(text)}

    @guarded
    def look_inside(self, chat: dict, request: gr.Request):
        language = _language(request)
        return draw(handlers.inside(self.worker, chats.checked(chat), language), TEXT[language])

    # Saved conversations.

    @guarded
    def begin(self, chat: dict | None, request: gr.Request):
        """The conversation that was open before the page was loaded anew."""
        return gr.skip() if chat is None else self.open(chat, request=request)

    @guarded
    def open(self, chat: dict | None = None, _=None, request: gr.Request = None):
        """Shows a conversation of the browser's, or an empty one where it has none."""
        chat = chats.new_chat() if chat is None else chats.checked(chat)
        return *_shown(chat, request), chat["title"], "\n".join(chat["persona"]), ""

    @guarded
    def show_list(self, chat: dict, listing: list, request: gr.Request):
        saved, entries, forked = listing
        if not saved:
            gr.Warning(TEXT[_language(request)]["full"])
        chat = chats.checked(chat)
        listed = gr.Radio([(str(title), str(ident)) for title, ident in entries], value=chat["id"] or None)
        return chat if forked else gr.skip(), listed, chat["title"]

    @guarded
    def rename(self, chat: dict, title: str, request: gr.Request):
        return chats.checked({**chat, "title": title})

    @guarded
    def export(self, chat: dict, kind: str, request: gr.Request):
        chat = chats.checked(chat)
        text = chats.to_json(chat) if kind == "json" else chats.to_markdown(chat)
        return {"name": f"xianliao-{chat['id'] or 'chat'}.{kind}", "text": text}

    @guarded
    def load(self, file: dict, request: gr.Request):
        """Open a conversation from a file that the browser has read: `{"text": ...}`."""
        chat = chats.from_text(file.get("text") if isinstance(file, dict) else None)
        gr.Info(TEXT[_language(request)]["imported"].format(count=len(chat["messages"])))
        return self.open(chats.with_id(chat), request=request)

    # Feedback.

    @guarded
    def rate(self, chat: dict, data: gr.LikeData, request: gr.Request):
        chat, place = chats.checked(chat), int(data.index)
        message = chats.rateable(chat, place)
        rated = {"place": place, "rating": "like" if data.liked is True else "dislike", "text": message["text"]}
        self._write(chat, rated)
        gr.Info(TEXT[_language(request)]["thanks"])
        return rated, gr.Group(visible=True), [], ""

    @guarded
    def explain(self, chat: dict, rated: dict, reasons: list, comment: str, request: gr.Request):
        self._write(chats.checked(chat), rated, reasons, comment)
        gr.Info(TEXT[_language(request)]["thanks"])
        return gr.Group(visible=False)

    def _write(self, chat: dict, rated: Mapping, reasons: Sequence[str] = (), comment: str = "") -> None:
        message = chats.rateable(chat, int(rated["place"]), rated["text"])
        turns = chats.turns_of({**chat, "messages": chat["messages"][: int(rated["place"]) + 1]})
        made = {name: message[name] for name in ("model", "seed", "temperature", "top_p") if name in message}
        write_feedback(self.options.data_dir, turns, rated["rating"], reasons, comment, made)


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
