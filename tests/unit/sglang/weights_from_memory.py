"""Run by test_weights_from_memory.py: what a loaded model makes of tensors that a training loop sends, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from in_process import model_runner_of
from safetensors.torch import load_file

from dlm_serve.errors import CheckpointError

Named = list[tuple[str, torch.Tensor]]


def main(model_path: Path) -> None:
    model = model_runner_of(model_path).model
    tensors = load_file(model_path / "model.safetensors")
    name, tensor = next((name, tensor) for name, tensor in tensors.items() if tensor.ndim == 2)

    def load(update: Named) -> tuple[str, list[str]]:
        """Why `update` is refused, empty if it is not, and the parameters that it has changed."""
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        refusal = ""
        try:
            model.load_weights(update)
        except CheckpointError as error:
            refusal = str(error)
        after = model.named_parameters()
        return refusal, [name for name, parameter in after if not torch.equal(parameter, before[name])]

    other = (name, tensor + 1)
    whole = list(tensors.items())
    found = {
        "the same": load(whole),
        "an unknown name": load([other, *whole, ("more", tensor)]),
        "another shape": load([other, *whole, (name, tensor[:1])]),
        "a part": load([other]),
        "all": load([*(tensors | dict([other])).items()]),
    }
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
