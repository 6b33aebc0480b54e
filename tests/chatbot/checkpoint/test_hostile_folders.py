"""Folders from elsewhere, damaged or hostile: a normal load, or one sentence, soon and without memory, code or network."""

from __future__ import annotations

import copy
import json
import random
import resource
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from chatbot import Chatbot
from chatbot.checkpoint.convert import main
from chatbot.checkpoint.folder import save
from chatbot.cli import chat
from chatbot.errors import CheckpointError, XianliaoError
from chatbot.similarity.token_vectors import TokenVectors
from tests.chat_models import write_chat_model
from tests.processor_time import processor_seconds

SHARDS = "model.safetensors.index.json"
SECONDS, KILOBYTES = 2, 400_000


@pytest.fixture(scope="module")
def sources(checkpoint, dialogues, tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind: ours, a Qwen-shaped chat model, the same in shards, and an adapter to it."""
    folder = tmp_path_factory.mktemp("sources")
    texts = [turn for turns in dialogues for turn in turns]
    write_chat_model(folder / "qwen", texts, "qwen2")
    for name in ("special_tokens_map.json", "added_tokens.json"):
        (folder / "qwen" / name).write_text("{}")
    if not (folder / "qwen" / "generation_config.json").is_file():
        (folder / "qwen" / "generation_config.json").write_text('{"temperature": 0.7}')
    shutil.copytree(folder / "qwen", folder / "shards")
    tensors = load_file(folder / "qwen" / "model.safetensors")
    (folder / "shards" / "model.safetensors").unlink()
    save_file(tensors, folder / "shards" / "model-1.safetensors")
    (folder / "shards" / SHARDS).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model-1.safetensors")}))
    return {"own": checkpoint, "qwen": folder / "qwen", "shards": folder / "shards"}


@pytest.fixture(scope="module")
def adapter(sources, tmp_path_factory) -> Path:
    pytest.importorskip("peft")
    from chatbot.checkpoint import lora
    from chatbot.checkpoint.folder import load_model
    from chatbot.text.tokenizer import DialogueTokenizer

    model = load_model(sources["qwen"])
    lora.attach(model, rank=4, alpha=8)
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    save(folder, model, DialogueTokenizer.load(sources["qwen"]), {}, {"step": 1})
    return folder


def attempt(folder: Path) -> str:
    """Load a folder and reply once; returns the error message, or an empty text."""
    message, peak = "", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def load_and_reply() -> None:
        nonlocal message
        try:
            bot = Chatbot.from_pretrained(folder, device="cpu")
            bot.reply(["你好"], seed=0, max_reply_tokens=4, floor_start_tokens=None, min_reply_tokens=1)
        except XianliaoError as error:
            message = str(error)
            assert message
            assert "\n" not in message
            assert len(message) < 1500

    assert processor_seconds(load_and_reply, SECONDS) < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < KILOBYTES
    return message


def rewrite(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(changes)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


DAMAGES = {
    "deep list": lambda text: "[" * 100_000,
    "deep object": lambda text: '{"a":' * 100_000,
    "deep and closed": lambda text: '{"a":' + "[" * 500 + "]" * 500 + "}",
    "giant": lambda text: " " * (33 << 20),
    "many brackets": lambda text: '{"a": [' + "[]," * 1_100_000 + "[]]}",
    "duplicate key": lambda text: text.replace("{", '{"x": 1, "x": 2, ', 1),
    "list": lambda text: "[1]",
    "number": lambda text: "1",
    "null": lambda text: "null",
    "long number": lambda text: '{"a": ' + "9" * 10_000 + "}",
    "empty": lambda text: "",
    "half": lambda text: text[: len(text) // 2],
    "garbage": lambda text: "\0\x01\x02",
}
READ = [
    *(("own", name) for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")),
    *(("qwen", name) for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")),
    ("shards", SHARDS),
]
UNREAD = [("qwen", name) for name in ("special_tokens_map.json", "added_tokens.json")]


@pytest.mark.parametrize(("kind", "name"), READ, ids=lambda value: value)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_end_in_a_sentence(sources, tmp_path, kind, name, damage):
    folder = shutil.copytree(sources[kind], tmp_path / "copy")
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(DAMAGES[damage](text), encoding="utf-8")
    assert name in attempt(folder)


@pytest.mark.parametrize("damage", ["deep list", "duplicate key", "deep and closed", "list"])
def test_a_damaged_adapter_config_ends_in_a_sentence(adapter, tmp_path, damage):
    folder = shutil.copytree(adapter, tmp_path / "copy")
    text = (folder / "adapter_config.json").read_text(encoding="utf-8")
    (folder / "adapter_config.json").write_text(DAMAGES[damage](text), encoding="utf-8")
    assert "adapter_config.json" in attempt(folder)


@pytest.mark.parametrize("damage", ["deep list", "duplicate key", "deep and closed", "list"])
def test_a_damaged_training_record_ends_in_a_sentence(sources, tmp_path, damage, capsys):
    folder = shutil.copytree(sources["own"], tmp_path / "copy")
    text = (folder / "training.json").read_text(encoding="utf-8")
    (folder / "training.json").write_text(DAMAGES[damage](text), encoding="utf-8")
    assert main([str(folder), str(tmp_path / "target")]) == 1
    assert "training.json" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "name"), UNREAD, ids=lambda value: value)
def test_files_that_are_not_read_do_no_harm(sources, tmp_path, kind, name):
    folder = shutil.copytree(sources[kind], tmp_path / "copy")
    (folder / name).write_text("[" * 100_000)
    assert attempt(folder) == ""


def test_the_command_prints_one_line_and_exits_with_1(sources, tmp_path, capsys):
    folder = shutil.copytree(sources["own"], tmp_path / "copy")
    (folder / "config.json").write_text("[" * 100_000)
    assert chat(["--checkpoint", str(folder), "--message", "你好"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["loading", "error:"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1", "0", "true", '"x"', "[]", "{}"])
@pytest.mark.parametrize(
    ("kind", "name"), [entry for entry in READ if "tokenizer" not in entry[1]], ids=lambda value: value
)
def test_numbers_that_are_none(sources, tmp_path, kind, name, number):
    """All numbers of a file replaced by one value: a sentence, or a load where the file has no number that is read."""
    folder = shutil.copytree(sources[kind], tmp_path / "copy")

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(item) for key, item in value.items()}
        return "@" if isinstance(value, (int, float)) and not isinstance(value, bool) else value

    content = replaced(json.loads((folder / name).read_text(encoding="utf-8")))
    (folder / name).write_text(json.dumps(content).replace('"@"', number), encoding="utf-8")
    message = attempt(folder)
    assert message or name != "config.json"


ABSURD = [10**9, 10**30, -1, 0, 1.5, True, "64", None]
OWN_SIZES = [
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size"),
    *("sliding_window", "max_position_embeddings", "context_tokens", "taylor_key_dim", "chunk_size"),
]
QWEN_SIZES = [
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("intermediate_size", "max_position_embeddings"),
]


@pytest.mark.parametrize(
    ("kind", "key"), [*(("own", key) for key in OWN_SIZES), *(("qwen", key) for key in QWEN_SIZES)]
)
def test_absurd_sizes_are_refused_before_memory_is_taken(sources, tmp_path, kind, key):
    folder = shutil.copytree(sources[kind], tmp_path / "copy")
    for value in ABSURD:
        rewrite(folder / "config.json", **{key: value})
        message = attempt(folder)
        assert key in message or (value is None and kind == "qwen"), value
        assert "config.json does not describe a model" in message or value is None


@pytest.mark.parametrize(
    "key", ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]
)
@pytest.mark.parametrize("kind", ["own", "qwen"])
def test_sizes_in_range_that_are_not_those_of_the_weights_are_refused(sources, tmp_path, kind, key):
    folder = shutil.copytree(sources[kind], tmp_path / "copy")
    value = json.loads((folder / "config.json").read_text())[key]
    wrong_size = 60 if key == "num_hidden_layers" else value * 8
    rewrite(folder / "config.json", **{key: wrong_size, "layer_types": None})
    assert "fit" in attempt(folder) or key == "num_attention_heads"


@pytest.mark.parametrize(
    ("rope", "words"),
    [
        ({"rope_type": "evil", "factor": 2.0}, "rope_type"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "linear", "factor": -1.0}, "factor"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor"),
        ({"rope_type": "linear", "factor": 1e300}, "factor"),
        ({"rope_type": "linear", "factor": "2"}, "factor"),
        ({"rope_type": "longrope", "short_factor": [1] * 1000}, "rope_type"),
        ({"rope_type": "yarn", "factor": 2.0, "evil": 1}, "evil"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_type": ["linear"]}, "rope_type"),
        ("linear", "describe"),
        ([1], "describe"),
    ],
)
def test_absurd_rotary_positions_are_refused(sources, tmp_path, rope, words):
    folder = shutil.copytree(sources["qwen"], tmp_path / "copy")
    rewrite(folder / "config.json", rope_scaling=rope)
    assert words in attempt(folder)


@pytest.mark.parametrize("rope", [{"type": "linear", "factor": 2}, {"rope_type": "dynamic", "factor": 2.0}, None])
def test_usual_rotary_positions_are_read(sources, tmp_path, rope):
    folder = shutil.copytree(sources["qwen"], tmp_path / "copy")
    rewrite(folder / "config.json", rope_scaling=rope, rope_theta=1e6, rope_parameters=None)
    assert attempt(folder) == ""
    theirs = Chatbot.from_pretrained(folder, device="cpu").model.inner.config.rope_parameters
    assert theirs["rope_theta"] == 1e6
    assert theirs["rope_type"] == ("default" if rope is None else rope.get("type", rope.get("rope_type")))


def test_sizes_out_of_proportion_are_refused(sources, tmp_path):
    """Narrow weights whose layers or whose state would take gigabytes."""
    from chatbot.checkpoint.own_model import state_bytes
    from chatbot.checkpoint.weights import check_state_size
    from chatbot.model.config import XianliaoConfig
    from chatbot.model.network import XianliaoForCausalLM

    folder = shutil.copytree(sources["own"], tmp_path / "copy")
    rewrite(folder / "config.json", intermediate_size=32 * 65)
    assert "too large for a `hidden_size` of 32" in attempt(folder)
    folder = shutil.copytree(sources["qwen"], tmp_path / "chat")
    rewrite(folder / "config.json", intermediate_size=32 * 65)
    assert "too large for a hidden_size of 32" in attempt(folder)
    wide = {"hidden_size": 16, "num_attention_heads": 1, "head_dim": 1024, "sliding_window": 1 << 16}
    config = XianliaoConfig(vocab_size=300, num_hidden_layers=2, layer_types=["sliding_softmax"] * 2, **wide)
    assert state_bytes(config) == 2 * 2 * (1 << 16) * 1024 * 4
    with torch.device("meta"):
        model = XianliaoForCausalLM(config)
    with pytest.raises(CheckpointError, match=r"needs 1\.1 GB of memory"):
        check_state_size(state_bytes(config), model, folder)


def test_more_weights_than_memory_are_refused(sources, tmp_path):
    folder = shutil.copytree(sources["own"], tmp_path / "copy")
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1 << 43)  # sparse: it takes no room on the disk
    assert "GB of memory" in attempt(folder)


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def lie(change) -> Any:
    """A function that writes a safetensors file with a changed header."""

    def write(path: Path) -> None:
        entries, body = header(path)
        change(entries, sorted(entries.keys() - {"__metadata__"}))
        text = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + body)

    return write


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


LIES = {
    "overlap": lie(lambda entries, names: entries[names[1]].update(data_offsets=entries[names[0]]["data_offsets"])),
    "beyond the end": lie(lambda entries, names: entries[names[0]].update(data_offsets=[0, 10**15])),
    "negative": lie(lambda entries, names: entries[names[0]].update(data_offsets=[-8, 0])),
    "huge shape": lie(lambda entries, names: entries[names[0]].update(shape=[10**9, 10**9])),
    "many dimensions": lie(lambda entries, names: entries[names[0]].update(shape=[1] * 10_000)),
    "dtype": lie(lambda entries, names: entries[names[0]].update(dtype="I64")),
    "unknown dtype": lie(lambda entries, names: entries[names[0]].update(dtype="EVIL")),
    "other shape": lie(lambda entries, names: entries[names[0]].update(shape=entries[names[0]]["shape"] + [1])),
    "missing": lie(lambda entries, names: entries.pop(names[0])),
    "renamed": lie(lambda entries, names: entries.update({"evil": entries.pop(names[0])})),
    "no dictionary": lie(lambda entries, names: entries.update({names[0]: 3})),
    "deep": lambda path: path.write_bytes(struct.pack("<Q", 100_000) + b"[" * 100_000),
    "many tensors": lambda path: path.write_bytes(struct.pack("<Q", 9 << 20) + b" " * (9 << 20)),
    "long header": lambda path: path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:]),
    "no header": lambda path: path.write_bytes(b""),
    "cut": cut,
}


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("kind", ["own", "qwen"])
def test_weights_that_lie_are_refused(sources, tmp_path, kind, name):
    folder = shutil.copytree(sources[kind], tmp_path / "copy")
    LIES[name](folder / "model.safetensors")
    assert "model.safetensors" in (message := attempt(folder)) or "do not fit" in message


def test_vectors_that_lie_are_refused(tmp_path):
    for number, (name, change) in enumerate(LIES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        save_file({"vectors": torch.ones(7, 3), "w": torch.ones(1)}, folder / "vectors.safetensors")
        change(folder / "vectors.safetensors") if name != "many dimensions" else None
        if name in ("missing", "many dimensions"):  # the first name is "vectors"
            (folder / "vectors.safetensors").write_bytes(b"{}")
        with pytest.raises(CheckpointError, match="vectors"):
            TokenVectors.load(folder, 7)


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": "../evil.safetensors"}, "not a safetensors file of the folder"),
        ({"a": "/etc/passwd"}, "not a safetensors file of the folder"),
        ({"a": "evil.bin"}, "not a safetensors file of the folder"),
        ({"a": 3}, "not a safetensors file of the folder"),
        ({"a": "gone.safetensors"}, "gone.safetensors is missing"),
        ({str(number): f"{number}.safetensors" for number in range(2000)}, "missing"),
        ([], "weight_map"),
        (None, "weight_map"),
    ],
)
def test_an_index_names_files_of_its_folder_only(sources, tmp_path, weight_map, words):
    folder = shutil.copytree(sources["shards"], tmp_path / "copy")
    rewrite(folder / SHARDS, weight_map=weight_map)
    assert words in attempt(folder)


def test_shards_are_read(sources):
    assert attempt(sources["shards"]) == ""


ADAPTERS = {
    "rank": ({"r": 10**9}, "rank"),
    "rank of the file": ({"r": 4096}, "rank"),
    "rank below 1": ({"r": 0}, "rank"),
    "rank text": ({"r": "4"}, "rank"),
    "alpha": ({"lora_alpha": 1e300}, "lora_alpha"),
    "alpha nan": ({"lora_alpha": float("nan")}, "lora_alpha"),
    "modules": ({"target_modules": "(a+)+$"}, "target_modules"),
    "modules list": ({"target_modules": ["(.*)*x"]}, "target_modules"),
    "excluded": ({"exclude_modules": ".*(a+)+$"}, "exclude_modules"),
    "rank pattern": ({"rank_pattern": {"(a+)+$": 4}}, "rank_pattern"),
    "rank in pattern": ({"rank_pattern": {"q_proj": 10**9}}, "rank"),
    "alpha pattern": ({"alpha_pattern": {".*": 4}}, "alpha_pattern"),
    "layers": ({"layers_to_transform": ["x"]}, "layers_to_transform"),
    "layers pattern": ({"layers_pattern": "(a+)+", "layers_to_transform": [0]}, "layers_pattern"),
    "other modules": ({"target_modules": ["q_proj"]}, "fit"),
    "no modules": ({"target_modules": ["gone"]}, "gone"),
    "dropout": ({"lora_dropout": 5}, "lora_dropout"),
    "dora": ({"use_dora": "yes"}, "use_dora"),
    "bias": ({"bias": "evil"}, "evil|bias"),
    "base": ({"base_model_name_or_path": "org/model"}, "needs org/model@main, which"),
    "base null": ({"base_model_name_or_path": "a\0b"}, "base model"),
    "kind": ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
    "kind list": ({"peft_type": ["LORA"]}, "LORA"),
}


@pytest.mark.parametrize(("changes", "words"), ADAPTERS.values(), ids=ADAPTERS)
def test_hostile_adapters_are_refused(adapter, tmp_path, changes, words):
    folder = shutil.copytree(adapter, tmp_path / "copy")
    rewrite(folder / "adapter_config.json", **changes)
    message = attempt(folder)
    assert any(word in message for word in words.split("|")), message


def test_adapters_for_other_shapes_are_refused(adapter, tmp_path):
    folder = shutil.copytree(adapter, tmp_path / "copy")
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({name: tensor.repeat(1, 2) for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    assert "does not fit the model" in attempt(folder)


CODE = {
    "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"},
    "custom_pipelines": {"evil": {"impl": "modeling_evil.Evil"}},
    "trust_remote_code": True,
    "attn_implementation": "org/kernel",
    "_attn_implementation": "org/kernel:evil",
    "experts_implementation": "org/kernel",
    "fusion_config": {"evil": True},
    "distributed_config": {"tp_size": 2},
    "transformers_weights": "evil.safetensors",
    "gguf_file": "evil.gguf",
    "base_model_tp_plan": {"a": "evil"},
    "torch_dtype": "evil",
    "dtype": "modeling_evil.Evil",
}
ADAPTER_CODE = {
    **{
        "megatron_core": "modeling_evil",
        "auto_mapping": {"parent_library": "modeling_evil", "base_model_class": "Evil"},
    },
    **{"modules_to_save": ["(a+)+$"], "loftq_config": {"evil": 1}, "corda_config": {"cache_file": "evil"}},
    **{
        "init_lora_weights": "pissa",
        "runtime_config": {"evil": 1},
        "revision": "evil",
        "layer_replication": [[0, 9**9]],
    },
}


@pytest.fixture
def no_network(monkeypatch) -> Iterator[None]:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return


def plant(folder: Path) -> Path:
    """Put a module that leaves a mark when it is run into a folder."""
    mark = folder / "pwned"
    (folder / "modeling_evil.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Evil: pass\n")
    return mark


@pytest.mark.parametrize("key", CODE)
@pytest.mark.parametrize("kind", ["own", "qwen"])
def test_keys_that_name_code_are_not_read(sources, tmp_path, monkeypatch, no_network, kind, key):
    folder = shutil.copytree(sources[kind], tmp_path / "copy")
    mark = plant(folder)
    monkeypatch.syspath_prepend(folder)
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        rewrite(folder / name, **{key: CODE[key]})
    assert attempt(folder) == ""
    assert not mark.exists()


@pytest.mark.parametrize("key", ADAPTER_CODE)
def test_keys_of_an_adapter_that_name_code_are_not_read(adapter, tmp_path, monkeypatch, no_network, key):
    folder = shutil.copytree(adapter, tmp_path / "copy")
    mark = plant(folder)
    monkeypatch.syspath_prepend(folder)
    rewrite(folder / "adapter_config.json", **{key: ADAPTER_CODE[key]})
    assert attempt(folder) == ""
    assert not mark.exists()


def test_quantized_weights_are_refused(sources, tmp_path):
    folder = shutil.copytree(sources["qwen"], tmp_path / "copy")
    rewrite(folder / "config.json", quantization_config={"quant_method": "modeling_evil"})
    assert "quantized, which is not supported" in attempt(folder)


@pytest.mark.parametrize("name", ["model.gguf", "model-00001-of-00002.gguf", "sha256-8d1f"])
def test_gguf_is_refused_in_words(tmp_path, name):
    """A header of version 3 without tensors and metadata; ollama stores such files under their hash."""
    file = tmp_path / name
    file.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 0))
    reason = "a GGUF file, which is not supported. Use the model that it was made from"
    assert f"{file} is {reason}" in attempt(file)
    if file.suffix:
        assert f"{tmp_path} holds {reason}" in attempt(tmp_path)


def test_a_gguf_of_the_package_is_refused_in_words(tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "qwen3")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", numpy.zeros((4, 8), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for path in (tmp_path / "tiny.gguf", tmp_path):
        assert "GGUF file, which is not supported. Use the model that it was made from" in attempt(path)


VALUES = [
    *(None, True, -1, 0, 1, 10**9, 10**30, 1e300, float("nan"), float("inf"), "", "x", "\0", "(a+)+$", "../../etc"),
    *([], {}, [[]], ["x"] * 1000, {"x": {"x": []}}, "x" * 100_000, "\ud800", "{{ 9**9**9 }}"),
]


def spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """The places of a JSON value: container and key."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:200]:
        yield value, key
        yield from spots(item)


def mutate(folder: Path, dice: random.Random) -> str:
    """Damage one file of a folder; returns what was done."""
    path = dice.choice(sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt")))
    data = bytearray(path.read_bytes())
    how = dice.choice(["flip", "cut", "insert", "remove", "replace", "replace", "replace"])
    if how in ("remove", "replace") and path.suffix == ".json":
        content = json.loads(data)
        places = list(spots(content))
        if places:
            container, key = dice.choice(places)
            if how == "remove":
                del container[key]
            else:
                container[key] = copy.deepcopy(dice.choice(VALUES))
        path.write_text(json.dumps(content))
        return f"{path.name} {how} {key if places else ''}"
    reach = len(data) if dice.random() < 0.5 else min(len(data), 3000)  # the header of weights
    offset = dice.randrange(max(reach, 1))
    if how == "cut":
        del data[offset:]
    elif how == "insert":
        data[offset:offset] = dice.randbytes(dice.randrange(1, 9))
    else:
        for _ in range(dice.randrange(1, 9)):
            data[dice.randrange(max(reach, 1))] = dice.randrange(256)
    path.write_bytes(data)
    return f"{path.name} {how} {offset}"


def fuzz(source: Path, folder: Path, seeds: range) -> None:
    loads = 0
    for seed in seeds:
        shutil.copytree(source, folder)
        done = mutate(folder, random.Random(seed))
        try:
            loads += attempt(folder) == ""
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {done}: {type(error).__name__}: {error}") from error
        shutil.rmtree(folder)
    assert 0 < loads < len(seeds)


@pytest.mark.parametrize("kind", ["own", "qwen"])
def test_random_damage_ends_in_a_load_or_a_sentence(sources, tmp_path, kind):
    fuzz(sources[kind], tmp_path / "copy", range(15))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["own", "qwen"])
def test_much_random_damage_ends_in_a_load_or_a_sentence(sources, tmp_path, kind):
    fuzz(sources[kind], tmp_path / "copy", range(300))
