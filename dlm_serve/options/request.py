"""The options of a request."""

from __future__ import annotations

from dlm_serve.decoding import Mode, Speculation, StopRule
from dlm_serve.errors import OptionError
from dlm_serve.options.fields import Budget, Flag, Frozen, Length, Nats, Probability, Width, validate

OPTIONS_FIELD = "custom_params.dlm"
"""Where the options stand in a request, as refusals name it."""


class RequestOptions(Frozen):
    """`custom_params.dlm` of a request. Absent and null are different."""

    mode: Mode | None = None
    """How to decode; the server file's `generation.mode` by default."""
    algorithm: str | None = None
    """One of the family's algorithms for mode diffusion; null is its default."""
    block_length: Width | None = None
    """Tokens that are denoised or drafted together; the checkpoint's `block_size` by default."""
    threshold: Probability | None = None
    """Confidence at which a token is fixed; null is the fixed schedule of `steps`."""
    speculation: Speculation | None = None
    """How self-speculation drafts and verifies; the server file's `generation.speculation` by default."""
    budget: Budget | None = None
    """Tokens of a forward of `speculation: one_forward`; the server file's `generation.budget` by default."""
    steps: Width | None = None
    """Most denoising forwards per block; without `threshold`, an even schedule of so many."""
    convergence_threshold: Nats | None = None
    """Change of the mean entropy, in nats, below which denoising stops early; null never does."""
    stop_rule: StopRule | None = None
    """One of the family's stop rules; null is its default."""
    max_thinking_tokens: Length | None = None
    """Length of the answer at which thinking ends that has not ended by itself; null lets it go on."""
    end_think_token_id: Length | None = None
    """The token that ends it; the tokenizer's `</think>` by default."""
    shift_logits: Flag | None = None
    """As on Efficient-DLM's card; must be what the family does."""

    history: Flag = False
    """Whether `meta_info.dlm.history` shows the block after each forward."""

    @property
    def diffusion_only(self) -> str | None:
        """Return the option that only diffusion has: its fixed schedule, or stopping by convergence. None if absent."""
        if "threshold" in self.model_fields_set:
            schedule = "threshold" if self.threshold is None else None
        else:
            schedule = None if self.steps is None else "steps"
        return schedule or (None if self.convergence_threshold is None else "convergence_threshold")

    @classmethod
    def parse(cls, raw: object) -> RequestOptions:
        """Return the options in `raw`, a mapping or None. Raises OptionError."""
        return validate(cls, {} if raw is None else raw, OptionError, OPTIONS_FIELD)
