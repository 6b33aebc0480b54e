"""`xianliao-serve`: serve the browser chat and the API."""

from __future__ import annotations

import argparse
import gc
import ipaddress
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from chatbot.chat.options import (
    add_length_options,
    add_model_options,
    add_safety_option,
    add_script_option,
    add_thinking_option,
    check_length_options,
    check_model_options,
)
from chatbot.checkpoint.location import locate
from chatbot.errors import XianliaoError, explain_faults
from chatbot.language.parser import Parser
from chatbot.language.translation import announce, labelled, translate
from ui.options import ServeOptions, default_data_dir, is_json_log

if TYPE_CHECKING:
    from ui.studio.options import StudioOptions

EXPOSED_RATE_LIMIT = 120
"""Default requests per minute of one sender if other machines can reach the server. On loopback nothing is limited: the
sender is a script of the operator, or a proxy that sends the requests of all clients and has its own limits."""

SWITCH_SECONDS = 0.001
"""Time after which a thread that works on a text gives Python's lock to the event loop."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="xianliao-serve", description="Serve the browser chat and the API.", conflict_handler="resolve"
    )
    add_model_options(parser)
    add_safety_option(parser)
    add_script_option(parser)
    add_thinking_option(parser)
    add_length_options(parser)
    parser.add_argument(
        "--checkpoint",
        nargs="+",
        default=["default"],
        metavar="DIR|OWNER/NAME",
        help="checkpoint folders or models of the Hugging Face hub, the default one first (default: the bundled one)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine only)"
    )
    parser.add_argument(
        "--port", type=int, default=7860, help="port to listen on, 0 for a free one (default %(default)s)"
    )
    add_access_options(parser.add_argument_group("access"))
    add_data_options(parser.add_argument_group("data and logs"))
    return parser


def add_access_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say who may use the server."""
    group.add_argument(
        "--auth",
        action="append",
        default=[],
        metavar="USER:PASSWORD|FILE",
        help="user who may open the page, and /v1 and /metrics by HTTP basic authentication; prefer a file with one"
        " USER:PASSWORD per line, because other users of the machine can see a command line",
    )
    group.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY|FILE",
        help="key that clients of /v1 and /metrics send; prefer a file with one key per line, as above",
    )
    group.add_argument(
        "--rate-limit",
        type=int,
        metavar="N",
        help="requests per minute of one key, user or address, 0 for no limit"
        f" (default: 0 on loopback, {EXPOSED_RATE_LIMIT} elsewhere)",
    )
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which clients reach this server, for example behind a proxy; other names are refused"
        " (default: localhost, numeric addresses and --host)",
    )
    group.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web site, such as https://app.example.com, whose pages may call /v1 from a browser (default: none)",
    )


def add_data_options(group: argparse._ArgumentGroup) -> None:
    """Add the options that say which data is stored and logged."""
    group.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder of feedback.jsonl (default: ~/.local/share/xianliao)"
    )
    group.add_argument(
        "--studio",
        nargs="?",
        type=Path,
        const=default_data_dir() / "studio",
        metavar="DIR",
        help="add a training view to the page, for this machine only; it offers the dialogue files and presets in DIR and"
        " writes results below DIR (default DIR: ~/.local/share/xianliao/studio)",
    )
    group.add_argument("--no-feedback", action="store_true", help="do not offer likes and dislikes")
    group.add_argument("--no-saved-chats", action="store_true", help="do not let browsers store conversations")
    group.add_argument(
        "--log-format",
        choices=("auto", "json", "text"),
        default="auto",
        help="format of the log lines on stderr (default: text on a terminal, else json)",
    )
    group.add_argument("--log-text", action="store_true", help="log messages and replies, too")


@partial(explain_faults, extra="serve")
def main(argv: list[str] | None = None) -> int | None:
    """Run the command."""
    parser = build_parser()
    args = parser.parse_args(argv)
    users, keys, hosts, origins = check_arguments(parser, args)
    listener = listen(args.host, args.port)
    exposed = not is_loopback(listener.getsockname()[0])
    if args.studio is not None and exposed:
        parser.error("--studio is for this machine only. Leave out --host, or --studio")
    if exposed and (warning := exposure_warning(args.host, bool(users), bool(keys))):
        print(labelled("warning: ", warning), file=sys.stderr)
    rate = args.rate_limit if args.rate_limit is not None else EXPOSED_RATE_LIMIT * exposed
    options = ServeOptions(
        auth=users,
        api_keys=keys,
        data_dir=args.data_dir or default_data_dir(),
        feedback=not args.no_feedback,
        saved_chats=not args.no_saved_chats,
        hosts=hosts,
        allow_origins=origins,
        rate_limit=rate,
        max_rows=args.max_rows,
        log_text=args.log_text,
        studio=None if args.studio is None else studio_options(args),
    )
    return serve(args, options, listener)  # does not return


def check_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return users, keys, host names and allowed origins. Wrong usage exits with code 2 before loading."""
    if args.rate_limit is not None and args.rate_limit < 0:
        parser.error("--rate-limit must be at least 0")
    if args.studio is not None and args.allow_host:
        parser.error("--studio is for this machine only, without a proxy. Leave out --allow-host, or --studio")
    if not 0 <= args.port <= 65535:
        parser.error("--port must be from 0 to 65535")
    check_length_options(parser, args)
    check_model_options(args)
    folders = [locate(checkpoint).resolve() for checkpoint in args.checkpoint]
    if len(set(folders)) < len(folders):
        parser.error("--checkpoint names a folder twice. Give every checkpoint once")
    if not is_json_log(args.log_format):  # a log of JSON has no other line
        announce(f"loading {', '.join(args.checkpoint)} …")
    from ui.server.access import read_keys, read_users  # imports torch
    from ui.server.origins import read_hosts, read_origins

    try:
        hosts, origins = read_hosts(args.allow_host, args.host), read_origins(args.allow_origin)
        return read_users(args.auth), read_keys(args.api_key), tuple(sorted(hosts)), tuple(sorted(origins))
    except XianliaoError as error:
        parser.error(str(error))


def studio_options(args: argparse.Namespace) -> StudioOptions:
    """Return the options of the training view; its folder is made if it does not exist."""
    from ui.studio.options import StudioOptions

    args.studio.mkdir(parents=True, exist_ok=True)
    return StudioOptions(args.studio, args.checkpoint[0], args.device, args.dtype)


def serve(args: argparse.Namespace, options: ServeOptions, listener: socket.socket) -> NoReturn:
    """Load the checkpoints, serve until a signal arrives, and end the process."""
    from ui.connections import raise_file_limit

    raise_file_limit()  # before the bound of connections is computed
    gc.disable()  # collecting garbage during the imports takes a fifth of the start
    from chatbot.safety import named_safety
    from ui.checkpoints import load_bots
    from ui.server.logs import log_event, start_log

    safety = named_safety(args.safety)
    if safety is None:
        warning = "--safety off: people in crisis get replies of the model instead of a help line"
        print(labelled("warning: ", warning), file=sys.stderr)
    changes = {"script": args.script, "thinking": args.thinking, "thinking_tokens": args.thinking_tokens}
    bots = load_bots(args.checkpoint, args.device, args.dtype, safety, args.context_tokens, changes)
    from ui.server.app import create_app
    from ui.server.process import Server, return_memory

    return_memory()
    sys.setswitchinterval(SWITCH_SECONDS)
    log = start_log(args.log_format, args.log_text)
    server = Server(create_app(bots, options))
    gc.freeze()  # these objects live until the end, so the collector can skip them
    gc.enable()
    host = f"[{args.host}]" if ":" in args.host else args.host
    print(f"http://{host}:{listener.getsockname()[1]}  {translate('(Ctrl+C stops)')}", flush=True)
    server.run(sockets=[listener])
    log_event("closed")
    log.finish()
    sys.stdout.flush()
    os._exit(0)  # no data is left to save, and the teardown of torch and gradio takes seconds on a busy machine


def exposure_warning(host: str, users: bool, keys: bool) -> str | None:
    """Return a warning about a server that strangers can use; None if everything on it needs a password."""
    if users:
        return None
    if keys:
        return (
            f"listening on {host}: the API needs a key, but anyone who can reach this machine can chat."
            " Add --auth FILE."
        )
    return f"listening on {host}: anyone who can reach this machine can chat and use the API. Add --auth FILE."


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach a server at this address."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises:
        XianliaoError: The address cannot be used, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(
        family, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )  # asyncio sets TCP_NODELAY only if the protocol is given
    if os.name == "posix":  # on Windows this option would let two servers share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise XianliaoError(
            f"Cannot listen on {host} port {port}: {reason}. Choose another --host or --port."
        ) from None
    return listener


if __name__ == "__main__":
    sys.exit(main(None))
