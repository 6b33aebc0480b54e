"""The prebuilt library in a platform wheel: found, checked, and loaded in place of one compiled on this machine.

The folder `prebuilt` of this package holds one library and `manifest.json` with its system, the hash of the sources
that it was built from, and its own hash. A checkout and the wheel for all systems do not have the folder.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import stat
import sys
import warnings
from pathlib import Path

from chatbot.errors import XianliaoWarning

FOLDER = Path(__file__).with_name("prebuilt")
MANIFEST = "manifest.json"
DISPATCH = Path(__file__).with_name("dispatch.c")
SOURCES = (
    Path(__file__).with_name("step.c"),
    DISPATCH,
    Path(__file__).with_name("processor.h"),
    Path(__file__).with_name("runtime") / "step.h",
)
SYSTEMS = {
    ("linux", "x86_64"): "linux-x86_64",
    ("linux", "aarch64"): "linux-aarch64",
    ("darwin", "arm64"): "macos-arm64",
    ("win32", "AMD64"): "windows-x86_64",
}
"""Names of the systems in chatbot.native.building, by sys.platform and machine."""


def load_prebuilt() -> ctypes.CDLL | None:
    """Return the prebuilt library, or None if there is none; warn if there is one that cannot be used."""
    if not FOLDER.is_dir():
        return None
    try:
        path = _checked(FOLDER)
        return ctypes.CDLL(str(path))
    except _Unusable as error:
        fault = str(error)
    except OSError as error:
        fault = f"The prebuilt library in {FOLDER} cannot be loaded ({error})."
    except (KeyError, TypeError, ValueError):
        fault = f"{FOLDER / MANIFEST} is damaged. Install xianliao again."
    warnings.warn(f"{fault} It is not used; a C compiler or torch is used instead.", XianliaoWarning, stacklevel=3)
    return None


def write_manifest(library: Path, system: str) -> None:
    """Write the manifest of a library beside it; `system` is a name of `SYSTEMS`."""
    content = {"library": library.name, "system": system, "sources": _hash_of_sources(), "sha256": _hash(library)}
    (library.parent / MANIFEST).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class _Unusable(Exception):
    """The library must not be loaded; the message is a sentence."""


def _checked(folder: Path) -> Path:
    """Return the library of a folder after checking it.

    The library must be built for this system from these sources, undamaged, and not writable by other users.

    Raises:
        _Unusable: A check fails.
        OSError, KeyError, TypeError, ValueError: The manifest or the library cannot be read.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    path = folder / Path(str(manifest["library"])).name
    for each in (folder, folder / MANIFEST, path):
        # Windows has no such permissions: there the library is as safe as the Python files of the package beside it.
        if sys.platform != "win32" and not is_written_by(each, 0, os.getuid()):
            raise _Unusable(f"{each} can be written to by other users. Run: chmod -R go-w {folder}.")
    system = SYSTEMS.get((sys.platform, platform.machine()))
    if manifest["system"] != system:
        raise _Unusable(
            f"The prebuilt library in {folder} is for {manifest['system']}. Install the wheel of your system."
        )
    if manifest["sources"] != _hash_of_sources():
        raise _Unusable(f"The prebuilt library in {folder} belongs to another version of xianliao. Remove this folder.")
    if manifest["sha256"] != _hash(path):
        raise _Unusable(f"The prebuilt library {path} is damaged. Install xianliao again.")
    return path


def is_written_by(path: Path, *owners: int) -> bool:
    """Return whether only these users (ids) can have written a file or folder; False for a link."""
    status = path.lstat()
    is_link = stat.S_ISLNK(status.st_mode)
    return not is_link and status.st_uid in owners and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _hash_of_sources() -> str:
    """Return a hash of the sources with Unix line ends."""
    parts = [path.read_bytes().replace(b"\r\n", b"\n") for path in SOURCES]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
