"""Define training recipes, which are checked as a whole before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

from dlm_serve.errors import ConfigError
from dlm_serve.models.configuration import NemotronLabsDiffusionConfig
from dlm_serve.models.shape import ROPE_PARAMETERS
from dlm_serve.options.fields import validate
from dlm_serve.training.masking import HalfLifeMasking, Masking
from dlm_serve.training.tokenizer import BOS_ID, EOS_ID, MASK_ID

Count = Annotated[int, Field(ge=1, strict=True)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelShape(_Frozen):
    """The size of a new model. Rotary embedding, head size and whatever else `inflate` keeps are the 8B release's."""

    hidden_size: Count = 256
    intermediate_size: Count = 640
    num_hidden_layers: Count = 7
    num_attention_heads: Count = 4
    num_key_value_heads: Count = 1
    head_dim: Count = 128
    max_position_embeddings: Count = 4096

    def to_config(self, vocab_size: int, block_size: int) -> NemotronLabsDiffusionConfig:
        """Return the configuration of such a model with our tokenizer."""
        return NemotronLabsDiffusionConfig(
            **self.model_dump(),
            vocab_size=vocab_size,
            block_size=block_size,
            mask_token_id=MASK_ID,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
            pad_token_id=None,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            use_cache=False,
            rope_parameters=dict(ROPE_PARAMETERS),
        )


class Phase(_Frozen):
    """How long and how fast one phase learns: warm-up, a constant rate, then linearly to zero (WSD)."""

    steps: Count
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    warmup_steps: Count = 100
    decay_share: float = Field(default=0.3, ge=0, le=1)
    """Learning rate at the end of the phase."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Minutes after which the phase, decay included, ends. Such a run is not repeatable."""


class ConvertPhase(Phase):
    """Joint training of both losses (Nemotron-Labs-Diffusion: 1.0 and 0.3; LLaDA-like recipes: 0.3 and 0.7)."""

    ar_loss_weight: Weight = 1.0
    dlm_loss_weight: Weight = 0.3
    masking: Masking = HalfLifeMasking()
    weight_by_mask_ratio: bool = True
    """Divide a block's loss by its mask ratio, which bounds the likelihood but has rare, huge gradients."""


class DraftPhase(Phase):
    """Training of the draft adapter on the output projections; all other weights are frozen."""

    rank: Count = 64
    alpha: float = Field(default=128.0, gt=0)


class Evaluation(_Frozen):
    """Scoring with the reference decoder after the last phase."""

    examples_per_task: Count = 64
    max_new_tokens: Count = 192
    threshold: float = Field(default=0.9, ge=0, le=1)


class TrainingConfig(_Frozen):
    """A recipe: which phases to run, on which corpus, into which folder."""

    corpus: Path
    """The folder that `dlm-serve corpus` wrote."""
    output: Path
    seed: int = Field(default=0, ge=0)
    start_from: Path | None = None
    """A checkpoint folder to start from; None starts from random weights of shape `model`."""
    model: ModelShape = ModelShape()
    block_size: int = Field(default=32, ge=2, le=64)
    sequence_length: int = Field(default=512, ge=64)
    """Tokens in a row of packed documents."""
    blocks_per_row: Count = 12
    """Noisy blocks per row; answers that need more are noised in part."""
    batch_size: Count = 128
    """Rows in a step."""
    pretrain: Phase | None = None
    convert: ConvertPhase | None = None
    draft: DraftPhase | None = None
    evaluation: Evaluation | None = None
    checkpoint_every: Count = 500
    log_every: Count = 20
    compile: bool | None = None
    """Compile layers over FlexAttention instead of running them over a dense mask; None compiles on a GPU."""

    @classmethod
    def load(cls, path: Path) -> TrainingConfig:
        """Return the recipe in a YAML file, whose paths are relative to the working folder. Raises ConfigError."""
        try:
            content = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(
                "recipe", str(path), f"cannot be read ({error})", "give the path of a YAML file"
            ) from error
        config = validate(cls, {} if content is None else content, ConfigError, str(path))
        config.check()
        return config

    def check(self) -> None:
        """Raise ConfigError if fields exclude each other or name what does not exist."""
        if not self.phases:
            raise ConfigError("phases", "<none>", "nothing to train", "give pretrain, convert or draft")
        if not (self.corpus / "train.npz").is_file():
            raise ConfigError("corpus", str(self.corpus), "has no train.npz", "build it: dlm-serve corpus")
        if self.start_from is not None and not self.start_from.is_dir():
            raise ConfigError("start_from", str(self.start_from), "no such folder", "give a checkpoint's folder")
        if self.model.num_attention_heads % self.model.num_key_value_heads:
            raise ConfigError(
                "model.num_attention_heads",
                self.model.num_attention_heads,
                f"must be a multiple of num_key_value_heads, {self.model.num_key_value_heads}",
                "correct one of them",
            )
        if self.convert and self.convert.ar_loss_weight == self.convert.dlm_loss_weight == 0:
            raise ConfigError("convert", "<both weights 0>", "nothing to minimise", "raise one of the loss weights")

    @property
    def phases(self) -> dict[str, Phase]:
        """Return the phases to run, in order."""
        named = {"pretrain": self.pretrain, "convert": self.convert, "draft": self.draft}
        return {name: phase for name, phase in named.items() if phase is not None}
