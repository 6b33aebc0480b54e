"""xianliao-serve: the browser chat and the API on this machine."""

from __future__ import annotations

import argparse
import gc
import ipaddress
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import NoReturn

from chatbot.checkpoint.location import locate
from chatbot.cli import add_model_options, add_safety_option
from chatbot.errors import XianliaoError, explain_faults

EXPOSED_RATE_LIMIT = 120
"""Requests a minute for each sender where others can reach the server. On loopback nothing is counted: the sender is the
operator's own script, or a proxy that sends everybody's requests and has limits of its own."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="xianliao-serve", description="Serve the browser chat and the API.", conflict_handler="resolve"
    )
    add_model_options(parser)
    add_safety_option(parser)
    add = parser.add_argument
    add(
        "--checkpoint",
        nargs="+",
        default=["default"],
        metavar="DIR",
        help="checkpoint folders, the default one first (default: the bundled one)",
    )
    add("--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine only)")
    add("--port", type=int, default=7860, help="(default %(default)s)")
    who = parser.add_argument_group("who may use it")
    who.add_argument(
        "--auth",
        action="append",
        default=[],
        metavar="USER:PASSWORD|FILE",
        help="who may open the page, and /v1 and /metrics by HTTP basic; a file has one USER:PASSWORD a line and is"
        " better, because everybody on the machine can see a command line",
    )
    who.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY|FILE",
        help="what clients of /v1 and /metrics send; a file has one key a line and is better, as above",
    )
    who.add_argument(
        "--rate-limit",
        type=int,
        metavar="N",
        help="requests a minute of each key, user or address, 0 for no limit"
        f" (default: 0 on loopback, {EXPOSED_RATE_LIMIT} elsewhere)",
    )
    who.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which this server is reached, for example behind a proxy; others are refused"
        " (default: localhost, numeric addresses and --host)",
    )
    who.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="web site, such as https://app.example.com, whose pages may call /v1 from a browser (default: none)",
    )
    kept = parser.add_argument_group("what is kept")
    kept.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="where feedback is written (default: ~/.local/share/xianliao)"
    )
    kept.add_argument("--no-feedback", action="store_true", help="no likes and dislikes")
    kept.add_argument("--no-saved-chats", action="store_true", help="browsers keep no conversations")
    kept.add_argument(
        "--log-format",
        choices=("auto", "json", "text"),
        default="auto",
        help="lines on stderr (default: text on a terminal, else json)",
    )
    kept.add_argument("--log-text", action="store_true", help="log what is said, too")
    return parser


@partial(explain_faults, extra="serve")
def main(argv: list[str] | None = None) -> int | None:
    parser = build_parser()
    args = parser.parse_args(argv)
    users, keys, hosts, origins = check(parser, args)
    from ui.options import ServeOptions, default_data_dir

    listener = listen(args.host, args.port)
    exposed = not is_loopback(listener.getsockname()[0])
    if exposed and (warning := exposure(args.host, bool(users), bool(keys))):
        print(f"warning: {warning}", file=sys.stderr)
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
        log_text=args.log_text,
    )
    return serve(args, options, listener)  # does not return


def check(
    parser: argparse.ArgumentParser, args: argparse.Namespace
) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return users, keys, host names and allowed origins; wrong usage ends with exit code 2 before anything is loaded."""
    from ui.server.access import read_keys, read_users
    from ui.server.origins import read_hosts, read_origins

    if args.rate_limit is not None and args.rate_limit < 0:
        parser.error("--rate-limit must be at least 0")
    if not 0 <= args.port <= 65535:
        parser.error("--port must be from 0 to 65535")
    folders = [locate(checkpoint).resolve() for checkpoint in args.checkpoint]
    if len(set(folders)) < len(folders):
        parser.error("--checkpoint names a folder twice; give every checkpoint once")
    try:
        hosts, origins = read_hosts(args.allow_host, args.host), read_origins(args.allow_origin)
        return read_users(args.auth), read_keys(args.api_key), tuple(sorted(hosts)), tuple(sorted(origins))
    except XianliaoError as error:
        parser.error(str(error))


def serve(args: argparse.Namespace, options, listener: socket.socket) -> NoReturn:
    """Loads what is to be served, serves it until a signal and ends the process."""
    gc.disable()  # looking for garbage among what is being imported takes a fifth of the start
    from chatbot.safety import named_safety
    from ui.checkpoints import load_bots
    from ui.server.logs import log_event, start_log

    safety = named_safety(args.safety)
    if safety is None:
        print("warning: --safety off: the model answers people in need, too, without a help line", file=sys.stderr)
    bots = load_bots(args.checkpoint, args.device, args.dtype, safety)
    from ui.server.app import create_app
    from ui.server.process import Server

    log = start_log(args.log_format, args.log_text)
    server = Server(create_app(bots, options))
    gc.freeze()  # all this stays, and need not be looked through again
    gc.enable()
    shown = f"[{args.host}]" if ":" in args.host else args.host
    print(f"http://{shown}:{listener.getsockname()[1]}  (Ctrl+C stops)", flush=True)
    server.run(sockets=[listener])
    log_event("closed")
    log.finish()
    sys.stdout.flush()
    os._exit(0)  # nothing is left to save, and taking torch and gradio apart takes seconds on a busy machine


def exposure(host: str, users: bool, keys: bool) -> str | None:
    """What others could do with a server that they can reach, or None where they need a password or key for everything."""
    if users:
        return None
    if keys:
        return (
            f"listening on {host}: the API wants a key, but anyone who can reach this machine can chat; give --auth too"
        )
    return f"listening on {host}: anyone who can reach this machine can chat and use the API; give --auth FILE"


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach what listens there."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        XianliaoError: The address or port cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, or asyncio does not send at once
    if os.name == "posix":  # elsewhere it would let two servers share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise XianliaoError(
            f"Cannot listen on {host} port {port} ({reason}); choose another --host or --port."
        ) from None
    return listener


if __name__ == "__main__":
    sys.exit(main())
