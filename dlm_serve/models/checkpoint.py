"""What lies in a checkpoint folder: read and checked before any process is started."""

from __future__ import annotations

import json
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any, TypeAlias

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, InstanceOf, ValidationError
from safetensors import SafetensorError, safe_open

from dlm_serve.decoding import Mode
from dlm_serve.errors import CheckpointError
from dlm_serve.families import Config, Family, family_of, image_family_of
from dlm_serve.models.shape import ModelShape

DRAFT_ADAPTER_FOLDER = "linear_spec_lora"
Shape: TypeAlias = tuple[int, ...]

_QUANTIZATION_FILES = ("hf_quant_config.json", "quantize_config.json", "quant_config.json")
"""Where ModelOpt, GPTQ and AWQ may say what `config.json` does not."""
SAMPLING_DEFAULTS = ("temperature", "top_p", "top_k", "min_p")
"""What a checkpoint, or a server, may say about requests that do not."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json")


class Checkpoint(ModelShape):
    """The part of `config.json` that decoding depends on, with the folder it came from."""

    family: InstanceOf[Family]
    folder: Path
    rms_norm_eps: float = Field(gt=0)
    mask_token_id: int = Field(strict=True)
    eos_token_id: int | list[int]
    block_size: int = Field(ge=1, le=64, strict=True)
    dtype: str | None = Field(default=None, validation_alias=AliasChoices("dtype", "torch_dtype"))
    quantization_config: dict[str, Any] | None = Field(
        default=None, validation_alias=AliasChoices("quantization_config", "compression_config")
    )
    tie_word_embeddings: bool = False

    @property
    def eos_token_ids(self) -> list[int]:
        """Return all ids that `config.json` calls end of sequence."""
        return self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]

    @property
    def quantization(self) -> str | None:
        """Return the method it was quantised by, or the file that describes it; None where its weights are floats."""
        if self.quantization_config is not None:
            return str(self.quantization_config.get("quant_method", "quantization_config"))
        return next((name for name in _QUANTIZATION_FILES if (self.folder / name).is_file()), None)

    @property
    def tensor_names(self) -> set[str]:
        """Return the names of all its tensors, as long as they are not quantised."""
        return set(self.family.tensors.names(self.num_hidden_layers))

    @classmethod
    def find(cls, model_path: str, revision: str | None = None) -> Checkpoint | None:
        """Return the checkpoint at `model_path`, a folder or a hub id, or None if it is of no family we serve.

        Raises CheckpointError if it is of one, but its `config.json` cannot be served, as that of a model that sees
        images.
        """
        config = _read_config(model_path, revision)
        if config is None:
            return None
        _refuse_images(config)
        family = family_of(config)
        if family is None:
            return None
        return cls.read(family, config, _resolve_folder(model_path, revision))

    @classmethod
    def read(cls, family: Family, config: Config, folder: Path) -> Checkpoint:
        """Return the checkpoint of `family` in `folder` with this `config.json`. Raises CheckpointError."""
        try:
            checkpoint = cls.model_validate({**family.normalise(config), "family": family, "folder": folder})
        except ValidationError as error:
            detail = error.errors()[0]
            field = ".".join(str(part) for part in detail["loc"])
            missing = detail["type"] == "missing"
            raise CheckpointError(
                field,
                "<missing>" if missing else detail["input"],
                detail["msg"].lower(),
                f"{'add it to' if missing else 'correct it in'} {folder / 'config.json'}",
            ) from None
        checkpoint._check_mask_token_id()
        checkpoint._check_quantization()
        return checkpoint

    def generation_defaults(self) -> dict[str, float]:
        """Return sampling defaults of `generation_config.json`, else the family's. Raises CheckpointError.

        A penalty is left out, since it asks for one token at a time: that is for a request to say.
        """
        path = self.folder / "generation_config.json"
        content = _read_json(path) if path.is_file() else {}
        if content is None:
            raise CheckpointError("generation_config.json", str(path), "is not a JSON object", "correct or remove it")
        said = {name: content[name] for name in SAMPLING_DEFAULTS if content.get(name) is not None}
        return {"temperature": self.family.temperature, **said}

    def token_id(self, text: str) -> int | None:
        """Return the id of a token that its tokenizer has besides its vocabulary; None if there is none."""
        path = self.folder / "tokenizer.json"
        content = (_read_json(path) if path.is_file() else None) or {}
        found = (token["id"] for token in content.get("added_tokens", ()) if token.get("content") == text)
        return next(found, None)

    def tokenizer(self) -> Path | None:
        """Return the folder of the family's tokenizer if the checkpoint has none. Raises CheckpointError."""
        name = self.family.tokenizer
        if name is None or any((self.folder / file).is_file() for file in _TOKENIZER_FILES):
            return None
        try:
            return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt"], ignore_patterns=["*/*"]))
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise CheckpointError(
                "tokenizer",
                name,
                f"{self.folder} has no tokenizer, and this one cannot be fetched ({error})",
                f"run `hf download {name}` once while online, or give a folder with --tokenizer-path",
            ) from error

    def check_weights(self) -> None:
        """Open the safetensors files and compare their tensor names. Raises CheckpointError.

        Of a quantised checkpoint the modules are compared: their tensors only a model can tell.
        """
        names = self.tensor_shapes()
        if self.quantization is None:
            self.check_tensor_names(names, self.tensor_names)
        else:
            found, optional = _modules_of(names), _modules_of(self._optional)
            self._check_names("modules", found, _modules_of(self.tensor_names), optional)

    def tensor_shapes(self) -> dict[str, Shape]:
        """Return the shapes of the tensors in the safetensors files, by name. Raises CheckpointError."""
        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise CheckpointError(
                "weights",
                str(self.folder),
                "no *.safetensors file",
                "complete the download, or use --load-format dummy for random weights",
            )
        shapes: dict[str, Shape] = {}
        for file in files:
            try:
                with safe_open(file, framework="pt") as tensors:
                    names = tensors.keys()
                    shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    "weights", str(file), f"cannot be read ({error})", "the file may be truncated: download it again"
                ) from error
        return shapes

    def check_update(self, other: Checkpoint) -> None:
        """Raise CheckpointError unless `other` is of the same model, so that its weights can replace this one's."""
        if other.family is not self.family:
            limit = f"a checkpoint of {other.family.name}, where the server runs {self.family.name}"
            raise CheckpointError("model_path", str(other.folder), limit, "start a server of its own")
        for name in sorted(type(self).model_fields.keys() - {"family", "folder", "dtype"}):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise CheckpointError(name, theirs, f"the server runs with {ours!r}", "start a server of its own")

    def check_tensor_names(self, names: Iterable[str], expected: Set[str], *, is_part: bool = False) -> None:
        """Raise CheckpointError naming tensors that are left over or, unless these are a part, missing."""
        found = {name for name in names if not is_kv_scale(name)}
        self._check_names("tensors", found, expected, expected if is_part else self._optional)

    @property
    def _optional(self) -> Set[str]:
        return set(self.family.tensors.untied) if self.tie_word_embeddings else set()

    def _check_names(self, kind: str, found: Set[str], expected: Set[str], optional: Set[str]) -> None:
        for problem, wrong in (("missing", expected - found - optional), ("left over", found - expected - optional)):
            if wrong:
                listed = ", ".join(sorted(wrong)[:8]) + (", ..." if len(wrong) > 8 else "")
                raise CheckpointError(
                    "weights",
                    str(self.folder),
                    f"{len(wrong)} {kind} {problem}: {listed}",
                    "use a complete checkpoint",
                )

    def draft_adapter(self, choice: str) -> Path | None:
        """Return the folder of the draft adapter for `choice`: `auto`, `none` or a folder; None where nothing drafts.

        Raises CheckpointError.
        """
        if choice == "none" or Mode.SELF_SPECULATION not in self.family.modes:
            return None
        folder = self.folder / DRAFT_ADAPTER_FOLDER if choice == "auto" else Path(choice)
        if (folder / "adapter_config.json").is_file():
            return folder
        if choice == "auto":
            return None
        raise CheckpointError(
            "lora.draft_adapter", choice, "the folder has no adapter_config.json", "give an adapter's folder"
        )

    def _check_mask_token_id(self) -> None:
        if not 0 <= self.mask_token_id < self.vocab_size or self.mask_token_id in self.eos_token_ids:
            raise CheckpointError(
                "mask_token_id",
                self.mask_token_id,
                f"must be in [0, {self.vocab_size}) and not an end-of-sequence id {self.eos_token_ids}",
                f"correct {self.folder / 'config.json'}",
            )

    def _check_quantization(self) -> None:
        if self.quantization is not None and self.family.floats_only is not None:
            raise CheckpointError(
                "quantization_config", self.quantization, self.family.floats_only, "use the weights of the release"
            )


def _refuse_images(config: Config) -> None:
    """Raise CheckpointError if a model of one of our families sees images, which no mode decodes."""
    if family := image_family_of(config):
        limit = f"images are not supported, only text models of {family.name}"
        raise CheckpointError("vision_config", "<an image encoder>", limit, "serve a text checkpoint of the family")


def is_kv_scale(name: str) -> bool:
    """Return whether a tensor is a scale of the KV cache. It is taken if the cache is quantised, and never needed."""
    return name.endswith((".k_scale", ".v_scale", ".kv_scale", ".output_scale"))


def _modules_of(names: Iterable[str]) -> set[str]:
    """Return the modules whose tensors these are."""
    return {name.rpartition(".")[0] for name in names if not is_kv_scale(name)}


class AdapterConfig(BaseModel):
    """The part of PEFT's `adapter_config.json` that the drafter uses."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    r: int = Field(gt=0)
    lora_alpha: float = Field(gt=0)

    @property
    def scale(self) -> float:
        """Return what the low-rank product is multiplied with."""
        return self.lora_alpha / self.r


def _read_config(model_path: str, revision: str | None) -> dict[str, Any] | None:
    """Return the `config.json` of a folder or hub id, or None where there is none that can be read."""
    if Path(model_path).is_dir():
        return _read_json(Path(model_path, "config.json"))
    try:
        return _read_json(Path(hf_hub_download(model_path, "config.json", revision=revision)))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None where there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _resolve_folder(model_path: str, revision: str | None) -> Path:
    """Return the local folder of a path or hub id. SGLang fetches the weights; here it is what lies beside them."""
    if Path(model_path).is_dir():
        return Path(model_path)
    return Path(
        snapshot_download(model_path, revision=revision, allow_patterns=["*.json", f"{DRAFT_ADAPTER_FOLDER}/*"])
    )
