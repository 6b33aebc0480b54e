"""Put the page on a server."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

import gradio as gr
from fastapi import FastAPI
from gradio.routes import App
from starlette.datastructures import Headers
from starlette.requests import Request, cookie_parser
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount

from chatbot.chat.variants import MAX_COORDINATE, MAX_VARIATION
from chatbot.chat.worker import Worker
from ui.api.routes import failed
from ui.api.schemas import to_response
from ui.checkpoints import shown_name
from ui.language import LANGUAGE_COOKIE
from ui.options import ServeOptions
from ui.page.ball.replies import has_ball
from ui.page.handlers import ReplyCallback, crisis_replies
from ui.page.layout import Page
from ui.page.no_files import search_inputs_only
from ui.page.script import head
from ui.page.script.preview import replace_preview
from ui.page.states import keep_no_values
from ui.page.text import EXAMPLES, PERSONAS, TEXT
from ui.server.access import Access
from ui.server.page_routes import PageRules, closed, is_file
from ui.server.work import WorkPool
from ui.studio.view import StudioView

CHINESE = ("zh", "zh-CN", "zh-TW", "zh-HK", "zh-MO", "zh-SG", "zh-Hans", "zh-Hant")


def mount_page(
    app: FastAPI,
    workers: Mapping[str, Worker],
    options: ServeOptions,
    on_reply: ReplyCallback | None,
    pool: WorkPool | None = None,
    studio: StudioView | None = None,
) -> PageRules:
    """Put the page on a server, at /.

    Args:
        app: The server.
        workers: Workers by the name of their checkpoint; the first is the default.
        options: Options of the server.
        on_reply: Function to call after each reply.
        pool: Threads for work on texts.
        studio: The training view, or None.

    Returns:
        The facts about the page that the checks of requests need.
    """
    search_inputs_only()
    replace_preview()
    i18n = gr.I18n(en=TEXT["en"], **dict.fromkeys(CHINESE, TEXT["zh"]))
    given = {
        "texts": TEXT,
        "cookie": LANGUAGE_COOKIE,
        "examples": EXAMPLES,
        "personas": PERSONAS,
        "bots": {name: shown_name(worker.bot, len(workers)) for name, worker in workers.items()},
        "keep": options.saved_chats,
        "feedback": options.feedback,
        "fixed": crisis_replies(workers),
        "variants": MAX_VARIATION,
        "balls": [worker.bot.name for worker in workers.values() if has_ball(worker)],
        "ball_edge": MAX_COORDINATE,
        "login": bool(options.auth),
        "studio": studio is not None,
    }
    blocks = Page(workers, options, i18n, on_reply, pool, studio).blocks

    access = Access(options.auth)

    @app.post("/login", include_in_schema=False)
    @app.post("/login/", include_in_schema=False)
    async def log_in(request: Request) -> Response:
        """Log a user in. Gradio's own route removes blanks around a name, so it takes one name for another."""
        form = await request.form()
        name, password = form.get("username"), form.get("password")
        if not (isinstance(name, str) and isinstance(password, str) and access.is_user(name, password)):
            return JSONResponse({"detail": "Incorrect credentials."}, 400)
        mounted.tokens[token := secrets.token_urlsafe(16)] = name
        response = JSONResponse({"success": True})
        secure, insecure = cookie_names(mounted)
        response.set_cookie(secure, token, httponly=True, secure=True)
        response.set_cookie(insecure, token, httponly=True)
        return response

    @app.post("/logout", include_in_schema=False)
    async def log_out(request: Request) -> Response:
        """End all sessions of the logged-in user, and drop the results that their pages have not read.

        Gradio's own route is a GET, which any link or image could call.
        """
        if (user := user_of(request.headers)) is not None:
            await blocks._queue.drop_of(user)
            for token in [token for token, name in mounted.tokens.items() if name == user]:
                del mounted.tokens[token]
        response = Response(status_code=204)
        for name in cookie_names(mounted):
            response.delete_cookie(name)
        return response

    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        i18n=i18n,
        head=head(given),
        theme=gr.themes.Base(primary_hue="teal", neutral_hue="stone", font=["system-ui", "sans-serif"]),
        footer_links=[],
        enable_monitoring=False,
        run_history=False,
        auth=list(options.auth) or None,
    )
    # launch() sets this; without it Gradio does not check that a client uploaded a file before it names it. Requests
    # that name a file are refused earlier (ui.server.page_routes), so this is a second lock.
    blocks.has_launched = True
    functions = {index: len(function.inputs) for index, function in blocks.fns.items()}
    mounted = next(route.app for route in app.routes if isinstance(route, Mount) and isinstance(route.app, App))
    keep_no_values(mounted, blocks)
    answer_errors(mounted)
    user_of = user_reader(mounted)
    return PageRules(functions, bool(options.auth), user_of, blocks._queue.has_session, blocks._queue.takes)


def answer_errors(app: App) -> None:
    """Make Gradio's application answer 404 where the system refuses a file, and unexpected errors in a sentence."""

    @app.exception_handler(OSError)
    async def handle_refused_file(request: Request, error: OSError) -> Response:
        if not is_file(request.url.path):
            raise error
        return to_response(closed(), page=True)

    @app.exception_handler(Exception)
    async def handle_unexpected(request: Request, error: Exception) -> Response:
        return to_response(failed(), page=True)


def cookie_names(app: App) -> tuple[str, str]:
    """Return the names of the cookies of a log-in."""
    return f"access-token-{app.cookie_id}", f"access-token-unsecure-{app.cookie_id}"


def user_reader(app: App) -> Callable[[Headers], str | None]:
    """Return a function that reads the logged-in user of a request from Gradio's cookies.

    Args:
        app: Gradio's application, which has the tokens of all log-ins.
    """

    def user_of(headers: Headers) -> str | None:
        cookies = cookie_parser(headers.get("cookie", ""))
        for name in cookie_names(app):
            if (user := app.tokens.get(cookies.get(name))) is not None:
                return user
        return None

    return user_of
