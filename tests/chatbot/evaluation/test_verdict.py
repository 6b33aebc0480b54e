"""The report in a few sentences: what they claim follows from the numbers, and data that was learned is found out."""

from __future__ import annotations

import ast
import copy
import html
import json
import re
from pathlib import Path

import pytest

from chatbot.evaluation import intervals
from chatbot.evaluation.grid import Grid
from chatbot.evaluation.quality import compare_quality
from chatbot.evaluation.report import words
from chatbot.evaluation.report.html import to_html
from chatbot.evaluation.report.markdown import to_markdown
from chatbot.evaluation.report.tables import ENDINGS, REPLIES, best_of, ending_table, reply_table
from chatbot.evaluation.verdict import verdict, warnings
from chatbot.language.translation import report_texts, to_chinese
from chatbot.text.dialogue import count_units
from chatbot.text.prepared_set import larger_valid_share


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
    if len(checkpoints) > 1:
        best, second = sorted(checkpoints, key=lambda part: part["quality"]["nats_per_unit"])[:2]
        worse = second["quality"]["nats_per_unit"] - best["quality"]["nats_per_unit"]
        names = [best["name"], second["name"]]
        spread = [worse - 0.1, worse + 0.1]
        more = {"difference": {"names": names, "nats_per_unit": worse, "interval": spread, "dialogues": 200}} | more
    people = method(dist_2=0.82)
    for name in ("wrd", "r_64", "stop_reasons", "longest_tokens", "bound_tokens"):
        del people[name]
    return {
        "data": "chats.jsonl",
        "seed": 0,
        "dialogues": 200,
        "left_out": 0,
        "contexts": contexts,
        "limited_by": None,
        "methods": dict.fromkeys((name for part in checkpoints for name in part["decoding"]), "as saved"),
        "left_out_methods": 0,
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
        "All 200 replies of mine ended by themselves. The longest length in tokens is 40; no reply can be longer than 121.",
        "Worst at ending is mine with plain: 6 of 200 replies did not end.",
        "mine needs 3.500 ± 0.050 nats for a character that people write.",
        "The replies of mine are about as varied as those of people: Dist-2 0.800 against 0.820.",
        "Most like people, by the words of their replies: own.",
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dist_2": 0.5}, "less varied than those of people"),
        ({"dist_2": 0.95}, "more varied than those of people"),
        (
            {"cut_off": 7},
            "7 of 200 replies of mine did not end and were cut off. The length in tokens at the cut is 128.",
        ),
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
        (
            3.55,
            "mine (3.500 nats/unit of all turns) and other (3.550) predict what people say about equally well: the 95 %"
            " interval of the difference over 200 dialogues, -0.050 to 0.150, contains 0.",
        ),
        (
            3.9,
            "mine predicts what people say better than other: 3.500 against 3.900 nats/unit of all turns; the 95 % interval"
            " of the difference over 200 dialogues is 0.300 to 0.500.",
        ),
        (3.0, "other predicts what people say better than mine: 3.000 against 3.500 nats/unit of all turns; "),
    ],
)
def test_checkpoints_are_compared_with_their_intervals(nats, sentence):
    two = report(checkpoint("mine", 3.5, own=method(settings="own")), checkpoint("other", nats, own=method()))
    assert any(line.startswith(sentence) for line in verdict(two))
    assert all("mine" in line for line in verdict(two) if line.startswith(("All", "The replies")))
    two["verdict"] = verdict(two)
    assert html.escape(sentence) in to_html(two)
    assert sentence in to_markdown(two)


def test_checkpoints_are_compared_dialogue_by_dialogue():
    """One dialogue is hard for both, which makes both intervals wide but not that of the difference."""
    dialogues = [["在吗", "在呢"]] * 20 + [["嗯"]] * 20
    nats = [6.0 + 4 * (number % 5) for number in range(40)]
    parts = [
        {"name": name, "quality": {"nats_per_unit": value, "dialogue_nats": [extra + one for one in nats]}}
        for name, value, extra in (("other", 3.6, 0.5), ("worst", 4.0, 9.0), ("mine", 3.4, 0.0))
    ]
    compared = compare_quality(parts, dialogues, 500)
    units = sum(map(count_units, dialogues))
    assert compared["names"] == ["mine", "other"]
    assert compared["nats_per_unit"] == pytest.approx(0.5 * 40 / units)
    assert compared["interval"][0] > 0
    assert compared["dialogues"] == 40
    alone = [intervals.ratio(part["quality"]["dialogue_nats"], [1] * 40, 500) for part in (parts[2], parts[0])]
    assert alone[0][1] > alone[1][0]  # these intervals overlap


@pytest.mark.parametrize(
    ("record", "is_warned"),
    [
        ({"data": [{"folder": "own", "learnt": "replies"}], "valid_dialogues": 9}, True),
        ({"data": [{"folder": "own"}], "valid_dialogues": 9}, False),
        ({"data": [{"folder": "own", "learnt": "replies"}], "valid_dialogues": 0}, False),
        ({"stages": [{"data": []}, {"data": [{"learnt": "replies"}]}], "valid_dialogues": 9}, True),
        ({"data": 3, "stages": 5, "valid_dialogues": 9}, False),
    ],
)
def test_figures_of_replies_alone_are_not_to_be_compared_with_those_of_all_turns(record, is_warned, tmp_path):
    (tmp_path / "training.json").write_text(json.dumps(record))
    content = report(checkpoint("mine", 3.5, own=method(settings="own")))
    lines = warnings(content, [tmp_path], __file__)
    assert [line.startswith("mine learned only the bot's turns (:replies).") for line in lines] == [True] * is_warned
    content["verdict"], content["warnings"] = verdict(content), lines
    for text in (html.unescape(to_html(content)), to_markdown(content)):
        assert ("count all turns, so do not compare them." in text) == is_warned


def test_the_worst_method_is_looked_for_in_all_checkpoints_and_named_with_its_bot():
    two = report(
        checkpoint("mine", 3.5, plain=method(2), own=method(settings="own")),
        checkpoint("other", 3.5, plain=method(1), own=method(9, settings="own")),
    )
    assert verdict(two)[1] == "Worst at ending is other with own: 9 of 200 replies did not end."
    assert not any(line.startswith("Worst") for line in verdict(report(checkpoint("mine", 3.5, own=method(9)))))


def test_a_row_names_checkpoint_and_method_once():
    methods = {"greedy": method(3), "saved settings": method(settings="own")}
    two = report(checkpoint("default", 3.5, **methods), checkpoint("mine", 3.6, **methods))
    two["verdict"] = verdict(two)
    two["examples"] = [
        {
            "context": ["在吗"],
            "reference": "在",
            "replies": [[name, how, f"{name}{how}", "eos"] for name in ("default", "mine") for how in methods],
        }
    ]
    names = [row[0].text for row in ending_table(two).rows]
    assert names == ["default · greedy", "default · saved settings", "mine · greedy", "mine · saved settings"]
    page = to_html(two)
    card = page[page.index('class="example"') :].split("</table>")[0]
    assert [card.count(f'"col">{name}<') for name in ("default", "mine")] == [1, 1]
    assert [card.count(f">{name}<") for name in methods] == [1, 1]
    assert 'defaultgreedy</td><td lang="zh-CN">minegreedy' in card
    for text in (page, to_markdown(two)):
        assert "default: default" not in text


def test_methods_with_equal_replies_share_a_row():
    replies = [["mine", "greedy", "在", "eos"], ["mine", "beam", "在", "eos"], ["mine", "own", "在", "limit"]]
    content = report(checkpoint("mine", 3.5, greedy=method(), beam=method(), own=method(settings="own")))
    content["verdict"], content["examples"] = [], [{"context": ["在吗"], "reference": "在", "replies": replies}]
    card = to_html(content).split('class="example"')[1]
    rows = re.findall(r'<th scope="row">(.*?)</th>', card.split("</table>")[0])[1:]  # without that of people
    assert [re.findall('class="method">([^<]+)<', row) for row in rows] == [["greedy", "beam"], ["own"]]


def test_long_parts_of_the_page_are_folded_and_short_ones_are_not():
    def is_open(count, contexts):
        methods = {f"m{number}": method() for number in range(count)}
        content = report(checkpoint("mine", 3.5, **methods))
        replies = [["mine", name, name, "eos"] for name in methods]
        content["examples"] = [{"context": ["在吗"], "reference": "在", "replies": replies}] * contexts
        content["verdict"] = []
        page = to_html(content)
        parts = re.findall(r'<details( open|)><summary><h2><span class="en" lang="en">([^<]+)<', page)
        return {name: bool(mark) for mark, name in parts}, re.findall(r"More contexts: (\d+)", page)

    few, more = is_open(5, 8)
    assert few["Does every reply end?"]
    assert few["When the replies end"]
    assert not few["Settings"]
    assert more == []
    many, more = is_open(20, 8)
    assert not many["Does every reply end?"]
    assert not many["When the replies end"]
    assert more == ["6"]


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


def test_every_sentence_is_known_in_chinese(prepared):
    content = report(checkpoint("mine", 3.5, plain=method(6, wrd=0.4), own=method(settings="own", wrd=0.6)), contexts=7)
    more = report(checkpoint("a", 3.5, plain=method(9, 0.5), own=method(9, 0.5)), checkpoint("b", 4, own=method()))
    lines = [*verdict(content | {"left_out_methods": 8}), *verdict(more), *warnings(content, [None], __file__)]
    lines += [*warnings(content | {"limited_by": "--contexts"}, [None], __file__), *warnings(content, [None], prepared)]
    for line in lines:
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


@pytest.mark.parametrize(
    ("limited_by", "is_prepared", "contexts", "advice"),
    [
        ("--contexts", True, 8, "Raise --contexts, so that there are at least 100."),
        ("--max-dialogues", False, 8, "Raise --max-dialogues, so that there are at least 100."),
        (
            None,
            False,
            8,
            "the data has no more. Give --data with at least 100 dialogues that no checkpoint was trained on.",
        ),
        (
            None,
            True,
            8,
            "and the valid split has no more. Only more chats would change this; holding out more of these would leave too"
            " few to train on.",
        ),
        (
            None,
            True,
            99,
            "and the valid split has no more. Prepare with --valid-share {share} before the next training.",
        ),
    ],
)
def test_the_warning_of_few_contexts_names_the_option_that_helps(limited_by, is_prepared, contexts, advice, prepared):
    content = report(checkpoint("mine", 3.5, own=method()), contexts=contexts, limited_by=limited_by)
    (line,) = warnings(content, [None], prepared if is_prepared else __file__)
    assert line.startswith(f"Too few contexts were answered ({contexts}), so most differences are chance")
    assert line.endswith(advice.format(share=larger_valid_share(prepared, 100 / contexts)))


def test_the_verdict_says_how_many_methods_were_left_out_and_how_to_get_them():
    content = report(checkpoint("mine", 3.5, own=method(settings="own")), left_out_methods=8)
    assert verdict(content)[-1] == (
        "Decoding methods compared: 1 of 9, because fewer than 30 contexts were answered; --methods all compares all."
    )


def test_a_report_of_one_dialogue_has_no_plural_after_a_one():
    only = method(settings="own", replies=1, stop_reasons={"eos": 1, "floor": 0, "limit": 0})
    counts = {
        "contexts": 1,
        "dialogues": 1,
        "units": 1,
        "left_out": 1,
        "left_out_methods": 1,
        "limited_by": "--contexts",
    }
    content = report(checkpoint("mine", 3.5, own=only)) | counts
    content["verdict"], content["warnings"] = verdict(content), warnings(content, [None], __file__)
    content["examples"] = content["examples"] * 49  # of which the last is folded
    texts = [re.sub("<[^>]+>", " ", to_html(content)), to_markdown(content)]
    assert "More contexts: " in texts[0]
    assert [re.findall(r"(?<![\d.])1 (?!less)[a-z]+s\b", text) for text in texts] == [[], []]
    assert content["verdict"][0] == (
        "The only reply of mine ended by itself. Its length in tokens is 40; no reply can be longer than 121."
    )


def test_few_replies_have_no_best_value():
    content = report(
        checkpoint("mine", 3.5, plain=method(60, wrd=0.4), own=method(settings="own", wrd=0.6)), dialogues=4
    )
    content |= {"verdict": verdict(content), "warnings": []}
    assert 'class="best"' in to_html(content)
    for row in content["checkpoints"][0]["decoding"].values():
        row["replies"] = 29
    assert 'class="best"' not in to_html(content)
    assert "with fewer than 30 replies or dialogues, none" in to_html(content)


def test_equal_columns_of_ends_are_one_sentence():
    rows = {name: method(settings=name, r_128=0.0, r_256=0.1) for name in ("plain", "own")}
    for row in rows.values():
        row["intervals"] |= {"r_64": [0.0, 0.01], "r_128": [0.0, 0.01], "r_256": [0.0, 0.2]}
    content = report(checkpoint("mine", 3.5, **rows), lengths=[64, 128, 256])
    content["reference"] |= {"r_128": None, "r_256": None}
    table = ending_table(content)
    assert len({len(table.columns), *(len(row) for row in (*table.rows, table.last))}) == 1
    assert [column.heading for column in table.columns if column.heading.startswith("r_")] == ["r_256"]
    content |= {"verdict": verdict(content), "warnings": []}
    assert "r_64, r_128: 0 (≤ 0.010) for every method." in to_markdown(content)
    assert "r_64, r_128：所有方法都是 0 (≤ 0.010)。" in to_markdown(content, in_chinese=True)
    rows["own"]["r_64"] = 0.5
    assert ending_table(content).note == ""


def test_the_turns_of_a_context_say_who_speaks():
    content = report(checkpoint("mine", 3.5, own=method(settings="own")))
    content["examples"] = [{**content["examples"][0], "context": ["在吗", "在呀", "去哪"]}]
    content |= {"verdict": verdict(content), "warnings": []}
    assert "- user: 在吗 / bot: 在呀 / user: 去哪" in to_markdown(content)
    assert "- 用户：在吗 / 机器人：在呀 / 用户：去哪" in to_markdown(content, in_chinese=True)
    assert to_html(content).count('lang="zh-CN">机器人</span>') == 1


def test_tables_mark_the_best_and_keep_numbers_to_sort_by():
    content = report(checkpoint("mine", 3.5, plain=method(60, wrd=0.4), own=method(settings="own", wrd=0.6)))
    content["warnings"] = [
        "Too few contexts were answered (3), so most differences are chance."
        " Raise --contexts, so that there are at least 100."
    ]
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
    parts = (
        "ended by themselves",
        "全都自己结束了",
        "Replies side by side",
        "&lt;b&gt;",
        "How to read the numbers",
        "Does every reply end?",
    )
    order = [page.index(part) for part in parts]
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
    content["methods"] = dict.fromkeys(content["methods"], "the settings that are saved in the checkpoint")
    return content


KNOWN = (
    r"mine|own|one|chats|floor|nats|unit|BLEU|WRD|Dist|Ent|rep|token|xianliao-evaluate|--[a-z-]+|python -m [a-z.]+"
    r"|pip install -e|\[eval\]|r_\w+|Witten-Bell|Wilson|sacrebleu|method|ent_4|dist_2|\bi\b|L"
)
"""Names that are the same in Chinese."""


def test_the_page_is_complete_in_both_languages():
    page = to_html(full_report())
    chinese, english = texts_of(page, "zh"), texts_of(page, "en")
    left = [line for line in chinese.splitlines() if re.search("[A-Za-z]{2,}", re.sub(KNOWN, "", line))]
    assert left == ["English"]
    assert [line for line in english.splitlines() if re.search("[一-鿿]", line)] == ["中文", "在吗", "在", "在 ", "在 "]
    assert "mine 的评测：数据 chats（验证集）" in chinese
    assert "Evaluation of mine on chats (valid split)" in english
    assert [
        name for name in ("title", "aria-label") if page.count(f" {name}=") != page.count(f" data-zh-{name}=")
    ] == []
    without_vectors = to_html({**full_report(), "vectors": None})
    assert "没有 token 向量" in texts_of(without_vectors, "zh")


def test_the_markdown_is_complete_in_both_languages():
    english, chinese = to_markdown(full_report()), to_markdown(full_report(), in_chinese=True)
    assert english.startswith("# Evaluation of mine on chats (valid split)\n")
    assert chinese.startswith("# mine 的评测：数据 chats（验证集）\n")
    assert not re.search("[一-鿿]", english.replace("在吗", "").replace("在", ""))
    left = [line for line in chinese.splitlines() if re.search("[A-Za-z]{2,}", re.sub(KNOWN, "", line))]
    assert left == []
    assert english.count("\n#") == chinese.count("\n#")
    for text, heading in ((english, "## Replies side by side"), (chinese, "## 同一句话，各种方法怎么回")):
        assert text.index(heading) < text.index("| ")


def test_every_column_of_the_likeness_table_is_explained():
    text, page = to_markdown(full_report()), to_html(full_report())
    for column in (*REPLIES, *ENDINGS):
        assert column.meaning
        assert re.search(rf"^- (.*, )?{re.escape(column.heading)}(, .*)?: {re.escape(column.meaning)}$", text, re.M)
        assert html.escape(column.meaning) in page[page.index("What the columns mean") :]


def test_every_method_of_the_default_grid_is_explained_in_both_languages():
    grid = Grid.read()
    assert set(grid.about) == set(grid.methods)
    assert [text for text in grid.about.values() if words.chinese(text) == text] == []


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
    elsewhere |= set(Grid.read().about.values())
    joined = "\n".join(fixed)
    unused = [text for text in report_texts() if not all(part in joined for part in re.split(r"\{\d\}", text))]
    assert set(unused) <= elsewhere
