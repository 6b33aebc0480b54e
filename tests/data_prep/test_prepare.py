from __future__ import annotations

import gzip
import json
import lzma
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.dialogue import clean_turn
from chatbot.dialogue_files import FileError, load_manifest, load_split, read_dialogues
from chatbot.tokenizer import DialogueTokenizer
from data_prep.build import PrepareSettings, build
from data_prep.clean import clean_dialogue
from data_prep.cli import main
from data_prep.dedup import content_hash
from data_prep.preview import preview
from data_prep.sources import list_files, read_raw
from data_prep.split import is_valid
from tests.conftest import SAMPLES

SPACED = [["你 好", "你 好 呀", "吃 了 吗"], ["I love New York", "我 也 爱 New York"]]
JOINED = [["你好", "你好呀", "吃了吗"], ["I love New York", "我也爱New York"]]


def write(path, text: str):
    path.write_text(text, encoding="utf-8")
    return path


def forms(tmp_path):
    lines = "\n".join(json.dumps(turns, ensure_ascii=False) for turns in SPACED) + "\n"
    array = json.dumps(SPACED, ensure_ascii=False)
    yield write(tmp_path / "array.json", array)
    yield write(tmp_path / "pretty.json", json.dumps(SPACED, ensure_ascii=False, indent=2))
    yield write(tmp_path / "lines.jsonl", lines)
    yield write(tmp_path / "bom.jsonl", "\ufeff" + lines)
    yield write(tmp_path / "pairs.tsv", "".join("\t".join(turns) + "\n" for turns in SPACED))
    yield write(tmp_path / "text.txt", "\n\n".join("\n".join(turns) for turns in SPACED))
    for name, opener in (("lines.jsonl.gz", gzip.open), ("lines.jsonl.xz", lzma.open)):
        with opener(tmp_path / name, "wt", encoding="utf-8") as file:
            file.write(lines)
        yield tmp_path / name


def test_every_form_reads_the_same(tmp_path):
    for path in forms(tmp_path):
        assert list(read_raw(path)) == SPACED, path.name


def test_spaces_are_joined_and_english_is_kept():
    assert [clean_dialogue(turns)[0] for turns in SPACED] == JOINED


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("你好", "not_a_list_of_strings"),
        (["你好", 3], "not_a_list_of_strings"),
        ([], "fewer_than_two_turns"),
        (["你好"], "fewer_than_two_turns"),
        (["你好", "  "], "empty_turn"),
    ],
)
def test_drop_reasons(raw, reason):
    assert clean_dialogue(raw) == (None, reason)


def gzip_cut(path):
    path.write_bytes(gzip.compress(json.dumps(SPACED).encode() * 100)[:-20])


def gzip_damaged(path):
    data = bytearray(gzip.compress(random.Random(0).randbytes(2000)))
    data[20:400] = b"\xff" * 380
    path.write_bytes(bytes(data))


BAD = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "blank": lambda path: path.write_text("\n \n"),
    "cut array": lambda path: path.write_text('[["a", "b"], ["c", '),
    "cut line": lambda path: path.write_text('["a", "b"]\n["c", "d'),
    "cut gzip": gzip_cut,
    "not utf-8": lambda path: path.write_bytes("你好\t再见\n".encode("gb18030") * 50),
    "damaged gzip": gzip_damaged,
    "huge number": lambda path: path.write_text('["a", ' + "9" * 5000 + "]\n"),
    "object": lambda path: path.write_text('{"dialog": ["a", "b"]}'),
    "array of numbers": lambda path: path.write_text("[\n1, 2]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "nothing left": lambda path: path.write_text('["a"]\n["b"]\n'),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, capsys, name):
    source, output = tmp_path / "input", tmp_path / "set"
    BAD[name](source)
    assert main(["--input", str(source), "--output", str(output)]) == 1
    captured = capsys.readouterr()
    message = captured.err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert str(source) in message or name == "nothing left"
    assert "Traceback" not in captured.err
    assert not output.exists()
    assert [path for path in tmp_path.iterdir() if path != source] == []


def test_prepared_set(prepared, dialogues):
    manifest = load_manifest(prepared)
    splits = manifest["splits"]
    assert manifest["read"] == len(dialogues)
    assert splits["train"]["dialogues"] + splits["valid"]["dialogues"] + sum(manifest["dropped"].values()) == len(
        dialogues
    )
    assert splits["valid"]["dialogues"] > 0
    together = [tuple(turns) for name in ("train", "valid") for turns in read_dialogues(prepared, name)]
    assert sorted(together) == sorted(tuple(map(clean_turn, turns)) for turns in dialogues)
    tokenizer = DialogueTokenizer.load(prepared)
    for row in load_split(prepared, "valid"):
        text = [tokenizer.decode(ids) for ids in row["turns"]]
        assert row["units"] == sum(map(len, text)) + len(text)


def test_every_dropped_dialogue_is_counted(tmp_path):
    rows = [*SPACED, SPACED[0], ["一个人"], ["空", ""], [1, 2], "文字", ["第三", "条"], ["第四", "条"]]
    source = write(tmp_path / "x.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    manifest = build([str(source)], tmp_path / "set", PrepareSettings(vocab_size=400, valid_share=0.0))
    assert manifest["dropped"] == {
        "duplicate": 1,
        "fewer_than_two_turns": 1,
        "empty_turn": 1,
        "not_a_list_of_strings": 2,
    }
    assert manifest["read"] == 9
    assert manifest["splits"]["train"]["dialogues"] == 4


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


def test_the_order_of_lines_does_not_move_dialogues_between_splits(tmp_path, dialogues):
    shuffled = list(dialogues)
    random.Random(1).shuffle(shuffled)
    sides = []
    for number, rows in enumerate((dialogues, shuffled)):
        source = write(tmp_path / f"{number}.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in rows))
        build([str(source)], tmp_path / f"set{number}", PrepareSettings(vocab_size=400))
        sides.append({tuple(turns) for turns in read_dialogues(tmp_path / f"set{number}", "valid")})
    assert sides[0] == sides[1]


def test_unchanged_inputs_are_kept_and_others_refused(tmp_path, capsys):
    source = write(tmp_path / "a.jsonl", "\n".join(json.dumps([str(n), "好"]) for n in range(50)))
    output = tmp_path / "set"
    call = ["--input", str(source), "--output", str(output), "--vocab-size", "400"]
    assert main(call) == 0
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in output.rglob("*") if path.is_file()}
    assert main(call) == 0
    assert "up to date" in capsys.readouterr().err
    source.write_text(source.read_text() + '\n["新", "的"]\n')
    assert main(call) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert before == {
        path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in output.rglob("*") if path.is_file()
    }
    assert main([*call, "--overwrite"]) == 0
    assert load_manifest(output)["read"] == 51
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "set"}


def test_a_folder_that_is_no_prepared_set_is_never_replaced(tmp_path, capsys):
    (tmp_path / "home").mkdir()
    precious = write(tmp_path / "home" / "letters.txt", "x")
    assert main(["--input", str(SAMPLES), "--output", str(tmp_path / "home"), "--overwrite"]) == 1
    assert precious.read_text() == "x"
    assert "another --output" in capsys.readouterr().err
    write(tmp_path / "home" / "manifest.json", '{"name": "a browser extension"}')
    assert main(["--input", str(SAMPLES), "--output", str(tmp_path / "home"), "--overwrite"]) == 1
    assert precious.read_text() == "x"


def test_a_link_as_output_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    build([str(SAMPLES)], tmp_path / "link", PrepareSettings(vocab_size=400))
    build([str(SAMPLES)], tmp_path / "link", PrepareSettings(vocab_size=420), overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert load_manifest(tmp_path / "real")["vocab_size"] <= 420


def test_lone_surrogates_and_emoticons_in_brackets_are_text(tmp_path):
    source = write(tmp_path / "s.jsonl", r'["\ud800你好", "好的"]')
    build([str(source)], tmp_path / "set", PrepareSettings(vocab_size=400, valid_share=0))
    assert list(read_dialogues(tmp_path / "set", "train")) == [["\ufffd你好", "好的"]]
    assert list(read_raw(write(tmp_path / "t.txt", "[微笑] 你好\n[鼓掌] 好"))) == [["[微笑] 你好", "[鼓掌] 好"]]
    assert list(read_raw(write(tmp_path / "t.tsv", "[微笑]\t好"))) == [["[微笑]", "好"]]


def test_unwritable_output_is_one_sentence(tmp_path, capsys):
    write(tmp_path / "file", "x")
    assert main(["--input", str(SAMPLES), "--output", str(tmp_path / "file" / "set"), "--vocab-size", "400"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "error: " in error


def test_an_existing_tokenizer_can_be_taken(prepared, tmp_path):
    settings = PrepareSettings(tokenizer=str(prepared), valid_share=0.2)
    manifest = build([str(SAMPLES)], tmp_path / "again", settings)
    assert manifest["tokenizer_hash"] == load_manifest(prepared)["tokenizer_hash"]


def test_max_dialogues(tmp_path):
    settings = PrepareSettings(vocab_size=400, max_dialogues=7)
    assert build([str(SAMPLES)], tmp_path / "few", settings)["read"] == 7


def test_preview_shows_speakers_and_what_carries_loss(prepared):
    text = preview(prepared, 2, colour=False)
    lines = text.splitlines()
    assert lines[0].startswith("sample 1")
    assert lines[1].startswith("  speaker 0: [CLS]|")
    assert lines[2].startswith("  speaker 1: ")
    assert all(line.endswith("[SEP]") for line in lines if line.startswith("  speaker"))
    assert "\033[2m[CLS]" in preview(prepared, 1, colour=True)


def test_usage_faults_exit_with_2(capsys):
    for call in (["--output", "x"], ["--input", "x", "--output", "y", "--valid-share", "1"], []):
        with pytest.raises(SystemExit) as exit_info:
            main(call)
        assert exit_info.value.code == 2
    capsys.readouterr()


def test_damaged_prepared_set_is_explained(prepared, tmp_path):
    import shutil

    shutil.copytree(prepared, tmp_path / "cut")
    next((tmp_path / "cut" / "train").glob("*.arrow")).write_bytes(b"short")
    with pytest.raises(FileError, match="train split"):
        load_split(tmp_path / "cut", "train")
    (tmp_path / "cut" / "manifest.json").write_text("{")
    with pytest.raises(FileError, match=r"manifest\.json"):
        load_manifest(tmp_path / "cut")


def test_list_files_refuses_what_is_not_there(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        list_files([tmp_path / "nothing"])
    with pytest.raises(FileError, match="holds no file"):
        list_files([tmp_path])
