"""Credentials: users with passwords, and API keys."""

from __future__ import annotations

import base64
import errno
import secrets
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from chatbot.errors import XianliaoError
from chatbot.text.word_lists import numbered_entries
from ui.api.schemas import ApiError


class Access:
    """Check of `Authorization` headers.

    Without users and keys, every request is allowed. If there are users or keys, /v1, /metrics and /openapi.json need a key
    (`Bearer KEY`) or a user (HTTP basic). The page needs a log-in if there are users; Gradio handles it.

    Args:
        users: (name, password) pairs.
        keys: API keys.
    """

    def __init__(self, users: Sequence[tuple[str, str]] = (), keys: Sequence[str] = ()):
        bearers = [(f"key {_digest(key)[:8].hex()}", f"bearer {key}") for key in keys]
        basics = [(f"user {name}", f"basic {name}:{password}") for name, password in users]
        self._accepted = [(identity, _digest(credential)) for identity, credential in (*bearers, *basics)]

    @property
    def is_open(self) -> bool:
        """Whether no credentials are needed."""
        return not self._accepted

    def identify(self, header: str | None) -> str | None:
        """Return `user NAME` or `key HASH` for a valid header, else None; compares in constant time."""
        scheme, _, credential = (header or "").partition(" ")
        scheme, credential = scheme.lower(), credential.strip()
        if scheme == "basic":
            try:
                credential = base64.b64decode(credential, validate=True).decode("utf-8", "replace")
            except ValueError:  # not base64, or not even ASCII
                return None
        return self._identity(f"{scheme} {credential}")

    def is_user(self, name: str, password: str) -> bool:
        """Whether the user with exactly this name has this password; compares in constant time."""
        return self._identity(f"basic {name}:{password}") == f"user {name}"

    def _identity(self, credential: str) -> str | None:
        digest = _digest(credential)
        identity = None
        for candidate, accepted in self._accepted:
            if secrets.compare_digest(accepted, digest):
                identity = candidate
        return identity

    @staticmethod
    def refusal() -> ApiError:
        """Return the error for a request without valid credentials."""
        return ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")


def _digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "replace")).digest()


def read_users(values: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return the (user, password) pairs of `--auth`: each value is `user:password` or a file with one pair per line.

    Raises:
        XianliaoError: A value is in neither form, or a user is given twice.
    """
    users: dict[str, str] = {}
    for value in values:
        lines = _lines_of(value, "--auth")
        for number, line in [(0, value)] if lines is None else lines:
            name, colon, password = line.partition(":")
            if not (name and colon and password):
                what = f"line {number} of the file" if number else "the value"
                raise XianliaoError(f"--auth: {what} is not in the form user:password, or the file does not exist.")
            if name in users:
                raise XianliaoError(f"--auth names the user {name!r} twice. Give every user once.")
            users[name] = password
    return tuple(users.items())


def read_keys(values: Sequence[str]) -> tuple[str, ...]:
    """Return the keys of `--api-key`: each value is a key or a file with one key per line.

    Raises:
        XianliaoError: A key cannot be sent in a header, or a file has no key.
    """
    keys: list[str] = []
    for value in values:
        lines = _lines_of(value, "--api-key")
        if lines == []:
            raise XianliaoError("The --api-key file is empty. Put one key on each line.")
        keys += [value] if lines is None else [line for _, line in lines]
    for key in keys:
        if not key or not key.isascii() or not key.isprintable() or " " in key:
            raise XianliaoError("--api-key: a key may have visible ASCII characters only, without spaces.")
    return tuple(dict.fromkeys(keys))


def _lines_of(value: str, option: str) -> list[tuple[int, str]] | None:
    """Return the numbered lines of a file without blank lines and comments, or None if the file does not exist.

    Raises:
        XianliaoError: The file cannot be read. The message does not quote the value, which may be the secret itself.
    """
    try:
        if not Path(value).is_file():
            return None
        text = Path(value).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise XianliaoError(f"The file of {option} is not UTF-8 text. Save it as UTF-8.") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise XianliaoError(f"The file of {option} cannot be read: {error.strerror}.") from None
    except ValueError:  # a value with a null character is not a file name
        return None
    return numbered_entries(text)
