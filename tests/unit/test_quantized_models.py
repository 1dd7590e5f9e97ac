"""What is quantised in a checkpoint, and what is left out, is so in SGLang's model; its tensors find their places.

The formats' own names for what is left out are those of the checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import output_of
from quantized_checkpoints import SOURCES
from weight_formats import FORMATS

SCRIPT = Path(__file__).parent / "quantized_models.py"

EMBEDDING, LINEAR = "UnquantizedEmbeddingMethod", "UnquantizedLinearMethod"
METHODS: dict[str, tuple[str, str]] = {
    # format: (the head, linear layers)
    "fp8": (EMBEDDING, "Fp8LinearMethod"),
    "fp8-static": (EMBEDDING, "Fp8LinearMethod"),
    "fp8-block": (EMBEDDING, "Fp8LinearMethod"),
    "compressed-fp8": (EMBEDDING, "CompressedTensorsW8A8Fp8"),
    "compressed-w4a16": (EMBEDDING, "CompressedTensorsWNA16"),
    "compressed-nvfp4": (EMBEDDING, "CompressedTensorsW4A16Fp4"),  # with 16 bits of activations, on this card
    "gptq": (EMBEDDING, "GPTQMarlinLinearScheme"),
    "awq": (EMBEDDING, "AWQMarlinLinearScheme"),
    "modelopt-fp8": (LINEAR, "ModelOptFp8LinearMethod"),
    "modelopt-nvfp4": (LINEAR, "ModelOptFp4LinearMethod"),
}

ALL = {"left out", "qkv", "gate_up", "down"}
LAYER, ATTENTION = "encoder.layers.0", "encoder.layers.0.self_attn"
QKV = [f"{ATTENTION}.{name}_proj" for name in "qkv"]
CHANNEL = FORMATS["compressed-fp8"].config([])
GROUP = CHANNEL["config_groups"]["group_0"]
MODELOPT = FORMATS["modelopt-fp8"].config([])


def fp8(**names: Any) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": "dynamic", **names}


def compressed(targets: list[str], ignore: list[str]) -> dict[str, Any]:
    return {**CHANNEL, "config_groups": {"group_0": {**GROUP, "targets": targets}}, "ignore": ignore}


def gptq(*skipped: str, head: bool = False) -> dict[str, Any]:
    return {**FORMATS["gptq"].config([]), "lm_head": head, "dynamic": {f"-:{pattern}": {} for pattern in skipped}}


def awq(*skipped: str, head: bool = False) -> dict[str, Any]:
    return {**FORMATS["awq"].config([]), "lm_head": head, "modules_to_not_convert": list(skipped)}


def modelopt(*skipped: str) -> dict[str, Any]:
    return {**MODELOPT, "ignore": list(skipped)}


NOTATIONS: list[tuple[str, dict[str, Any], set[str]]] = [
    # name, quantization_config, the layers that are quantised
    ("fp8: nothing", fp8(), ALL),
    ("fp8: a layer", fp8(ignored_layers=[LAYER]), ALL - {"left out"}),
    ("fp8: each part of a fused layer", fp8(ignored_layers=QKV), ALL - {"left out"}),
    ("fp8: by the other key", fp8(modules_to_not_convert=[f"{ATTENTION}."]), ALL - {"left out"}),
    ("fp8: all layers", fp8(ignored_layers=["encoder"]), set()),
    ("compressed-tensors: each part", compressed(["Linear"], QKV), ALL - {"left out"}),
    (
        "compressed-tensors: the end of a name",
        compressed(["Linear"], [name.removeprefix("encoder.") for name in QKV]),
        ALL - {"left out"},
    ),
    ("compressed-tensors: a pattern", compressed(["Linear"], [r"re:encoder\.layers\.0\..*"]), ALL - {"left out"}),
    ("compressed-tensors: its middle", compressed(["Linear"], [r"re:.*\bencoder.layers.0"]), ALL - {"left out"}),
    (
        "compressed-tensors: a choice",
        compressed(["Linear"], ["re:(diffusion_head|encoder.layers.0)"]),
        ALL - {"left out"},
    ),
    ("compressed-tensors: the head", compressed(["Linear", "diffusion_head"], []), {"head", *ALL}),
    ("compressed-tensors: the head, by a pattern", compressed(["Linear", "re:^diffusion_head$"], []), {"head", *ALL}),
    (
        "compressed-tensors: layers",
        compressed([r"re:encoder\.layers\.1\."], ["re:encoder.layers.0"]),
        ALL - {"left out"},
    ),
    ("gptq: nothing", gptq(), ALL),
    ("gptq: a layer", gptq(r"encoder\.layers\.0\..*"), ALL - {"left out"}),
    ("gptq: its middle", gptq(r".*\.layers\.0\.self_attn"), ALL - {"left out"}),
    ("gptq: the head too", gptq(head=True), {"head", *ALL}),
    ("gptq: not the head", gptq("^diffusion_head$", head=True), ALL),
    ("awq: nothing", awq(), ALL),
    ("awq: a layer", awq(f"{LAYER}."), ALL - {"left out"}),
    ("awq: not the head", awq("diffusion_head", head=True), ALL),
    ("modelopt: nothing", modelopt(), {"head", *ALL}),
    ("modelopt: each part", modelopt("diffusion_head", *QKV), ALL - {"left out"}),
    ("modelopt: its middle", modelopt("*_head", "*encoder.layers.0.self_attn*"), ALL - {"left out"}),
]
NVFP4_LAYERS = {f"encoder.layers.1.mlp.{name}_proj": {"quant_algo": "NVFP4"} for name in ("gate", "up", "down")}
FP8_LAYERS = {f"encoder.layers.1.self_attn.{name}_proj": {"quant_algo": "FP8"} for name in "qkvo"}
OTHER_FILES: dict[str, dict[str, Any]] = {
    "modelopt, in a file of its own": {
        "hf_quant_config.json": {
            "producer": {"name": "modelopt"},
            "quantization": {"quant_algo": "FP8", "exclude_modules": ["diffusion_head", f"{ATTENTION}*"]},
        }
    },
    "modelopt, several formats": {
        "config.json": {
            "quantization_config": {
                "quant_method": "modelopt",
                "quant_algo": "MIXED_PRECISION",
                "kv_cache_scheme": None,
                "quantized_layers": {**FP8_LAYERS, **NVFP4_LAYERS, "diffusion_head": {"quant_algo": "FP8"}},
            }
        }
    },
}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """What `quantized_models.py` finds."""
    files = {name: {"config.json": {"quantization_config": config}} for name, config, _ in NOTATIONS}
    found: dict[str, Any] = json.loads(output_of(SCRIPT, json.dumps({**files, **OTHER_FILES})).splitlines()[-1])
    return found


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("source", SOURCES)
def test_methods(found: dict[str, Any], source: str, name: str) -> None:
    head, linear = METHODS[name]
    head = EMBEDDING if source == "sdlm, tied" else head  # it is the embedding
    expected = {"head": head, "left out": LINEAR, "qkv": linear, "gate_up": linear, "down": linear}
    assert found["methods"][source][name] == expected


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("source", SOURCES)
def test_tensors_find_their_places(found: dict[str, Any], source: str, name: str) -> None:
    assert found["misplaced"][source][name] == []


@pytest.mark.parametrize(("name", "quantized"), [(name, layers) for name, _, layers in NOTATIONS])
def test_what_is_left_out_may_be_written_in_many_ways(found: dict[str, Any], name: str, quantized: set[str]) -> None:
    methods = found["notations"][name]
    assert {layer for layer, method in methods.items() if not method.startswith("Unquantized")} == quantized


def test_modelopt_may_have_a_file_of_its_own(found: dict[str, Any]) -> None:
    assert (
        found["notations"]["modelopt, in a file of its own"]
        == found["methods"]["nemotron-labs-diffusion"]["modelopt-fp8"]
    )


def test_layers_may_have_formats_of_their_own(found: dict[str, Any]) -> None:
    assert found["notations"]["modelopt, several formats"] == {
        "head": "ModelOptFp8LinearMethod",
        "left out": LINEAR,
        "qkv": "ModelOptFp8LinearMethod",
        "gate_up": "ModelOptFp4LinearMethod",
        "down": "ModelOptFp4LinearMethod",
    }


def test_weights_may_be_quantised_as_they_are_loaded(found: dict[str, Any]) -> None:
    assert found["online"] == {"head": EMBEDDING, **dict.fromkeys(ALL, "Fp8LinearMethod")}


def test_scales_of_the_kv_cache_go_where_attention_reads_them(found: dict[str, Any]) -> None:
    """SGLang's Qwen3 has no place for them."""
    without = {"efficient-dlm": None, "sdar": None}
    assert found["key scale"] == {**dict.fromkeys(SOURCES, 0.5), **without}


def test_block_attention_is_given_no_quantised_cache(found: dict[str, Any]) -> None:
    assert found["cache dtypes"] == ["torch.float8_e4m3fn", "torch.bfloat16"]


def test_missing_and_left_over_tensors_are_named(found: dict[str, Any]) -> None:
    assert found["missing"] == "1 tensors missing: encoder.layers.1.mlp.up_proj.weight_scale"
    assert found["left over"] == "1 tensors left over: encoder.layers.1.mlp.up_proj.weight_zero_point"


def test_weights_that_are_not_what_the_config_says_are_refused(found: dict[str, Any]) -> None:
    assert "tensors missing: encoder.layers.0.mlp.down_proj.weight_packed" in found["not quantised"]


def test_a_draft_adapter_adds_to_quantised_layers(found: dict[str, Any]) -> None:
    assert found["adapter error"] < 2**-8  # bfloat16's


def test_sglang_reads_the_layouts_of_the_tests_as_they_do(found: dict[str, Any]) -> None:
    assert found["misread"] == []
