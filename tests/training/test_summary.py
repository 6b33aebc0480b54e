"""What a run says before it starts and after it ends, and what it keeps of the bot that it starts from."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.checkpoint.folder import save
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import read_json
from chatbot.text.dialogue_files import read_dialogues
from chatbot.text.prepared_set import larger_valid_share
from chatbot.text.tokenizer import DialogueTokenizer
from tests.conftest import tiny_config
from training.arguments import read_settings
from training.cli import main
from training.reporting.estimate import estimate
from training.reporting.samples import describe_change, sample_messages, summary_of_samples
from training.reporting.summary import summary_of
from training.reporting.throughput import Duration, timed
from training.settings import SettingsError, TrainSettings
from training.state.run_folder import SAMPLES, own_folder, read_log

PATIENCE = ("--early-stopping-patience", "3")


@pytest.fixture
def ancestor(prepared, tmp_path):
    tokenizer = DialogueTokenizer.load(prepared)
    model = XianliaoForCausalLM(tiny_config(tokenizer))
    folder = tmp_path / "ancestor"
    settings = {
        "temperature": 0.4,
        "top_p": 0.95,
        "floor_start_tokens": 57,
        "banned_words": ["呵呵"],
        "no_repeat_ngram": 3,
    }
    save(folder, model, tokenizer, settings, {"step": 0})
    return folder


def flags(prepared, ancestor, output):
    return ["--data", str(prepared), "--init", str(ancestor), "--output", str(output), "--device", "cpu",
            "--row-tokens", "64", "--batch-rows", "2", "--max-steps", "2", "--eval-every", "1"]  # fmt: skip


def test_a_run_ends_with_before_and_after_the_changed_replies_and_the_next_command(
    prepared, ancestor, tmp_path, capsys, monkeypatch, curves
):
    monkeypatch.setattr("training.validation.MAX_MESSAGES", 4)
    output = tmp_path / "run"
    assert main(flags(prepared, ancestor, output)) == 0
    captured = capsys.readouterr()
    settings = [line for line in captured.err.splitlines() if line.startswith("settings by flag: ")]
    assert len(settings) == 1
    assert "max-steps 2" in settings[0]
    assert "lora" not in settings[0]
    bar = captured.err[captured.err.rindex("2/2 [") :]
    assert re.match(r"2/2 \[[^\]]*, loss=\d+\.\d{3}, tokens/s=\d+\]", bar)  # the rest is in metrics.jsonl
    record = read_json(output / "training.json")
    lines = captured.out.splitlines()
    assert lines[0].startswith(f"{output}: 2 steps, ")
    count = record["valid_dialogues"]
    assert f"before and after: {record['before']:.3f} -> {record['best']:.3f} nats/unit ({count} dialogues)" in lines[1]
    assert f"this figure is rough: {count} dialogues are held out, and only more chats would make it exact" in lines
    warning = summary_of(
        TrainSettings([f"{prepared}:replies"], str(output)), {**record, "valid_dialogues": 45, "stopped_by": "SIGTERM"}
    )
    share = larger_valid_share(prepared, 50 / 45)
    assert f"45 validation dialogues give a rough figure; next time, prepare with --valid-share {share}" in warning
    samples = read_log(output / SAMPLES)
    valid = {turns[0]: turns[1] for turns in reversed(list(read_dialogues(prepared)))}
    for entry in samples:
        assert valid[entry["prompt"][0]] == entry["reference"]
    start = next(number for number, line in enumerate(lines) if line.startswith("samples: the training changed "))
    assert lines[start + 1 : -1] == summary_of_samples(samples, record["best_step"])[1:]
    assert lines[-1] == f"next: xianliao-chat --checkpoint {output}"
    assert (output / "curves.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("values", "changes", "steps", "advice"),
    [
        (
            (2.0, 1.3),
            {},
            8,
            "(2.000 -> 1.300 nats/unit): use another --output and --epochs 16",
        ),
        ((2.0, 1.3), {"min_steps": 8}, 8, "--min-steps 16"),
        ((2.0, 1.3), {"max_steps": 8}, 8, "--max-steps 16"),
        ((2.0, 1.99), {}, 8, None),
        ((1.0, 1.3), {}, 8, None),
    ],
)
def test_a_run_that_ends_while_validation_falls_says_so(values, changes, steps, advice, tmp_path):
    lines = [json.dumps({"step": step, "valid_nats_per_unit": nats}) for step, nats in zip((4, 8), values, strict=True)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    settings = TrainSettings(["x"], str(tmp_path), epochs=8.0, **changes)
    record = {"step": steps, "best": min(values), "best_step": 8 if values[1] < values[0] else 4, "tokens": 1,
              "valid_dialogues": 60, "stopped_by": None}  # fmt: skip
    summary = summary_of(settings, record)
    assert ("still falling" in summary) == (advice is not None)
    assert advice is None or advice in summary
    assert "still falling" not in summary_of(settings, {**record, "stopped_by": "SIGTERM"})


def test_a_small_set_gets_the_steps_of_the_preset_and_a_large_one_is_as_before(prepared, layout):
    from training.stage import Stage

    words = ["--data", str(prepared), "--output", "y", "--row-tokens", "64", "--batch-rows", "2"]
    tokenizer = DialogueTokenizer.load(prepared)
    preset = read_settings([*words, "--config", "cpu_finetune"])[0]
    plain, one_more = (Stage(replace(preset, epochs=1.0, min_steps=steps), 0, tokenizer, layout) for steps in (0, 3))
    small = Stage(replace(preset, epochs=1.0, min_steps=plain.steps + 9), 0, tokenizer, layout)
    assert (one_more.steps, small.steps) == (plain.steps, plain.steps + 9)
    assert len(list(small.remaining(0))) == small.steps
    assert list(one_more.remaining(0)) == list(plain.remaining(0))
    assert [one_more.rate(step) for step in range(plain.steps)] == [plain.rate(step) for step in range(plain.steps)]
    assert preset.warmup_steps <= preset.min_steps / 10
    assert preset.min_steps // preset.eval_every >= 3
    assert Stage(replace(preset, max_steps=2), 0, tokenizer, layout).steps == 2


def test_epochs_that_a_person_gives_come_before_the_steps_of_a_preset(tmp_path):
    words = ["--data", "x", "--output", "y", "--config", "cpu_finetune"]
    assert read_settings(words)[0].min_steps == 60
    settings, origins = read_settings([*words, "--epochs", "2"])
    assert (settings.epochs, settings.min_steps) == (2, 0)
    assert "min_steps" not in origins
    assert read_settings([*words, "--epochs", "2", "--min-steps", "9"])[0].min_steps == 9
    mine = tmp_path / "mine.yaml"
    mine.write_text("{epochs: 2, min_steps: 9}")
    assert read_settings([*words[:4], "--config", str(mine)])[0].min_steps == 9  # both are from one hand
    settings, _ = read_settings([*words[:4], "--config", str(mine), "--max-steps", "3"])
    assert (settings.min_steps, settings.max_steps) == (9, 3)


def entries(step, *replies):
    """Return the entries of samples.jsonl of a step."""
    prompts = [["在吗"], ["吃了吗"], ["周末去哪玩", "还没想好", "一起看电影吧"], ["晚安"]]
    return [
        {"step": step, "prompt": prompt, "reply": reply, "reference": f"真的{number}"}
        for number, (prompt, reply) in enumerate(zip(prompts, replies, strict=True))
    ]


def test_the_replies_that_changed_most_are_shown_beside_those_of_the_person():
    before = entries(0, "在呀", "吃了，你呢", "好啊好啊", "晚安")
    middle, after = entries(10, "在", "嗯", "不", "安"), entries(20, "在呀", "吃过了，你呢", "看什么电影", "晚安")
    assert summary_of_samples([*before, *middle, *after], 20) == [
        "samples: the training changed 2 of the 4 replies; most of all:",
        "  一起看电影吧",
        "    before: 好啊好啊",
        "    after: 看什么电影",
        "    person: 真的2",
        "  吃了吗",
        "    before: 吃了，你呢",
        "    after: 吃过了，你呢",
        "    person: 真的1",
    ]
    assert len(summary_of_samples([*before, *middle], 10)) == 1 + 3 * 4
    unchanged = [{**entry, "step": 20} for entry in before]
    assert summary_of_samples([*before, *unchanged], 20) == ["samples: the training changed none of the 4 replies"]
    assert summary_of_samples(after, 20)[:3] == ["  在吗", "    after: 在呀", "    person: 真的0"]  # no ancestor
    assert summary_of_samples([], 20) == []


def test_the_log_shows_the_reply_that_changed_since_the_last_validation():
    first, same = {"你好": "你好呀", "在吗": "在"}, {"你好": "你好呀", "在吗": "在"}
    assert describe_change(0, {}, first) == "step 0: 你好 -> 你好呀"
    assert describe_change(10, first, same) == "step 10: the 2 sample replies have not changed"
    assert describe_change(20, same, {**same, "在吗": "不在"}) == "step 20: 在吗 -> 不在"


@given(st.lists(st.lists(st.text("你好 ", max_size=3), max_size=3), max_size=20), st.integers(1, 8))
def test_the_messages_of_samples_are_different_ones_of_the_dialogues(dialogues, limit):
    messages = sample_messages(dialogues, limit)
    prompts = [message.prompt[0] for message in messages]
    suitable = {turns[0] for turns in dialogues if len(turns) > 1 and turns[0].strip() and turns[1].strip()}
    assert len(prompts) == len(set(prompts)) == min(limit, len(suitable))
    assert all([*message.prompt, message.reference] in [turns[:2] for turns in dialogues] for message in messages)


@pytest.mark.parametrize(("wall", "shown"), [(600.0, True), (250.0, True), (230.0, False), (180.0, False)])
def test_a_dry_run_on_a_busy_machine_says_how_long_a_free_one_takes(
    wall, shown, prepared, ancestor, tmp_path, monkeypatch
):
    monkeypatch.setattr("training.reporting.estimate.timed", lambda compute: Duration(wall, 180.0))
    lines = estimate(read_settings(flags(prepared, ancestor, tmp_path / "run"))[0]).lines
    busy = [line for line in lines if line.startswith("the machine is busy: about ")]
    assert bool(busy) == shown
    assert all(re.fullmatch(r".* about [\d.]+ (hours|minutes) on a free one", line) for line in busy)


def test_the_processor_time_is_that_of_the_computation():
    asleep, awake = timed(lambda: time.sleep(0.2)), timed(lambda: sum(range(3_000_000)))
    assert asleep.wall >= 0.2
    assert asleep.processor < 0.1
    assert asleep.is_slowed_down
    assert 0 < awake.processor <= awake.wall + 0.01
    assert (awake * 2 + awake).wall == pytest.approx(3 * awake.wall)


def test_a_dry_run_says_that_the_run_may_end_early(prepared, ancestor, tmp_path):
    words = flags(prepared, ancestor, tmp_path / "run")
    texts = ["\n".join(estimate(read_settings([*words, *more])[0]).lines) for more in ((), PATIENCE)]
    assert ["ends after 3 consecutive validations without improvement" in text for text in texts] == [False, True]
    with pytest.raises(SettingsError, match="--early-stopping-patience must be at least 0, got -1"):
        read_settings([*words, "--early-stopping-patience", "-1"])


def test_fine_tuning_keeps_the_decoder_of_the_ancestor(prepared, ancestor, tmp_path):
    assert main(flags(prepared, ancestor, tmp_path / "run")) == 0
    before, after = (read_json(folder / "generation_config.json") for folder in (ancestor, tmp_path / "run"))
    assert {name: after[name] for name in before} == before


def test_a_dry_run_says_how_large_the_run_is_and_writes_nothing(prepared, ancestor, tmp_path, capsys):
    output = tmp_path / "run"
    assert main([*flags(prepared, ancestor, output), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for words in ("M parameters", "2 steps, ", "tokens per epoch", "GB", "time: about ", "threads)"):
        assert words in printed
    assert not output.exists()


def test_a_failed_start_leaves_no_folder_without_content(tmp_path):
    def start(output: Path, files: tuple[str, ...]) -> None:
        with own_folder(output):
            for name in files:
                (output / name).write_text("{}")
            raise SettingsError("no")

    for files in ((), ("metrics.jsonl",)):
        output = tmp_path / f"run{len(files)}"
        with pytest.raises(SettingsError):
            start(output, files)
        assert output.exists() == bool(files)


def test_presets_have_names(prepared, tmp_path, capsys):
    from training.arguments import preset_names

    assert preset_names() == ["base", "cpu_finetune", "cpu_smoke", "latent", "small"]
    for spelling in ("cpu_finetune", "cpu_finetune.yml", "training/presets/cpu_finetune.yaml"):
        settings, origins = read_settings(["--data", "x", "--output", "y", "--config", spelling])
        assert settings.epochs == 8
        assert origins["epochs"] == "cpu_finetune.yaml"


def test_another_tokenizer_is_noticed_before_torch_is_needed(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "training.run", None)
    assert main(flags(prepared, "default", tmp_path / "run")) == 1
    assert "different tokenizers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
