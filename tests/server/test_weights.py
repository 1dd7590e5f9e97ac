"""New weights for a server that runs: those of its own model take effect everywhere, all others change nothing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import requests
import torch
from golden import DATA, RANDOM, TRAINED, WITH_ADAPTER, by_adapter
from golden import NEMOTRON_LABS_DIFFUSION as GOLDEN
from safetensors.torch import load_file, save_file
from serving import Server

from dlm_serve import bundled
from dlm_serve.models.checkpoint import DRAFT_ADAPTER_FOLDER

PROMPT = [145, 20, 30, 41, 52]
OUTPUT_LAYER = "diffusion_head.weight"


def update(server: Server, model_path: Path | str, **more: Any) -> tuple[int, str]:
    """Status and message of `/update_weights_from_disk`.

    SGLang empties no cache while the step behind the last answer still runs, and says so: then it is asked again.
    """
    for _ in range(100):
        response = server.post("/update_weights_from_disk", {"model_path": str(model_path), **more})
        status, message = response.status_code, response.json()["message"]
        if "the cache was not flushed" not in message:
            return status, message
        time.sleep(0.05)
    pytest.fail(f"never idle: {message}")


def with_config(to: Path, **changes: Any) -> Path:
    """A copy of the checkpoint that runs, with `changes` of its `config.json`."""
    shutil.copytree(TRAINED, to)
    content = json.loads((TRAINED / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**content, **changes}))
    return to


def with_tensors(to: Path, changes: Mapping[str, torch.Tensor | None]) -> Path:
    """A copy of the checkpoint that runs, with some tensors changed, added, or, where None, left out."""
    shutil.copytree(TRAINED, to)
    tensors = {**load_file(TRAINED / "model.safetensors"), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, to / "model.safetensors")
    return to


def test_new_weights_take_effect(trained: Server, tmp_path: Path) -> None:
    """With the rows of the output layer moved by one, so is the first token; KV that was cached is not used again."""
    head = load_file(TRAINED / "model.safetensors")[OUTPUT_LAYER]
    moved = with_tensors(tmp_path / "moved", {OUTPUT_LAYER: head.roll(1, 0)})
    before = trained.generate(PROMPT, 1, ignore_eos=True)
    assert update(trained, moved)[0] == 200
    try:
        after = trained.generate(PROMPT, 1, ignore_eos=True)
        assert after["output_ids"][0] == before["output_ids"][0] + 1
        assert after["meta_info"]["cached_tokens"] == 0
    finally:
        assert update(trained, TRAINED)[0] == 200
    reference = GOLDEN.cases(TRAINED)[::7]
    assert GOLDEN.differences(reference, GOLDEN.ask(trained, reference)) == []


def test_the_draft_adapter_changes_with_the_weights(with_adapter: Server, tmp_path: Path) -> None:
    """Forward passes tell which one drafts: none, where the new checkpoint has none.

    The name under which the model is served stays, and means the checkpoint that the server started with.
    """
    plain = tmp_path / "plain"
    shutil.copytree(WITH_ADAPTER, plain, ignore=shutil.ignore_patterns(DRAFT_ADAPTER_FOLDER))
    for checkpoint, adapter in ((plain, False), ("tiny", True)):
        assert update(with_adapter, checkpoint)[0] == 200
        assert requests.get(f"{with_adapter.url}/v1/models", timeout=30).json()["data"][0]["id"] == "tiny"
        reference = by_adapter(GOLDEN.cases(WITH_ADAPTER, "linear_spec"), adapter=adapter)[::4]
        assert GOLDEN.differences(reference, GOLDEN.ask(with_adapter, reference)) == []


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints that are not of the model that runs, each by what is wrong with it."""
    folder = tmp_path_factory.mktemp("wrong")
    truncated = with_config(folder / "truncated")
    whole = (TRAINED / "model.safetensors").read_bytes()
    (truncated / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    empty = with_config(folder / "empty")
    (empty / "model.safetensors").unlink()
    adapter = with_config(folder / "adapter")
    shutil.copytree(WITH_ADAPTER / DRAFT_ADAPTER_FOLDER, adapter / DRAFT_ADAPTER_FOLDER)
    return {
        "another family": DATA / "efficient_dlm" / "edlm-b8",
        "no model of ours": DATA,
        "no folder": folder / "none",
        "another size": RANDOM,
        "another vocabulary": with_config(folder / "vocabulary", vocab_size=328),
        "another mask": with_config(folder / "mask", mask_token_id=101),
        "a tensor of another shape": with_tensors(folder / "shape", {OUTPUT_LAYER: torch.zeros(320, 8)}),
        "a tensor is missing": with_tensors(folder / "missing", {OUTPUT_LAYER: None}),
        "a tensor is left over": with_tensors(folder / "more", {"more": torch.zeros(1)}),
        "truncated": truncated,
        "no weights": empty,
        "an adapter where there was none": adapter,
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("another family", "a checkpoint of efficient-dlm, where the server runs nemotron-labs-diffusion"),
        ("no model of ours", "is no checkpoint of a family that dlm-serve serves"),
        ("no folder", "is no checkpoint of a family that dlm-serve serves"),
        ("another size", "head_dim = 16: the server runs with 32"),
        ("another vocabulary", "vocab_size = 328: the server runs with 320"),
        ("another mask", "mask_token_id = 101: the server runs with 100"),
        ("a tensor of another shape", f"{OUTPUT_LAYER} = (320, 8): has shape (320, "),
        ("a tensor is missing", f"1 tensors missing: {OUTPUT_LAYER}"),
        ("a tensor is left over", "1 tensors left over: more"),
        ("truncated", "cannot be read"),
        ("no weights", "no *.safetensors file"),
        ("an adapter where there was none", "the server was started without a draft adapter"),
    ],
)
def test_other_weights_change_nothing(trained: Server, wrong: dict[str, Path], name: str, words: str) -> None:
    before = trained.generate(PROMPT, 8)["output_ids"]
    status, message = update(trained, wrong[name])
    assert status == 400
    assert words in message
    assert trained.generate(PROMPT, 8)["output_ids"] == before


def test_an_unknown_format(trained: Server) -> None:
    assert update(trained, TRAINED, load_format="bogus") == (
        400,
        "load_format = 'bogus': must be one of auto, safetensors; ask for one of them.",
    )


def test_the_bundled_model_by_its_name(trained: Server) -> None:
    """As it can be named where a server starts: it is found, and is another model."""
    assert update(trained, bundled.NAME) == (400, "block_size = 32: the server runs with 8; start a server of its own.")
