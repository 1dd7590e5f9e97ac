"""Run by test_quantized_models.py in a process of its own: what SGLang makes of quantised checkpoints of each family.

SGLang's own loader makes the models, on the CPU, where their kernels do not run. It is told that the card is an H100,
since which method a layer gets depends on that.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from free_ports import free_port
from golden import DATA
from quantized_checkpoints import SIZES, SOURCES, left_out_of, write, write_random
from safetensors.torch import load_file, save_file
from weight_formats import FORMATS, Tensors

from dlm_serve.errors import CheckpointError
from dlm_serve.models.checkpoint import Checkpoint, is_kv_scale
from dlm_serve.models.quantization import keep_kv_unquantized
from dlm_serve.plugin import MODEL_PACKAGE

LAYERS = {
    "head": "lm_head",
    "left out": "model.layers.0.self_attn.qkv_proj",
    "qkv": "model.layers.1.self_attn.qkv_proj",
    "gate_up": "model.layers.1.mlp.gate_up_proj",
    "down": "model.layers.1.mlp.down_proj",
}
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
H100 = (9, 0)
UP = "encoder.layers.1.mlp.up_proj"
O_PROJ = "encoder.layers.1.self_attn.o_proj"


def start() -> None:
    """Become one rank of SGLang's, on a machine that says it has an H100."""
    os.environ.setdefault("SGLANG_EXTERNAL_MODEL_PACKAGE", MODEL_PACKAGE)
    from sglang.srt.plugins import load_plugins

    load_plugins()
    from sglang.srt.distributed import init_distributed_environment, initialize_model_parallel
    from sglang.srt.layers.quantization import marlin_utils
    from sglang.srt.layers.quantization.awq import awq
    from sglang.srt.runtime_context import SpawnRanks, publish
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(model_path=str(DATA / "nld-trained-b8"), log_level="error")
    args.resolve_once()
    publish(args, role="scheduler", ranks=SpawnRanks(world_rank=0, gpu_id=0))
    address = f"tcp://127.0.0.1:{free_port()}"
    init_distributed_environment(world_size=1, rank=0, local_rank=0, distributed_init_method=address, backend="gloo")
    initialize_model_parallel()
    torch.cuda.get_device_capability = marlin_utils.get_device_capability = lambda *_: H100
    awq._is_cuda = True


def model_of(folder: Path, device: str, quantization: str | None = None) -> Any:
    """The model that SGLang makes for a checkpoint."""
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.model_loader import loader
    from sglang.srt.model_loader.utils import set_default_torch_dtype

    checkpoint = Checkpoint.find(str(folder))
    assert checkpoint is not None
    ours = json.dumps({"architectures": [checkpoint.family.architecture]})
    config = ModelConfig(
        str(folder), trust_remote_code=False, model_override_args=ours, dtype="bfloat16", quantization=quantization
    )
    quant_config = loader._get_quantization_config(config, LoadConfig())
    with set_default_torch_dtype(config.dtype), torch.device(device):
        return loader._initialize_model(config, LoadConfig(), quant_config)


def methods(model: Any) -> dict[str, str]:
    """What multiplies by the weights of some layers, and by how many bits where that is said."""
    found = {}
    for name, path in LAYERS.items():
        layer = model.get_submodule(path)
        scheme = getattr(layer, "scheme", None)
        found[name] = type(layer.quant_method if scheme is None else scheme).__name__
    return found


# --- Weights ---


def loaded(folder: Path, changes: dict[str, torch.Tensor | None] | None = None) -> tuple[Any, Tensors]:
    """A model with the weights of a checkpoint, and those weights, with `changes`: None takes one away."""
    tensors = {**load_file(folder / "model.safetensors"), **(changes or {})}
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    model = model_of(folder, "cpu")
    model.load_weights(given.items())
    return model, given


def misplaced(model: Any, checkpoint: Checkpoint, tensors: Tensors) -> list[str]:
    """The parameters that are not what their tensors in the checkpoint are, one after the other."""
    return [
        name
        for name, parameter in model.named_parameters()
        if not is_kv_scale(name) and not name.endswith("weight_shape")  # that of the last part
        if not any(torch.equal(parameter.float(), joined.float()) for joined in _joined(name, checkpoint, tensors))
    ]


def _joined(name: str, checkpoint: Checkpoint, tensors: Tensors) -> Iterator[torch.Tensor]:
    """The tensors for a parameter, joined along one axis or the other, or one of them where they are all the same."""
    path, _, kind = name.rpartition(".")
    parent, dot, module = path.rpartition(".")
    names = [checkpoint.family.tensors.original(f"{parent}{dot}{part}.{kind}") for part in FUSED.get(module, (module,))]
    parts = [tensors[name] for name in names]
    if parts[0].dim() == 0:
        yield torch.stack(parts)
    for axis in range(parts[0].dim()):
        if len({part.shape[:axis] + part.shape[axis + 1 :] for part in parts}) == 1:
            yield torch.cat(parts, axis)
    if all(torch.equal(part, parts[0]) for part in parts):
        yield parts[0]


def refusal(folder: Path, changes: dict[str, torch.Tensor | None]) -> str | None:
    """What is said about weights that are amiss."""
    try:
        loaded(folder, changes)
    except CheckpointError as error:
        return error.limit
    return None


def key_scale(folder: Path) -> float | None:
    """Where a scale of the KV cache ends up, if the attention has a place for it."""
    [layers] = {name.partition("0.")[0] for name in load_file(folder / "model.safetensors") if ".0.self_attn." in name}
    model, _ = loaded(folder, {f"{layers}0.self_attn.k_proj.k_scale": torch.tensor(0.5)})
    scale = model.model.layers[0].self_attn.attn.k_scale
    return None if scale is None else float(scale)


def cache_dtype(*, kept: bool) -> str:
    """The precision of the KV cache that SGLang chooses for a checkpoint of ModelOpt that asks for FP8."""
    from sglang.srt.layers.quantization.modelopt_quant import ModelOptFp8Config
    from sglang.srt.mem_cache.kv_cache_dtype import configure_kv_cache_dtype

    config = ModelOptFp8Config(is_checkpoint_fp8_serialized=True, kv_cache_quant_method="FP8", exclude_modules=[])
    if kept:
        keep_kv_unquantized(config)
    _, dtype = configure_kv_cache_dtype(
        server_args_kv_cache_dtype="auto",
        model=SimpleNamespace(quant_config=config),
        model_dtype=torch.bfloat16,
        is_draft_worker=False,
        is_dflash=False,
        speculative_draft_attention_backend="",
    )
    return str(dtype)


def misread() -> list[str]:
    """The layouts that SGLang's references, in PyTorch, read as other weights than `weight_formats` does."""
    from sglang.kernels.ops.quantization.awq_triton import awq_dequantize_decomposition
    from sglang.test.cpu_test_utils import unpack_and_dequant_gptq

    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    gptq, awq = FORMATS["gptq"].quantize(weight), FORMATS["awq"].quantize(weight)
    theirs = {
        "gptq": unpack_and_dequant_gptq(gptq["qweight"], gptq["qzeros"], gptq["scales"].float()),
        "awq": awq_dequantize_decomposition(awq["qweight"], awq["scales"].float(), awq["qzeros"]).T,
    }
    ours = {"gptq": FORMATS["gptq"].dequantize(gptq), "awq": FORMATS["awq"].dequantize(awq)}
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


# --- The draft adapter ---


def adapter_error(folder: Path, name: str) -> float:
    """By how much a quantised projection with an adapter for every other token misses the sum of their products.

    In place of its kernel, the weights that it stands for are multiplied by.
    """
    model, tensors = loaded(folder)
    projection, random = model.model.layers[1].self_attn.o_proj, torch.Generator().manual_seed(1)
    parts = {part.removeprefix(f"{O_PROJ}."): tensor for part, tensor in tensors.items() if part.startswith(O_PROJ)}
    weight = FORMATS[name].dequantize(parts)
    assert not hasattr(projection, "weight")
    projection.quant_method.apply = lambda _, x, bias: x @ weight.bfloat16().T

    rank, scale = 4, 2.0
    lora_a, lora_b = (torch.randn(shape, generator=random) for shape in ((rank, weight.shape[1]), (len(weight), rank)))
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"r": rank, "lora_alpha": rank * scale}))
    matrices = {
        f"base_model.model.encoder.layers.{layer}.self_attn.o_proj.lora_{matrix}.weight": tensor.clone()
        for layer in range(SIZES["num_hidden_layers"])
        for matrix, tensor in (("A", lora_a), ("B", lora_b))
    }
    save_file(matrices, adapter / "adapter_model.safetensors")
    model.load_draft_adapter(adapter)

    x, is_on = torch.randn(6, weight.shape[1], generator=random).bfloat16(), torch.arange(6) % 2 == 0
    with model.draft_adapter.switched(is_on):
        found, _ = projection(x)
    expected = x.float() @ weight.T + scale * is_on[:, None] * (x.float() @ lora_a.T @ lora_b.T)
    return float((found.float() - expected).norm() / expected.norm())


def main(folder: Path, notations: dict[str, Any]) -> None:
    """Print what was found, as JSON; `notations` are cases of what is written into a checkpoint's files."""
    start()
    found: dict[str, Any] = {"methods": {}, "misplaced": {}, "misread": misread()}
    for source, (like, changes) in SOURCES.items():
        checkpoint = write_random(folder / source, like, changes)
        for name, form in FORMATS.items():
            out = folder / f"{source} {name}"
            write(folder / source, out, form, left_out_of(checkpoint))
            model, tensors = loaded(out)
            found["methods"].setdefault(source, {})[name] = methods(model)
            found["misplaced"].setdefault(source, {})[name] = misplaced(model, checkpoint, tensors)
    found["notations"] = {}
    plain, fp8, int4 = (folder / f"nemotron-labs-diffusion{form}" for form in ("", " fp8", " compressed-w4a16"))
    for number, (name, files) in enumerate(notations.items()):
        out = shutil.copytree(plain, folder / str(number))
        for file, content in files.items():
            there = json.loads((plain / file).read_text()) if (plain / file).exists() else {}
            (out / file).write_text(json.dumps(there | content))
        found["notations"][name] = methods(model_of(out, "meta"))
    found["online"] = methods(model_of(plain, "meta", "fp8"))
    found["cache dtypes"] = [cache_dtype(kept=kept) for kept in (False, True)]
    found["key scale"] = {source: key_scale(folder / f"{source} fp8") for source in SOURCES}
    found["adapter error"] = adapter_error(int4, "compressed-w4a16")
    found["missing"] = refusal(fp8, {f"{UP}.weight_scale": None})
    found["left over"] = refusal(fp8, {f"{UP}.weight_zero_point": torch.zeros(1)})
    shutil.copy(plain / "model.safetensors", int4)
    found["not quantised"] = refusal(int4, {})
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary), json.loads(sys.argv[1]))
