"""Atomic writes, safe reading of files in downloaded folders, and locks that admit one process to a folder.

Every file that another process may read, or from which a stopped program resumes, is written under a temporary name in
the same folder and then renamed, which replaces the old file in one step. After a crash the old file is still complete.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import IO, Any, BinaryIO

from filelock import FileLock, Timeout

from chatbot.errors import CheckpointError, FileError, XianliaoError, first_line, shown

LOCK = ".lock"


@contextmanager
def exclusive(folder: Path, error: XianliaoError, lock: str = LOCK) -> Iterator[None]:
    """Create a folder if it is missing and keep other processes out of it while the block runs.

    The lock file is not removed: otherwise two processes could each lock a different file of the same name. The
    operating system releases the lock of a process that is killed.

    Args:
        folder: Folder to lock.
        error: Raised if another process holds the lock.
        lock: Name of the lock file in the folder.

    Raises:
        XianliaoError: The given `error`, if another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise error from None
    try:
        yield
    finally:
        held.release()


def files_within(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the regular files of a folder and its subfolders that have one of the suffixes, sorted by path.

    A downloaded folder may contain symbolic links to any file of this machine, so only links to files inside the folder
    are allowed. Linked folders are not entered.

    Raises:
        FileError: A folder cannot be read, or a file with one of the suffixes is a link to a file outside `folder`.
    """

    def refuse(error: OSError) -> None:
        raise FileError(f"Cannot read {error.filename}: {error.strerror}. Allow it, or give another folder.") from None

    walked = ((Path(parent), names) for parent, _, names in os.walk(folder, onerror=refuse))
    files = [parent / name for parent, names in walked for name in names if name.endswith(suffixes)]
    whole = Path(os.path.realpath(folder))  # Path.resolve raises for links in a circle
    leaving = [file for file in files if not Path(os.path.realpath(file)).is_relative_to(whole)]
    if leaving:
        raise FileError(
            f"{min(leaving)} is a link to a file outside {folder} (one of {len(leaving)} such links). Replace it by a"
            " copy, or name the file itself."
        )
    return sorted(file for file in files if file.is_file())


def open_regular(path: Path, within: Path | None = None, mode: str = "rb") -> IO[bytes]:
    """Open a regular file, and never block. In a downloaded folder, any name may belong to a FIFO or a device.

    Args:
        path: File to open.
        within: Folder that must contain the file after links are followed; None allows every link.
        mode: Binary mode, as for `open`.

    Raises:
        OSError: The file cannot be opened, is not a regular file, or is outside `within`.
    """
    target = os.path.realpath(path)
    if within is not None and not Path(target).is_relative_to(os.path.realpath(within)):
        raise OSError(errno.EPERM, "it is a link that leaves its folder", str(path))

    def opener(name: str, flags: int) -> int:
        handle = os.open(name, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        return handle

    return open(target, mode, opener=opener)


JSON_BYTES = {
    **{"tokenizer.json": 32 << 20, "tokenizer_config.json": 8 << 20, "model.safetensors.index.json": 16 << 20},
    "manifest.json": 64 << 20,
}
"""Maximum size of the JSON files that are large by nature, in bytes."""

MAX_JSON_BYTES = 4 << 20
"""Maximum size of every other JSON file, in bytes."""

MAX_JSON_DEPTH, MAX_JSON_CONTAINERS = 64, 1 << 20
"""Maximum nesting, and maximum number of lists and objects. A value may parse and still be nested too deeply to process."""


def read_json(
    path: Path, error: type[XianliaoError] = CheckpointError, advice: str = "copy or train the checkpoint again"
) -> dict:
    """Return the JSON object in a file.

    Args:
        path: File to read.
        error: Class of the exception for an unusable file.
        advice: What to do about an unusable file; the end of the message.

    Raises:
        XianliaoError: The given `error`: the file is missing, damaged, too large, nested too deeply, not a JSON object,
            or has a key twice.
    """
    try:
        value = parse_json(read_text(path, JSON_BYTES.get(path.name, MAX_JSON_BYTES)))
    except (OSError, ValueError, RecursionError) as cause:
        reason = getattr(cause, "strerror", None) or first_line(cause)
        raise error(f"{path} cannot be read ({reason}); {advice}.") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds no JSON object; {advice}.")
    return value


def parse_json(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError, RecursionError: The text is damaged, too complex or nested too deeply, or an object has a key twice.
    """
    if text.count("[") + text.count("{") > MAX_JSON_CONTAINERS:
        raise ValueError(f"it has more than {MAX_JSON_CONTAINERS:,} lists and objects")
    value = json.loads(text, object_pairs_hook=_without_duplicates)
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_JSON_DEPTH} levels")
        parts = (part.values() if isinstance(part, dict) else part for part in level if isinstance(part, (dict, list)))
        level = [item for part in parts for item in part if isinstance(item, (dict, list))]
    return value


def read_text(path: Path, limit: int = MAX_JSON_BYTES, within: Path | None = None) -> str:
    """Return the text of a UTF-8 file of at most `limit` bytes; `within` as for `open_regular`.

    Raises:
        OSError, ValueError: The file cannot be opened, is not a regular file, is larger than `limit`, or is not UTF-8.
    """
    with open_regular(path, within) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"it is larger than {limit >> 20} MiB")
    return data.decode("utf-8")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(twice)} occurs twice")
    return value


MAX_EXACT = 1 << 53  # numbers for a browser are below this one, because a browser rounds larger whole numbers


def object_of(line: bytes) -> dict | None:
    """Return the JSON object of a line; None if the line is damaged or nested too deeply."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def log_entries(text: bytes) -> list[dict]:
    """Return the entries in the log of a training run: the lines with a valid `step`; other lines are skipped."""
    entries = (object_of(line) for line in text.split(b"\n") if line)
    return [row for row in entries if row and type(step := row.get("step")) is int and 0 <= step < MAX_EXACT]


def resume_rows(path: Path) -> list[dict]:
    """Return the JSON objects of a JSONL file, after truncating it before its first damaged line; [] without a file.

    Raises:
        FileError: The file cannot be opened, is not a regular file, or is a link that leaves its folder.
    """
    rows: list[dict] = []
    whole_bytes = 0
    try:
        with open_regular(path, path.parent, "r+b") as file:
            for line in file:
                row = object_of(line) if line.endswith(b"\n") else None
                if row is None:
                    break
                rows.append(row)
                whole_bytes += len(line)
            file.truncate(whole_bytes)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileError(f"Cannot continue {path} ({error.strerror}). Remove it.") from None
    return rows


def append_row(path: Path, row: dict) -> None:
    """Append a JSON object to a JSONL file.

    Raises:
        OSError: The file cannot be opened, is not a regular file, or is a link that leaves its folder.
    """
    with open_regular(path, path.parent, "ab") as file:
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")


MAX_HEADER_BYTES = 8 << 20
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes per element of the dtypes that are read; the last three: int8 matrices, attention masks in GPT-2 files."""


def read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes in the header of a safetensors file, without reading the tensors.

    Raises:
        OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError: The file does not have the header
        of a
            safetensors file, or the header is longer than `MAX_HEADER_BYTES` or does not fit the size of the file.
    """
    with open_regular(path) as file:
        start = file.read(8)
        length, size = int.from_bytes(start, "little"), os.fstat(file.fileno()).st_size - 8
        if len(start) < 8 or not 2 <= length <= min(size, MAX_HEADER_BYTES):
            raise ValueError(f"it is not a safetensors file, or its header is longer than {MAX_HEADER_BYTES >> 20} MiB")
        entries = parse_json(file.read(length).decode("utf-8"))
    size -= length
    entries.pop("__metadata__", None)
    for name, entry in entries.items():
        width, shape, (begin, end) = DTYPES.get(entry["dtype"]), entry["shape"], entry["data_offsets"]
        if width is None:
            raise ValueError(f"{shown(name)} has the dtype {shown(entry['dtype'])}, not one of {', '.join(DTYPES)}")
        if len(shape) > 8 or not all(type(number) is int and 0 <= number <= size for number in shape):
            raise ValueError(f"{shown(name)} has the shape {shown(shape)} in a file of {size:,} bytes")
        if not 0 <= begin <= end <= size or end - begin != width * prod(shape):
            raise ValueError(f"{shown(name)} has the offsets {shown([begin, end])} in a file of {size:,} bytes")
    return {name: tuple(entry["shape"]) for name, entry in entries.items()}


def write_json(path: Path, value: object, durable: bool = True) -> None:
    """Write a value as JSON, atomically."""
    with replacing(path, durable) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path, durable: bool = True, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends without an exception.

    Args:
        path: File to write.
        durable: Whether to wait until the data is on the disk; use False for files that can be created again.
        mode: Permissions of the file.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of the same names in `folder` when the block ends."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir()):
            sync(file)
            file.chmod(0o644)
            os.replace(file, folder / file.name)


def first_link_out(folder: Path, root: Path) -> Path | None:
    """Return a path in a folder, or the folder itself, that a link leads out of `root`; None if no link does."""
    inside = os.path.realpath(root)
    paths = (Path(parent, name) for parent, folders, files in os.walk(folder) for name in (*folders, *files))
    return next((path for path in (folder, *paths) if not Path(os.path.realpath(path)).is_relative_to(inside)), None)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary path, then rename that file to `path`. A power failure may lose the file."""
    with replacing(path, durable=False) as temporary:
        write(temporary)


def write_stream(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """`write_whole` for a function that writes to an open binary file."""
    with replacing(path, durable=False) as temporary, temporary.open("wb") as file:
        write(file)


def sync(file: Path) -> None:
    """Wait until a file's data is on the disk."""
    with file.open("r+b") as handle:  # Windows syncs only files that are open for writing
        os.fsync(handle.fileno())


HEADERS_IN_PATHS = ("etag", "x-linked-etag", "x-repo-commit", "x-xet-hash")
"""Headers from which the client of the Hugging Face hub makes file names."""


def check_headers() -> None:
    """Make the hub's client check these headers, because a server could otherwise choose any file for it to write.

    The client takes file names from the answers to HEAD requests only, so the headers of other answers are not checked.
    """
    from huggingface_hub import get_session

    client = get_session()
    hooks = client.event_hooks.get("response", [])
    if _check_response not in hooks:
        client.event_hooks = {**client.event_hooks, "response": [*hooks, _check_response]}


def _check_response(response: Any) -> None:
    if response.request.method == "HEAD":
        for name in HEADERS_IN_PATHS:
            value = response.headers.get(name)
            if value is not None and not is_file_name(value.removeprefix("W/").strip('"')):
                raise ValueError(f"the server's header {name} is {shown(value)}, which cannot be a file name")


def is_file_name(text: str) -> bool:
    """Whether a text can be a file name and does not lead to another folder."""
    return 0 < len(text) <= 200 and text.isprintable() and not set(text) & set("/\\:") and text not in (".", "..")
