"""Input of any shape is read in bounded memory: tiny cells, values and turns, rows and dialogues without end."""

from __future__ import annotations

import gzip
import json
import os
import time
import tracemalloc
from itertools import chain

import pytest

from chatbot import storage
from chatbot.errors import FileError
from chatbot.text.packed_files import PackedFile
from chatbot.text.prepared_set import load_manifest
from data_prep.cleaning.cleaner import Cleaner
from data_prep.cleaning.ledger import MAX_LABELS, Ledger
from data_prep.pipeline import build
from data_prep.reading.formats import Block, read_blocks, records
from data_prep.reading.records import MAX_TURNS, MAX_VALUES
from data_prep.reading.tables import delimiter_of
from data_prep.settings import CleanSettings, PrepareSettings
from data_prep.stages.arrow_files import PieceCollector, Provenance
from data_prep.stages.block_id import BlockId
from data_prep.stages.clean_block import clean_block
from data_prep.stages.work_folder import read_result
from tests.data_prep.test_pipeline import check_that_it_adds_up

GOOD = '["今天去哪里", "去公园吧"]\n'
PLAIN = PrepareSettings(vocab_size=400, valid_share=0.0)


def peak_bytes(call):
    """Return what the call returns, and the largest number of bytes that Python held meanwhile."""
    tracemalloc.start()
    result = call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak


def outcomes(path, form="auto"):
    blocks = read_blocks(PackedFile(path), form)
    return [
        (record.number, len(record.turns or ()), record.reason) for record in chain.from_iterable(map(records, blocks))
    ]


LARGE = {
    "tsv": ("tsv", "你\t好\n", "好\t" * 1_000_000 + "\n", "too_many_cells"),
    "csv": ("table", "question,answer\n你,好\n", "好," * 1_000_000 + "\n", "too_many_cells"),
    "csv of messages": ("table", "sender,content\n甲,你好\n乙,好\n", "好," * 1_000_000 + "\n", "too_many_cells"),
    "bars": ("table", "你 | 好\n我 | 好\n", "好 | " * 1_000_000 + "\n", "too_many_cells"),
    "row of many lines": ("table", "question,answer\n你,好\n", '"\n' + '好","\n' * 100_000 + '"\n', "too_many_cells"),
    "list": ("jsonl", GOOD, "[" + '"好",' * 1_000_000 + '"好"]\n', "too_many_values"),
    "objects": ("jsonl", GOOD, "[" + "{}," * 1_000_000 + "{}]\n", "too_many_values"),
    "message": ("messages", '{"sender": "甲", "content": "你好"}\n' * 2, "[" + "[]," * 1_000_000 + "[]]\n", "not_json"),
}


@pytest.mark.parametrize(("form", "before", "large", "reason"), LARGE.values(), ids=LARGE)
def test_a_row_of_tiny_parts_is_a_counted_skip(tmp_path, form, before, large, reason):
    path = tmp_path / "x"
    path.write_text(before + large + before, encoding="utf-8")
    rows, peak = peak_bytes(lambda: outcomes(path, form))
    assert reason in {why for _, _, why in rows}
    assert rows[0][2] is None
    assert rows[-1][2] is None
    assert peak < 60 << 20


def test_a_row_as_long_as_the_file_is_skipped(tmp_path):
    path = tmp_path / "x.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write('question,answer\n你,好\n"')
        for _ in range(40):
            file.write(("好" * 9_999 + "\n") * 50)
    rows, peak = peak_bytes(lambda: outcomes(path))
    assert [why for _, _, why in rows][:2] == [None, "line_too_long"]
    assert peak < 300 << 20  # 16 million characters, four bytes each in the csv module


def test_an_array_element_of_tiny_parts_is_refused(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('[["你好", "好"], [' + "[]," * 2_000_000 + "[]]]", encoding="utf-8")
    with pytest.raises(FileError, match=f"more than {MAX_VALUES:,} values after 1 dialogues"):
        outcomes(path)


def test_the_first_field_of_a_table_may_have_any_length():
    assert delimiter_of(["{" + "a" * 200_000 + ",b"]) is None


def test_short_turns_take_little_memory_in_cleaning_and_in_reading(tmp_path):
    line, block_id = json.dumps(["ok"] * 50).encode(), BlockId(0, 0, "x", "train")
    clean_block(tmp_path, block_id, Block(1, "jsonl", line), CleanSettings(), 1)  # loads the word list
    block = Block(1, "jsonl", b"\n".join([line] * 1_000))
    _, peak = peak_bytes(lambda: clean_block(tmp_path, block_id, block, CleanSettings(), 1))
    assert peak < 10 << 20  # as entries, the 50,000 removed turns would need 20 MB
    assert gzip.decompress((tmp_path / "block-00000-000000.gz").read_bytes()).count(b"\n") == 50_000
    path = tmp_path / "x.txt"
    path.write_text("嗯\n" * 400_000, encoding="utf-8")
    blocks = read_blocks(PackedFile(path), "text")
    assert max(sum(len(record.turns) for record in block.records) for block in blocks) <= 150_000


def test_clean_dialogues_are_not_held_as_python_strings():
    warm, pieces, provenance = PieceCollector(1), PieceCollector(3), Provenance(1, 1, whole=True)
    warm.add(["好", "嗯"], provenance)
    assert sum(map(len, warm.batches())) == 1  # imports what pyarrow needs
    _, peak = peak_bytes(
        lambda: [pieces.add([f"好{index}", f"嗯{index}"], provenance) for index in range(100_000)] and None
    )
    assert peak < 20 << 20  # otherwise 50 MB
    batches = list(pieces.batches())
    assert sum(map(len, batches)) == 100_000
    assert batches[0].column("turns")[0].as_py()[0].startswith("好")


def test_labels_are_counted_in_bounded_memory_within_a_dialogue():
    ledger = Ledger()
    ledger.inspect([f"{index}：好" for index in range(10 * MAX_LABELS)])
    assert len(ledger.suspicious) <= MAX_LABELS


def test_a_dialogue_of_too_many_turns_is_cut_and_counted_as_split(tmp_path):
    turns = [f"今天看了{'一二三四五六七八九十'[index % 10]}{index}" for index in range(2 * MAX_TURNS + 5)]
    pieces, dirty = Cleaner(CleanSettings()).pieces(turns, ledger := Ledger())
    assert [len(piece) for piece in pieces] == [MAX_TURNS, MAX_TURNS, 5]
    assert list(chain.from_iterable(pieces)) == turns
    assert not dirty
    assert (ledger.dialogues["split"], ledger.pieces) == (1, 3)
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD + json.dumps(turns, ensure_ascii=False) + "\n", encoding="utf-8")
    manifest = build([str(path)], tmp_path / "set", PLAIN)
    check_that_it_adds_up(manifest)
    assert manifest["dialogues"] == {"read": 2, "kept_whole": 1, "split": 1, "dropped": 0}
    assert manifest["splits"]["train"]["turns"] == len(turns) + 2


def test_results_of_a_build_may_have_any_size(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MAX_JSON_BYTES", 700)  # of files from elsewhere; shard-00000.json is larger
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD * 3, encoding="utf-8")
    assert build([str(path)], tmp_path / "set", PLAIN)["dialogues"]["read"] == 3


def test_a_damaged_result_of_a_build_is_one_sentence_that_says_what_to_do(tmp_path):
    path = tmp_path / "shard-00000.json"
    path.write_bytes(b"\0" * 100)
    with pytest.raises(
        FileError, match=r"shard-00000.json, the result of an interrupted build, .* Run the command again;"
    ):
        read_result(path)


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_a_file_whose_name_is_not_text_is_read(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/\xff\xfe.jsonl", "wb") as file:
        file.write((GOOD + '["ok", "ok"]\n').encode())
    manifest = build([str(folder)], tmp_path / "set", PLAIN)
    assert manifest["sources"][0]["file"] == "\ufffd\ufffd.jsonl"
    assert load_manifest(tmp_path / "set")["fingerprint"] == manifest["fingerprint"]
    removed = gzip.decompress((tmp_path / "set" / "report" / "dropped.jsonl.gz").read_bytes()).decode()
    assert json.loads(removed.splitlines()[0])["file"] == "\ufffd\ufffd.jsonl"


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_large_file_that_is_not_text_is_refused_before_it_is_hashed(tmp_path, split):
    path, good = tmp_path / "sparse.jsonl", tmp_path / "good.jsonl"
    path.touch()
    os.truncate(path, 64 << 30)
    good.write_text(GOOD, encoding="utf-8")
    start = time.process_time()
    with pytest.raises(FileError, match="is not text"):
        build([str(path if split == "train" else good)], tmp_path / "set", PLAIN, valid=[str(path)])
    assert time.process_time() - start < 5
