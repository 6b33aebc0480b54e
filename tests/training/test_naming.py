"""The guard of xianliao-name measures what it says, and the command fails where a limit is not kept."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import shutil
import signal
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

import training.run
from chatbot.chat.bot import Chatbot
from chatbot.decoding.batch import native_network
from chatbot.storage import read_json
from chatbot.text.layouts import IGNORED_LABEL
from training.naming import cli, dialogues, guard, mixing, progress
from training.naming.cli import build_parser, main, prepare_dialogues, training_settings
from training.naming.dialogues import Identity, bare, questions
from training.naming.guard import (
    OTHERS,
    Knowledge,
    count_replies,
    count_scored,
    find_failures,
    least_room,
    measure_identity,
    measure_knowledge,
    reply_all,
)
from training.naming.objective import KeepingObjective, NamingRun, kept_targets
from training.reporting.estimate import Estimate
from training.reporting.throughput import Duration
from training.settings import Regularization, SettingsError
from training.state.run_folder import own_folder, saved_steps
from training.step import DivergedError

IDENTITY = Identity("小满", "阿哲")
GOOD = {"name": 0.95, "maker": 0.92, "unasked": 0.01}
BEFORE = Knowledge({OTHERS: 3.0, "lccc": 4.0}, 0.5)


def speaking(name_when_asked=True, maker_when_asked=True, always=False):
    """A stand-in for a bot that knows which questions are about it."""
    asked = {topic: {bare(text) for text in questions(topic, "held_out")} for topic in ("name", "maker")}

    def reply(message):
        if maker_when_asked and bare(message) in asked["maker"]:
            return "是阿哲做的"
        if always or (name_when_asked and bare(message) in asked["name"]):
            return "我叫小满"
        return "今天天气不错"

    return SimpleNamespace(reply=reply)


@pytest.fixture
def stand_in(monkeypatch):
    """Let stand-ins answer, which have no model to decode with."""
    monkeypatch.setattr(guard, "reply_all", lambda bot, asked, *others: [bot.reply(message) for message, _ in asked])


@pytest.mark.parametrize(
    ("bot", "name", "maker", "unasked"),
    [
        (speaking(), 1, 1, 0),
        (speaking(name_when_asked=False), 0, 1, 0),
        (speaking(maker_when_asked=False), 1, 0, 0),
        (speaking(always=True), 1, 1, 1),
    ],
)
def test_the_shares_are_those_of_the_bot(stand_in, bot, name, maker, unasked):
    result = measure_identity(bot, IDENTITY)
    assert (result["name"], result["maker"], result["unasked"]) == (name, maker, unasked)
    assert result["messages"] > 150
    assert bool(result["wrong"]) == (not name)
    assert bool(result["said_unasked"]) == bool(unasked)


@pytest.mark.parametrize(
    ("identity", "after", "words"),
    [
        (GOOD, BEFORE, None),
        ({**GOOD, "name": 0.89}, BEFORE, "its name in 89%"),
        ({**GOOD, "maker": 0.5}, BEFORE, "its maker in 50%"),
        ({**GOOD, "unasked": 0.04}, BEFORE, "unasked in 4.0%"),
        (GOOD, Knowledge({OTHERS: 3.0, "lccc": 4.06}, 0.5), "lccc rose by 0.060"),
        (GOOD, Knowledge({OTHERS: 3.04, "lccc": 4.0}, 0.5), None),
        (GOOD, Knowledge({OTHERS: 2.0, "lccc": 3.0}, 0.44), "true reply among ten in 44%"),
    ],
)
def test_a_limit_that_is_not_kept_is_one_sentence(identity, after, words):
    faults = find_failures(identity, BEFORE, after, max_loss=0.05)
    assert len(faults) == (words is not None)
    choice_kept = after.choice >= 0.45  # not measured for the share of the training
    assert (least_room(identity, BEFORE, after, max_loss=0.05) < 0) == (words is not None and choice_kept)
    assert words is None or words in faults[0]


def test_a_bot_without_a_maker_is_not_asked_for_it(stand_in):
    result = measure_identity(speaking(), Identity("小满"))
    assert "maker" not in result
    assert find_failures(result, BEFORE, BEFORE, 0.05) == []


def test_the_room_is_that_of_the_nearest_limit_as_a_part_of_what_it_allows():
    after = Knowledge({OTHERS: 3.01, "lccc": 4.02}, 0.5)
    rooms = [0.4, 0.6]  # 0.94 is four tenths of the way from 0.9 to 1; 4.02 uses two fifths of 0.05
    assert least_room({"name": 0.94, "maker": 1.0, "unasked": 0.0}, BEFORE, after, 0.05) == pytest.approx(rooms[0])
    assert least_room({"name": 1.0, "unasked": 0.0}, BEFORE, after, 0.05) == pytest.approx(rooms[1])
    assert least_room({"name": 1.0, "unasked": 0.06}, BEFORE, after, 0.05) == pytest.approx(-1)


def test_replies_in_batches_are_those_of_the_bot(bot, monkeypatch):
    monkeypatch.setattr(guard, "BATCH_SIZE", 3)
    messages = ["你好", "番茄炒蛋你放糖吗", "我不想活了", "在吗", "今天好累啊"]
    asked = [(message, seed) for message in messages for seed in (0, 1)]
    assert reply_all(bot, asked) == [bot.reply([message], seed=seed) for message, seed in asked]


def packed(tokenizer, layout):
    """Return a row with a dialogue of which only the reply is learnt and one to keep, and where the second one begins."""
    turns = [
        [tokenizer.encode(turn) for turn in ("你叫什么", "我叫小满")],
        [tokenizer.encode("在吗"), tokenizer.encode("在呀")],
    ]
    samples = [layout.lay_out(dialogue) for dialogue in turns]
    length = [len(sample.input_ids) for sample in samples]
    columns = {
        "input_ids": [sample.input_ids for sample in samples],
        "token_type_ids": [sample.speaker_ids for sample in samples],
        "labels": [sample.labels for sample in samples],
        "segment_ids": [[0] * length[0], [1] * length[1]],
        "attention_mask": [[1] * length[0], [1] * length[1]],
    }
    batch = {name: torch.tensor([[*values[0], *values[1]]]) for name, values in columns.items()}
    first = (batch["segment_ids"] == 0) & (batch["token_type_ids"] == 0)
    batch["labels"][first] = IGNORED_LABEL
    return batch, length[0]


def test_the_dialogues_with_loss_on_all_turns_are_kept(tokenizer, layout):
    batch, start = packed(tokenizer, layout)
    mask = kept_targets(batch)
    assert not mask[:, : start - 1].any()
    labelled = batch["labels"][:, start:] != IGNORED_LABEL
    assert torch.equal(mask[:, start - 1 : -1], labelled)
    assert labelled.sum() >= 4  # both turns and their ends


def test_what_is_kept_costs_nothing_until_the_model_changes(model, tokenizer, layout):
    batch, _ = packed(tokenizer, layout)
    trained = copy.deepcopy(model)
    objective = KeepingObjective(model, trained, trained, Regularization())
    items = 10.0
    with torch.no_grad():
        learnt = {**batch, "labels": batch["labels"].masked_fill(batch["segment_ids"] == 1, IGNORED_LABEL)}
        expected = float(trained(**learnt, num_items_in_batch=items).loss)
    loss, divergence = objective.backward(batch, items, torch.Tensor.backward)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert divergence == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for weight in trained.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        mask = kept_targets(batch)
        p, q = (network(**inputs).logits[mask].double().softmax(-1) for network in (model, trained))
    assert objective.backward(batch, items, torch.Tensor.backward)[1] == pytest.approx(
        float((p * (p / q).log()).sum()) / items, rel=1e-4
    )


def two_checkpoints(checkpoint, folder):
    """Copy a checkpoint twice and change the weights of the second copy; return both folders."""
    before, after = (shutil.copytree(checkpoint, folder / name) for name in ("before", "after"))
    bot = Chatbot.from_pretrained(after, "cpu")
    torch.manual_seed(1)
    for weight in bot.model.parameters():
        weight.data += 0.3 * torch.randn_like(weight)
    mixing.save(after, bot.model, bot.tokenizer, read_json(after / mixing.GENERATION), {"step": 0})
    return before, after


def test_the_mixture_with_the_most_room_is_kept(checkpoint, tmp_path, monkeypatch):
    before, after = two_checkpoints(checkpoint, tmp_path)
    old, new = (Chatbot.from_pretrained(folder, "cpu").model.state_dict() for folder in (before, after))
    measured = []

    def distance(bot, sets, choices, advance, results):
        weight = bot.model.state_dict()["token_embedding.weight"]
        whole = (new["token_embedding.weight"] - old["token_embedding.weight"]).norm()
        measured.append(float((weight - old["token_embedding.weight"]).norm() / whole))
        return Knowledge({OTHERS: abs(measured[-1] - 0.7) if len(measured) > 1 else 0.0}, 0.0)

    monkeypatch.setattr(mixing, "measure_knowledge", distance)
    monkeypatch.setattr(mixing, "measure_identity", lambda *args, **options: {"name": 1.0, "unasked": 0.0})
    result = mixing.keep_best_share(after, str(before), IDENTITY, {OTHERS: []}, 0.05, "auto")
    assert measured == pytest.approx([0.0, *mixing.SHARES], abs=1e-5)
    assert result["share"] == 0.7
    assert read_json(after / "training.json")["share_of_training"] == 0.7
    stored = Chatbot.from_pretrained(after, "cpu").model.state_dict()
    for name, tensor in stored.items():
        torch.testing.assert_close(tensor, 0.7 * new[name] + 0.3 * old[name], atol=1e-6, rtol=1e-5)


def test_a_bot_decodes_with_the_weights_of_the_mixture(checkpoint, tmp_path):
    before, after = two_checkpoints(checkpoint, tmp_path)
    first, bot = (Chatbot.from_pretrained(folder, "cpu") for folder in (before, after))
    trained = {name: tensor.clone() for name, tensor in bot.model.state_dict().items()}
    messages = ["你好", "在吗", "今天好累啊"]
    assert [bot.reply([m], seed=0) for m in messages] != [first.reply([m], seed=0) for m in messages]
    mixing.mix(bot, first.model.state_dict(), trained, 0.0)
    assert (native_network(bot.model) is None) == (native_network(first.model) is None)
    assert [bot.reply([m], seed=0) for m in messages] == [first.reply([m], seed=0) for m in messages]


def test_progress_ends_at_what_was_expected(checkpoint, tmp_path):
    before, after = two_checkpoints(checkpoint, tmp_path)
    bot = Chatbot.from_pretrained(before, "cpu")
    sets = {OTHERS: guard.unseen_dialogues()[:40]}
    counts = []
    measure_knowledge(bot, sets, choices=20, advance=counts.append)
    assert sum(counts) == count_scored(sets, 20) == 40 + 10 * 20
    counts.clear()
    measure_identity(bot, Identity("小满"), "tuning", seeds=1, advance=counts.append)
    assert sum(counts) == count_replies(Identity("小满"), "tuning", 1)
    counts.clear()
    mixing.keep_best_share(after, str(before), IDENTITY, sets, 0.05, "cpu", counts.append)
    assert sum(counts) == sum(mixing.count_work(IDENTITY, sets))
    assert len(counts) > 20  # the bar moves


def test_the_expected_time_grows_with_the_work(checkpoint, monkeypatch):
    bot, lines = Chatbot.from_pretrained(checkpoint, "cpu"), guard.unseen_dialogues()
    monkeypatch.setattr(progress, "estimate", lambda settings, objective_of: Estimate([], Duration(90.0, 90.0)))

    def expected(scored, replies):
        shown = progress.expected_time(None, bot, lines, scored, replies)
        training, unit, measuring = re.search(r"\((\d+) (\w+) of training, (\d+) seconds of", shown).groups()
        assert (training, unit) == ("2", "minutes")
        return int(measuring)

    assert expected(2000, 2000) > expected(20, 20)


def test_the_expected_time_on_a_busy_machine_is_also_that_on_a_free_one():
    text = progress._summary_of_time(Duration(600.0, 240.0), Duration(900.0, 240.0))
    assert text.startswith(
        "expected time: 25 minutes (10 minutes of training, 15 minutes of measuring); the machine is"
    )
    assert text.endswith("the machine is busy: about 8 minutes on a free one")
    assert "busy" not in progress._summary_of_time(Duration(250.0, 240.0), Duration(250.0, 240.0))


def test_the_expected_time_is_measured_on_steps_of_the_training_itself(checkpoint, tmp_path, monkeypatch):
    """The objective also runs the bot before the training, which the steps of an ordinary training do not."""
    flags = ["--name", "小满", "--bot", str(checkpoint), "--output", str(tmp_path / "named"), "--device", "cpu"]
    args, steps = build_parser().parse_args(flags), []
    original = KeepingObjective.backward

    def backward(objective, *others):
        steps.append(objective.before is not objective.model)
        return original(objective, *others)

    monkeypatch.setattr(KeepingObjective, "backward", backward)
    settings = training_settings(args, prepare_dialogues(Identity("小满"), args, tmp_path))
    bot = Chatbot.from_pretrained(checkpoint, "cpu")
    shown = progress.expected_time(settings, bot, guard.unseen_dialogues(), 40, 40)
    assert re.search(r"expected time: \d+", shown)
    assert len(steps) >= 3
    assert all(steps)


@pytest.fixture
def signals():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Work(list):
    """Names of the functions that have measured something; the call with number `stop_at` is interrupted."""

    stop_at = 0

    def recording(self, function):
        def call(*args):
            self.append(function.__name__)
            if len(self) == self.stop_at:
                raise KeyboardInterrupt
            return function(*args)

        return call


@pytest.fixture
def work(monkeypatch):
    """Make the command short and record what it measures."""
    calls = Work()
    monkeypatch.setattr(mixing, "SHARES", (0.5, 1.0))
    monkeypatch.setattr(guard, "questions", lambda about, part: [f"你的{about}{number}" for number in range(9)])
    about_bot, others, unseen = cli.identity_dialogues, cli.rehearsal_dialogues, dialogues.unseen_dialogues
    monkeypatch.setattr(cli, "identity_dialogues", lambda *args: about_bot(*args)[:60])
    monkeypatch.setattr(cli, "rehearsal_dialogues", lambda *args: others(*args)[:60])
    for module in (dialogues, guard):
        monkeypatch.setattr(module, "unseen_dialogues", lambda part="held_out": unseen(part)[:30])
    for name in ("_reply_batch", "_nats_per_unit", "_share_of_hits"):
        monkeypatch.setattr(guard, name, calls.recording(getattr(guard, name)))
    monkeypatch.setattr(progress, "expected_time", lambda *args: "soon")
    return calls


def command(checkpoint, output, *more):
    flags = ["--name", "小满", "--maker", "阿哲", "--bot", str(checkpoint), "--device", "cpu", "--epochs", "3"]
    return main([*flags, "--output", str(output), *more])


def state_of(output):
    return hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest(), read_json(output / "naming.json")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_training_the_choice_and_the_guard_the_command_continues(
    number, checkpoint, tmp_path, monkeypatch, capsys, signals, work
):
    """The weights and figures are those of a command that was never stopped, and nothing is measured twice."""
    assert command(checkpoint, tmp_path / "whole") == 1
    whole, all_work = state_of(tmp_path / "whole"), Counter(work)
    assert not (tmp_path / "whole" / "resume").exists()
    capsys.readouterr()
    work.clear()

    output, steps = tmp_path / "stopped", []
    step = training.run.take_step

    def stopping_step(*args):
        steps.append(args)
        if len(steps) == 3:
            os.kill(os.getpid(), number)
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training.run, "take_step", stopping_step)
        assert command(checkpoint, output) == 130
    errors = capsys.readouterr().err
    assert "the same command with --resume continues it" in errors
    assert f"stopped by {number.name} and saved; continue with --resume" in errors
    assert [save.name for save in saved_steps(output)] == ["step-00000004"]
    assert not work  # the training began at once

    in_choice = 5
    measured = []
    for stop_at in (in_choice, all_work.total() - in_choice):  # the second one is in the guard
        work.stop_at = stop_at
        assert command(checkpoint, output, "--resume") == 130
        assert "Stopped; the same command with --resume continues it." in capsys.readouterr().err
        measured += work[:-1]  # without the interrupted call
        work.clear()
    work.stop_at = 0
    assert command(checkpoint, output, "--resume") == 1
    assert "100%" in capsys.readouterr().err  # the bars count what was measured before
    assert Counter(measured + work) == all_work
    assert state_of(output) == whole
    assert command(checkpoint, output, "--resume") == 1
    assert "holds a finished bot" in capsys.readouterr().err


def test_a_stop_while_the_mixture_is_saved_does_not_mix_twice(checkpoint, tmp_path, monkeypatch, signals, work):
    assert command(checkpoint, tmp_path / "whole") == 1
    save = mixing.save

    def stopped(*args):
        save(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mixing, "save", stopped)
        assert command(checkpoint, tmp_path / "stopped") == 130
    assert command(checkpoint, tmp_path / "stopped", "--resume") == 1
    assert state_of(tmp_path / "stopped") == state_of(tmp_path / "whole")


def test_another_name_cannot_continue_the_run(checkpoint, tmp_path, capsys, signals, work):
    work.stop_at = 1
    assert command(checkpoint, tmp_path / "named") == 130
    assert command(checkpoint, tmp_path / "named", "--resume", "--name", "小红") == 1
    assert "the data changed" in capsys.readouterr().err


def test_a_stop_before_the_training_leaves_nothing(checkpoint, tmp_path, monkeypatch, capsys, signals, work):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "expected_time", stopped)
    assert command(checkpoint, tmp_path / "named") == 130
    assert "Stopped; nothing was saved." in capsys.readouterr().err
    assert not (tmp_path / "named").exists()


def test_the_preparation_of_data_that_is_not_the_users_is_silent(checkpoint, tmp_path, capsys):
    args = build_parser().parse_args(["--name", "小满", "--bot", str(checkpoint), "--output", str(tmp_path / "named")])
    prepare_dialogues(Identity("小满"), args, tmp_path)
    errors = capsys.readouterr().err.strip()
    assert re.fullmatch(r"training on \d+ dialogues about the bot and \d+ others", errors)


def test_a_second_command_in_the_same_folder_is_refused_before_it_prepares(
    checkpoint, tmp_path, monkeypatch, capsys, signals
):
    output = tmp_path / "named"
    monkeypatch.setattr("training.naming.cli.prepare_dialogues", lambda *args: pytest.fail("it prepares"))
    with own_folder(output):
        assert main(["--name", "小满", "--bot", str(checkpoint), "--output", str(output), "--device", "cpu"]) == 1
    assert f"Another run is writing to {output}" in capsys.readouterr().err


def test_a_folder_with_a_stopped_run_is_continued_only_on_demand(checkpoint, tmp_path, capsys, signals):
    (tmp_path / "resume" / "step-00000001").mkdir(parents=True)
    assert main(["--name", "小满", "--bot", str(checkpoint), "--output", str(tmp_path)]) == 1
    assert "already holds a run; give --resume to continue it, or another --output." in capsys.readouterr().err


def test_a_training_that_diverges_gets_no_advice_that_the_command_lacks():
    run = SimpleNamespace(progress={"step": 3})
    with pytest.raises(SettingsError, match=r"at step 4: .* lower --learning-rate") as caught:
        NamingRun._stop_diverged(run, DivergedError(float("nan"), 1.0), [])
    assert "--resume" not in str(caught.value)


@pytest.mark.slow
def test_the_command_fails_for_a_model_that_cannot_learn_it_and_keeps_the_figures(checkpoint, tmp_path, capsys):
    output = tmp_path / "named"
    flags = ["--name", "小满", "--bot", str(checkpoint), "--output", str(output), "--epochs", "0.1"]
    assert main(flags) == 1
    printed, progress_shown = capsys.readouterr()
    assert progress_shown.index("expected time: ") < progress_shown.index("choosing how much of the training to keep: ")
    for part in ("how much of the training to keep", "before and after the training"):
        assert re.search(f"{part}: 100%", progress_shown)
    assert "guard: it says its name in " in printed
    assert "The guard failed" in printed
    record = read_json(output / "naming.json")
    assert record["failures"]
    assert record["name"] < 0.9
    assert set(record["after"]["nats"]) == {OTHERS}
    assert (output / "model.safetensors").is_file()
    assert not (output / "resume").exists()
