"""Read the small model, and derive why vocabulary rows that it lacks can never be chosen.

Its last residual channel holds the same positive constant c for every token in every layer: the embedding puts it
there, and neither `o_proj` nor `down_proj` writes to it. A row of the head that reads this channel alone, with a
large negative weight, has a logit below all others, in all inputs.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import torch
from safetensors.torch import load_file

from dlm_serve.errors import CheckpointError
from dlm_serve.families import NEMOTRON_LABS_DIFFUSION
from dlm_serve.inflation.adapter import Adapter, Tensors
from dlm_serve.models.checkpoint import Checkpoint

EMBEDDING, NORM, HEAD = "encoder.embed_tokens.weight", "encoder.norm.weight", "diffusion_head.weight"

# What nothing here accounts for, with the values that are fine.
_PLAIN: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "sliding_window": (None,),
    "tie_word_embeddings": (False,),
    "quantization_config": (None,),
}


@dataclass(frozen=True)
class Source:
    """The small model's weights and draft adapter, checked."""

    checkpoint: Checkpoint
    config: dict[str, object]
    """The whole `config.json`."""
    tensors: Tensors
    adapter: Adapter | None

    @classmethod
    def load(cls, model_path: str) -> Source:
        """Return the model in a folder. Raises CheckpointError if it cannot be inflated."""
        checkpoint = Checkpoint.find(model_path)
        if checkpoint is None or checkpoint.family is not NEMOTRON_LABS_DIFFUSION:
            limit = f"is no checkpoint of {NEMOTRON_LABS_DIFFUSION.name}"
            raise CheckpointError(
                "--model", model_path, limit, "give the folder of one, as `dlm-serve train` writes it"
            )
        config = json.loads((checkpoint.folder / "config.json").read_text())
        for name, fine in _PLAIN.items():
            if config.get(name, fine[0]) not in fine:
                raise CheckpointError(name, config[name], f"must be {fine[-1]}", "use a model without it")
        checkpoint.check_weights()
        tensors: Tensors = {}
        for file in sorted(checkpoint.folder.glob("*.safetensors")):
            tensors.update(load_file(file))
        folder = checkpoint.draft_adapter("auto")
        source = cls(checkpoint, config, tensors, Adapter.load(folder) if folder else None)
        source._check_constant_channel()
        return source

    @property
    def channel(self) -> int:
        """Return the residual channel that is constant."""
        return self.checkpoint.hidden_size - 1

    @property
    def constant(self) -> float:
        """Return the value of the constant channel."""
        return float(self.tensors[EMBEDDING][0, self.channel])

    def layer(self, index: int) -> Tensors:
        """Return the weights of a layer by their names in it, such as `mlp.up_proj`; empty if it does not exist."""
        prefix = f"encoder.layers.{index}."
        return {
            name.removeprefix(prefix).removesuffix(".weight"): tensor
            for name, tensor in self.tensors.items()
            if name.startswith(prefix)
        }

    def losing_weight(self, vocab_size: int) -> float:
        """Return the weight on the constant channel with which rows can never be chosen.

        The probabilities of `vocab_size` such rows add up to less than the rounding of a float64. Derived from
        the weights alone: with a the largest norm of a normalised vector, and since attention averages values,
        |silu(x)| <= |x| and a Frobenius norm bounds what a matrix does to a vector, the residual stream's norm is at
        most

            max |embedding| + sum over layers of |O| sqrt(heads) |V| a + |down| |gate| |up| a^2

        which bounds the constant channel from below once it is divided by the root mean square, while the largest
        logit of the small model is at least -min |row of the head| a. |O| includes a draft adapter with the largest
        noise that may be asked for, so the weights suit an adapter of any noise, written with them or later.
        """
        width = self.checkpoint.hidden_size
        weight = self.tensors[NORM].double()
        rows = self.tensors[HEAD].double().norm(dim=1)
        largest_rms = math.sqrt(self._residual_bound() ** 2 / width + self.checkpoint.rms_norm_eps)
        smallest = self.constant * float(weight[self.channel]) / largest_rms
        margin = math.log(vocab_size) + 53 * math.log(2)
        lowest = float(rows.min()) * _normalised_bound(weight)
        return -2 * (margin + lowest) / smallest  # twice, for the rounding of the model's own arithmetic

    def _residual_bound(self) -> float:
        """Return an upper bound of the residual stream's norm after the last layer."""
        bound = float(self.tensors[EMBEDDING].double().norm(dim=1).max())
        for index in range(self.checkpoint.num_hidden_layers):
            layer = {name: tensor.double() for name, tensor in self.layer(index).items()}
            norms = {name: float(tensor.norm()) for name, tensor in layer.items()}
            a = _normalised_bound(layer["input_layernorm"])
            output = norms["self_attn.o_proj"] + (self.adapter.norm_bound(index) if self.adapter else 0.0)
            bound += output * math.sqrt(self.checkpoint.num_attention_heads) * norms["self_attn.v_proj"] * a
            a = _normalised_bound(layer["post_attention_layernorm"])
            bound += norms["mlp.down_proj"] * norms["mlp.gate_proj"] * norms["mlp.up_proj"] * a**2
        return bound

    def _check_constant_channel(self) -> None:
        channel = self.channel
        column = self.tensors[EMBEDDING][:, channel]
        adapter = self.adapter.tensors if self.adapter else {}
        problem = None
        if not (column[0] > 0 and torch.all(column == column[0])):
            problem = "is not the same positive number in all rows of the embedding"
        elif not self.tensors[NORM][channel] > 0:
            problem = "has no positive weight in the final norm"
        else:
            writers = [
                name
                for name, tensor in (self.tensors | adapter).items()
                if name.endswith(("o_proj.weight", "down_proj.weight", "lora_B.weight")) and tensor[channel].any()
            ]
            problem = f"is written by {writers[0]}" if writers else None
        if problem:
            raise CheckpointError(
                "residual channel",
                channel,
                f"{problem}, so rows that pad the vocabulary could win",
                "use a model that was trained with a constant channel, as the bundled one",
            )


def _normalised_bound(weight: torch.Tensor) -> float:
    """Return the largest norm of RMSNorm's output with this weight [h]."""
    return float(weight.double().abs().max()) * math.sqrt(len(weight))
