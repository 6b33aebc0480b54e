"""The report in a few sentences: what they claim follows from the numbers, and data that was learned is found out."""

from __future__ import annotations

import ast
import copy
import html
import json
import re
from pathlib import Path

import pytest

from chatbot.evaluation.report import words
from chatbot.evaluation.report.html import to_html
from chatbot.evaluation.report.markdown import to_markdown
from chatbot.evaluation.report.tables import ENDINGS, REPLIES, best_of, ending_table, reply_table
from chatbot.evaluation.verdict import verdict, warnings
from chatbot.language.translation import report_texts, to_chinese


def method(cut_off=0, dist_2=0.8, wrd=0.5, settings="floor", **more):
    half = 0.01
    return {
        "settings": {"method": settings},
        "bound_tokens": 121,
        "replies": 200,
        "longest_tokens": 128 if cut_off else 40,
        "stop_reasons": {"eos": 199 - cut_off, "floor": 1, "limit": cut_off},
        "tokens": [[4, 150], [40, 50]],
        "characters": [[3, 100], [9, 100]],
        "r_64": cut_off / 200,
        "rep_4": 0.01,
        "dist_2": dist_2,
        "wrd": wrd,
        "intervals": {
            "dist_2": [dist_2 - half, dist_2 + half],
            "wrd": [wrd - half, wrd + half],
            "r_64": [max(0.0, cut_off / 200 - half), cut_off / 200 + half],
            "rep_4": [0.0, 0.02],
        },
        **more,
    }


def checkpoint(name, nats, **methods):
    quality = {
        "nats_per_unit": nats,
        "interval": [nats - 0.05, nats + 0.05],
        "perplexity_per_unit": 40.0,
        "units": 900,
        "by_turn": [{"turn": "1", "units": 900, "nats_per_unit": nats, "interval": [nats - 0.05, nats + 0.05]}],
    }
    return {"name": name, "settings": {"method": "own"}, "quality": quality, "decoding": methods}


def report(*checkpoints, contexts=200, **more):
    people = method(dist_2=0.82)
    for name in ("wrd", "r_64", "stop_reasons", "longest_tokens", "bound_tokens"):
        del people[name]
    return {
        "data": "chats.jsonl",
        "seed": 0,
        "dialogues": 200,
        "left_out": 0,
        "contexts": contexts,
        "units": 900,
        "lengths": [64],
        "vectors": "mine",
        "budgets": {"dist_2": 400},
        "reference": people,
        "checkpoints": list(checkpoints),
        "examples": [{"context": ["在吗"], "reference": "在", "replies": [["mine", "own", "<b>在</b>", "eos"]]}],
        "warnings": [],
        **more,
    }


def test_a_good_report_in_sentences():
    content = report(checkpoint("mine", 3.5, plain=method(6, wrd=0.4), own=method(settings="own", wrd=0.6)))
    assert verdict(content) == [
        "All 200 replies of mine ended by themselves: the longest has 40 tokens, and none can have more than 121.",
        "The worst method is plain: 6 of 200 replies did not end.",
        "mine needs 3.500 ± 0.050 nats for a character that people write.",
        "The replies of mine are about as varied as those of people: Dist-2 0.800 against 0.820.",
        "Most like people, by the words of their replies: own.",
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dist_2": 0.5}, "less varied than those of people"),
        ({"dist_2": 0.95}, "more varied than those of people"),
        ({"cut_off": 7}, "7 of 200 replies of mine did not end and were cut off after 128 tokens."),
        ({"wrd": 0.41}, "No method is clearly more like people than the others."),
    ],
)
def test_the_sentences_follow_the_numbers(changes, sentence):
    content = report(
        checkpoint("mine", 3.5, plain=method(wrd=0.4), own=method(settings="own", **{"wrd": 0.6, **changes}))
    )
    assert sentence in " ".join(verdict(content))


@pytest.mark.parametrize(
    ("nats", "sentence"),
    [
        (3.55, "mine (3.500 nats/unit) and other (3.550) predict what people say about equally well."),
        (3.9, "mine predicts what people say better than other: 3.500 against 3.900 nats/unit."),
        (3.0, "other predicts what people say better than mine: 3.000 against 3.500 nats/unit."),
    ],
)
def test_checkpoints_are_compared_with_their_intervals(nats, sentence):
    two = report(checkpoint("mine", 3.5, own=method(settings="own")), checkpoint("other", nats, own=method()))
    assert sentence in verdict(two)
    assert all("mine" in line for line in verdict(two) if line.startswith(("All", "The replies")))


def test_with_many_equal_methods_they_are_counted():
    methods = {f"m{number}": method(wrd=0.6) for number in range(9)}
    content = report(checkpoint("mine", 3.5, **methods, own=method(settings="own", wrd=0.1)))
    assert verdict(content)[-1] == "9 of 10 methods are equally like people; the others are clearly less so."


def test_a_report_without_likeness_has_a_verdict():
    rows = {name: method(settings=name) for name in ("plain", "own")}
    for row in rows.values():
        del row["wrd"], row["dist_2"]
    assert (
        len(verdict(report(checkpoint("mine", 3.5, **rows), baselines={"witten_bell_trigram": 4.5, "unigram": 6}))) == 2
    )


def test_every_sentence_is_known_in_chinese():
    content = report(checkpoint("mine", 3.5, plain=method(6, wrd=0.4), own=method(settings="own", wrd=0.6)), contexts=7)
    more = report(checkpoint("a", 3.5, plain=method(9, 0.5), own=method(9, 0.5)), checkpoint("b", 4, own=method()))
    for line in (*verdict(content), *verdict(more), *warnings(content, [None], __file__)):
        assert to_chinese(line) != line, line


@pytest.mark.parametrize(
    ("values", "goal", "people", "expected"),
    [
        ([(0.1, 0.0, 0.2), (0.15, 0.1, 0.3), (0.9, 0.8, 1.0)], "low", None, [True, True, False]),
        ([(0.1, 0.0, 0.2), (0.15, 0.1, 0.3), (0.9, 0.8, 1.0)], "high", None, [False, False, True]),
        ([(0.1, 0.0, 0.2), (0.4, 0.35, 0.45), (0.9, 0.8, 1.0)], "people", 0.42, [False, True, False]),
        (
            [(0.5, 0.45, 0.55), (0.31, 0.26, 0.36), None, (0.9, 0.8, 1.0)],
            "people",
            0.4,
            [True, True, False, False],
        ),  # one on each side
        ([(0.5, 0.45, 0.55), (0.1, 0.05, 0.15)], "people", 0.4, [True, False]),
        ([(0.5, 0.4, 0.6), (0.55, 0.5, 0.6)], "low", None, [False, False]),  # none is clearly better
        ([(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)], "", None, [False, False]),
        ([None, None], "low", None, [False, False]),
        ([(1.0, 1.0, 1.0)], "low", None, [False]),
        ([(0.5, 0.45, 0.55), (0.1, 0.05, 0.15)], "people", None, [False, False]),
    ],
)
def test_the_best_are_those_that_are_not_clearly_worse(values, goal, people, expected):
    assert best_of(values, goal, people) == expected


def test_tables_mark_the_best_and_keep_numbers_to_sort_by():
    content = report(checkpoint("mine", 3.5, plain=method(60, wrd=0.4), own=method(settings="own", wrd=0.6)))
    content["warnings"] = ["Only 3 contexts were answered, so most differences are chance. Give at least 100."]
    content["verdict"] = verdict(content)
    table = ending_table(content)
    assert [(row[0].text, row[1].is_best, row[1].value) for row in table.rows] == [
        ("plain", False, 0.3),
        ("own", True, 0),
    ]
    assert table.last[0].text == "people"
    assert [row[-1].is_best for row in reply_table(content).rows] == [False, True]
    page, text = to_html(content), to_markdown(content)
    assert '<td data-value="0.6" class="best">0.600 <small>± 0.010</small></td>' in page
    assert "**0.600 ± 0.010**" in text
    assert '<html lang="en">' in page
    assert "&lt;b&gt;在&lt;/b&gt;" in page
    assert "只回答了 3 段上文" in page
    order = [page.index(part) for part in ("ended by themselves", "全都自己结束了", "In plain words", "<table")]
    assert order == sorted(order)


def test_names_and_texts_are_neither_html_nor_links_in_the_report():
    hostile = "<img src=x onerror=alert(1)>"
    content = report(checkpoint(hostile, 3.5, **{hostile: method()}))
    example = {"context": [f"{hostile}![a](http://example)"], "reference": hostile}
    content["examples"] = [{**example, "replies": [[hostile, hostile, f"[b](javascript:c){hostile}", "eos"]]}]
    content["verdict"] = [hostile]
    for text in (to_html(content), to_markdown(content)):
        assert "<img" not in text
        assert "&lt;img" in text
    assert not re.search(r"(?<!\\)\[[ab]\]\(", to_markdown(content))


def test_a_long_list_of_words_is_counted_in_the_settings():
    row = method()
    row["settings"] = {"top_p": 0.9, "banned_words": ["禁用的词"] * 100}
    content = report(checkpoint("mine", 3.5, own=row))
    content["verdict"] = verdict(content)
    for text in (to_html(content), to_markdown(content)):
        assert "top_p 0.9, banned_words (100 entries)" in text
        assert "禁用的词" not in text


def test_a_cost_of_nothing_is_nothing():
    costs = {"own": -1e-9, "free": 2e-9, "dear": 0.01}
    methods = {name: method(settings=name, reference_cost_nats_per_unit=cost) for name, cost in costs.items()}
    cells = [row[1] for row in reply_table(report(checkpoint("mine", 3.5, **methods))).rows]
    assert [(cell.text, cell.is_best) for cell in cells] == [("0", True), ("0", True), ("0.0100", False)]


def test_twenty_methods_have_a_panel_each_in_both_charts():
    methods = {f"method number {number}": method(number, wrd=0.4 + number / 100) for number in range(20)}
    content = report(checkpoint("mine", 3.5, **methods))
    content["verdict"] = verdict(content)
    page = to_html(content)
    assert page.count("<figcaption>method number") == 40


def training(tmp_path, **entry):
    folder = tmp_path / "bot"
    folder.mkdir()
    content = {"data": [], "mean_of": [{"initialised_from": {"stages": [{"data": [entry]}]}}]}
    (folder / "training.json").write_text(json.dumps(content))
    return folder


def test_a_split_that_was_learned_is_found_by_its_hash(prepared, tmp_path):
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    valid = manifest["splits"]["valid"]["content_hash"]
    content = report(checkpoint("mine", 3.5, own=method()))
    learned = training(tmp_path, train=valid, valid="0", sources=["x"])
    assert warnings(content, [learned], prepared) == [
        "mine learned from exactly these dialogues, so its numbers are too good. Use other dialogues."
    ]


def test_the_held_out_split_of_the_training_set_is_no_fault(prepared, tmp_path):
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    splits = {name: split["content_hash"] for name, split in manifest["splits"].items()}
    names = [source["file"] for source in manifest["sources"]]
    content = report(checkpoint("mine", 3.5, own=method()))
    assert warnings(content, [training(tmp_path, **splits, sources=names)], prepared) == []


def test_another_preparation_of_the_same_files_is_suspicious(prepared, tmp_path):
    manifest = json.loads((prepared / "manifest.json").read_text(encoding="utf-8"))
    names = [source["file"] for source in manifest["sources"]]
    content = report(checkpoint("mine", 3.5, own=method()))
    (warning,) = warnings(content, [training(tmp_path, train="1", valid="2", sources=names)], prepared)
    assert "mine learned from a file that is also called " in warning


def test_a_file_of_the_same_name_is_suspicious(tmp_path):
    data = tmp_path / "data" / "chats.jsonl"
    data.parent.mkdir()
    data.write_text('["在吗", "在"]\n')
    content = report(checkpoint("mine", 3.5, own=method()), checkpoint("other", 3.5, own=method()))
    folder = training(tmp_path, train="1", valid="2", sources=["old/chats.jsonl"])
    for path in (data, data.parent):
        (warning,) = warnings(content, [folder, None], path)
        assert warning.startswith("mine learned from a file that is also called chats.jsonl. If it is this file, ")
    few = copy.deepcopy(content) | {"contexts": 99}
    assert len(warnings(few, [None, None], data)) == 1


def test_damaged_training_files_are_no_fault(tmp_path):
    (tmp_path / "training.json").write_text("{")
    assert warnings(report(checkpoint("mine", 3.5, own=method())), [tmp_path], __file__) == []


def test_the_samples_were_learned_by_the_bundled_bot(tmp_path):
    from chatbot.checkpoint.folder import resolve
    from tests.conftest import SAMPLES

    (warning,) = warnings(report(checkpoint("default", 3.5, own=method())), [resolve("default")], SAMPLES)
    assert "default learned from a file that is also called " in warning


def texts_of(page: str, language: str) -> str:
    """Return the texts and labels that a page shows in a language."""
    shown = re.sub(r"<(style|script|title|metadata)\b.*?</\1>", "", page, flags=re.DOTALL)
    other = {"en": "zh", "zh": "en"}[language]
    shown = re.sub(rf'<(span|tspan) class="{other}".*?</\1>', "", shown)
    labels = re.findall(
        r'data-zh(?:-[a-z-]+)?="([^"]*)"' if language == "zh" else r' (?:title|aria-label)="([^"]*)"', page
    )
    return html.unescape("\n".join([*labels, *re.sub(r"<[^>]*>", "\n", shown).split("\n")]))


def full_report(**more):
    """A report that has every column, note and warning."""
    cost = {"reference_cost_nats_per_unit": None, "forbidden_references": 0.12}
    numbers = {column.key: 0.5 for column in (*ENDINGS, *REPLIES) if column.key not in method()} | cost
    part = checkpoint("mine", 3.5, one=method(5, **numbers), own=method(settings="own", **numbers))
    part["quality"]["by_turn"].append({**part["quality"]["by_turn"][0], "turn": "7 and later"})
    baselines = {"witten_bell_trigram": 4.0, "unigram": 5.0}
    example = {
        "context": ["在吗"],
        "reference": "在",
        "replies": [["mine", "one", "在", "limit"], ["mine", "own", "在", "floor"]],
    }
    content = report(part, contexts=6, left_out=2, baselines=baselines, examples=[example], data="chats (valid split)")
    content["reference"] |= {column.key: 0.5 for column in REPLIES}
    content["verdict"] = verdict(content)
    content["warnings"] = warnings(content, [None], __file__)
    return content


def test_the_page_is_complete_in_both_languages():
    names = (
        r"mine|own|one|chats|floor|nats|unit|BLEU|WRD|Dist|Ent|rep|token|xianliao-evaluate|--aptness|python -m [a-z.]+"
    )
    names += r"|pip install -e|\[eval\]|r_\w+|Witten-Bell|Wilson|sacrebleu|method|ent_4|dist_2|\bi\b|L"
    page = to_html(full_report())
    chinese, english = texts_of(page, "zh"), texts_of(page, "en")
    left = [line for line in chinese.splitlines() if re.search("[A-Za-z]{2,}", re.sub(names, "", line))]
    assert left == ["English"]
    assert [line for line in english.splitlines() if re.search("[一-鿿]", line)] == ["中文", "在吗", "在", "在 ", "在 "]
    assert "mine 的评测：数据 chats（验证集）" in chinese
    assert "Evaluation of mine on chats (valid split)" in english
    assert [
        name for name in ("title", "aria-label") if page.count(f" {name}=") != page.count(f" data-zh-{name}=")
    ] == []
    without_vectors = to_html({**full_report(), "vectors": None})
    assert "没有词向量" in texts_of(without_vectors, "zh")


def test_every_text_of_the_page_is_one_of_the_code():
    source = Path(words.__file__).parent
    constants = {
        node.value
        for path in source.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    fixed = {
        part for text in constants for part in (text, text.replace("Bold", "Bold on colour"), text.replace("_", " "))
    }
    elsewhere = {"{0} (valid split)", "7 and later", "{0}: {1} of {2} replies did not end and were cut off."}
    joined = "\n".join(fixed)
    unused = [text for text in report_texts() if not all(part in joined for part in re.split(r"\{\d\}", text))]
    assert set(unused) <= elsewhere
