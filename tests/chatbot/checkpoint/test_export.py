"""Export for transformers: one file of code that behaves as our own modules do, and a folder that needs nothing else."""

from __future__ import annotations

import ast
import copy
import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.export import sources
from chatbot.checkpoint.export.cli import main
from chatbot.checkpoint.export.hf import remote_code
from chatbot.checkpoint.export.hf_model import XianliaoForChat, turns_of
from chatbot.checkpoint.export.single_file import Target, join_modules
from chatbot.checkpoint.folder import load_model
from chatbot.errors import ReplySettingsError
from chatbot.model.layer_types import LAYER_TYPES
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import read_json, write_json
from chatbot.text.chat_template import dialogpt_template
from tests.conftest import ROOT, tiny_config


@pytest.fixture(scope="module")
def folder(checkpoint, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "small-bot"
    assert main([str(checkpoint), "--to", "hf", "--output", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def code() -> dict[str, str]:
    return remote_code()


@pytest.fixture(scope="module")
def remote(code, tmp_path_factory):
    """The generated modelling file, imported as a package of two files."""
    package = tmp_path_factory.mktemp("code") / "exported_xianliao"
    package.mkdir()
    for name, text in code.items():
        (package / name).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(package.parent))
    yield importlib.import_module("exported_xianliao.modeling_xianliao")
    sys.path.remove(str(package.parent))


@pytest.fixture(scope="module")
def theirs(remote, folder):
    """The exported model by the generated code, without transformers' cache of remote code."""
    return remote.XianliaoForChat.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def hf_tokenizer(folder):
    return PreTrainedTokenizerFast.from_pretrained(folder)


def messages(turns):
    return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]


def test_the_code_imports_nothing_of_this_project(code):
    for text in code.values():
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"chatbot", "data_prep", "training", "ui"}


def test_the_files_have_no_undefined_name(code):
    for name, text in code.items():
        command = [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--select",
            "F,E9",
            "--stdin-filename",
            name,
            "-",
        ]
        result = subprocess.run(command, input=text, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("mixer", LAYER_TYPES)
def test_every_mixer_computes_what_ours_does(remote, tokenizer, mixer):
    torch.manual_seed(1)
    changes = {"layer_types": [mixer, "sliding_softmax"], "short_conv": 3, "output_gate": True, "sliding_window": 4}
    config = tiny_config(tokenizer, initializer_range=0.3, **changes)
    ours = XianliaoForCausalLM(config).eval()
    settings = {name: getattr(config, name) for name in type(config).__annotations__}
    copy = remote.XianliaoForChat(remote.XianliaoConfig(**settings)).eval()
    copy.load_state_dict(ours.state_dict())
    ids, speakers = torch.randint(3, 200, (2, 21)), torch.randint(2, (2, 21))
    for arguments in ({}, {"labels": ids}):
        a = ours(ids, token_type_ids=speakers, **arguments)
        b = copy(ids, token_type_ids=speakers, **arguments)
        torch.testing.assert_close(a.logits, b.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.loss, b.loss)


def test_speakers_follow_from_the_ends_of_turns(model, tokenizer):
    chat = XianliaoForChat(model.config).eval()
    chat.load_state_dict(model.state_dict())
    end = tokenizer.sep_id
    ids = torch.tensor([[1, 5, 6, end, 7, end, end, 8, 9, end]])
    speakers = torch.tensor([[0, 0, 0, 0, 1, 1, 0, 1, 1, 1]])
    expected = model(ids, token_type_ids=speakers).logits
    torch.testing.assert_close(chat(ids).logits, expected)
    state, logits = chat.new_state(), []
    for part in (ids[:, :3], ids[:, 3:4], ids[:, 4:7], ids[:, 7:]):
        logits.append(chat(part, past_key_values=state).logits)
    torch.testing.assert_close(torch.cat(logits, 1), expected)
    packed, segments = torch.cat([ids[:, :4], ids], 1), torch.tensor([[0] * 4 + [1] * 10])  # the first has one turn
    second = chat(packed, segment_ids=segments).logits[:, 4:]
    torch.testing.assert_close(second, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"max_reply_tokens": 3}, {"no_repeat_ngram": 2, "repeat_cost": 4.0, "repetition_penalty": 1.5}]
)
def test_generate_gives_our_own_replies(theirs, hf_tokenizer, bot, dialogues, changes):
    for turns in dialogues[:4]:
        history = turns[:3] if len(turns) > 3 else turns[:1]
        prompt = hf_tokenizer.apply_chat_template(messages(history), return_dict=True, return_tensors="pt")
        reply = theirs.generate(**prompt, do_sample=False, **changes)[0, prompt["input_ids"].shape[1] :].tolist()
        ours = bot.respond(history, seed=0, method="greedy", **changes)
        assert reply == [*ours.token_ids, theirs.config.eos_token_id]


def test_generate_bans_words_by_the_tokenizer_of_the_folder(theirs, hf_tokenizer, bot):
    history = ["你好"]
    prompt = hf_tokenizer.apply_chat_template(messages(history), return_dict=True, return_tensors="pt")
    text = bot.respond(history, seed=0, method="greedy").text
    words = (text[1:2],)
    reply = theirs.generate(**prompt, do_sample=False, banned_words=words)[0, prompt["input_ids"].shape[1] :]
    assert words[0] not in hf_tokenizer.decode(reply, skip_special_tokens=True)
    assert reply[:-1].tolist() == list(bot.respond(history, seed=0, method="greedy", banned_words=words).token_ids)


def test_a_padded_batch_gives_each_row_what_it_gets_alone(theirs, hf_tokenizer, dialogues):
    histories = [turns[:1] for turns in dialogues[:3]] + [dialogues[3][:3]]
    settings = {"do_sample": False, "no_repeat_ngram": 2, "repeat_cost": 4.0}
    batch = hf_tokenizer.apply_chat_template(
        [messages(turns) for turns in histories], padding=True, return_dict=True, return_tensors="pt"
    )
    together = theirs.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :].tolist()
    for row, turns in zip(together, histories, strict=True):
        alone = hf_tokenizer.apply_chat_template(messages(turns), return_dict=True, return_tensors="pt")
        reply = theirs.generate(**alone, **settings)[0, alone["input_ids"].shape[1] :].tolist()
        assert row[: len(reply)] == reply
        assert set(row[len(reply) :]) <= {theirs.config.pad_token_id}


def test_no_sampled_reply_is_longer_than_the_bound(theirs, hf_tokenizer):
    """A model that never wants to end; beams and transformers' own arguments keep the bound as well."""

    class NeverEos(transformers.LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores[:, theirs.config.eos_token_id] = -50.0
            return scores

    prompt = hf_tokenizer.apply_chat_template(messages(["你好"]), return_dict=True, return_tensors="pt")
    width = prompt["input_ids"].shape[1]
    never = transformers.LogitsProcessorList([NeverEos()])
    for settings in (
        {"num_return_sequences": 20},
        {"do_sample": False, "num_beams": 3},
        {"temperature": 5.0, "top_k": 3},
    ):
        replies = theirs.generate(**prompt, logits_processor=never, **settings)[:, width:]
        assert replies.shape[1] <= 12 + 2 * 4 + 1  # t0 + 2 delta and the end
        assert ((replies == theirs.config.eos_token_id).sum(1) == 1).all()
    assert theirs.generate(**prompt, logits_processor=never, max_new_tokens=2).shape[1] == width + 2
    with pytest.raises(ValueError, match="temperature must be"):
        theirs.generate(**prompt, temperature=-1.0)
    with pytest.raises(ValueError, match="Pass input_ids"):
        theirs.generate()


def test_sampling_applies_each_rule_once(theirs, hf_tokenizer):
    """A temperature of the folder must not act a second time through transformers' own rules."""
    prompt = hf_tokenizer.apply_chat_template(messages(["你好"]), return_dict=True, return_tensors="pt")
    width, rows = prompt["input_ids"].shape[1], 3000
    config = copy.deepcopy(theirs.generation_config)
    config.temperature = 0.5
    torch.manual_seed(0)
    arguments = {"generation_config": config, "top_p": 1.0, "num_return_sequences": rows, "max_new_tokens": 1}
    tokens = theirs.generate(**prompt, **arguments)[:, width]
    logits = theirs(prompt["input_ids"]).logits[0, -1].detach()
    logits[[0, 1, 2]] = -math.inf
    p = (logits / 0.5).softmax(-1)
    share = torch.bincount(tokens, minlength=len(p)) / rows
    assert (share - p).abs().max() < 4 * (0.25 / rows) ** 0.5


TURNS = st.lists(st.text("你好吗？abc [SEPCLAD]\n😀é", min_size=1, max_size=12), min_size=1, max_size=4)


@given(TURNS)
def test_the_template_writes_the_ids_of_our_layout(hf_tokenizer, tokenizer, layout, turns):
    """Of typed special tokens too, with a space inside; only spaces beside Chinese characters are the caller's task."""
    ids = hf_tokenizer.apply_chat_template(messages(turns))["input_ids"]
    spelled = [turn.strip() for turn in turns]
    for name in ("[PAD]", "[CLS]", "[SEP]"):
        spelled = [turn.replace(name, f"[ {name[1:]}") for turn in spelled]
    assert ids == layout.lay_out([tokenizer.encode(turn) for turn in spelled]).input_ids


@pytest.mark.parametrize("roles", [("system",), ("user", "user"), ("user", "tool")])
def test_the_template_refuses_what_the_layout_lacks(hf_tokenizer, roles):
    with pytest.raises(Exception, match="messages"):
        hf_tokenizer.apply_chat_template([{"role": role, "content": "你好"} for role in roles])


def test_the_folder_is_a_checkpoint_of_ours_too(folder, checkpoint):
    for name, tensor in load_model(folder).state_dict().items():
        assert torch.equal(tensor, load_model(checkpoint).state_dict()[name])
    expected = Chatbot.from_pretrained(checkpoint, safety=None).reply(["你好"], seed=3)
    assert Chatbot.from_pretrained(folder, safety=None).reply(["你好"], seed=3) == expected
    config = read_json(folder / "config.json")
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_xianliao.XianliaoForChat"
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlanguage: zh\nlibrary_name: transformers\n")
    assert "more than 20 tokens" in card  # t0 + 2 delta
    assert dialogpt_template() == read_json(folder / "tokenizer_config.json")["chat_template"]


def test_faults_are_one_sentence(checkpoint, tmp_path, capsys):
    (tmp_path / "there").write_text("x")
    assert main([str(checkpoint), "--to", "hf", "--output", str(tmp_path / "there")]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'there'} exists already. Give another --output.\n"
    assert main([str(tmp_path / "none"), "--to", "hf", "--output", str(tmp_path / "new")]) == 1
    assert capsys.readouterr().err.startswith("error: Cannot find the checkpoint folder")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for path in checkpoint.iterdir():
        (foreign / path.name).write_bytes(path.read_bytes())
    for change, words in (({"model_type": "gpt2"}, "another project"), ({"direction": "backward"}, "backwards")):
        write_json(foreign / "config.json", {**read_json(checkpoint / "config.json"), **change})
        assert main([str(foreign), "--to", "hf", "--output", str(tmp_path / "new")]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit):
        main([str(checkpoint), "--to", "gguf", "--output", str(tmp_path / "new")])


BROKEN = (
    {"context_tokens": "[SEP]"},
    {"layer_types": 3},
    {"hidden_size": -1},
    {"vocab_size": 7},
    {"head_dim": None},
    {"num_hidden_layers": 3, "layer_types": None},
)


@pytest.mark.parametrize("target", ["lite", "html", "hf", "onnx"])
def test_a_broken_config_is_one_sentence(checkpoint, tmp_path, capsys, target):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    for change in BROKEN:
        write_json(broken / "config.json", {**read_json(checkpoint / "config.json"), **change})
        assert main([str(broken), "--to", target, "--output", str(tmp_path / "new")]) == 1, change
        error = capsys.readouterr().err.removeprefix("loading " + str(broken) + " …\n")
        assert error.startswith("error: "), error
        assert error.count("\n") == 1
        assert "config.json" in error or "do not fit" in error, error
    assert not (tmp_path / "new").exists()


def test_turns_of_a_prompt():
    assert turns_of([0, 0, 1, 5, 6, 2, 7, 2, 2, 9], 2, (0, 1)) == [[5, 6], [7], []]


TOY = {
    "one.py": '''"""The first."""
import math as m
from toy import quick
from toy.two import step as other, Base

LIMIT = 3
"""The limit."""
TABLE = {}
for _key in (1, 2):
    TABLE[_key] = LIMIT

# What it does.
def step(x):
    from toy.two import helper  # late
    if quick.ready():
        return quick.run(x)
    return other(x) + helper(m.floor(x))  # both

class Last(Base):
    def run(self):
        return step(1.5), TABLE

print("registers something")
''',
    "two.py": """def step(x):
    return x

def helper(x):
    return x * 10

def unused():
    return 1

class Base:
    pass
""",
    "quick.py": "def ready():\n    return True\n",
    "__init__.py": "",
}


@pytest.fixture
def toy(tmp_path, monkeypatch):
    (tmp_path / "toy").mkdir()
    for name, text in TOY.items():
        (tmp_path / "toy" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sources, "PACKAGE", "toy")
    monkeypatch.setattr(sources, "LEFT_OUT", frozenset({"toy.quick"}))
    sources.read_module.cache_clear()
    yield
    sources.read_module.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "toy"]:
        del sys.modules[name]


def test_modules_are_joined_with_their_names_kept_apart(toy, capsys):
    text = join_modules([Target("toy.one", "Last")], "A file.").text
    names: dict = {}
    exec(compile(text, "joined", "exec"), names)
    assert names["Last"]().run() == (11.5, {1: 3, 2: 3})
    assert capsys.readouterr().out == ""  # statements that bind nothing are left out
    assert {"one_step", "two_step"} <= set(names)
    assert not {"unused", "step"} & set(names)
    assert "# What it does.\ndef one_step(x):" in text
    assert '"""The limit."""' in text
    assert "quick" not in text


def test_a_local_name_that_would_be_renamed_is_an_error(toy, tmp_path):
    (tmp_path / "toy" / "bad.py").write_text(
        "from toy.two import step as other\n\ndef step(x):\n    other = x\n    return other\n\n\n"
        "def outer(x):\n    return step(x) + other(x)\n"
    )
    with pytest.raises(ValueError, match="local name other"):
        join_modules([Target("toy.bad", "outer")], "A file.")


REMOTE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
torch.set_num_threads(1)
try:
    import chatbot
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("this environment has xianliao")
folder, histories = sys.argv[1], json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
answers = []
for turns in histories:
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    prompt = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
    reply = model.generate(**prompt, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    with torch.no_grad():
        logits = model(prompt["input_ids"]).logits[0, -1]
    answers.append([prompt["input_ids"][0].tolist(), reply.tolist(), logits.tolist()])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def empty_environment(tmp_path_factory) -> Path:
    """Python of a new environment that sees the installed packages without this one, whose path a .pth file adds."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    packages = (
        next((folder / "lib").glob("python*/site-packages"))
        if sys.platform != "win32"
        else folder / "Lib/site-packages"
    )
    (packages / "installed.pth").write_text(str(Path(transformers.__file__).parents[1]) + "\n")
    return folder / ("bin/python" if sys.platform != "win32" else "Scripts/python.exe")


@pytest.mark.slow
def test_the_bundled_bot_in_an_environment_without_this_package(empty_environment, dialogues, tmp_path):
    """50 conversations: the ids of the prompts, the greedy replies, and logits to 1e-5."""
    assert main(["default", "--to", "hf", "--output", str(tmp_path / "bot")]) == 0
    histories = [turns[:length] for turns in dialogues[:25] for length in (1, 3)]
    result = subprocess.run(
        [str(empty_environment), "-I", "-c", REMOTE, str(tmp_path / "bot")],
        input=json.dumps(histories),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert result.returncode == 0, result.stderr
    bot = Chatbot.from_pretrained("default", safety=None)
    for turns, (ids, reply, logits) in zip(histories, json.loads(result.stdout), strict=True):
        prompt = bot.layout.prompt(bot.encode_turns(turns), bot.context_tokens)
        assert ids == prompt.input_ids
        assert reply == [*bot.respond(turns, seed=0, method="greedy").token_ids, bot.vocabulary.end_id]
        with torch.no_grad():
            ours = bot.model(torch.tensor([ids]), token_type_ids=torch.tensor([prompt.speaker_ids])).logits[0, -1]
        torch.testing.assert_close(torch.tensor(logits), ours, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_the_code_is_the_same_for_every_hash_seed(code):
    program = "import json; from chatbot.checkpoint.export.hf import remote_code; print(json.dumps(remote_code()))"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, cwd=ROOT, env=environment)
    assert json.loads(result.stdout) == code


@pytest.mark.slow
def test_the_example_needs_only_transformers(empty_environment, folder, tmp_path):
    command = [str(empty_environment), "-I", str(ROOT / "examples" / "transformers_generate.py"), str(folder)]
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 3


def test_settings_are_checked_as_everywhere(theirs, remote):
    with pytest.raises(remote.ReplySettingsError):
        theirs.generate(torch.tensor([[1, 5, 2]]), floor_delta_tokens=0)
    assert remote.ReplySettingsError is not ReplySettingsError
