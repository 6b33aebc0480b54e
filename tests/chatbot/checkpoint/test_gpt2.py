"""A GPT-2 folder, of the form CDial-GPT2 and gpt2-chinese have, becomes one of our models."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.convert import copy, main
from chatbot.checkpoint.folder import CheckpointError, import_gpt2, load_model
from chatbot.checkpoint.gpt2 import ImportedModelError
from chatbot.errors import XianliaoError
from chatbot.text.tokenizer import DialogueTokenizer

WORDS = "你好呀今天气真不错我也觉得去公园吧吃饭了吗什么是猫狗喜欢，。？！"
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[speaker1]", "[speaker2]"),
    *dict.fromkeys(WORDS),
    *("hello", "world", "##s", "new", "york", "1", "2", "[", "]", "sep"),
]


def write_folder(folder: Path, speakers: bool = True, **changes) -> GPT2LMHeadModel:
    """A random GPT-2 in `folder` with a BERT vocabulary, in transformers' own form."""
    folder.mkdir()
    names = [name if speakers or "speaker" not in name else f"[unused{i}]" for i, name in enumerate(VOCABULARY)]
    (folder / "vocab.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    sizes = {"vocab_size": len(names), "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}
    model = GPT2LMHeadModel(GPT2Config(**{**sizes, "initializer_range": 0.2, **changes})).eval()
    for parameter in model.parameters():  # biases and norms that matter
        if parameter.ndim == 1:
            parameter.data += torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2") / "source"
    return folder, write_folder(folder)


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu_new", "gelu", "relu"])
@pytest.mark.parametrize("speakers", [True, False])
def test_logits_equal_those_of_transformers(tmp_path, activation, speakers):
    theirs = write_folder(tmp_path / "source", speakers, activation_function=activation)
    ours = load_model(tmp_path / "source")
    ids = torch.randint(0, len(VOCABULARY), (2, 100))
    turn = torch.arange(100).expand(2, -1) // 9 % 2
    types = turn + VOCABULARY.index("[speaker1]") if speakers else None
    expected = theirs(ids, token_type_ids=types).logits
    torch.testing.assert_close(ours(ids, token_type_ids=turn).logits, expected, rtol=1e-4, atol=1e-4)
    state = ours.new_state()  # and in parts, through the cache
    parts = [
        ours(ids[:, a:b], token_type_ids=turn[:, a:b], past_key_values=state).logits for a, b in ((0, 60), (60, 100))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_left_padding_and_packing_count_positions_from_the_dialogue(source):
    ours = load_model(source[0])
    ids = torch.randint(7, len(VOCABULARY), (1, 40))
    alone = ours(ids).logits
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.int64), ids], 1)
    mask = (torch.arange(46) >= 6).long()[None]
    torch.testing.assert_close(ours(padded, attention_mask=mask).logits[:, 6:], alone, rtol=1e-4, atol=1e-4)
    segments = torch.tensor([[0] * 25 + [1] * 40])
    row = torch.cat([ids[:, :25], ids], 1)
    torch.testing.assert_close(ours(row, segment_ids=segments).logits[:, 25:], alone, rtol=1e-4, atol=1e-4)


def test_greedy_generate_equals_that_of_transformers(source):
    folder, theirs = source
    ids = torch.tensor([[2, 8, 9, 10, 3]])
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": 3}
    one_speaker = torch.zeros_like(theirs.transformer.wte.weight[:2])
    ours = load_model(folder)
    ours.speaker_embedding.weight.data = one_speaker
    mask = torch.ones_like(ids)
    assert torch.equal(
        ours.generate(ids, attention_mask=mask, **options), theirs.generate(ids, attention_mask=mask, **options)
    )


def test_with_linear_layers_it_is_an_initialisation(source, tmp_path):
    copy(source[0], tmp_path / "linear", layer_types=["linear_gated", "linear_gated", "sliding_softmax"])
    model, softmax = load_model(tmp_path / "linear"), load_model(source[0])
    assert model.config.layer_types == ["linear_gated", "linear_gated", "sliding_softmax"]
    for name, tensor in softmax.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    ids = torch.randint(7, len(VOCABULARY), (1, 40))
    assert model(ids, labels=ids).loss.isfinite()


def test_it_chats_with_its_own_tokenizer(source):
    bot = Chatbot.from_pretrained(source[0])
    turns = ["你好呀", "hello worlds", "今天去 New York 吃饭吗？[SEP]"]
    assert bot.tokenizer.decode(bot.tokenizer.encode(turns[1])) == "hello worlds"
    assert bot.tokenizer.decode(bot.tokenizer.encode("今天new york吃饭")) == "今天new york吃饭"
    assert bot.tokenizer.sep_id not in bot.tokenizer.encode(turns[2])
    assert bot.tokenizer.encode("龘") == [bot.tokenizer.id_of("[UNK]")]
    reply = bot.respond(turns, seed=1)
    assert reply == bot.respond(turns, seed=1) or reply.token_ids == bot.respond(turns, seed=1).token_ids
    assert not set(reply.token_ids) & bot.tokenizer.special_ids
    assert bot.respond(turns * 12, seed=1).stop_reason in ("eos", "floor", "limit")  # never beyond its 128 positions


def test_a_converted_folder_is_one_of_ours(source, tmp_path):
    main([str(source[0]), str(tmp_path / "ours")])
    ids = torch.randint(0, len(VOCABULARY), (2, 30))
    assert torch.equal(load_model(tmp_path / "ours")(ids).logits, load_model(source[0])(ids).logits)
    assert DialogueTokenizer.load(tmp_path / "ours").to_json() == DialogueTokenizer.load(source[0]).to_json()
    assert Chatbot.from_pretrained(tmp_path / "ours").reply(["你好"], seed=3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert (
        tokenizer.decode(tokenizer("今天真不错hello", add_special_tokens=False)["input_ids"]).replace(" ", "")
        == "今天真不错hello"
    )


def test_a_bin_is_converted_once_by_command(tmp_path):
    theirs = write_folder(tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "source" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"Convert it once: python -m chatbot.checkpoint"):
        load_model(tmp_path / "source")
    copy(tmp_path / "source", tmp_path / "ours")
    ids = torch.randint(0, len(VOCABULARY), (1, 30))
    with torch.no_grad():
        ours, expected = load_model(tmp_path / "ours"), theirs(ids, token_type_ids=torch.full_like(ids, 5)).logits
        torch.testing.assert_close(ours(ids).logits, expected, rtol=1e-4, atol=1e-4)


class Bomb:
    def __reduce__(self):
        return (print, ("run!",))


def test_a_bin_with_code_is_refused_and_not_run(tmp_path, capsys):
    write_folder(tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    torch.save({"wte.weight": Bomb()}, tmp_path / "source" / "pytorch_model.bin")
    with pytest.raises(ImportedModelError, match="plain tensors"):
        copy(tmp_path / "source", tmp_path / "ours")
    assert "run!" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "openai-gpt"}, "GPT-1 .* normalises after"),
        ({"model_type": "mamba"}, "'mamba' cannot be imported.*gemma.*phi3"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True is not supported"),
        ({"n_layer": 4}, "missing blocks.3"),
        ({"n_layer": 2}, "unknown blocks.2"),
        ({"n_positions": 64}, "position_embedding.weight of shape"),
        ({"activation_function": "sine"}, "hidden_act"),
        ({"n_layer": None}, "num_hidden_layers"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_words(tmp_path, changes, words):
    write_folder(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    with pytest.raises(ImportedModelError, match=words):
        import_gpt2(tmp_path / "source")


def test_a_bin_with_compressed_data_is_refused(tmp_path):
    write_folder(tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    torch.save({"wte.weight": torch.zeros(1 << 22)}, tmp_path / "plain")
    with (
        zipfile.ZipFile(tmp_path / "plain") as plain,
        zipfile.ZipFile(tmp_path / "source" / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "source" / "pytorch_model.bin").stat().st_size < 100_000  # 16 MB unpacked
    with pytest.raises(ImportedModelError, match="compressed data"):
        copy(tmp_path / "source", tmp_path / "ours")


@pytest.mark.parametrize("changes", [{"n_layer": 10**9}, {"n_embd": 10**12}, {"n_head": 0}, {"n_positions": "x"}])
def test_absurd_sizes_are_refused_in_words(tmp_path, changes):
    write_folder(tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")
    with pytest.raises(ImportedModelError, match="Cannot import this GPT-2"):
        import_gpt2(tmp_path / "source")


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 5)])
def test_tensors_of_other_dimensions_are_refused_in_words(source, tmp_path, shape):
    for number, name in enumerate(("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight")):
        folder = shutil.copytree(source[0], tmp_path / str(number))
        tensors = load_file(folder / "model.safetensors")
        assert name in tensors
        save_file({**tensors, name: torch.zeros(shape)}, folder / "model.safetensors")
        with pytest.raises(ImportedModelError):
            load_model(folder)


def test_importing_leaves_the_random_numbers_of_the_caller(source):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    import_gpt2(source[0], ["linear_gated"])
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("content", [{"model": {}, "epoch": 3}, [1], {"w": torch.zeros(2), "epoch": 3}, torch.zeros(2)])
def test_a_bin_that_is_no_state_dict_is_refused_in_words(tmp_path, content):
    write_folder(tmp_path / "source")
    (tmp_path / "source" / "model.safetensors").unlink()
    torch.save(content, tmp_path / "source" / "pytorch_model.bin")
    with pytest.raises(ImportedModelError, match="more than named tensors"):
        copy(tmp_path / "source", tmp_path / "ours")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("vocab.txt", "\n".join(VOCABULARY).encode("gbk"), "cannot be read"),
        ("vocab.txt", "\n".join([*VOCABULARY, "好"]).encode(), "each token once"),
        ("vocab.txt", "\n".join(VOCABULARY).replace("[UNK]", "unk").encode(), "each token once"),
        ("vocab.txt", "\n".join([*VOCABULARY, "多"]).encode(), "do not belong together"),
        ("tokenizer_config.json", b"{", "cannot be read"),
        ("tokenizer_config.json", b"[]", "holds no JSON object"),
        ("tokenizer_config.json", b'{"do_lower_case": 1}', "not a vocabulary"),
    ],
)
def test_damaged_vocabularies_are_explained(tmp_path, name, content, words):
    write_folder(tmp_path / "source")
    (tmp_path / "source" / name).write_bytes(content)
    with pytest.raises(XianliaoError, match=words):
        load_model(tmp_path / "source")


def test_rows_without_a_token_are_left_out(tmp_path):
    write_folder(tmp_path / "source", vocab_size=64)
    bot = Chatbot.from_pretrained(tmp_path / "source")
    assert bot.model.config.vocab_size == len(VOCABULARY)
    assert bot.reply(["你好"], seed=1)


@pytest.mark.parametrize("kind", ["linear_taylor2", "synthesizer_dense", "gated_delta"])
def test_mixers_of_other_widths_begin_anew(source, tmp_path, kind):
    copy(source[0], tmp_path / kind, layer_types=[kind])
    assert load_model(tmp_path / kind).config.layer_types == [kind] * 3


def test_training_takes_it_with_init(source, tmp_path, dialogues):
    from data_prep.pipeline import build
    from data_prep.settings import PrepareSettings
    from training.run import train
    from training.settings import TrainSettings

    file = tmp_path / "own.jsonl"
    file.write_text("\n".join(json.dumps(turns, ensure_ascii=False) for turns in dialogues[:30]), encoding="utf-8")
    build([str(file)], tmp_path / "set", PrepareSettings(tokenizer=str(source[0]), valid_share=0.1))
    common = {"data": [str(tmp_path / "set")], "row_tokens": 64, "max_steps": 2, "device": "cpu", "warmup_steps": 1}
    train(TrainSettings(output=str(tmp_path / "tuned"), init=str(source[0]), **common))
    tuned = Chatbot.from_pretrained(tmp_path / "tuned")
    assert tuned.model.config.layer_types == ["softmax"] * 3
    assert tuned.reply(["你好"], seed=0) is not None
