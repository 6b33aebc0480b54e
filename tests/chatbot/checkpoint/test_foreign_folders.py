"""Whole checkpoint folders from elsewhere, file by file: a reply, or one sentence within seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chatbot.checkpoint.test_hostile_folders import attempt, sources  # noqa: F401

GENERATION, TOKENIZER_CONFIG, JINJA = "generation_config.json", "tokenizer_config.json", "chat_template.jinja"
LOOPS = "{% for a in range(999) %}" * 3 + "{% endfor %}" * 3
RANDOM, DEEP = "{{ [1, 2, 3] | random }}", "[" * 100_000


def changed(name: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps(content | values, ensure_ascii=False), encoding="utf-8")

    return change


def written(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")

    return write


def vocabulary(text: str) -> Callable[[Path], None]:
    def replace(folder: Path) -> None:
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.txt").write_text(text)

    return replace


FOLDERS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    # Templates: time and randomness.
    "template with loops": ("qwen", written(JINJA, LOOPS), "steps"),
    "template with chance": ("qwen", written(JINJA, RANDOM), "No filter"),
    "template of 50 MB": ("qwen", written(JINJA, "x" * 50_000_000), "larger than"),
    "named template with chance": (
        "qwen",
        changed(TOKENIZER_CONFIG, chat_template=[{"name": "default", "template": RANDOM}]),
        "No filter",
    ),
    "template that is no text": ("qwen", changed(TOKENIZER_CONFIG, chat_template={"a": 1}), "no chat template"),
    # Deep nesting, in every JSON file that can be in a folder.
    "deep own config": ("own", written("config.json", DEEP), "config.json"),
    "deep own settings": ("own", written(GENERATION, DEEP), GENERATION),
    "deep own tokenizer": ("own", written("tokenizer.json", DEEP), "tokenizer.json"),
    "deep own tokenizer settings": ("own", written(TOKENIZER_CONFIG, DEEP), TOKENIZER_CONFIG),
    "deep index": ("shards", written("model.safetensors.index.json", DEEP), "index.json"),
    "deep adapter": ("own", written("adapter_config.json", DEEP), "complete checkpoint|adapter_config.json"),
    "deep record": ("own", written("training.json", DEEP), ""),
    "deep backward model": ("own", written("backward/config.json", DEEP), ""),
    "deep unread index": ("own", written("model.safetensors.index.json", DEEP), ""),
    "deep vectors": ("own", written("vectors.safetensors", DEEP), ""),
    # Lists and sizes.
    "banned word of 500,000 characters": (
        "own",
        changed(GENERATION, banned_words=["好" * 500_000]),
        "banned_words may",
    ),
    "banned words of 1,000 characters": (
        "own",
        changed(GENERATION, banned_words=["好" * 1_000] * 400),
        "banned_words may",
    ),
    "200,000 banned words": (
        "own",
        changed(GENERATION, banned_words=[f"词{n}" for n in range(200_000)]),
        "banned_words may",
    ),
    "50,000 exceptions": (
        "own",
        changed(GENERATION, banned_words=["妈", *(f"!{n}妈" for n in range(50_000))]),
        "banned_words may",
    ),
    "floor of millions": (
        "own",
        changed(GENERATION, floor_start_tokens=10**6, floor_delta_tokens=10**6, temperature=100.0),
        "3000000 tokens",
    ),
    "endless floor": ("own", changed(GENERATION, floor_start_tokens=10**9), "floor_start_tokens"),
    "300,000 biases": ("own", changed(GENERATION, logit_bias=[[n % 300, 1.0] for n in range(300_000)]), ""),
    "a million ids of the end": ("qwen", changed(GENERATION, eos_token_id=[*range(10**6)]), "larger than"),
    "a billion layers": ("qwen", changed("config.json", num_hidden_layers=10**9), "num_hidden_layers"),
    "100,000 added tokens": (
        "qwen",
        changed(TOKENIZER_CONFIG, added_tokens_decoder={str(n): {"content": f"<{n}>"} for n in range(100_000)}),
        "",
    ),
    "end of a million characters": ("qwen", changed(TOKENIZER_CONFIG, eos_token="a" * 10**6), ""),
    "end within an end": ("qwen", changed(TOKENIZER_CONFIG, eos_token={"content": {"content": 1}}), ""),
    "vocabulary of 2 million": ("own", vocabulary("\n".join(map(str, range(2_000_000)))), "vocab"),
    "vocabulary of one line": ("own", vocabulary("a" * 60_000_000), "larger than"),
}


@pytest.mark.parametrize(("kind", "change", "words"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_from_elsewhere_is_refused_in_a_sentence_or_answers(sources, tmp_path, kind, change, words):  # noqa: F811
    folder = shutil.copytree(sources[kind], tmp_path / "copy")
    change(folder)
    message = attempt(folder)
    if words:
        assert any(word in message for word in words.split("|")), message
    else:
        assert message == "" or "\n" not in message


@pytest.mark.parametrize(
    "words", [["好" * 100], [f"词{n}" for n in range(20_000)], ["妈", *(f"!{n}妈" for n in range(500))]]
)
def test_lists_of_a_usual_size_are_read(sources, tmp_path, words):  # noqa: F811
    folder = shutil.copytree(sources["own"], tmp_path / "copy")
    changed(GENERATION, banned_words=words)(folder)
    assert attempt(folder) == ""
