"""Write a checkpoint of a large shape that computes the same function as a small one.

It measures full-size speed with real confidences and with answers that can be checked: a step reads as many bytes and
multiplies as many numbers as the large model's, and produces the tokens of the small one.

- The residual stream [H] is the small one [h] followed by zeros. RMSNorm then divides by sqrt(h/H) of what it divided
  by, so its weights are multiplied by that and its epsilon by h/H. Where H/h is a power of four this is exact in any
  floating-point type; otherwise the norms' weights are rounded once.
- Heads, MLP units and layers that the small model lacks have random weights and write nothing to the residual stream.
- Vocabulary rows that it lacks can never be chosen: see `source`. They have tokens all the same: see `tokenizer`.
- Noise in the draft adapter, if asked for, makes only the drafts worse: see `adapter`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from dlm_serve.errors import ConfigError
from dlm_serve.inflation.adapter import Adapter
from dlm_serve.inflation.shapes import Shape
from dlm_serve.inflation.source import Source
from dlm_serve.inflation.tensors import Inflation
from dlm_serve.inflation.tokenizer import fill_tokenizer
from dlm_serve.models.checkpoint import DRAFT_ADAPTER_FOLDER

__all__ = ["inflate", "inflate_adapter"]

Progress = Callable[[int, int], None]

_CARD = """# {source} in a larger shape

This checkpoint computes the same function as `{source}`, at a larger size: every other weight is random or zero.
It is for measuring speed, and knows nothing that the small model does not. Made by `dlm-serve inflate`.
"""


def inflate(
    model_path: str, like: str, out: Path, draft_noise: float = 0.0, progress: Progress = lambda done, total: None
) -> int:
    """Write the model in the folder `model_path`, in the shape `like`, to the folder `out`. Return the weights' bytes.

    The draft adapter's matrices B get `draft_noise` standard deviations of noise. `progress` is called with the
    number of shards written and in total. Holds at most two shards in memory:
    of layers, embedding and head. `config.json` comes last, so that an interrupted run is not mistaken for a
    checkpoint. Raises CheckpointError or ConfigError.
    """
    source = Source.load(model_path)
    shape = Shape.like(like)
    large = Inflation(source, shape)
    adapter = _draft_adapter(source, large, draft_noise) if source.adapter or draft_noise else None
    _prepare(out, large.num_bytes)
    folder = source.checkpoint.folder
    for file in folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copy(file, out)
    if (tokenizer := out / "tokenizer.json").is_file():
        fill_tokenizer(tokenizer, shape.vocab_size)
    (out / "README.md").write_text(_CARD.format(source=folder.name))
    if adapter:
        (out / DRAFT_ADAPTER_FOLDER).mkdir()
        adapter.write(out / DRAFT_ADAPTER_FOLDER)
    _write_weights(large, out, progress)
    (out / "config.json").write_text(json.dumps(large.config, indent=2) + "\n")
    return large.num_bytes


def inflate_adapter(model_path: str, like: str, out: Path, draft_noise: float = 0.0) -> int:
    """Write to the folder `out` only the draft adapter that `inflate` writes with the same arguments.

    Return its bytes. Raises CheckpointError or ConfigError.
    """
    source = Source.load(model_path)
    adapter = _draft_adapter(source, Inflation(source, Shape.like(like)), draft_noise)
    _prepare(out, adapter.num_bytes)
    adapter.write(out)
    return adapter.num_bytes


def _draft_adapter(source: Source, large: Inflation, noise: float) -> Adapter:
    """Return the large model's draft adapter. Raises ConfigError if there is none or it cannot have this noise."""
    if source.adapter is None:
        raise ConfigError(
            "--model",
            str(source.checkpoint.folder),
            "has no draft adapter",
            "use a model with one, or neither --draft-noise nor --adapter-only",
        )
    return large.adapter(source.adapter.with_noise(noise))


def _write_weights(large: Inflation, out: Path, progress: Progress) -> None:
    """Write the shards and their index in the format of `transformers`."""
    file_of: dict[str, str] = {}
    for number, shard in enumerate(large.shards(), start=1):
        file = f"model-{number:05d}-of-{large.num_shards:05d}.safetensors"
        save_file(shard, out / file, metadata={"format": "pt"})
        file_of |= dict.fromkeys(shard, file)
        progress(number, large.num_shards)
    index = {"metadata": {"total_size": large.num_bytes}, "weight_map": file_of}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _prepare(out: Path, num_bytes: int) -> None:
    """Create an empty folder on a disk with room for the weights. Raises ConfigError."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("OUT", str(out), "exists and is not an empty folder", "give another or remove it")
    out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(out).free
    if free < num_bytes:
        raise ConfigError(
            "OUT", str(out), f"{num_bytes / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free", "choose another disk"
        )
