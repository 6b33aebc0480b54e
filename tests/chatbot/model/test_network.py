from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from chatbot.checkpoint.convert import copy
from chatbot.checkpoint.folder import CheckpointError, load_model, resolve, save
from chatbot.model.config import XianliaoConfig
from chatbot.model.network import XianliaoForCausalLM
from tests.conftest import ROOT, tiny_config


def random_ids(tokenizer, *shape, seed=0):
    return torch.randint(3, tokenizer.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def ids(tokenizer):
    return random_ids(tokenizer, 2, 50)


@torch.no_grad()
def test_auto_form_equals_the_definition(model, ids):
    speakers = (torch.arange(50) // 9 % 2).expand(2, -1)
    auto, naive = (model(ids, token_type_ids=speakers, form=form).logits for form in ("auto", "naive"))
    torch.testing.assert_close(auto, naive, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_saved_state_continues_with_one_or_several_tokens(model, ids):
    whole = model(ids).logits
    for sizes in ([20, 30], [1, 1, 48], [16, 1, 33], [49, 1]):
        state, outputs = model.new_state(), []
        for part in ids.split(sizes, 1):
            outputs.append(model(part, past_key_values=state).logits)
        torch.testing.assert_close(torch.cat(outputs, 1), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_state_has_a_constant_size_and_copies_are_independent(model, ids):
    state = model(ids[:, :1], use_cache=True).past_key_values
    size, copy = state.nbytes(), state.clone()
    assert size == 2 * 2 * 2 * 16 * 16 * 4  # layers, rows, heads, K, V, fp32
    model(ids[:, 1:], past_key_values=state)
    assert state.nbytes() == size
    assert (state.get_seq_length(), copy.get_seq_length()) == (50, 1)
    torch.testing.assert_close(
        model(ids[:, 1:], past_key_values=copy).logits[:, -1], model(ids).logits[:, -1], rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_padding_changes_nothing(model, ids):
    alone = model(ids[:1, :30]).logits
    for left in (True, False):
        padded, mask = torch.zeros(1, 41, dtype=torch.int64), torch.zeros(1, 41, dtype=torch.int64)
        span = slice(11, 41) if left else slice(0, 30)
        padded[:, span], mask[:, span] = ids[:1, :30], 1
        torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, span], alone, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_packing_changes_nothing(model, ids):
    row = torch.cat([ids[:1, :13], ids[1:, :30]], 1)
    segments = torch.tensor([[0] * 13 + [1] * 30])
    packed = model(row, segment_ids=segments).logits
    torch.testing.assert_close(packed[:, :13], model(ids[:1, :13]).logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(packed[:, 13:], model(ids[1:, :30]).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_changing_a_token_leaves_the_past_bit_identical_in_the_naive_form(model, ids):
    before = model(ids, form="naive").logits
    changed = ids.clone()
    changed[:, 30] = 5
    after = model(changed, form="naive").logits
    assert torch.equal(before[:, :30], after[:, :30])
    assert not torch.equal(before[:, 30:], after[:, 30:])


def test_loss_is_the_mean_over_targets_and_can_be_normalised_from_outside(model, ids):
    labels = ids.clone()
    labels[:, :10] = -100
    with torch.no_grad():
        output = model(ids, labels=labels)
        by_hand = torch.nn.functional.cross_entropy(output.logits[:, 9:-1].flatten(0, 1), ids[:, 10:].flatten())
        torch.testing.assert_close(output.loss, by_hand)
        torch.testing.assert_close(model(ids, labels=labels, num_items_in_batch=40).loss, by_hand * 2)


GENERATION = [
    {"do_sample": False},
    {"do_sample": True, "temperature": 0.8, "top_k": 0},
    {"num_beams": 3, "do_sample": False},
    {"do_sample": True, "num_return_sequences": 3},
]


@pytest.mark.parametrize("options", GENERATION)
def test_generate_with_our_state_equals_without(model, ids, options):
    results = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        options_now = {**options, "max_new_tokens": 12, "use_cache": use_cache, "pad_token_id": 0}
        speakers = torch.ones_like(ids[:, :20])
        mask = torch.ones_like(ids[:, :20])
        results.append(model.generate(ids[:, :20], attention_mask=mask, token_type_ids=speakers, **options_now))
    assert torch.equal(*results)


def test_generate_left_padded_equals_unpadded(model, ids):
    prompt = ids[:1, :11]
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.int64), prompt], 1)
    mask = torch.cat([torch.zeros(1, 6, dtype=torch.int64), torch.ones_like(prompt)], 1)
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    alone = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)[:, 11:]
    assert torch.equal(model.generate(padded, attention_mask=mask, **options)[:, 17:], alone)


@torch.no_grad()
def test_an_untied_head_is_saved(tokenizer, tmp_path, ids):
    model = XianliaoForCausalLM(tiny_config(tokenizer, tie_word_embeddings=False)).eval()
    save(tmp_path / "untied", model, tokenizer, {}, {})
    assert torch.equal(load_model(tmp_path / "untied")(ids).logits, model(ids).logits)


def test_segments_and_a_state_exclude_each_other(model, ids):
    with pytest.raises(ValueError, match="one dialogue per row"):
        model(ids, segment_ids=torch.zeros_like(ids), use_cache=True)


@torch.no_grad()
def test_a_state_holds_no_more_memory_than_it_says(tokenizer):
    shape = {"layer_types": ["sliding_softmax", "linear_gated"], "sliding_window": 8, "short_conv": 4}
    model = XianliaoForCausalLM(tiny_config(tokenizer, **shape)).eval()
    state = model(torch.full((1, 300), 9), use_cache=True).past_key_values
    tensors = [tensor.untyped_storage() for layer in state.layers for tensor in layer.tensors.values()]
    assert sum({storage.data_ptr(): storage.nbytes() for storage in tensors}.values()) < 2 * state.nbytes()


KINDS_OF_STATE = [["softmax", "linear_gated"], ["sliding_softmax", "linear_taylor1"], ["gated_delta"] * 2]


@torch.no_grad()
@pytest.mark.parametrize("layers", KINDS_OF_STATE)
def test_every_kind_of_state_goes_through_generate(tokenizer, layers, ids):
    """Beams, several returns and left padding reorder, repeat and pad what the mixers remember."""
    torch.manual_seed(0)
    shape = {"layer_types": layers, "sliding_window": 8, "short_conv": 3, "initializer_range": 0.3}
    model = XianliaoForCausalLM(tiny_config(tokenizer, **shape)).eval()
    mask = torch.ones_like(ids[:, :20])
    mask[1, :7] = 0
    for options in GENERATION:
        results = []
        for use_cache in (True, False):
            torch.manual_seed(3)
            kinds = {**options, "max_new_tokens": 10, "use_cache": use_cache, "pad_token_id": 0}
            speakers = torch.ones_like(mask)
            results.append(model.generate(ids[:, :20], attention_mask=mask, token_type_ids=speakers, **kinds))
        assert torch.equal(*results)


@pytest.mark.slow
def test_auto_class_knows_the_model_after_import_chatbot(checkpoint):
    code = (
        "import chatbot, sys; assert 'torch' not in sys.modules; from transformers import AutoModelForCausalLM as A; "
    )
    code += f"print(type(A.from_pretrained({str(checkpoint)!r})).__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "XianliaoForCausalLM", result.stderr


@torch.no_grad()
def test_save_and_load(checkpoint, model, ids):
    assert torch.equal(load_model(checkpoint)(ids).logits, model(ids).logits)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(checkpoint)(ids).logits, model(ids).logits)


@torch.no_grad()
def test_int8_storage(checkpoint, model, ids, tmp_path):
    copy(checkpoint, tmp_path / "small", int8=True)
    with pytest.raises(CheckpointError, match="not empty"):
        copy(checkpoint, tmp_path / "small", int8=True)
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert size < 0.45 * (checkpoint / "model.safetensors").stat().st_size
    loaded = load_model(tmp_path / "small")
    for name, tensor in model.state_dict().items():
        error = (loaded.state_dict()[name] - tensor).abs()
        if tensor.ndim == 2:  # half a step of the row's scale
            assert (error <= tensor.abs().amax(1, keepdim=True) / 127 / 2 * 1.001).all()
        else:
            assert error.max() == 0
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path / "small")(ids).logits, loaded(ids).logits)
    assert loaded.config.weight_storage == "float"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layer_types": ["linear_gated", "magic"]}, "magic"),
        ({"layer_types": ["linear_gated"]}, "names 1 layers"),
        ({"hidden_size": 0}, "at least 1"),
        ({"num_hidden_layers": None, "layer_types": None}, "num_hidden_layers"),
        ({"short_conv": 1}, "short_conv"),
        ({"head_dim": 15}, "even"),
        ({"positions": "absolute"}, "positions"),
        ({"synthesizer_mixture": ["magic"]}, "magic"),
        ({"layout": "unknown"}, "layout"),
        ({"weight_storage": "int3"}, "weight_storage"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"hidden_size": 10**12}, "hidden_size"),
        ({"num_hidden_layers": 10**9, "layer_types": None}, "num_hidden_layers"),
        ({"sliding_window": True}, "sliding_window"),
        ({"short_conv": "x"}, "short_conv"),
        ({"termination_epsilon": "x"}, "termination_epsilon"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps"),
        ({"eos_token_id": 10**9}, "eos_token_id"),
    ],
)
def test_config_is_validated(tokenizer, changes, words):
    with pytest.raises(Exception, match=words):
        tiny_config(tokenizer, **changes)


def test_new_weights_have_decays_from_a_word_to_a_dialogue(tokenizer):
    model = XianliaoForCausalLM(tiny_config(tokenizer))
    rates = model.blocks[0].mixer.log_rate.detach().exp()
    assert rates[0] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(1 / 512)
    assert isinstance(model.config, XianliaoConfig)


def break_config(folder):
    (folder / "config.json").write_text("{")


def foreign_config(folder):
    (folder / "config.json").write_text('{"model_type": "bert"}')


def wrong_config(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"hidden_size": 32', '"hidden_size": 48'))


def one_layer_too_many(folder):
    text = (folder / "config.json").read_text()
    text = text.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    (folder / "config.json").write_text(text.replace('"linear_gated",', '"linear_gated", "linear_gated",'))


def without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["token_embedding.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def foreign_weights(folder):
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})


def cut_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


DAMAGE = [
    break_config,
    foreign_config,
    wrong_config,
    one_layer_too_many,
    without_a_tensor,
    foreign_weights,
    cut_weights,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints_are_explained(checkpoint, tmp_path, damage):
    import shutil

    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    with pytest.raises(CheckpointError) as error:
        load_model(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_missing_files_are_named(checkpoint, tmp_path, name):
    import shutil

    shutil.copytree(checkpoint, tmp_path / "cut")
    (tmp_path / "cut" / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        resolve(tmp_path / "cut")


def test_every_layer_type_has_a_mixer():
    from chatbot.model.attention import MIXERS
    from chatbot.model.config import LAYER_TYPES

    assert set(MIXERS) == set(LAYER_TYPES)


@pytest.mark.slow
def test_auto_config_alone_is_enough(checkpoint):
    code = "import chatbot; from transformers import AutoConfig; "
    code += f"print(AutoConfig.from_pretrained({str(checkpoint)!r}).model_type)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.strip() == "xianliao", result.stderr


@pytest.mark.parametrize(
    "keys",
    [
        {"attn_implementation": "kernels-community/evil"},
        {"_attn_implementation": "kernels-community/evil"},
        {"quantization_config": {"quant_method": "evil"}},
        {"auto_map": {"AutoModelForCausalLM": "evil--code.Model"}},
    ],
)
def test_a_config_chooses_no_code_to_load(checkpoint, tmp_path, keys, monkeypatch):
    """A folder from elsewhere must not reach transformers' loaders of kernels, quantizers and remote code."""
    import shutil

    from chatbot.checkpoint.folder import load_model

    folder = tmp_path / "evil"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **keys}), encoding="utf-8")
    loaded, reference = load_model(folder), load_model(checkpoint)
    assert loaded.config._attn_implementation == "eager"
    assert not hasattr(loaded.config, "quantization_config")
    for ours, theirs in zip(loaded.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, theirs)
