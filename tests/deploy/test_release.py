"""The workflows run commands that this repository has; the release script refuses files that are not as they should be."""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import json
import re
import shlex
import sys
import tomllib
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from chatbot.native.building import TARGETS_OF_ZIG
from chatbot.native.prebuilt import SYSTEMS
from deploy import check_wheels, release
from deploy.release import PREBUILT, ReleaseError, check_library, check_page
from lite import build as lite_build
from tests.conftest import ROOT

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PARSERS = {"deploy.release": release.build_parser, "deploy/check_wheels.py": check_wheels.build_parser}
OF_THE_SYSTEM = {"cd", "docker", "gh", "grep", "true", "npm", "sudo"}
ENDS = {"&&", "||", "|", ";", "(", ")"}


def commands_of(workflow: Path) -> list[list[str]]:
    """Return the commands of a workflow, as words."""
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    steps = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    commands: list[list[str]] = []
    for line in "\n".join(steps).splitlines():
        lexer = shlex.shlex(re.sub(r"2>&1", "", line), posix=True, punctuation_chars="()|&;")
        lexer.whitespace_split = True
        commands.append([])
        for word in lexer:
            if word in ENDS:
                commands.append([])
            else:
                commands[-1].append(word)
    return [command for command in commands if command]


COMMANDS = [(path.name, command) for path in WORKFLOWS for command in commands_of(path)]


def test_the_release_is_built_on_tags_and_by_hand():
    content = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))
    triggers = content[True]  # YAML reads the key `on` as a truth value
    assert triggers["push"]["tags"]
    assert "workflow_dispatch" in triggers
    assert content["permissions"] == {"contents": "read"}
    assert content["jobs"]["attach"]["if"] == "startsWith(github.ref, 'refs/tags/')"


@pytest.mark.parametrize(("workflow", "command"), COMMANDS, ids=lambda value: " ".join(value)[:40])
def test_every_command_of_a_workflow_exists(workflow, command):
    words = [word for word in command if "=" not in word or word.startswith("-")]
    name, *arguments = words
    if name == "pip":
        extras = [extra for word in arguments for extra in re.findall(r"^\.\[([\w,]+)\]$", word)]
        assert {extra for listed in extras for extra in listed.split(",")} <= set(PROJECT["optional-dependencies"])
        assert all((ROOT / arguments[index + 1]).is_file() for index, word in enumerate(arguments) if word == "-c")
    elif name == "python":
        if arguments[0] == "-c":
            imported = ast.parse(arguments[1]).body
            names = [alias.name for node in imported if isinstance(node, ast.Import) for alias in node.names]
            assert names
            assert all(find_spec(imported_name) for imported_name in names)
            return
        is_module = arguments[0] == "-m"
        target, rest = (arguments[1], arguments[2:]) if is_module else (arguments[0], arguments[1:])
        assert find_spec(target) is not None if is_module else (ROOT / target).is_file()
        if target in PARSERS:
            PARSERS[target]().parse_args(rest)
    elif name == "bash":
        assert (ROOT / arguments[0]).is_file()
    elif name.startswith("xianliao-"):
        assert name in PROJECT["scripts"]
    elif name in ("ruff", "mypy", "pytest"):
        assert any(re.match(rf"{name}\b", need) for need in PROJECT["optional-dependencies"]["test"])
        files = [word for word in arguments if "/" in word and not word.startswith("-")]
        assert all(list(ROOT.glob(file)) for file in files)
    else:
        assert name in OF_THE_SYSTEM, f"{workflow}: {name}"


def test_every_system_has_a_library_and_a_wheel():
    systems = set(TARGETS_OF_ZIG) - {"wasm"}
    assert set(release.PLATFORM_TAGS) == systems == set(SYSTEMS.values())
    assert lite_build.TAGS == release.PLATFORM_TAGS


def test_a_page_beyond_its_limit_is_refused():
    check_page(29_000_000, 20_000_000)
    with pytest.raises(ReleaseError, match="limit is 29"):
        check_page(29_000_001, 20_000_000)


def wheel_of(folder: Path, **files: bytes) -> Path:
    path = folder / "a.whl"
    with zipfile.ZipFile(path, "w") as content:
        for name, data in files.items():
            content.writestr(name, data)
    return path


def test_wheels_without_a_right_library_are_refused(tmp_path):
    library = b"\x7fELF xianliao_choose"
    name, manifest = PREBUILT + "xianliao.so", PREBUILT + "manifest.json"
    recorded = json.dumps({"sha256": hashlib.sha256(library).hexdigest()}).encode()
    good = {name: library, manifest: recorded}
    check_library(wheel_of(tmp_path, **good), PREBUILT + "xianliao", b"xianliao_choose")
    for changes, words in (
        ({name: b"MZ xianliao_choose"}, "not a library"),
        ({name: b"\x7fELF"}, "not a library"),
        ({name: library + bytes(release.MAX_LIBRARY_BYTES)}, "too large"),
        ({manifest: recorded.replace(b'": "', b'": "0')}, "differs"),
        ({PREBUILT + "xianliao.dll": b"MZ"}, "2 libraries"),
    ):
        with pytest.raises(ReleaseError, match=words):
            check_library(wheel_of(tmp_path, **{**good, **changes}), PREBUILT + "xianliao", b"xianliao_choose")
    with pytest.raises(ReleaseError, match="0 libraries"):
        check_library(wheel_of(tmp_path), PREBUILT + "xianliao", b"xianliao_choose")


@pytest.mark.slow
@pytest.mark.alone
def test_the_release_is_built_and_its_lite_wheel_talks(tmp_path, capsys):
    """As the workflow does it, for this system only; the limits on sizes are those of the script."""
    pytest.importorskip("ziglang", reason="the files are built with zig: pip install ziglang")
    import platform

    system = SYSTEMS[sys.platform, platform.machine()]
    dist, replies = tmp_path / "dist", tmp_path / "dist" / "replies.json"
    assert release.main(["--output", str(dist), "--target", system]) == 0
    for _ in range(2):  # the second time compares
        assert check_wheels.main([str(dist), "--replies", str(replies), "--seconds", "10"]) == 0
    output = capsys.readouterr().out
    assert "20 replies are the same" in output
    files = {path.name for path in dist.iterdir()} - {"replies.json"}
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    patterns = re.findall(r"dist/(\S+)", text[text.index("gh release create") :])
    assert all(any(fnmatch.fnmatch(name, pattern) for pattern in patterns) for name in files)
    sums = dict(reversed(line.split()) for line in (dist / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == files - {"SHA256SUMS"}
    assert all(hashlib.sha256((dist / name).read_bytes()).hexdigest() == value for name, value in sums.items())
    replies.write_text("[]")
    assert check_wheels.main([str(dist), "--replies", str(replies), "--seconds", "10"]) == 1
    assert "differ" in capsys.readouterr().err
