"""What the READMEs promise exists."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from chatbot.language.translation import to_chinese
from tests.conftest import ROOT
from tests.messages import PARSERS
from training.arguments import read_settings

READMES = ["README.md", "README.zh.md"]
PAGES = [
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "runs", "build", ".git", "log", "exports"} & set(path.relative_to(ROOT).parts)
    and not path.parent.name.startswith(".")
]
ENGLISH = sorted(path for path in PAGES if path.name == "README.md" or path.with_suffix(".zh.md") in PAGES)
"""Pages that have a Chinese twin: every README, and the others beside a NAME.zh.md."""
CHINESE = sorted(path for path in PAGES if path.name.endswith(".zh.md"))


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("name", READMES)
def test_the_first_commands_are_git_clone_make_chat_and_make_test(name):
    commands = re.findall(r"^    (\S+ \S+)", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert commands[:3] == ["git clone", "make chat", "make test"]


@pytest.mark.parametrize("name", READMES)
def test_commands_have_the_flags_that_are_shown(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    shown = re.findall(r"(xianliao-\w+)((?: +[^\n`(#]+)?)", text)
    assert {command for command, _ in shown} == set(PARSERS)
    for command, rest in shown:
        known = PARSERS[command]().format_help()
        for flag in re.findall(r"--[a-z-]+", rest):
            assert flag in known, (command, flag)


@pytest.mark.parametrize("name", READMES)
def test_presets_exist(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"training/presets/\S+\.yaml", text)
    assert links
    assert all((ROOT / path).exists() for path in links)


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_of_every_page_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        assert not path or "://" in path or (page.parent / path).exists(), link
        if path.endswith(".md") and anchor and "://" not in path:
            headings = re.findall(r"^#+ (.*)", (page.parent / path).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings], link


def test_the_data_page_lists_the_rules_as_they_are():
    from data_prep.pipeline import all_rules

    text = (ROOT / "data_prep" / "README.md").read_text(encoding="utf-8")
    for rule in all_rules():
        assert f"| `{rule.name}` | {'on' if rule.is_on else 'off'} | {rule.summary} |" in text
    known = PARSERS["xianliao-prepare"]().format_help() + "--kill --flops"  # of the benchmarks
    assert all(flag in known for flag in re.findall(r"--[a-z-]{3,}", text))


def in_both_languages(page: Path) -> tuple[str, str]:
    return page.read_text(encoding="utf-8"), page.with_suffix(".zh.md").read_text(encoding="utf-8")


def commands_in(text: str) -> list[str]:
    """Return the lines of code of a page, without comments."""
    fenced = "".join(
        f"\n    {line}" for block in re.findall(r"```.*?\n(.*?)```", text, re.DOTALL) for line in block.split("\n")
    )
    return [line.strip() for line in re.findall(r"^    (\S[^#\n]*)", text + fenced, re.MULTILINE)]


def figures_in(text: str) -> set[float]:
    """Return the numbers of a page; 1060 万 and 10.6M are the same."""
    scale = {"万": 1e4, "百万": 1e6, "M": 1e6, " million": 1e6, "k": 1e3}
    numbers = re.findall(r"(?<![A-Za-z0-9_.])(\d[\d,]*(?:\.\d+)?|\.\d+)(?: ?(百万|万)|(M\b|k\b| million))?", text)
    return {round(float(digits.replace(",", "")) * scale.get(zh or en, 1), 6) for digits, zh, en in numbers}


@pytest.mark.parametrize("page", ENGLISH, ids=relative)
def test_both_languages_show_the_same_commands_and_figures(page):
    english, chinese = in_both_languages(page)
    assert commands_in(english) == commands_in(chinese)
    assert figures_in(english) ^ figures_in(chinese) == set()
    assert re.findall("^#+ ", english, re.MULTILINE) == re.findall("^#+ ", chinese, re.MULTILINE)


@pytest.mark.parametrize("page", ENGLISH, ids=relative)
def test_both_languages_lead_to_each_other_and_to_the_same_pages(page):
    english, chinese = in_both_languages(page)
    assert f"]({page.stem}.zh.md)" in english
    assert f"]({page.name})" in chinese
    targets = [
        {link.partition("#")[0].replace(".zh.md", ".md") for link in re.findall(r"\]\(([^)\s]+)\)", text)} - {page.name}
        for text in (english, chinese)
    ]
    assert targets[0] == targets[1]


@pytest.mark.parametrize("page", CHINESE, ids=relative)
def test_a_chinese_page_leads_to_the_chinese_pages(page):
    text, original = page.read_text(encoding="utf-8"), page.name.replace(".zh.md", ".md")
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+\.md(?:#[^)\s]*)?)\)", text)} - {original}
    assert [link for link in links if (page.parent / link).with_suffix(".zh.md").exists()] == []
    named = re.findall(r"\]\([^)\s]+\.zh\.md[^)\s]*\)（英文）", text)
    assert named == [], "these pages are Chinese"


def test_the_chinese_data_page_lists_the_rules_as_they_are():
    from data_prep.pipeline import all_rules

    text = (ROOT / "data_prep" / "README.zh.md").read_text(encoding="utf-8")
    for rule in all_rules():
        assert f"| `{rule.name}` | {'开' if rule.is_on else '关'} | {to_chinese(rule.summary)} |" in text


def test_scripts_and_make_targets_are_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["project"]["scripts"]) == set(PARSERS)
    assert {"test", "eval", "lora", "gpu"} <= set(project["project"]["optional-dependencies"])
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(
        re.search(rf"^{target}:", makefile, re.MULTILINE) for target in ("chat", "test", "test-slow", "bench", "lint")
    )


@pytest.mark.parametrize("preset", sorted((ROOT / "training" / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_are_settings_without_faults(preset):
    start = ["--init", "default"] if "\nlatent:" in preset.read_text(encoding="utf-8") else []
    settings, origins = read_settings(["--data", "a", "--output", "b", "--config", str(preset), *start])
    assert origins["data"] == "flag"
    assert preset.name in origins.values()
    assert settings.batch_rows >= 1
    assert preset.read_text(encoding="utf-8").startswith("# ")


def test_the_stages_of_the_training_page_are_settings_without_faults(tmp_path):
    text = (ROOT / "training" / "README.md").read_text(encoding="utf-8")
    (tmp_path / "stages.yaml").write_text(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1), encoding="utf-8")
    settings, _ = read_settings(["--output", "b", "--config", str(tmp_path / "stages.yaml")])
    assert [stage.name for stage in settings.stages] == ["broad", "chat"]
    assert settings.of_stage(1).regularization.dropout == 0.1
    assert settings.of_stage(0).learning_rate == 5e-3
