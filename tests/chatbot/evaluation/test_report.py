"""xianliao-evaluate's report: complete, the same byte for byte, resumable, and true to what the replies are."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from chatbot.chat.bot import Chatbot
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import CheckpointError, FileError
from chatbot.evaluation import answering, intervals, references
from chatbot.evaluation.answering import answer_all, encode, make_contexts
from chatbot.evaluation.cache import FOLDER, ResultCache
from chatbot.evaluation.grid import Grid, GridError
from chatbot.evaluation.likeness import Likeness
from chatbot.evaluation.quality import measure_quality
from chatbot.evaluation.references import reference_nats
from chatbot.evaluation.report.examples import examples
from chatbot.evaluation.run import evaluate
from chatbot.model.network import XianliaoForCausalLM
from chatbot.similarity.token_vectors import VECTORS_FILE, TokenVectors
from chatbot.storage import exclusive
from chatbot.text.dialogue import count_units
from tests.conftest import tiny_config

GRID = Grid(
    (8, 20),
    {
        "greedy": {"base": "plain", "method": "greedy"},
        "beam": {"base": "floor", "method": "beam", "beams": 2},
        "best of 3": {"base": "floor", "candidates": 3, "rank_similarity": 1.0},
        "rules": {"base": "floor", "repetition_penalty": 1.3, "no_repeat_ngram": 2, "repeat_cost": 2.0},
        "default": {},
    },
    budget=200,
    subsets=20,
    resamples=50,
    examples=3,
)


@pytest.fixture(scope="module")
def data_file(dialogues, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "some.jsonl"
    path.write_text("\n".join(json.dumps(turns, ensure_ascii=False) for turns in dialogues[:20]), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def with_vectors(checkpoint, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bot") / "vectored"
    shutil.copytree(checkpoint, folder)
    vectors = np.random.default_rng(0).standard_normal((tokenizer.vocab_size, 8)).astype(np.float16)
    vectors[list(tokenizer.special_ids)] = 0
    save_file({"vectors": vectors}, folder / VECTORS_FILE)
    return folder


@pytest.fixture(scope="module")
def finished(with_vectors, checkpoint, data_file, dialogues, tmp_path_factory):
    """A report of two checkpoints, with everything in it."""
    folder = tmp_path_factory.mktemp("report")
    more = folder / "more.jsonl"
    more.write_text("\n".join(json.dumps(turns, ensure_ascii=False) for turns in dialogues[20:60]), encoding="utf-8")
    bots = [Chatbot.from_pretrained(with_vectors), Chatbot.from_pretrained(checkpoint)]
    result = evaluate(bots, data_file, folder / "first", more, GRID, max_contexts=12)
    return folder, bots, result


def test_it_is_complete(finished, dialogues):
    folder, _, result = finished
    report = json.loads((folder / "first" / "report.json").read_text(encoding="utf-8"))
    assert report == json.loads(json.dumps(result["report"]))
    assert report["units"] == sum(count_units(turns) for turns in dialogues[:20])
    assert report["baselines"]["witten_bell_trigram"] < report["baselines"]["unigram"]
    assert [part["name"] for part in report["checkpoints"]] == ["vectored", "tiny"]
    for part in report["checkpoints"]:
        quality = part["quality"]
        assert quality["interval"][0] < quality["nats_per_unit"] < quality["interval"][1]
        total = sum(entry["nats_per_unit"] * entry["units"] for entry in quality["by_turn"])
        assert total / quality["units"] == pytest.approx(quality["nats_per_unit"])
        assert list(part["decoding"]) == list(GRID.methods)
        for name, row in part["decoding"].items():
            assert row["replies"] == sum(row["stop_reasons"].values()) == sum(count for _, count in row["tokens"]) == 12
            assert row["longest_tokens"] <= row["bound_tokens"]
            numbers = {"dist_1", "dist_2", "word_dist_2", "ent_4", "bleu_2", "bleu_4", "wrd", "greedy_matching"}
            numbers |= {"embedding_average", "rep_4", "repetitive", "echo", "r_8", "r_20", "mean_characters"}
            assert numbers <= row.keys(), name
            assert numbers <= row["intervals"].keys()
            assert [
                (key, row[key], low, high)
                for key, (low, high) in row["intervals"].items()
                if not low <= row[key] <= high
            ] == []
            assert (row["reference_cost_nats_per_unit"] is None) == (row["forbidden_references"] > 0)  # beyond a limit
    assert len(report["examples"]) == 3
    assert len(report["examples"][0]["replies"]) == 2 * len(GRID.methods)
    timing = json.loads((folder / "first" / "timing.json").read_text())
    assert timing["vectored"]["default"]["tokens_per_second"] > 0
    assert "tokens_per_second" not in json.dumps(report)


def test_the_page_needs_nothing_else(finished):
    folder, _, _ = finished
    page = (folder / "first" / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 * len(GRID.methods) * 2 + 1  # two small plots of each method of each checkpoint
    assert "#010203" not in page
    assert "mathdefault" not in page
    assert re.search(r"<text[^>]*>0\.1</text>", page)  # a label of the logarithmic axes
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.replace('xlink:href="#', ""))
    assert "best of 3" in page
    used = set(re.findall(r'href="#([^"]+)|url\(#([^)]+)', page))
    assert {first or second for first, second in used} <= set(re.findall(r' id="([^"]+)"', page))
    report = (folder / "first" / "report.md").read_text(encoding="utf-8")
    assert "did not end and were cut off" in report
    for text in (page, report):  # the verdict is first
        assert 0 < text.index("ended by themselves") < text.index("nats/unit of")


def test_the_same_again_byte_for_byte_and_in_no_time(finished, data_file, monkeypatch):
    folder, bots, _ = finished
    names = ("report.json", "report.md", "report.html")
    evaluate(bots, data_file, folder / "second", folder / "more.jsonl", GRID, max_contexts=12)
    for name in names:
        assert (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes()

    def never(*args):
        raise AssertionError("it was worked out before")

    monkeypatch.setattr(answering, "_answer_batch", never)
    monkeypatch.setattr(references, "_score_batch", never)
    evaluate(bots, data_file, folder / "second", folder / "more.jsonl", GRID, max_contexts=12)
    timings = [json.loads((folder / "second" / "timing.json").read_text())["tiny"]["default"]["seconds"]]
    assert timings[0] > 0


def test_a_killed_one_goes_on(finished, data_file, monkeypatch):
    folder, bots, _ = finished
    monkeypatch.setattr(answering, "BATCH_SIZE", 5)
    batch, calls = answering._answer_batch, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return batch(*args)

    monkeypatch.setattr(answering, "_answer_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(bots, data_file, folder / "killed", folder / "more.jsonl", GRID, max_contexts=12)
    half = next((folder / "killed" / "replies").glob("vectored-greedy*"))
    with half.open("ab") as file:
        file.write(b'{"contexts": [1, 2')  # what a kill leaves of a line
    evaluate(bots, data_file, folder / "killed", folder / "more.jsonl", GRID, max_contexts=12)
    assert len(calls) == 9 + 2 * 5 * 3 - 8
    for name in ("report.json", "report.md", "report.html"):
        assert (folder / "first" / name).read_bytes() == (folder / "killed" / name).read_bytes()


def test_what_no_longer_fits_is_made_anew(finished, data_file):
    folder, bots, _ = finished
    output = folder / "changed"
    small = Grid((8,), {"default": {}}, 50, 5, 20, 1)
    evaluate(bots[1:], data_file, output, grid=small, max_contexts=5)
    before = (output / "report.json").read_bytes()
    evaluate(bots[1:], data_file, output, grid=small, max_contexts=5, seed=7)
    assert (output / "report.json").read_bytes() != before
    assert len(list((output / "replies").glob("*.jsonl"))) == 3  # quality, default, references; the old ones are gone


def test_a_model_that_differs_in_its_config_alone_is_another(checkpoint, data_file, tmp_path):
    folder, small = tmp_path / "bot", Grid((8,), {"default": {}}, 50, 20, 20, 1)
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    first = evaluate([Chatbot.from_pretrained(folder)], data_file, tmp_path / "report", grid=small, max_contexts=4)
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 0.5}))
    second = evaluate([Chatbot.from_pretrained(folder)], data_file, tmp_path / "report", grid=small, max_contexts=4)
    values = [outcome["report"]["checkpoints"][0]["quality"]["nats_per_unit"] for outcome in (first, second)]
    assert values[0] != values[1]


def test_names_of_any_kind_keep_their_own_replies(bot, data_file, tmp_path, monkeypatch):
    methods = {"核采样": {}, "默认": {}, "cost $\\frac$": {}, "_x": {"base": "plain"}}
    grid = Grid((8,), methods, 50, 20, 20, 1)
    monkeypatch.setattr(answering, "BATCH_SIZE", 3)
    evaluate([bot], data_file, tmp_path, grid=grid, max_contexts=9)
    before = (tmp_path / "report.html").read_bytes()
    assert "_x" in before.decode()
    for path in (tmp_path / "replies").glob("*.jsonl"):
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:1]) + b'{"contexts": [damaged\n' + b"".join(lines[2:]))
    evaluate([bot], data_file, tmp_path, grid=grid, max_contexts=9)
    assert (tmp_path / "report.html").read_bytes() == before


def test_two_at_once_in_a_folder_are_one_too_many(bot, data_file, tmp_path):
    with exclusive(tmp_path / FOLDER, FileError("in use")), pytest.raises(FileError, match="Another evaluation"):
        evaluate([bot], data_file, tmp_path, grid=GRID, max_contexts=3)


def test_vectors_of_another_tokenizer_are_refused(bot, checkpoint, data_file, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "bot")
    save_file({"vectors": np.ones((50, 8), np.float16)}, tmp_path / "bot" / VECTORS_FILE)
    with pytest.raises(CheckpointError, match="tokens"):
        evaluate([bot], data_file, tmp_path / "report", grid=GRID, vectors=tmp_path / "bot")
    with pytest.raises(CheckpointError, match="tokens"):
        Chatbot.from_pretrained(tmp_path / "bot").reply(["你好"], candidates=2)


def test_dialogues_that_a_model_has_no_places_for_are_counted(tokenizer, dialogues, tmp_path):
    model = XianliaoForCausalLM(tiny_config(tokenizer, positions="learned", max_position_embeddings=128)).eval()
    bot = Chatbot(model, tokenizer, ReplySettings(floor_start_tokens=12, floor_delta_tokens=4), "short")
    data = tmp_path / "data.jsonl"
    long = [["好" * 200, "嗯"], ["你好"] * 90]
    data.write_text("\n".join(json.dumps(turns, ensure_ascii=False) for turns in [*dialogues[:6], *long]))
    report = evaluate([bot], data, tmp_path / "report", grid=Grid((8,), {"default": {}}, 50, 20, 20, 1))["report"]
    assert report["left_out"] >= 2
    assert report["dialogues"] == 8 - report["left_out"]
    assert "Dialogues left out, because they do not fit" in (tmp_path / "report" / "report.md").read_text(
        encoding="utf-8"
    )


def test_replies_are_those_of_a_chat(bot, dialogues, tmp_path):
    contexts = make_contexts(dialogues[:12], 12)
    methods = GRID.settings(bot.settings, bot.within_limits)
    answers, _ = answer_all(bot, contexts, methods, 5, ResultCache(tmp_path))
    for name, settings in methods.items():
        changes = {key: value for key, value in vars(settings).items() if value is not None}
        for index, context in enumerate(contexts[:6]):
            if settings.floor_start_tokens is None:
                continue  # a request cannot switch the floor off
            alone = bot.respond(context.turns, seed=5 + index, **changes)
            assert answers[name][index].token_ids == alone.token_ids, name
            assert answers[name][index].stop_reason == alone.stop_reason


def test_what_references_cost(bot, dialogues, layout, tmp_path):
    contexts = make_contexts(dialogues[:8], 8)
    base = ReplySettings(floor_start_tokens=2, floor_delta_tokens=30)
    bot.settings = base
    methods = {
        "floor": base,
        "late floor": base.with_changes(floor_start_tokens=500),
        "ban": base.with_changes(no_repeat_ngram=1, floor_start_tokens=500),
    }
    nats = reference_nats(bot, contexts, methods, ResultCache(tmp_path))
    for index, context in enumerate(contexts):
        encoded = encode(bot, context)
        ids = [*encoded.prompt.input_ids, *encoded.reference, bot.vocabulary.end_id]
        speakers = [*encoded.prompt.speaker_ids, *[encoded.prompt.reply_speaker] * (len(encoded.reference) + 1)]
        logits = bot.model(torch.tensor([ids]), token_type_ids=torch.tensor([speakers])).logits[0]
        logits[:, list(bot.vocabulary.banned_ids)] = -math.inf
        start = len(encoded.prompt.input_ids)
        bot.vocabulary.readable.apply(logits, [ids[start : position + 1] for position in range(len(ids))])
        logits[start - 1, bot.vocabulary.end_id] = -math.inf  # no reference is empty
        log_p = logits.log_softmax(-1)
        plain = [log_p[position - 1, ids[position]].item() for position in range(start, len(ids))]
        assert nats[""][index] == pytest.approx(-sum(plain), rel=1e-4)
        assert nats["late floor"][index] == nats[""][index]
        floored = 0.0
        for emitted, value in enumerate(plain):
            rest = max(0, emitted - 2) * -math.log(2) / 30
            is_end = emitted == len(encoded.reference)
            floored += math.log1p(-(1 - math.exp(value)) * math.exp(rest)) if is_end else value + rest
        assert nats["floor"][index] == pytest.approx(-floored, rel=1e-4)
        repeats = len(set(encoded.reference)) < len(encoded.reference) or any(
            set(t) & set(encoded.reference) for t in encoded.answered.earlier_replies
        )
        assert (nats["ban"][index] == math.inf) == repeats


def test_likeness(tokenizer):
    vectors = np.random.default_rng(0).standard_normal((tokenizer.vocab_size, 8))
    vectors[list(tokenizer.special_ids)] = 0
    likeness = Likeness(TokenVectors(vectors), tokenizer)
    same = likeness.compare("今天天气好", "今天天气好")
    assert all(value == pytest.approx(1, abs=1e-5) for value in same.values())
    other = likeness.compare("今天天气好", "我想睡觉")
    assert all(value < 0.99 for value in other.values())
    assert likeness.compare("", "我想睡觉") == {"wrd": 0, "greedy_matching": 0, "embedding_average": 0}
    ids = [tokenizer.encode(text) for text in ("你好", "我想")]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9)
    cosines = unit[ids[0]] @ unit[ids[1]].T
    expected = (cosines.max(1).mean() + cosines.max(0).mean()) / 2
    assert likeness.compare("你好", "我想")["greedy_matching"] == pytest.approx(expected, abs=1e-5)


def test_intervals():
    low, high = intervals.share(0, 1000)
    assert low == 0
    assert high == pytest.approx(0.0038, abs=1e-4)
    assert intervals.share(30, 100) == pytest.approx((0.2189, 0.3958), abs=1e-3)  # Wilson's, by hand
    random = np.random.default_rng(1)
    inside = 0
    for _ in range(40):
        values = random.exponential(2.0, 200)
        low, high = intervals.ratio(values)
        inside += low < 2.0 < high
    assert inside >= 34
    value, (low, high) = intervals.over_subsets([[1, 2, 3]] * 10, 6, lambda items: len(set(items)) / len(items), 20)
    assert (value, low, high) == (0.5, 0.5, 0.5)


def test_the_interval_of_a_subset_metric_covers_the_metric_of_fresh_text():
    """Without the jackknife's scale the interval of a small subset would be several times too wide."""
    random = np.random.default_rng(0)
    values = [[float(value)] for value in random.normal(0.0, 1.0, 2000)]
    for size in (20, 200, 1000):
        _, (low, high) = intervals.over_subsets(values, size, lambda items: float(np.mean(items)), 400)
        # A mean over all 2,000 values has a standard deviation of 1 / sqrt(2000).
        assert (high - low) / 2 == pytest.approx(1.96 / math.sqrt(2000), rel=0.15)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("methods: {}", "no methods"),
        ("- a", "no methods"),
        ("{methods: {a: {}}, colour: red}", "Unknown key colour .* Allowed keys: lengths, methods, few, budget"),
        ("{methods: {a: {}}, lengths: 5}", "lengths"),
        ("{methods: {a: {}}, budget: many}", "budget"),
        ("{methods: {a: {top_q: 1}}}", "no setting top_q"),
        ("{methods: {a: {top_p: 7}}}", "top_p"),
        ("{methods: {a: {base: magic}}}", "unknown base 'magic'"),
        ("{methods: {a: 7}}", "must have settings"),
        ("{methods: {a: 0}}", "must have settings"),
        ("{methods: {a: {}}, few: [b]}", "few must be a list of names"),
        ("{methods: {a: {}}, few: a}", "few must be a list of names"),
        ("{methods: {a: {about: " + "x" * 201 + "}}}", "`about` of method 'a' has more than 200"),
        ("{methods: {'': {}}}", "needs a name"),
        ('{methods: {"\\ud800": {}}}', "needs a name"),
        ("{methods: {a: {}}, resamples: 1000000000000}", "resamples"),
        ("[" * 5000, "cannot be read"),
        ("{", "cannot be read"),
    ],
)
def test_grids_that_cannot_be_used(tmp_path, text, words):
    path = tmp_path / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(GridError, match=words):
        Grid.read(path).settings(ReplySettings(), lambda settings: settings)


def test_the_default_grid_is_one():
    methods = Grid.read().settings(ReplySettings(), lambda settings: settings)
    assert methods["saved settings"] == ReplySettings()
    assert methods["greedy"].floor is None
    assert not methods["greedy"].keep_eos
    assert methods["nucleus, consistent"].keep_eos


def test_few_contexts_get_the_few_methods_unless_all_are_asked_for(bot, dialogues, data_file, tmp_path):
    grid = Grid((8,), {"a": {"about": "first"}, "b": {}, "c": {}}, 50, 20, 20, 1, few=("a", "c"))
    assert list(grid.for_contexts(30).methods) == ["a", "b", "c"]
    assert list(grid.for_contexts(29).methods) == ["a", "c"]
    assert list(grid.only(["c", "a"]).for_contexts(3).methods) == ["a", "c"]
    assert list(grid.only(["all"]).for_contexts(3).methods) == ["a", "b", "c"]
    with pytest.raises(GridError, match=r"Unknown method x, y\. The grid has: a; b; c\."):
        grid.only(["y", "a", "x"])
    report = evaluate([bot], data_file, tmp_path / "few", grid=grid, max_contexts=3)["report"]
    assert report["methods"] == {"a": "first", "c": ""}
    assert report["left_out_methods"] == 1
    assert report["limited_by"] == "--contexts"
    assert "Decoding methods compared: 2 of 3" in (tmp_path / "few" / "report.md").read_text(encoding="utf-8")
    report = evaluate([bot], data_file, tmp_path / "few", grid=grid.only(["all"]), max_contexts=3)["report"]
    assert (list(report["methods"]), report["left_out_methods"]) == (["a", "b", "c"], 0)
    cut = evaluate([bot], data_file, tmp_path / "few", grid=grid, max_dialogues=4)["report"]
    assert cut["limited_by"] == "--max-dialogues"
    assert evaluate([bot], data_file, tmp_path / "few", grid=grid)["report"]["limited_by"] is None


def test_the_markdown_is_in_the_language_of_the_terminal(bot, data_file, tmp_path, monkeypatch):
    small = Grid((8,), {"a": {}}, 50, 20, 20, 1)
    for language, title in (("en", "# Evaluation of tiny on some.jsonl"), ("zh", "# tiny 的评测：数据 some.jsonl")):
        monkeypatch.setenv("XIANLIAO_LANG", language)
        evaluate([bot], data_file, tmp_path / "report", grid=small, max_contexts=3)
        assert (tmp_path / "report" / "report.md").read_text(encoding="utf-8").startswith(title)


def test_baseline_never_learns_what_is_evaluated(bot, dialogues, tmp_path):
    data = tmp_path / "some.jsonl"
    data.write_text(json.dumps(dialogues[0], ensure_ascii=False), encoding="utf-8")
    with pytest.raises(FileError, match="baselines"):
        evaluate([bot], data, tmp_path / "report", baseline=data, grid=GRID)
    data.write_text('["一句"]', encoding="utf-8")
    with pytest.raises(FileError, match="at least two turns"):
        evaluate([bot], data, tmp_path / "report", grid=GRID)


def test_scoring_shows_a_bar(bot, dialogues, tmp_path, capsys):
    measure_quality(bot, dialogues[:9], 10, ResultCache(tmp_path))
    shown = capsys.readouterr().err
    assert "scoring: 100%" in shown
    assert "9/9" in shown


def test_no_text_of_an_example_is_markup():
    """The texts and reasons come from the cache, whose folder may be from elsewhere."""
    mark = "<script>x</script>"
    for is_single in (True, False):
        example = {"context": [mark], "reference": mark, "replies": [(mark, mark, mark, mark), ("a", "b", "c", [mark])]}
        names = [{"name": name} for name in ([mark] if is_single else [mark, "a"])]
        shown = examples({"checkpoints": names, "examples": [example]})
        assert "&lt;script" in shown
        assert "<script" not in shown
