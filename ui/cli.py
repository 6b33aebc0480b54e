"""xianliao-serve: the browser chat on this machine."""

from __future__ import annotations

import argparse
import os
import socket
import sys

from chatbot.cli import add_model_options
from chatbot.errors import XianliaoError, explain_faults

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xianliao-serve", description="Serve the browser chat.")
    add_model_options(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine only)"
    )
    parser.add_argument("--api-key", metavar="KEY", help="what clients of /v1 have to send (default: nothing)")
    parser.add_argument("--safety", metavar="DIR", help="word lists and fixed replies (default: ui/safety_files)")
    parser.add_argument("--port", type=int, default=7860, help="(default %(default)s)")
    return parser


@explain_faults
def main(argv: list[str] | None = None) -> int | None:
    args = build_parser().parse_args(argv)
    if args.host not in LOOPBACK:
        print(f"warning: listening on {args.host}: anyone who can reach this machine can chat", file=sys.stderr)
    listener = listen(args.host, args.port)
    from chatbot.bot import Chatbot
    from ui.options import ServeOptions
    from ui.safety import Safety

    safety = Safety.load(args.safety)
    bot = Chatbot.from_pretrained(args.checkpoint, args.device, args.dtype)
    options = ServeOptions(api_keys=(args.api_key,) if args.api_key else ())
    import uvicorn

    from ui.server import create_app

    server = uvicorn.Server(
        uvicorn.Config(create_app(bot, options, safety), log_level="warning", timeout_graceful_shutdown=2)
    )
    shown = f"[{args.host}]" if ":" in args.host else args.host
    print(f"http://{shown}:{listener.getsockname()[1]}  (Ctrl+C stops)", flush=True)
    server.run(sockets=[listener])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A bound socket.

    Raises:
        XianliaoError: The address or port cannot be had.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
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
