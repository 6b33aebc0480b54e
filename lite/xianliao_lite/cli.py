"""The command xianliao-lite."""

from __future__ import annotations

import argparse
import sys

from xianliao_lite.bot import Bot, LiteError


def main(argv: list[str] | None = None) -> int:
    """Run xianliao-lite chat or xianliao-lite serve."""
    parser = argparse.ArgumentParser(prog="xianliao-lite", description="闲聊 without torch.")
    commands = parser.add_subparsers(dest="command", required=True)
    chat = commands.add_parser("chat", help="chat in the terminal")
    serve = commands.add_parser("serve", help="serve /v1/chat/completions")
    for command in (chat, serve):
        command.add_argument("weights", nargs="?", help="weights file of xianliao-export --to lite")
        command.add_argument("--safety", choices=("on", "off"), default="on", help="fixed replies to people in crisis")
    chat.add_argument("--message", nargs="+", metavar="TEXT", help="send these messages, print the replies and exit")
    chat.add_argument("--seed", type=int, help="seed of every reply (default: random)")
    serve.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen at (default: %(default)s, this machine only). At another address everyone who reaches it"
        " can use the bot: the server has no keys, no rate limit and no TLS",
    )
    serve.add_argument("--port", type=int, default=8000, help="port (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        bot = Bot(args.weights, safety=args.safety == "on")
        if args.command == "serve":
            return _serve(bot, args.host, args.port)
        return _talk(bot, args.message, args.seed)
    except (LiteError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


COMMANDS = "/undo 撤回  /clear 重新开始  /help 命令一览  /quit 退出"
"""Commands of the chat in the terminal."""


def _serve(bot: Bot, host: str, port: int) -> int:
    from xianliao_lite.server import Server

    server = Server(bot, host, port)
    print(f"http://{f'[{host}]' if ':' in host else host}:{server.server_address[1]}/v1", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
    return 0


def _talk(bot: Bot, messages: list[str] | None, seed: int | None) -> int:
    turns: list[str] = []
    if messages is None:
        print(COMMANDS, file=sys.stderr)
    for message in _typed() if messages is None else messages:
        if messages is None and message == "/quit":
            break
        if messages is None and message in ("/undo", "/clear"):
            if message == "/undo":
                print(f"已撤回：{turns[-2]}" if turns else "还没有可以撤回的。", file=sys.stderr)
            turns = turns[:-2] if message == "/undo" else []
            continue
        if messages is None and message.startswith("/"):
            print(*([] if message == "/help" else [f"没有 {message} 这个命令。"]), COMMANDS, sep="\n", file=sys.stderr)
            continue
        try:
            text = _say(bot, [*turns, message], seed, "闲聊: " if messages is None else "")
            turns += [message, text]
        except LiteError as error:
            if messages is not None:
                raise
            print(error, file=sys.stderr)
    return 0


def _typed():
    while True:
        try:
            yield input("你: ").strip()
        except (EOFError, KeyboardInterrupt):
            return


def _say(bot: Bot, turns: list[str], seed: int | None, name: str) -> str:
    """Print a reply as it grows, and return it; Ctrl+C stops it."""
    printed = ""
    try:
        for reply in bot.stream(turns, seed):
            print((name if not printed and reply.text else "") + reply.text[len(printed) :], end="", flush=True)
            printed = reply.text
    except KeyboardInterrupt:
        pass
    print()
    return printed


if __name__ == "__main__":
    sys.exit(main())
