"""From files to a prepared set: its content, counts that add up, and no half of a set after an accident."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.errors import FileError
from chatbot.text.dialogue_files import read_dialogues
from chatbot.text.prepared_set import load_manifest, load_split
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep import fingerprint, pipeline
from data_prep.cli import main
from data_prep.corpus.content_hash import are_valid, content_hash
from data_prep.pipeline import build
from data_prep.preview import preview
from data_prep.reading import formats
from data_prep.settings import CleanSettings, PrepareSettings
from data_prep.stages import clean_block, cut_frequent, mark_near, write_shard
from tests.benchmarks.prepare_speed import digest, generate
from tests.conftest import ROOT, SAMPLES

SHARED = ROOT.parent / "shared" / "data" / "LCCC-base_valid.json"
SMALL = PrepareSettings(vocab_size=400)


def write(path, dialogues) -> str:
    lines = [value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in dialogues]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def random_dialogues(count: int, seed: int = 0) -> list[list[str]]:
    """Dialogues that look different, some to be split or dropped, some twice."""
    draw = random.Random(seed)
    words = ["今天", "天气", "不错", "吃饭", "电影", "一起", "好的", "明天", "你说", "真的", "哪里", "朋友"]
    odd = ["ok", "看http://t.cn/x", "@小明 在吗", "哈哈哈哈哈哈哈", "傻逼", "好,走"]
    dialogues: list[list[str]] = []
    for _ in range(count):
        if dialogues and draw.random() < 0.05:
            dialogues.append(draw.choice(dialogues))
            continue
        turns = ["".join(draw.choices(words, k=draw.randint(2, 8))) for _ in range(draw.randint(2, 6))]
        if draw.random() < 0.2:
            turns[draw.randrange(len(turns))] = draw.choice(odd)
        dialogues.append(turns)
    return dialogues


def everything(folder) -> Counter:
    return Counter(tuple(turns) for split in load_manifest(folder)["splits"] for turns in read_dialogues(folder, split))


def check_that_it_adds_up(manifest: dict) -> None:
    counts = manifest["dialogues"]
    assert counts["read"] == counts["kept_whole"] + counts["split"] + counts["dropped"]
    assert sum(manifest["dropped"].values()) == counts["dropped"]
    for name in counts:
        assert counts[name] == sum(source.get(name, 0) for source in manifest["sources"])


def is_valid(key: bytes, valid_share: float) -> bool:
    return bool(are_valid(np.frombuffer(key[:8], "<u8"), valid_share)[0])


# --- content ---


def test_prepared_set(prepared, dialogues):
    manifest = load_manifest(prepared)
    splits = manifest["splits"]
    check_that_it_adds_up(manifest)
    assert manifest["dialogues"]["read"] == len(dialogues)
    assert splits["train"]["dialogues"] + splits["valid"]["dialogues"] == len(dialogues)
    assert splits["valid"]["dialogues"] > 0
    tokenizer = DialogueTokenizer.load(prepared)
    for row in load_split(prepared, "valid"):
        text = [tokenizer.decode(ids) for ids in row["turns"]]
        assert row["units"] == sum(map(len, text)) + len(text)


def test_every_dropped_dialogue_is_counted_and_told(tmp_path, pictures):
    rows = [["你 好", "你 好 呀", "吃 了 吗"], ["我 爱 New York", "我 也 爱 New York"]]
    rows = [
        *rows,
        rows[0],
        ["一个人"],
        ["空", ""],
        [1, 2],
        '"文字"',
        ["第三", "条"],
        ["a", "b"],
        '["半',
        ["一", "ok", "二"],
    ]
    rows += [["你好", "嗯", "sb", "再见", "再见了"]]
    source = write(tmp_path / "x.jsonl", rows)
    manifest = build([source], tmp_path / "set", PrepareSettings(vocab_size=400, valid_share=0.0))
    assert manifest["dropped"] == {
        "no_chinese": 2,
        "not_a_list_of_strings": 2,
        "not_json": 1,
        "fewer_than_two_turns": 1,
        "nothing_left": 1,
        "duplicate": 1,
    }
    assert manifest["dialogues"] == {"read": 12, "kept_whole": 3, "split": 1, "dropped": 8}
    expected = [
        ("你好", "你好呀", "吃了吗"),
        ("我爱New York", "我也爱New York"),
        ("第三", "条"),
        ("你好", "嗯"),
        ("再见", "再见了"),
    ]
    assert everything(tmp_path / "set") == Counter(expected)
    with gzip.open(tmp_path / "set" / "report" / "dropped.jsonl.gz", "rt", encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    assert {(entry["record"], entry["reason"]) for entry in entries} == {
        (3, "duplicate"),
        (4, "fewer_than_two_turns"),
        (5, "fewer_than_two_turns"),
        (5, "nothing_left"),
        (6, "not_a_list_of_strings"),
        (7, "not_a_list_of_strings"),
        (9, "no_chinese"),
        (10, "not_json"),
        (11, "fewer_than_two_turns"),
        (11, "no_chinese"),
        (12, "blocked_words"),
    }
    report = (tmp_path / "set" / "report" / "report.md").read_text(encoding="utf-8")
    assert "| `x.jsonl` | train | 12 | 3 | 1 | 8 |" in report
    assert all(f"| {reason} | {count} |" in report for reason, count in manifest["dropped"].items())
    assert all((tmp_path / "set" / "report" / name).stat().st_size > 1000 for name in ("turns.png", "tokens.png"))


@pytest.mark.skipif(not SHARED.exists(), reason="LCCC is not at hand")
@pytest.mark.slow
def test_each_dialogue_of_lccc_is_kept_whole_split_or_dropped(tmp_path):
    manifest = build([str(SHARED)], tmp_path / "set", PrepareSettings(tokenizer="default", valid_share=0.0))
    check_that_it_adds_up(manifest)
    counts = manifest["dialogues"]
    assert counts["read"] == 20_000
    assert counts["kept_whole"] > 0.98 * 20_000
    with gzip.open(tmp_path / "set" / "report" / "dropped.jsonl.gz", "rt", encoding="utf-8") as file:
        listed = {json.loads(line)["record"] for line in file}
    assert len(listed) == counts["split"] + counts["dropped"]  # every other dialogue is there as it was read
    ordinary = json.loads(SHARED.read_text(encoding="utf-8"))
    written = everything(tmp_path / "set")
    whole = [turns for number, turns in enumerate(ordinary, 1) if number not in listed]
    unchanged = sum(tuple(turn.replace(" ", "") for turn in turns) in written for turns in whole)
    assert unchanged > 0.75 * 20_000


def test_any_arrow_reader_can_open_it(prepared):
    import datasets

    dataset = datasets.load_from_disk(str(prepared / "train"))
    assert dataset.features["turns"] == datasets.List(datasets.List(datasets.Value("int32")))
    assert len(dataset) == load_manifest(prepared)["splits"]["train"]["dialogues"]


def test_the_files_of_a_split_are_those_that_datasets_writes(prepared, tmp_path):
    """All but the fingerprint, which depends on the times of files there and on the content here."""
    import datasets

    shards = len(list((prepared / "train").glob("*.arrow")))
    datasets.load_from_disk(str(prepared / "train")).save_to_disk(tmp_path / "train", num_shards=shards)
    assert {path.name for path in (tmp_path / "train").iterdir()} == {
        path.name for path in (prepared / "train").iterdir()
    }
    theirs, ours = (json.loads((path / "train" / "state.json").read_text()) for path in (tmp_path, prepared))
    assert len(ours["_fingerprint"]) == len(theirs["_fingerprint"])
    assert {**ours, "_fingerprint": ""} == {**theirs, "_fingerprint": ""}
    theirs, ours = (json.loads((path / "train" / "dataset_info.json").read_text()) for path in (tmp_path, prepared))
    assert ours["features"] == theirs["features"]


# --- splits, duplicates and leaks ---


@given(st.lists(st.lists(st.text(min_size=1), min_size=2, max_size=4), min_size=1, max_size=30), st.randoms())
def test_split_depends_on_content_alone(dialogues, shuffler):
    before = {content_hash(turns): is_valid(content_hash(turns), 0.3) for turns in dialogues}
    shuffler.shuffle(dialogues)
    dialogues.append(["新的", "一条"])
    after = {content_hash(turns): is_valid(content_hash(turns), 0.3) for turns in dialogues}
    assert all(after[key] == side for key, side in before.items())


def test_split_share_is_about_right():
    keys = [content_hash([str(number), "x"]) for number in range(4000)]
    share = sum(is_valid(key, 0.05) for key in keys) / len(keys)
    assert 0.035 < share < 0.065
    assert not any(is_valid(key, 0.0) for key in keys)


def test_hash_knows_where_turns_begin():
    assert content_hash(["ab", "c"]) != content_hash(["a", "bc"])


def test_reordered_and_added_lines_move_nothing(tmp_path):
    dialogues = random_dialogues(400)
    changed = [*random_dialogues(100, seed=1), *dialogues]
    random.Random(1).shuffle(changed)
    for name, rows in (("a", dialogues), ("b", changed)):
        build(
            [write(tmp_path / f"{name}.jsonl", rows)],
            tmp_path / name,
            PrepareSettings(tokenizer="default", valid_share=0.3),
        )
    (train, valid), (more_train, more_valid) = (
        [[tuple(turns) for turns in read_dialogues(tmp_path / name, split)] for split in ("train", "valid")]
        for name in ("a", "b")
    )
    assert set(train) <= set(more_train)
    assert set(valid) <= set(more_valid)
    positions = {turns: index for index, turns in enumerate(more_train)}
    assert [positions[turns] for turns in train] == sorted(
        positions[turns] for turns in train
    )  # and their order is theirs
    assert not set(more_train) & set(more_valid)


def test_the_seed_changes_the_order_and_nothing_else(tmp_path):
    source = write(tmp_path / "x.jsonl", random_dialogues(200))
    sets = []
    for seed in (0, 1):
        build([source], tmp_path / str(seed), PrepareSettings(tokenizer="default", seed=seed))
        sets.append([tuple(turns) for turns in read_dialogues(tmp_path / str(seed), "train")])
    assert sets[0] != sets[1]
    assert set(sets[0]) == set(sets[1])


def test_what_is_held_out_in_files_is_not_in_train(tmp_path):
    dialogues = [turns for turns in random_dialogues(300) if not {"ok", "傻逼"} & set(turns)]
    unique = [list(turns) for turns in dict.fromkeys(map(tuple, dialogues))]
    valid, test = unique[:20], [*unique[20:40], unique[0]]
    paths = [write(tmp_path / name, rows) for name, rows in (("t", unique), ("v", valid), ("e", test))]
    manifest = build([paths[0]], tmp_path / "set", SMALL, valid=[paths[1]], test=[paths[2]])
    assert manifest["dropped"] == {"also_in_test": 22, "also_in_valid": 19}
    assert {name: split["dialogues"] for name, split in manifest["splits"].items()} == {
        "train": len(unique) - 40,
        "valid": 19,
        "test": 21,
    }
    check_that_it_adds_up(manifest)
    seen = [set(map(tuple, read_dialogues(tmp_path / "set", split))) for split in ("train", "valid", "test")]
    assert sum(map(len, seen)) == len(set().union(*seen))


@pytest.mark.parametrize(("mode", "dropped"), [("off", 0), ("held-out", 1), ("all", 2)])
def test_near_duplicates_are_an_option(tmp_path, mode, dropped):
    base = "昨天我和朋友一起去看了那部新上映的电影，真的特别好看"
    other = "周末打算带孩子去动物园玩一整天，听说来了两只大熊猫"
    rows = [[base + "呀", "是吗"], [other, "好呀"], [other + "呢", "好呀"], *random_dialogues(30)]
    train = write(tmp_path / "x.jsonl", rows)
    held_out = write(tmp_path / "y.jsonl", [[base, "是吗"]])
    settings = PrepareSettings(vocab_size=400, near_duplicates=mode)
    manifest = build([train], tmp_path / "set", settings, valid=[held_out])
    assert manifest["dropped"].get("near_duplicate", 0) == dropped
    check_that_it_adds_up(manifest)


# --- parallel, killed, continued ---


@pytest.fixture
def small_parts(monkeypatch):
    """Blocks and buckets so small that a few hundred dialogues fill many."""
    monkeypatch.setattr(pipeline, "BUCKET_BYTES", 10_000)
    read = formats.read_blocks
    monkeypatch.setattr(pipeline, "read_blocks", lambda *args, **options: read(*args, block_bytes=7_000, **options))


class Killed(BaseException):
    """As abrupt as a signal, in one process."""


STEPS = {
    "clean_block": clean_block,
    "cut_block": cut_frequent,
    "sign_bucket": mark_near,
    "find_near": mark_near,
    "write_shard": write_shard,
}
FREQUENT = ["哈哈"] * 300


def frequent_corpus(path) -> str:
    rows = [*random_dialogues(2000), *([f"这是第{number}个说法", answer] for number, answer in enumerate(FREQUENT))]
    return write(path, rows)


@pytest.mark.slow
def test_a_stopped_build_continues_and_ends_with_the_same_bytes(tmp_path, monkeypatch, small_parts, capsys):
    source = frequent_corpus(tmp_path / "x.jsonl")
    settings = PrepareSettings(vocab_size=400, near_duplicates="all")
    whole = build([source], tmp_path / "whole", settings)
    assert whole["dropped"]["generic_replies"] > 10
    check_that_it_adds_up(whole)
    expected = digest(tmp_path / "whole")
    counts = dict.fromkeys(STEPS, 0)
    originals = {name: getattr(module, name) for name, module in STEPS.items()}

    def run(stop_at: tuple[str, int] | None, after: bool) -> None:
        def wrapped(name):
            def step(*args):
                counts[name] += 1
                if stop_at == (name, counts[name]) and not after:
                    raise Killed
                originals[name](*args)
                if stop_at == (name, counts[name]):
                    raise Killed

            return step

        for name in STEPS:
            counts[name] = 0
            monkeypatch.setattr(STEPS[name], name, wrapped(name))
        build([source], tmp_path / "stopped", settings)

    run(None, False)
    totals = dict(counts)
    assert all(totals[name] > 2 for name in STEPS if name != "find_near")
    assert digest(tmp_path / "stopped") == expected
    shutil.rmtree(tmp_path / "stopped")
    for name in STEPS:
        for after in (False, True):
            with pytest.raises(Killed):
                run((name, (totals[name] + 1) // 2), after)
            assert not (tmp_path / "stopped").exists()
    run(None, False)  # what was done before is not done again
    assert (
        counts["clean_block"]
        == counts["cut_block"]
        == counts["find_near"]
        == 0
        < counts["write_shard"]
        < totals["write_shard"]
    )
    assert digest(tmp_path / "stopped") == expected
    assert "continuing the build" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"x.jsonl", "whole", "stopped"}


def test_a_stopped_build_is_not_taken_for_another(tmp_path, monkeypatch):
    source = write(tmp_path / "x.jsonl", random_dialogues(50))
    monkeypatch.setattr(write_shard, "write_shard", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        build([source], tmp_path / "set", SMALL)
    monkeypatch.undo()
    write(tmp_path / "x.jsonl", [["只有", "这个"], ["和", "那个"]])
    manifest = build([source], tmp_path / "set", PrepareSettings(vocab_size=400, valid_share=0.0))
    assert manifest["dialogues"]["read"] == 2
    assert everything(tmp_path / "set") == Counter({("只有", "这个"): 1, ("和", "那个"): 1})


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(tmp_path, pictures):
    source = tmp_path / "x.jsonl.gz"
    generate(source, 1500, [SAMPLES / "everyday.jsonl"])
    for processes in (1, 2):
        build([str(source)], tmp_path / str(processes), PrepareSettings(vocab_size=500), processes=processes)
    assert digest(tmp_path / "1") == digest(tmp_path / "2")


@pytest.mark.slow
@pytest.mark.alone
def test_a_build_killed_by_the_system_continues_and_ends_with_the_same_bytes(tmp_path):
    source = tmp_path / "x.jsonl.gz"
    generate(source, 60_000, [SHARED if SHARED.exists() else SAMPLES / "everyday.jsonl"])
    command = [sys.executable, "-m", "data_prep", "--input", str(source), "--tokenizer", "default", "--processes", "2"]
    started = time.perf_counter()
    subprocess.run([*command, "--output", str(tmp_path / "whole")], check=True, capture_output=True)
    seconds = time.perf_counter() - started
    for share in (0.3, 0.25, 0.2):  # each build continues the one before, and together they do not reach the end
        process = subprocess.Popen(
            [*command, "--output", str(tmp_path / "killed")], stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(share * seconds)
        was_running = process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert (tmp_path / "killed").exists() != was_running
    subprocess.run([*command, "--output", str(tmp_path / "killed")], check=True, capture_output=True)
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


# --- accidents ---


def test_a_full_disk_is_one_sentence_and_the_build_continues_from_there(tmp_path):
    source = write(tmp_path / "x.jsonl", random_dialogues(3000))
    program = (
        "import resource, signal, sys; from data_prep.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, {resource.RLIM_INFINITY}));"
        f"sys.exit(main(['--input', {source!r}, '--output', {str(tmp_path / 'set')!r}, '--tokenizer', 'default']))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert result.stderr.strip().splitlines()[-1].startswith("error: The disk with ")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "set").exists()
    assert build([source], tmp_path / "set", PrepareSettings(tokenizer="default"))["dialogues"]["read"] == 3000


def test_an_input_that_shrinks_while_it_is_read_leaves_no_set(tmp_path, monkeypatch):
    source = write(tmp_path / "x.jsonl", random_dialogues(20_000))
    original = clean_block.clean_block

    def shrinking(*args):
        original(*args)
        with open(source, "r+b") as file:
            file.truncate(Path(source).stat().st_size // 2)

    monkeypatch.setattr(clean_block, "clean_block", shrinking)
    read = formats.read_blocks
    monkeypatch.setattr(pipeline, "read_blocks", lambda *args, **options: read(*args, block_bytes=100_000, **options))
    with pytest.raises(FileError, match="changed while it was read"):
        build([source], tmp_path / "set", SMALL)
    assert {path.name for path in tmp_path.iterdir()} == {"x.jsonl"}


BAD = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "cut array": lambda path: path.write_text('[["a", "b"], ["c", '),
    "cut gzip": lambda path: path.write_bytes(gzip.compress(b'["\xe4\xbd\xa0", "b"]\n' * 99)[:-9]),
    "nothing left": lambda path: path.write_text('["a"]\n["b"]\n'),
    "no dialogues at all": lambda path: path.write_bytes(bytes(range(256)) * 100),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, capsys, name):
    source, output = tmp_path / "input", tmp_path / "set"
    BAD[name](source)
    assert main(["--input", str(source), "--output", str(output)]) == 1
    captured = capsys.readouterr()
    message = captured.err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert str(source) in message or name in ("nothing left", "no dialogues at all")
    assert "Traceback" not in captured.err
    assert [path for path in tmp_path.iterdir() if path != source] == []


def test_a_work_folder_that_is_half_removed_is_not_resumed(tmp_path, monkeypatch):
    source = write(tmp_path / "x.jsonl", random_dialogues(200))
    expected = build([source], tmp_path / "set", SMALL)
    original = shutil.rmtree

    def dies_in_it(path, **_):
        if str(path).endswith(".building"):
            original(Path(path) / "set", ignore_errors=True)
            for shard in Path(path).glob("train-*.arrow"):
                shard.unlink()
            raise Killed
        original(path, ignore_errors=True)

    monkeypatch.setattr(shutil, "rmtree", dies_in_it)
    with pytest.raises(Killed):
        build([source], tmp_path / "set", SMALL, overwrite=True)
    monkeypatch.undo()
    assert build([source], tmp_path / "set", SMALL) == expected  # up to date
    assert not (tmp_path / ".set.building").exists()
    monkeypatch.setattr(shutil, "rmtree", dies_in_it)
    with pytest.raises(Killed):
        build([source], tmp_path / "set", SMALL, overwrite=True)
    monkeypatch.undo()
    assert build([source], tmp_path / "set", SMALL, overwrite=True) == expected
    assert len(load_split(tmp_path / "set", "train")) == expected["splits"]["train"]["dialogues"]


def test_the_output_may_lie_in_the_input_folder(tmp_path, monkeypatch):
    write(tmp_path / "x.jsonl", random_dialogues(50))
    monkeypatch.setattr(write_shard, "write_shard", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        build([str(tmp_path)], tmp_path / "set", SMALL)
    monkeypatch.undo()
    first = build([str(tmp_path)], tmp_path / "set", SMALL)
    assert first["dialogues"]["read"] == 50
    assert build([str(tmp_path)], tmp_path / "set", SMALL) == first


def test_only_one_build_at_a_time(tmp_path):
    from filelock import FileLock

    source = write(tmp_path / "x.jsonl", random_dialogues(10))
    with FileLock(tmp_path / ".set.lock"), pytest.raises(FileError, match="Another process is building"):
        build([source], tmp_path / "set", SMALL)


def test_unchanged_inputs_are_kept_and_others_refused(tmp_path, capsys):
    source = tmp_path / "a.jsonl"
    write(source, [[f"第{n}", "好"] for n in range(40)])
    output = tmp_path / "set"
    call = ["--input", str(source), "--output", str(output), "--vocab-size", "400"]
    assert main(call) == 0
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in output.rglob("*") if path.is_file()}
    assert main(call) == 0
    assert "up to date" in capsys.readouterr().err
    source.write_text(source.read_text() + '\n["新", "的"]\n')
    for changed in ([], ["--skip", "echo"], ["--max-characters", "100"], ["--seed", "3"]):
        assert main([*call, *changed]) == 1
        assert "--overwrite" in capsys.readouterr().err
    assert before == {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in output.rglob("*") if path.is_file()
    }
    assert main([*call, "--overwrite"]) == 0
    assert load_manifest(output)["dialogues"]["read"] == 41
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "set"}


def test_another_word_list_or_program_makes_another_set(tmp_path, monkeypatch):
    (tmp_path / "words").write_text("香菜\n", encoding="utf-8")
    source = write(tmp_path / "x.jsonl", random_dialogues(40))
    settings = PrepareSettings(vocab_size=400, clean=CleanSettings(words=str(tmp_path / "words")))
    build([source], tmp_path / "set", settings)
    (tmp_path / "words").write_text("今天\n", encoding="utf-8")
    with pytest.raises(FileError, match="other inputs"):
        build([source], tmp_path / "set", settings)
    monkeypatch.setattr(fingerprint, "program_hash", lambda: "another")
    (tmp_path / "words").write_text("香菜\n", encoding="utf-8")
    with pytest.raises(FileError, match="other inputs"):
        build([source], tmp_path / "set", settings)


def test_a_changed_setting_is_named(tmp_path):
    source = write(tmp_path / "x.jsonl", random_dialogues(40))
    settings = PrepareSettings(vocab_size=400)
    build([source], tmp_path / "set", settings)
    other = replace(settings, form="jsonl", clean=CleanSettings(max_characters=100))
    with pytest.raises(FileError, match=r"other settings \(--format, --max-characters changed\)"):
        build([source], tmp_path / "set", other)


def test_a_folder_that_is_not_a_prepared_set_is_never_replaced(tmp_path, capsys):
    (tmp_path / "home").mkdir()
    precious = tmp_path / "home" / "letters.txt"
    precious.write_text("x")
    assert main(["--input", str(SAMPLES), "--output", str(tmp_path / "home"), "--overwrite"]) == 1
    assert "another --output" in capsys.readouterr().err
    (tmp_path / "home" / "manifest.json").write_text('{"name": "a browser extension"}')
    assert main(["--input", str(SAMPLES), "--output", str(tmp_path / "home"), "--overwrite"]) == 1
    assert precious.read_text() == "x"


def test_a_link_as_output_is_kept(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    build([str(SAMPLES)], tmp_path / "link", SMALL)
    build([str(SAMPLES)], tmp_path / "link", PrepareSettings(vocab_size=420), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert load_manifest(tmp_path / "real")["vocab_size"] <= 420


def test_unwritable_output_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main(["--input", str(SAMPLES), "--output", str(tmp_path / "file" / "set"), "--vocab-size", "400"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "error: " in error


def test_damaged_prepared_set_is_explained(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "cut")
    next((tmp_path / "cut" / "train").glob("*.arrow")).write_bytes(b"short")
    with pytest.raises(FileError, match="train split"):
        load_split(tmp_path / "cut", "train")
    (tmp_path / "cut" / "manifest.json").write_text("{")
    with pytest.raises(FileError, match=r"manifest\.json"):
        load_manifest(tmp_path / "cut")


# --- options ---


def test_an_existing_tokenizer_can_be_taken(prepared, tmp_path):
    settings = PrepareSettings(tokenizer=str(prepared), valid_share=0.2)
    manifest = build([str(SAMPLES)], tmp_path / "again", settings)
    assert manifest["tokenizer_hash"] == load_manifest(prepared)["tokenizer_hash"]


@pytest.mark.slow
def test_a_tokenizer_of_words(tmp_path):
    pytest.importorskip("jieba")
    build([str(SAMPLES)], tmp_path / "set", PrepareSettings(vocab_size=2000, word_count=3))
    tokenizer = DialogueTokenizer.load(tmp_path / "set")
    assert "今天" in tokenizer.tokens(range(tokenizer.vocab_size))
    for text in ("今天吃什么", "hello [SEP] 😂龘\n", "", " a  b "):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_max_dialogues_counts_inputs_and_reads_held_out_files_whole(tmp_path):
    held_out = write(tmp_path / "v.jsonl", random_dialogues(30, seed=5))
    settings = PrepareSettings(vocab_size=400, max_dialogues=7)
    manifest = build([str(SAMPLES), str(SAMPLES)], tmp_path / "few", settings, valid=[held_out])
    assert [source["read"] for source in manifest["sources"]] == [7, 0, 30]


def test_preview_shows_the_turns_as_a_person_reads_them(prepared):
    shown = preview(prepared, 2, colour=False).splitlines()
    tokenizer = DialogueTokenizer.load(prepared)
    turns = [tokenizer.decode(ids) for ids in load_split(prepared, "train")[0]["turns"]]
    speakers = ("  person: ", "  bot: ")
    assert shown[0].startswith(f"dialogue 1: {len(turns)} turns, ")
    assert shown[1 : 1 + len(turns)] == [speakers[index % 2] + turn for index, turn in enumerate(turns)]
    assert shown[1 + len(turns)].startswith("dialogue 2: ")
    assert "|" not in preview(prepared, 1, colour=True)
    assert f"\033[33m{turns[1]}\033[0m" in preview(prepared, 1, colour=True)


def test_preview_of_the_tokens_shows_what_carries_loss(prepared):
    lines = preview(prepared, 2, colour=False, tokens=True).splitlines()
    assert lines[0].startswith("dialogue 1")
    assert lines[1].startswith("  person: [CLS]|")
    assert lines[2].startswith("  bot: ")
    assert all(line.endswith("[SEP]") for line in lines if line.startswith("  "))
    assert "\033[2m[CLS]" in preview(prepared, 1, colour=True, tokens=True)


def test_usage_faults_exit_with_2_and_are_said_at_once(capsys):
    for call in (["--output", "x"], ["--input", "x", "--output", "y", "--valid-share", "1"], []):
        with pytest.raises(SystemExit) as exit_info:
            main(call)
        assert exit_info.value.code == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--skip", "repeat", "--max-characters", "0", "--near-threshold", "2"])
    error = capsys.readouterr().err
    for part in (
        "--output is missing",
        "--input is missing",
        "did you mean repeats",
        "--max-characters",
        "--near-threshold",
    ):
        assert part in error


def test_rules_are_listed(capsys):
    assert main(["--list-rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(pipeline.all_rules())
    assert sum(" off " in line for line in lines) == 3


def test_the_lock_of_a_removed_file_does_not_count(tmp_path, monkeypatch):
    """A ends and removes the file that B has open; C locks a new file of that name; B must not build at the same time."""
    from data_prep.stages import work_folder

    first = work_folder.WorkFolder(tmp_path / "set", "a")
    waiting = os.open(tmp_path / ".set.lock", os.O_RDWR)  # B has opened the old file
    first.release(keep=False)
    third = work_folder.WorkFolder(tmp_path / "set", "c")
    real, opened = os.open, iter([waiting])
    monkeypatch.setattr(os, "open", lambda path, *more: next(opened, None) or real(path, *more))
    with pytest.raises(FileError, match="Another process"):
        work_folder.WorkFolder(tmp_path / "set", "b")
    monkeypatch.undo()
    third.release(keep=False)
    assert list(tmp_path.iterdir()) == []


def test_messages_that_nobody_said_are_told_and_counted(tmp_path):
    lines = [
        "2024-03-01 20:01:05 小海",
        "在吗，一起吃饭",
        "2024-03-01 20:01:30 阿木",
        "在呢，去哪吃",
        '2024-03-01 20:02:00 "小海" 撤回了一条消息',
        "2024-03-01 20:02:10 小海",
        "[图片]",
        "2024-03-01 20:03:00 系统消息",
        "阿木 加入了群聊",
        "2024-03-01 20:03:05 小海",
        "楼下那家面馆",
        "2024-03-01 20:03:30 阿木",
        "好的，马上来",
    ]
    source = tmp_path / "chat.txt"
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    manifest = build([source], tmp_path / "set", PrepareSettings(vocab_size=400, valid_share=0.0))
    assert manifest["left_out"] == {"not_speech": 3}
    assert manifest["dialogues"]["read"] == 1
    report = (tmp_path / "set" / "report" / "report.md").read_text(encoding="utf-8")
    assert "## Messages left out at reading" in report
    assert "| not_speech | 3 | a system notice, a picture, a file" in report
    with gzip.open(tmp_path / "set" / "report" / "dropped.jsonl.gz", "rt", encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    texts = [entry["text"] for entry in entries if entry["reason"] == "not_speech"]
    assert texts == ['"小海" 撤回了一条消息', "[图片]", "阿木 加入了群聊"]
    assert all(f"`{text}`" in report for text in texts)


QQ = """消息记录（此消息记录为文本格式）
消息分组:我的好友
导出者留下的一行

2024-03-01 20:01:05 小海
在吗，一起吃饭
2024-03-01 20:01:30 阿木
在呢，去哪吃
2024-03-01 20:02:00 系统消息
第一条通知
2024-03-01 20:02:10 系统消息
第二条通知
2024-03-01 20:02:20 系统消息
第三条通知
2024-03-01 20:02:30 系统消息
第三条通知
2024-03-01 20:02:40 系统消息
第四条通知
2024-03-01 20:03:05 小海
楼下那家面馆
2024-03-01 20:03:30 阿木
好的，马上来
"""
LINE = """[LINE] 與小海的聊天記錄
儲存日期：2024/3/1 20:00

2024/3/1（五）
20:01\t小海\t在吗，一起吃饭
20:02\t阿木\t在呢，去哪吃
20:03\t小海收回訊息
20:04\t小海\t楼下那家面馆
20:05\t阿木\t好的，马上来
"""


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        (QQ, ["消息记录（此消息记录为文本格式）", "消息分组:我的好友", "导出者留下的一行",
              "第一条通知", "第二条通知", "第三条通知", "第四条通知"]),
        (LINE, ["[LINE] 與小海的聊天記錄", "儲存日期：2024/3/1 20:00", "20:03 小海收回訊息"]),
    ],
)  # fmt: skip
def test_the_report_lists_every_line_of_the_program_that_was_left_out(tmp_path, text, left_out):
    source = tmp_path / "chat.txt"
    source.write_text(text, encoding="utf-8")
    manifest = build([source], tmp_path / "set", PrepareSettings(vocab_size=400, valid_share=0.0))
    assert manifest["left_out"] == {"not_speech": len(left_out) + text.count("第三条通知") // 2}
    assert manifest["dialogues"]["read"] == 1
    report = (tmp_path / "set" / "report" / "report.md").read_text(encoding="utf-8")
    listed = report.partition("Each of them, once")[2].partition("##")[0]
    assert re.findall("(?m)^- `(.*)`$", listed) == left_out
