"""Find what would keep a server from starting here, and say what to do about it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import entry_points, version
from pathlib import Path

from dlm_serve import bundled
from dlm_serve.errors import DlmServeError, UnsupportedSGLangError
from dlm_serve.ports import why_taken

LEAST_FREE_GB = 20.0
"""Below which a disk is called nearly full: a checkpoint of 8 billion parameters in bfloat16 is 17 GB."""

_DRIVER = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


class Verdict(StrEnum):
    """How a check ended."""

    FINE = "fine"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    subject: str
    verdict: Verdict
    says: str
    remedy: str = ""
    """What to do, unless all is fine."""


@dataclass(frozen=True)
class Plan:
    """The server that somebody wants to start."""

    model_path: str
    config: str | None
    """Path of the server file, unless DLM_SERVE_CONFIG has it."""
    host: str
    port: int
    answers: bool
    """Whether to load the model and let it answer."""


def examine(plan: Plan) -> Iterator[Finding]:
    """Yield what each check found, in order; later ones are left out where they could only fail too."""
    sglang = check_sglang()
    yield sglang
    yield check_plugin()
    yield check_gpu()
    model = check_model(plan.model_path)
    yield model
    if model.verdict is not Verdict.PROBLEM:
        yield check_server_file(plan.model_path, plan.config)
    yield check_port(plan.host, plan.port)
    yield check_disk()
    if plan.answers and Verdict.PROBLEM not in (sglang.verdict, model.verdict):
        yield check_answer(plan.model_path)


def check_sglang() -> Finding:
    """Check the installed SGLang and all of it that dlm-serve stands on."""
    from dlm_serve.sglang import compat
    from dlm_serve.sglang.ledger import ENTRY_HOOKS, HOOKS
    from dlm_serve.sglang.seams import ENTRY_SEAMS, SEAMS

    seams = (*ENTRY_HOOKS, *ENTRY_SEAMS, *HOOKS, *SEAMS)
    try:
        compat.require(seams)
    except UnsupportedSGLangError as error:
        return Finding("SGLang", Verdict.PROBLEM, str(error), f"pip install sglang=={compat.SUPPORTED_VERSIONS[-1]}")
    return Finding("SGLang", Verdict.FINE, f"{version('sglang')}, with all {len(seams)} places that dlm-serve uses")


def check_plugin() -> Finding:
    """Check that SGLang finds the plugin, and may load it."""
    if "dlm_serve" not in {point.name for point in entry_points(group="sglang.srt.plugins")}:
        return Finding(
            "plugin", Verdict.PROBLEM, "SGLang does not find it", "pip install dlm-serve in this environment"
        )
    allowed = os.environ.get("SGLANG_PLUGINS")
    if allowed and "dlm_serve" not in allowed.split(","):
        return Finding("plugin", Verdict.PROBLEM, f"SGLANG_PLUGINS = {allowed!r} leaves it out", "add dlm_serve to it")
    return Finding("plugin", Verdict.FINE, f"dlm-serve {version('dlm-serve')}")


def check_gpu() -> Finding:
    """Check the GPU and its driver, and say which kernels it gets."""
    import torch

    driver = _driver()
    if not torch.cuda.is_available():
        if driver is None:
            return Finding("GPU", Verdict.FINE, "none: models run on plain PyTorch, on the CPU")
        says = f"driver {driver} has one, which torch {torch.__version__} cannot use"
        return Finding("GPU", Verdict.PROBLEM, says, "install a torch for this driver, or a newer driver")
    properties = torch.cuda.get_device_properties(0)
    capability = (properties.major, properties.minor)
    kernels = "blocks through Triton's kernels" + (" and, where wide, that for Hopper" if capability == (9, 0) else "")
    says = (
        f"{torch.cuda.device_count()} x {properties.name}, {properties.total_memory / 1e9:.0f} GB, "
        f"driver {driver or 'unknown'}, compute capability {capability[0]}.{capability[1]}: {kernels}"
    )
    if capability < (8, 0):
        return Finding("GPU", Verdict.WARNING, f"{says}; it has no bfloat16", "use a GPU of capability 8.0 or newer")
    return Finding("GPU", Verdict.FINE, says)


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, None where there is none."""
    try:
        done = subprocess.run(_DRIVER, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n", 1)[0].strip() or None


def check_model(model_path: str) -> Finding:
    """Check that the model is of a family that is served, and its folder complete."""
    from dlm_serve.families import FAMILIES
    from dlm_serve.models.checkpoint import Checkpoint

    folder = bundled.expand(model_path)
    try:
        checkpoint = Checkpoint.find(folder)
        if checkpoint is not None and Path(folder).is_dir():
            checkpoint.check_weights()
    except DlmServeError as error:
        return Finding("model", Verdict.PROBLEM, str(error), "correct the checkpoint as said")
    if checkpoint is None:
        families = ", ".join(family.name for family in FAMILIES)
        says = f"{model_path!r} has no config.json of a family that is served ({families})"
        return Finding("model", Verdict.PROBLEM, says, "check the name, and that the hub can be reached")
    family = checkpoint.family
    return Finding("model", Verdict.FINE, f"{model_path} is {family.name}: {', '.join(family.modes)}")


def check_server_file(model_path: str, config: str | None) -> Finding:
    """Check that the server file can be followed with the model."""
    from dlm_serve.models.checkpoint import Checkpoint
    from dlm_serve.options.file_rules import check_file
    from dlm_serve.options.server_file import CONFIG_VARIABLE, ServerConfig

    path = config or os.environ.get(CONFIG_VARIABLE)
    checkpoint = Checkpoint.find(bundled.expand(model_path))
    assert checkpoint is not None, "checked before"
    try:
        check_file(ServerConfig.load(path), checkpoint.family, checkpoint.block_size)
    except DlmServeError as error:
        return Finding("server file", Verdict.PROBLEM, str(error), "docs/configuration.md has every field")
    return Finding("server file", Verdict.FINE, path or "none: the defaults")


def check_port(host: str, port: int) -> Finding:
    """Check that a server could listen."""
    why = why_taken(host, port)
    if why is not None:
        says = f"{host}:{port} cannot be listened on ({why})"
        return Finding("port", Verdict.PROBLEM, says, "end what listens there, or start the server with another --port")
    return Finding("port", Verdict.FINE, f"{host}:{port} is free")


def check_disk() -> Finding:
    """Check that a checkpoint could be fetched."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = next(parent for parent in (Path(HF_HUB_CACHE), *Path(HF_HUB_CACHE).parents) if parent.exists())
    free = shutil.disk_usage(folder).free / 1e9
    says = f"{free:.0f} GB free for checkpoints in {HF_HUB_CACHE}"
    if free < LEAST_FREE_GB:
        return Finding("disk", Verdict.WARNING, says, "make room, or set HF_HOME to a folder on a larger disk")
    return Finding("disk", Verdict.FINE, says)


def check_answer(model_path: str) -> Finding:
    """Load the model and let it say one token."""
    from dlm_serve.offline import DiffusionLM

    try:
        with DiffusionLM.from_pretrained(model_path) as model:
            out_ids, _ = model.generate([1, 2, 3], max_new_tokens=1, eos_token_id=-1)
    except Exception as error:  # whatever it is, it is what keeps the model from answering
        says = f"{type(error).__name__}: {error}"
        return Finding("answer", Verdict.PROBLEM, says, "read what SGLang has logged above")
    return Finding("answer", Verdict.FINE, f"token {out_ids[0, -1]}")
