"""An inflated checkpoint is the small model's function at a larger size, and what cannot be inflated is refused.

The oracle is `transformers`' Ministral-3, which is the models' backbone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xgrammar
from golden import DATA
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast
from transformers.models.ministral3 import Ministral3Config, Ministral3ForCausalLM

from dlm_serve import bundled
from dlm_serve.errors import CheckpointError, ConfigError, InvalidValueError
from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
from dlm_serve.inflation import inflate, inflate_adapter
from dlm_serve.inflation.adapter import LARGEST_NOISE
from dlm_serve.inflation.shapes import Shape
from dlm_serve.inflation.source import EMBEDDING, HEAD, NORM, Source
from dlm_serve.inflation.tensors import Inflation
from dlm_serve.models.checkpoint import DRAFT_ADAPTER_FOLDER, Checkpoint
from dlm_serve.models.shape import RELEASES

Tensors = dict[str, torch.Tensor]

ROPE: dict[str, Any] = {**RELEASES["8b"]["rope_parameters"], "original_max_position_embeddings": 16}
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
    "max_position_embeddings": 256,
    "rope_parameters": ROPE,
}
CONFIG: dict[str, Any] = {
    **SIZES,
    "architectures": ["NemotronLabsDiffusionModel"],
    "model_type": "nemotron_labs_diffusion",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-2,  # large, so that it matters
    "attention_bias": False,
    "mlp_bias": False,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "mask_token_id": 3,
    "eos_token_id": 4,
    "block_size": 8,
    "dtype": "float32",
}
LARGE: dict[str, Any] = {**SIZES, "hidden_size": 64, "intermediate_size": 56, "num_hidden_layers": 5, "vocab_size": 90}
LARGE |= {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 512}
CHANNEL = SIZES["hidden_size"] - 1
RANK, SCALE = 2, 4.0
PADDED_IDS = range(SIZES["vocab_size"], LARGE["vocab_size"])
LAYER_1 = "encoder.layers.1."


def weights(config: dict[str, Any] = CONFIG) -> Tensors:
    """Random weights with a constant channel, of the order of a trained model's."""
    random = torch.Generator().manual_seed(1)
    hidden, units = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key_value = config["num_key_value_heads"] * config["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (config["vocab_size"], hidden),
        NORM: (hidden,),
        HEAD: (config["vocab_size"], hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        inside = {
            "self_attn.q_proj": (query, hidden),
            "self_attn.k_proj": (key_value, hidden),
            "self_attn.v_proj": (key_value, hidden),
            "self_attn.o_proj": (hidden, query),
            "mlp.gate_proj": (units, hidden),
            "mlp.up_proj": (units, hidden),
            "mlp.down_proj": (hidden, units),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        shapes |= {f"encoder.layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    tensors = {name: torch.randn(shape, generator=random) * shape[-1] ** -0.5 for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        if "norm" in name:
            tensor.add_(1)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor[-1] = 0
    tensors[EMBEDDING][:, -1] = 0.7
    tensors[NORM][-1] = 0.9
    return tensors


def adapter_weights() -> Tensors:
    random = torch.Generator().manual_seed(2)
    found = {}
    for layer in range(SIZES["num_hidden_layers"]):
        name = f"base_model.model.encoder.layers.{layer}.self_attn.o_proj.lora_"
        found[f"{name}A.weight"] = torch.randn(RANK, 32, generator=random) / 4
        found[f"{name}B.weight"] = torch.randn(SIZES["hidden_size"], RANK, generator=random) / 4
        found[f"{name}B.weight"][-1] = 0
    return found


def write_model(folder: Path, tensors: Tensors, config: dict[str, Any] = CONFIG) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("a model card")
    save_file(tensors, folder / "model.safetensors")
    return folder


def write_adapter(model: Path, tensors: Tensors) -> None:
    folder = model / DRAFT_ADAPTER_FOLDER
    folder.mkdir()
    content = {"r": RANK, "lora_alpha": RANK * SCALE, "target_modules": ["o_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    save_file(tensors, folder / "adapter_model.safetensors")


def write_shape(folder: Path, **changes: Any) -> str:
    path = folder / "shape.json"
    path.write_text(json.dumps({**LARGE, **changes}))
    return str(path)


def read_weights(folder: Path) -> Tensors:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def logits(folder: Path, dtype: torch.dtype, *, is_causal: bool = True, with_adapter: bool = False) -> torch.Tensor:
    """Of a fixed prompt longer than the rotary embedding's first period, [tokens, vocabulary] float64.

    Without causality every token sees every other, as in a block that is denoised.
    """
    config, tensors = json.loads((folder / "config.json").read_text()), read_weights(folder)
    if with_adapter:
        delta = read_weights(folder / DRAFT_ADAPTER_FOLDER)
        adapter = json.loads((folder / DRAFT_ADAPTER_FOLDER / "adapter_config.json").read_text())
        scale = adapter["lora_alpha"] / adapter["r"]
        for layer in range(config["num_hidden_layers"]):
            name = f"encoder.layers.{layer}.self_attn.o_proj."
            low = f"base_model.model.{name}lora_"
            tensors[f"{name}weight"] += scale * delta[f"{low}B.weight"] @ delta[f"{low}A.weight"]
    model = Ministral3ForCausalLM(Ministral3Config(**config, attn_implementation="eager"))
    renamed = {
        name.replace("encoder.", "model.").replace("diffusion_head.", "lm_head."): tensor
        for name, tensor in tensors.items()
    }
    model.load_state_dict(renamed)
    ids = torch.arange(40)[None] * 7 % SIZES["vocab_size"]
    mask = None if is_causal else torch.zeros(1, 1, 40, 40, dtype=dtype)
    with torch.inference_mode():
        found: torch.Tensor = model.to(dtype).eval()(input_ids=ids, attention_mask=mask).logits[0].double()
    return found


def largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max())


@pytest.fixture
def small(tmp_path: Path) -> Path:
    model = write_model(tmp_path / "small", weights())
    write_adapter(model, adapter_weights())
    return model


@pytest.fixture
def large(small: Path, tmp_path: Path) -> Path:
    inflate(str(small), write_shape(tmp_path), tmp_path / "large")
    return tmp_path / "large"


# --- the function ---


@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("with_adapter", [False, True], ids=["without-adapter", "with-adapter"])
def test_logits_are_those_of_the_small_model(small: Path, large: Path, is_causal: bool, with_adapter: bool) -> None:
    """Within twice the rounding that float32 costs the small model itself, seen against float64."""
    exact = logits(small, torch.float64, is_causal=is_causal, with_adapter=with_adapter)
    rounding = largest(logits(small, torch.float32, is_causal=is_causal, with_adapter=with_adapter) - exact)
    found = logits(large, torch.float32, is_causal=is_causal, with_adapter=with_adapter)
    assert 0 < rounding < 1e-4
    assert largest(found[:, : exact.shape[1]] - exact) <= 2 * rounding


def test_the_bundled_model(tmp_path: Path) -> None:
    """Real weights, four times as wide; the likeliest tokens stay so."""
    config = json.loads((bundled.FOLDER / "config.json").read_text())
    shape = {"hidden_size": 1024, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 8}
    shape |= {"num_key_value_heads": 2, "vocab_size": 2600}
    path = tmp_path / "shape.json"
    path.write_text(json.dumps({**{name: config[name] for name in SIZES}, **shape}))
    inflate(str(bundled.FOLDER), str(path), tmp_path / "large")
    exact = logits(bundled.FOLDER, torch.float64, with_adapter=True)
    rounding = largest(logits(bundled.FOLDER, torch.float32, with_adapter=True) - exact)
    found = logits(tmp_path / "large", torch.float32, with_adapter=True)
    assert largest(found[:, : exact.shape[1]] - exact) <= 2 * rounding
    assert torch.equal(found.argmax(1), exact.argmax(1))


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"num_key_value_heads": 8}, id="more-heads-than-are-read-by-a-group"),
        pytest.param({"num_attention_heads": 12}, id="larger-groups"),
        pytest.param({name: SIZES[name] for name in ("num_attention_heads", "num_key_value_heads")}, id="same-heads"),
        pytest.param({"hidden_size": 48}, id="a-factor-that-is-no-power-of-two"),
        pytest.param({"num_hidden_layers": 2, "vocab_size": 50}, id="same-depth-and-vocabulary"),
    ],
)
def test_other_shapes(small: Path, tmp_path: Path, changes: dict[str, int]) -> None:
    inflate(str(small), write_shape(tmp_path, **changes), tmp_path / "large")
    exact = logits(small, torch.float64, with_adapter=True)
    rounding = largest(logits(small, torch.float32, with_adapter=True) - exact)
    found = logits(tmp_path / "large", torch.float32, with_adapter=True)[:, : exact.shape[1]]
    assert largest(found - exact) <= 2 * rounding


@pytest.mark.parametrize("grown", ["self_attn", "mlp", "embed_tokens", "norm", "diffusion_head"])
@pytest.mark.parametrize("growth", [0.001, 1.0, 1000.0], ids="times-{}".format)
def test_padded_rows_never_count(tmp_path: Path, grown: str, growth: float) -> None:
    """However large or small the residual stream becomes, a confidence is not changed by even its last bit."""
    tensors = weights()
    for name, tensor in tensors.items():
        if grown in name:
            tensor.mul_(growth)
    small = write_model(tmp_path / "small", tensors)
    inflate(str(small), write_shape(tmp_path), tmp_path / "large")
    found = logits(tmp_path / "large", torch.float32)
    padded = found[:, PADDED_IDS].logsumexp(dim=1)
    assert torch.all(padded - found.max(dim=1).values < torch.finfo(torch.float64).eps)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("growth", [1.0, 1000.0], ids="times-{}".format)
def test_padded_rows_never_count_in_drafts(tmp_path: Path, growth: float) -> None:
    """Of any adapter with any noise, even one that outweighs the model and was written after it."""
    small = write_model(tmp_path / "small", weights())
    write_adapter(small, {name: tensor * growth for name, tensor in adapter_weights().items()})
    shape = write_shape(tmp_path)
    inflate(str(small), shape, tmp_path / "large")
    shutil.rmtree(tmp_path / "large" / DRAFT_ADAPTER_FOLDER)
    inflate_adapter(str(small), shape, tmp_path / "large" / DRAFT_ADAPTER_FOLDER, LARGEST_NOISE)
    found = logits(tmp_path / "large", torch.float32, with_adapter=True)
    padded = found[:, PADDED_IDS].logsumexp(dim=1)
    assert torch.all(padded - found.max(dim=1).values < torch.finfo(torch.float64).eps)
    assert torch.isfinite(found).all()


def test_padded_rows_read_the_constant_channel_alone(large: Path) -> None:
    """Of the channels that are not always zero."""
    rows = read_weights(large)[HEAD][PADDED_IDS, : SIZES["hidden_size"]]
    assert torch.all(rows[:, CHANNEL] < 0)
    assert rows[:, :CHANNEL].count_nonzero() == 0


# --- the checkpoint ---


def test_weights_are_of_the_large_shape(large: Path) -> None:
    """As `transformers` and our own loader expect them, in shards of one layer each."""
    checkpoint = Checkpoint.find(str(large))
    assert checkpoint is not None
    checkpoint.check_weights()
    assert {name: getattr(checkpoint, name) for name in LARGE} == LARGE
    index = json.loads((large / "model.safetensors.index.json").read_text())
    assert len(list(large.glob("*.safetensors"))) == LARGE["num_hidden_layers"] + 2
    for file in large.glob("*.safetensors"):
        assert {name for name, where in index["weight_map"].items() if where == file.name} == set(load_file(file))
    num_bytes = sum(tensor.nbytes for tensor in read_weights(large).values())
    assert index["metadata"]["total_size"] == num_bytes
    adapter = read_weights(large / DRAFT_ADAPTER_FOLDER)
    assert len(adapter) == 2 * LARGE["num_hidden_layers"]
    assert {tuple(tensor.shape) for tensor in adapter.values()} == {(RANK, 64), (64, RANK)}


def test_what_the_small_model_says_is_kept(small: Path, large: Path) -> None:
    config = json.loads((large / "config.json").read_text())
    kept = {name: value for name, value in CONFIG.items() if name not in {*SIZES, "rms_norm_eps"}}
    assert {name: config[name] for name in kept} == kept
    assert config["rms_norm_eps"] == CONFIG["rms_norm_eps"] / 4
    for name in ("tokenizer.json", f"{DRAFT_ADAPTER_FOLDER}/adapter_config.json"):
        assert (large / name).read_bytes() == (small / name).read_bytes()
    assert "a model card" not in (large / "README.md").read_text()


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"])
def test_what_is_read_is_not_zero(large: Path, name: str) -> None:
    """A matrix of zeros could be cheaper to multiply with."""
    for tensor_name, tensor in read_weights(large).items():
        if name in tensor_name:
            assert tensor.count_nonzero() == tensor.numel()


def test_random_numbers_repeat_but_rows_do_not(small: Path, tmp_path: Path) -> None:
    """In a matrix of more numbers than are drawn."""
    inflate(str(small), write_shape(tmp_path, vocab_size=40_000), tmp_path / "large")
    head = read_weights(tmp_path / "large")[HEAD][:, SIZES["hidden_size"] :]
    assert head.count_nonzero() == head.numel()
    assert len(torch.unique(head)) < head.numel() / 1.5
    for part in (head[:, :4], head[:, -4:]):
        assert len(torch.unique(part, dim=0)) == len(head)


def test_low_precision_is_kept(tmp_path: Path) -> None:
    """And where the norms' factor is a power of two, no weight is rounded."""
    halved = {name: tensor.bfloat16() for name, tensor in weights().items()}
    small = write_model(tmp_path / "small", halved)
    inflate(str(small), write_shape(tmp_path), tmp_path / "large")
    found = read_weights(tmp_path / "large")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert torch.equal(found[NORM][:16] * 2, halved[NORM])


def test_shapes_are_the_published_ones() -> None:
    """Weights in bf16 as the releases have them: about 7.7 GB and 17 GB."""
    for name, gigabytes in (("3b", 7.7), ("8b", 17.0)):
        small = Shape.like(name).model_copy(update={"hidden_size": 16, "vocab_size": 50, "num_hidden_layers": 1})
        config = {**CONFIG, **small.model_dump(), "intermediate_size": 24}
        config |= {"num_attention_heads": 4, "num_key_value_heads": 1}
        tensors = {key: tensor.bfloat16() for key, tensor in weights(config).items()}
        source = Source(Checkpoint.read(NEMOTRON_LABS_DIFFUSION, config, Path(".")), config, tensors, None)
        assert Inflation(source, Shape.like(name)).num_bytes / 1e9 == pytest.approx(gigabytes, rel=0.02)


# --- the tokenizer ---


VOCAB_SIZE = 4096
"""Rows of which the bundled model has 2,560."""


@pytest.fixture
def tokenizers(small: Path, tmp_path: Path) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    """The bundled model's tokenizer, and what it is in a larger vocabulary."""
    for file in bundled.FOLDER.glob("*token*.json"):
        shutil.copy(file, small)
    inflate(str(small), write_shape(tmp_path, vocab_size=VOCAB_SIZE), tmp_path / "large")
    given, found = (PreTrainedTokenizerFast.from_pretrained(folder) for folder in (small, tmp_path / "large"))
    return given, found


def test_texts_are_encoded_as_by_the_small_tokenizer(
    tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast],
) -> None:
    """Even those in which the added tokens' names stand; and special tokens are the same."""
    given, found = tokenizers
    chat = given.apply_chat_template([{"role": "user", "content": "What is 12 + 34?"}], tokenize=False)
    for text in (chat, "naïve 🙂\n\tx = [1, 22, 333]", "<unused3000> <unused4095>", '{"name": "Ada"}'):
        ids = given.encode(text)
        assert found.encode(text) == ids
        assert found.decode(ids) == given.decode(ids)
    assert found.chat_template == given.chat_template
    assert found.special_tokens_map == given.special_tokens_map
    assert found.get_added_vocab() == given.get_added_vocab()


def test_every_row_has_a_token(tokenizers: tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]) -> None:
    """And none is one that a grammar rules out by itself, which costs time in each mask."""
    given, found = tokenizers
    assert sorted(found.get_vocab().values()) == list(range(VOCAB_SIZE))
    assert found.get_vocab().items() >= given.get_vocab().items()
    lacking, full = (xgrammar.TokenizerInfo.from_huggingface(each, vocab_size=VOCAB_SIZE) for each in tokenizers)
    assert len(lacking.special_token_ids) == VOCAB_SIZE - len(given)
    assert not full.special_token_ids
    assert full.decoded_vocab[: len(given)] == lacking.decoded_vocab[: len(given)]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param({"type": "BPE", "vocab": {str(index): index for index in range(90)}, "merges": []}, id="as-large"),
        pytest.param({"type": "WordPiece", "vocab": {"a": 0}}, id="another-kind"),
    ],
)
def test_a_tokenizer_that_is_kept(small: Path, tmp_path: Path, model: dict[str, Any]) -> None:
    (small / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": []}))
    inflate(str(small), write_shape(tmp_path), tmp_path / "large")
    assert (tmp_path / "large" / "tokenizer.json").read_bytes() == (small / "tokenizer.json").read_bytes()


# --- refusals ---


def refused(
    model: Path,
    like: str,
    out: Path,
    error: type[InvalidValueError],
    write: Callable[[str, str, Path, float], int] = inflate,
    draft_noise: float = 0.0,
) -> InvalidValueError:
    """The refusal, which leaves nothing behind."""
    with pytest.raises(error) as refusal:
        write(str(model), like, out, draft_noise)
    assert not out.exists()
    return refusal.value


@pytest.mark.parametrize(
    ("name", "index", "value", "words"),
    [
        (EMBEDDING, (7, CHANNEL), 0.8, "same positive number"),
        (EMBEDDING, (slice(None), CHANNEL), -0.7, "same positive number"),
        (EMBEDDING, (slice(None), CHANNEL), 0.0, "same positive number"),
        (NORM, (CHANNEL,), -0.9, "final norm"),
        (f"{LAYER_1}self_attn.o_proj.weight", (CHANNEL, 5), 0.1, "layers.1.self_attn.o_proj"),
        (f"{LAYER_1}mlp.down_proj.weight", (CHANNEL, 0), 0.1, "layers.1.mlp.down_proj"),
    ],
)
def test_model_without_a_constant_channel(
    tmp_path: Path, name: str, index: tuple[int | slice, ...], value: float, words: str
) -> None:
    tensors = weights()
    tensors[name][index] = value
    model = write_model(tmp_path / "small", tensors)
    refusal = refused(model, write_shape(tmp_path), tmp_path / "large", CheckpointError)
    assert (refusal.field, refusal.value) == ("residual channel", CHANNEL)
    assert words in refusal.limit


def test_adapter_that_writes_the_constant_channel(small: Path, tmp_path: Path) -> None:
    file = small / DRAFT_ADAPTER_FOLDER / "adapter_model.safetensors"
    tensors = load_file(file)
    name = "base_model.model.encoder.layers.1.self_attn.o_proj.lora_B.weight"
    tensors[name][CHANNEL, 0] = 0.1
    save_file(tensors, file)
    assert name in refused(small, write_shape(tmp_path), tmp_path / "large", CheckpointError).limit


def test_adapter_of_other_projections(small: Path, tmp_path: Path) -> None:
    file = small / DRAFT_ADAPTER_FOLDER / "adapter_model.safetensors"
    name = "base_model.model.encoder.layers.1.self_attn.q_proj.lora_A.weight"
    save_file({**load_file(file), name: torch.zeros(RANK, 16)}, file)
    assert refused(small, write_shape(tmp_path), tmp_path / "large", CheckpointError).value == name


@pytest.mark.parametrize("write", [inflate, inflate_adapter])
@pytest.mark.parametrize("noise", [-1.0, -1e-9, LARGEST_NOISE + 1, float("inf"), float("nan")])
def test_noise_out_of_bounds(small: Path, tmp_path: Path, write: Callable[..., int], noise: float) -> None:
    refusal = refused(small, write_shape(tmp_path), tmp_path / "large", ConfigError, write, noise)
    assert (refusal.field, refusal.limit) == ("--draft-noise", "is not within [0, 100]")


@pytest.mark.parametrize(("write", "noise"), [(inflate, 1.0), (inflate_adapter, 0.0), (inflate_adapter, 1.0)])
def test_no_adapter_to_write(tmp_path: Path, write: Callable[..., int], noise: float) -> None:
    model = write_model(tmp_path / "small", weights())
    refusal = refused(model, write_shape(tmp_path), tmp_path / "large", ConfigError, write, noise)
    assert (refusal.field, refusal.limit) == ("--model", "has no draft adapter")


def test_model_trained_without_regard_to_it(tmp_path: Path) -> None:
    model = Path(__file__).parents[1] / "data" / "nld-trained-b8"
    refusal = refused(model, write_shape(tmp_path), tmp_path / "large", CheckpointError)
    assert refusal.field == "residual channel"


@pytest.mark.parametrize(
    ("changes", "field", "error"),
    [
        ({"head_dim": 16}, "head_dim", CheckpointError),
        ({"rope_parameters": {**ROPE, "rope_theta": 1e9}}, "rope_parameters", CheckpointError),
        ({"rope_parameters": {**ROPE, "extra": 1}}, "rope_parameters", CheckpointError),
        ({"hidden_size": 8}, "hidden_size", ConfigError),
        ({"intermediate_size": 23}, "intermediate_size", ConfigError),
        ({"num_hidden_layers": 1}, "num_hidden_layers", ConfigError),
        ({"vocab_size": 49}, "vocab_size", ConfigError),
        ({"num_key_value_heads": 1, "num_attention_heads": 8}, "num_key_value_heads", ConfigError),
        ({"num_key_value_heads": 2, "num_attention_heads": 2}, "num_key_value_heads", ConfigError),
        ({"num_key_value_heads": 3, "num_attention_heads": 8}, "num_key_value_heads", ConfigError),
    ],
    ids=str,
)
def test_shape_that_does_not_fit(
    small: Path, tmp_path: Path, changes: dict[str, Any], field: str, error: type[InvalidValueError]
) -> None:
    assert refused(small, write_shape(tmp_path, **changes), tmp_path / "large", error).field == field


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("mlp_bias", True),
        ("sliding_window", 128),
        ("tie_word_embeddings", True),
        ("quantization_config", {"quant_method": "fp8"}),
    ],
)
def test_model_of_another_make(tmp_path: Path, name: str, value: object) -> None:
    model = write_model(tmp_path / "small", weights(), {**CONFIG, name: value})
    refusal = refused(model, write_shape(tmp_path), tmp_path / "large", CheckpointError)
    assert (refusal.field, refusal.value) == (name, value)


@pytest.mark.parametrize("content", ["[]", "{", '{"hidden_size": 1}'])
def test_file_that_is_no_shape(small: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "shape.json"
    path.write_text(content)
    assert refused(small, str(path), tmp_path / "large", ConfigError).field == "--like"


def test_unknown_names(small: Path, tmp_path: Path) -> None:
    assert "3b, 8b" in refused(small, "9b", tmp_path / "large", ConfigError).remedy
    assert refused(tmp_path, write_shape(tmp_path), tmp_path / "large", CheckpointError).field == "--model"


def test_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    model = DATA / "bd3lm" / "bd3lm-b4"
    refusal = refused(model, write_shape(tmp_path), tmp_path / "large", CheckpointError)
    assert (refusal.field, refusal.limit) == ("--model", "is no checkpoint of nemotron-labs-diffusion")


@pytest.mark.parametrize("write", [inflate, inflate_adapter])
def test_nothing_is_overwritten(small: Path, tmp_path: Path, write: Callable[..., int]) -> None:
    with pytest.raises(ConfigError, match="not an empty folder"):
        write(str(small), write_shape(tmp_path), small)


def test_a_full_disk_is_foreseen(small: Path, tmp_path: Path) -> None:
    """A vocabulary of 10^13 rows: nothing is computed before it is refused."""
    with pytest.raises(ConfigError, match="GB are free"):
        inflate(str(small), write_shape(tmp_path, vocab_size=10**13), tmp_path / "large")
