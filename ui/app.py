"""The page: Gradio's chat interface around `ui.handlers`."""

from __future__ import annotations

import os
from collections.abc import Mapping

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: no telemetry, no look-ups

import gradio as gr
from fastapi import FastAPI

from chatbot.batching import Worker
from chatbot.errors import XianliaoError
from ui import handlers
from ui.options import ServeOptions
from ui.safety import Safety
from ui.text import EXAMPLES, TEXT, TITLE, language_of

CONCURRENT_CHATS = 32
"""Replies of the page that are under way at the same time; more wait in Gradio's queue."""

CSS = "footer {display: none !important}"


def as_text(chatbot: gr.Chatbot) -> gr.Chatbot:
    """A chat in which what is said is text: Gradio sanitises HTML, but would still read it as HTML.

    Set on the object, because Gradio writes a stub file beside the source of every subclass of its components.
    """
    postprocess = chatbot.postprocess

    def mark_text(messages):
        return postprocess([{**m, "content": handlers.shown_as_text(m["content"])} for m in messages or []])

    chatbot.postprocess = mark_text
    return chatbot


def build_page(worker: Worker, safety: Safety, i18n: gr.I18n) -> gr.Blocks:
    """The chat page of a bot."""
    bot = worker.bot

    def respond(message: str, history: list, seed, temperature, top_p, request: gr.Request):
        language = language_of(request.headers.get("accept-language"))
        try:
            yield from handlers.respond(bot, message, history, seed, temperature, top_p, language, worker, safety)
        except XianliaoError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def check(message: str, *_):
        # Gradio gives a validator no request, so its words come in every language of the page.
        faults = [handlers.message_fault(bot, message, language) for language in TEXT]
        return gr.validate(faults[0] is None, " ".join(filter(None, faults)))

    with gr.Blocks(title=TITLE, fill_height=True) as page:
        gr.Markdown(i18n("heading"))
        status = gr.Markdown(elem_id="status", render=False)
        with gr.Accordion(i18n("settings"), open=False, render=False) as accordion:
            pass
        gr.ChatInterface(
            respond,
            chatbot=as_text(
                gr.Chatbot(
                    elem_id="chat",
                    scale=1,
                    show_label=False,
                    render_markdown=False,  # what is said is text, never markup
                    feedback_options=None,
                    buttons=["copy", "copy_all"],  # no button that shares with another host
                    placeholder=i18n("placeholder"),
                )
            ),
            textbox=gr.Textbox(
                elem_id="message",
                label=i18n("message"),
                placeholder=i18n("input_placeholder"),
                show_label=False,
                container=False,
                max_lines=6,
                submit_btn=True,
                stop_btn=True,
            ),
            additional_inputs=[
                gr.Number(label=i18n("seed"), precision=0, value=None, minimum=0, elem_id="seed", render=False),
                gr.Slider(0.1, 2, value=bot.settings.temperature, step=0.05, label=i18n("temperature"), render=False),
                gr.Slider(0.05, 1, value=bot.settings.top_p, step=0.05, label=i18n("top_p"), render=False),
            ],
            additional_inputs_accordion=accordion,
            additional_outputs=[status],
            examples=[[text] for text in EXAMPLES],
            cache_examples=False,
            description=i18n("description"),
            concurrency_limit=CONCURRENT_CHATS,
            validator=check,
            fill_height=True,
        )
        status.render()
    return page


def mount_page(app: FastAPI, workers: Mapping[str, Worker], safety: Safety, options: ServeOptions) -> FastAPI:
    """Puts the page on a server, at /; the first of the workers is the default."""
    i18n = gr.I18n(en=TEXT["en"], zh=TEXT["zh"], **{"zh-CN": TEXT["zh"], "zh-TW": TEXT["zh"]})
    page = build_page(next(iter(workers.values())), safety, i18n)
    return gr.mount_gradio_app(app, page, path="/", i18n=i18n, css=CSS, footer_links=[], enable_monitoring=False)
