"""Who may use the server: users with passwords, and keys of the API."""

from __future__ import annotations

import base64
import errno
import secrets
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from chatbot.errors import XianliaoError
from chatbot.text.word_lists import read_word_list


class Access:
    """Reads `Authorization` headers.

    Without users and keys everybody may do everything. With either, /v1 and /metrics want a key (`Bearer KEY`) or a user
    (HTTP basic); the page wants a user, when there are users, and Gradio asks for it.

    Args:
        users: (name, password) pairs.
        keys: Keys of the API.
    """

    def __init__(self, users: Sequence[tuple[str, str]] = (), keys: Sequence[str] = ()):
        bearers = [(f"key {_digest(key)[:8].hex()}", f"bearer {key}") for key in keys]
        basics = [(f"user {name}", f"basic {name}:{password}") for name, password in users]
        self._accepted = [(who, _digest(credential)) for who, credential in (*bearers, *basics)]

    @property
    def is_open(self) -> bool:
        return not self._accepted

    def who(self, header: str | None) -> str | None:
        """Whose header it is, or None; takes the same time for every wrong one."""
        scheme, _, given = (header or "").partition(" ")
        scheme, given = scheme.lower(), given.strip()
        if scheme == "basic":
            try:
                given = base64.b64decode(given, validate=True).decode("utf-8", "replace")
            except ValueError:  # no base64, or not even ASCII
                return None
        digest = _digest(f"{scheme} {given}")
        found = None
        for who, accepted in self._accepted:
            if secrets.compare_digest(accepted, digest):
                found = who
        return found


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "replace")).digest()


def read_users(values: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(user, password) pairs of `--auth`: each value is `user:password` or a file of such lines.

    Raises:
        XianliaoError: There is no password, or a user comes twice.
    """
    users: dict[str, str] = {}
    for value in values:
        lines = _lines_of(value, "--auth")
        for line in [value] if lines is None else lines:
            name, colon, password = line.partition(":")
            if not (name and colon and password):
                found = "what was given is neither" if lines is None else "its file has another line"
                raise XianliaoError(f"--auth wants user:password or a file of such lines, and {found}.")
            if name in users:
                raise XianliaoError(f"--auth names the user {name!r} twice; give every user once.")
            users[name] = password
    return tuple(users.items())


def read_keys(values: Sequence[str]) -> tuple[str, ...]:
    """Keys of `--api-key`: each value is a key or a file with one in every line.

    Raises:
        XianliaoError: A key cannot be sent in a header, or a file has none.
    """
    keys: list[str] = []
    for value in values:
        lines = _lines_of(value, "--api-key")
        if lines == []:
            raise XianliaoError("The file of --api-key is one without a key; write one in every line.")
        keys += [value] if lines is None else lines
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise XianliaoError("A key of --api-key is made of visible ASCII characters without spaces.")
    return tuple(dict.fromkeys(keys))


def _lines_of(value: str, option: str) -> list[str] | None:
    """Lines of a file, without empty ones and comments; None where there is no such file.

    Raises:
        XianliaoError: The file cannot be read. The value is not quoted, since it may be the secret itself.
    """
    try:
        if not Path(value).is_file():
            return None
        return read_word_list(Path(value))
    except UnicodeDecodeError:
        raise XianliaoError(f"The file of {option} is not text in UTF-8.") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise XianliaoError(f"The file of {option} cannot be read ({error.strerror}).") from None
    except ValueError:  # no file is called so
        return None
