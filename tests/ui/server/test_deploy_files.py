"""The files of deploy/ agree with the server: commands, limits, names."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

from tests.conftest import ROOT
from ui.cli import build_parser
from ui.options import ServeOptions

DEPLOY = ROOT / "deploy"
PAGE = (DEPLOY / "README.md").read_text(encoding="utf-8")


def test_the_container_runs_a_command_that_exists():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    service = compose["services"]["xianliao"]
    name, *arguments = service["command"]
    args = build_parser().parse_args(arguments)
    assert (name, args.host, str(args.data_dir)) == ("xianliao-serve", "0.0.0.0", "/data")
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    assert service["ports"] == [f"127.0.0.1:{args.port}:{args.port}"]
    assert {volume.split(":")[0] for volume in service["volumes"]} == set(compose["volumes"])
    image = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    name, *arguments = yaml.safe_load(re.findall(r"^CMD (\[.*\])", image, re.MULTILINE)[-1])
    assert build_parser().parse_args(arguments).host == "0.0.0.0"
    assert re.findall("^USER (.*)", image, re.MULTILINE) == [
        "1000"
    ]  # a number, so Kubernetes can see that it is not root


def test_the_image_gets_the_files_that_it_copies_and_no_others():
    image = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    copied = [name for line in re.findall(r"^COPY (.*) \S+$", image, re.MULTILINE) for name in line.split()]
    assert all((ROOT / name).exists() for name in copied)
    first, *patterns = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()[1:]
    sent = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    assert first == "*"
    assert [name.partition("/")[0] for name in sent] == copied
    assert (ROOT / "checkpoints" / "default").is_dir()
    assert "checkpoints/default" in sent  # a user's own checkpoints stay here
    assert patterns[len(sent) :] == ["**/__pycache__", "chatbot/native/prebuilt"]


def test_the_comments_of_the_container_file_are_yaml_too():
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    text = re.sub(r"^( *)# (?=( |-|secrets:|environment:|users:))", r"\1", text, flags=re.MULTILINE)
    compose = yaml.safe_load(text)
    (secret,) = compose["services"]["xianliao"]["secrets"]
    arguments = compose["services"]["xianliao"]["command"][1:]
    assert build_parser().parse_args(arguments).auth == [f"/run/secrets/{secret}"]
    assert compose["secrets"][secret]["file"] == "./users.txt"
    assert "FORWARDED_ALLOW_IPS" in compose["services"]["xianliao"]["environment"]


@pytest.mark.parametrize("line", re.findall(r"^ {4}(xianliao-serve.*?)(?: {2,}#.*| &)?$", PAGE, re.MULTILINE))
def test_commands_of_the_page_parse(line):
    build_parser().parse_args(shlex.split(line)[1:])


def test_every_replica_has_its_own_folder_for_feedback():
    replicas = [line for line in PAGE.splitlines() if line.startswith("    xianliao-serve --port")]
    folders = re.findall(r"--data-dir (\S+)", "\n".join(replicas))
    assert len(set(folders)) == len(replicas) == 2


def test_flags_of_the_page_exist():
    known = build_parser().format_help() + "--include-dashboard --address --head --build --alone"
    assert not [flag for flag in re.findall(r"(?<!-)--[a-z][a-z-]{2,}", PAGE) if flag not in known]


def test_the_limits_of_the_page_are_those_of_the_server():
    options = ServeOptions()
    assert f"{options.body_bytes // 2**20} MiB with credentials" in PAGE
    assert f"{options.anonymous_body_bytes // 2**20} MiB without" in PAGE
    assert f"{options.arriving_bytes // 2**20} MiB, of which clients without credentials can use half" in PAGE
    nginx = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    assert f"client_max_body_size {options.body_bytes // 2**20}m;" in nginx
