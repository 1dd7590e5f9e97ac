"""A small checkpoint under SDAR's names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from golden import DATA
from safetensors.torch import load_file, save_file

RELEASED_AS = {"architectures": ["SDARForCausalLM"], "model_type": "sdar", "auto_map": {}}
TRAINED = DATA / "efficient_dlm" / "edlm-b8"


def write_checkpoint(folder: Path) -> None:
    """The weights of a small Efficient-DLM, which are Qwen3's too, as SDAR's releases name them."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(TRAINED / name, folder)
    renamed = {"encoder.": "model.", "diffusion_head.": "lm_head."}
    tensors = load_file(TRAINED / "model.safetensors")
    for theirs, ours in renamed.items():
        tensors = {ours + n.removeprefix(theirs) if n.startswith(theirs) else n: t for n, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((TRAINED / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **RELEASED_AS, "eos_token_id": 1}))
