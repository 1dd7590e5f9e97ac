"""Which options the blocks of a family have: blocks that are denoised in several forwards, or windows of one."""

from __future__ import annotations

from abc import ABC, abstractmethod

from dlm_serve.decoding import ConcreteMode, Mode, ModeSettings, Speculation, WindowAlgorithm, WindowCommit
from dlm_serve.errors import ConfigError, OptionError
from dlm_serve.families import Family
from dlm_serve.options.request import OPTIONS_FIELD, RequestOptions
from dlm_serve.options.server_file import GenerationConfig, ServerConfig


class BlockRules(ABC):
    """What a server file and a request may say about blocks."""

    longest_because: str
    """Why blocks may not be longer."""

    def __init__(self, family: Family) -> None:
        self.family = family

    @abstractmethod
    def check_file(self, config: ServerConfig, block_size: int) -> None:
        """Raise ConfigError for defaults that the blocks of the family do not have."""

    @abstractmethod
    def settings(
        self,
        options: RequestOptions,
        defaults: GenerationConfig,
        mode: ConcreteMode,
        algorithm: str | None,
        block_length: int,
    ) -> ModeSettings:
        """Return how a request with `options` decodes in `mode`. Raises OptionError."""


def rules_of(family: Family) -> BlockRules:
    """Return the rules for the blocks of `family`."""
    return WindowRules(family) if isinstance(family.commit, WindowCommit) else DenoiseRules(family)


class DenoiseRules(BlockRules):
    """Blocks that are denoised: by a threshold, by a schedule of steps, or both."""

    longest_because = "the largest of the server's routing.widths"

    def check_file(self, config: ServerConfig, block_size: int) -> None:
        """See `BlockRules`. These blocks have them all."""

    def settings(
        self,
        options: RequestOptions,
        defaults: GenerationConfig,
        mode: ConcreteMode,
        algorithm: str | None,
        block_length: int,
    ) -> ModeSettings:
        """See `BlockRules`."""
        given = options.model_fields_set
        budget = self._budget(options, defaults, mode)
        threshold = self._threshold(options, defaults, mode, algorithm) if budget is None else 0.0
        if mode is Mode.SELF_SPECULATION and threshold is None:
            name = "threshold" if "threshold" in given else "steps"
            raise OptionError(
                f"{OPTIONS_FIELD}.{name}",
                getattr(options, name),
                "self_speculation drafts by confidence, so it has no fixed schedule",
                "give a threshold (0 drafts in one forward), or use mode diffusion",
            )
        steps = options.steps if "steps" in given else defaults.steps and min(defaults.steps, block_length)
        if steps is not None and steps > block_length:
            raise OptionError(
                f"{OPTIONS_FIELD}.steps",
                steps,
                f"at most the block length, {block_length}",
                "lower it, or raise block_length",
            )
        converges = options if "convergence_threshold" in given else defaults
        return ModeSettings(
            mode,
            block_length,
            threshold,
            steps or block_length,
            converges.convergence_threshold,
            algorithm,
            budget,
        )

    def _budget(self, options: RequestOptions, defaults: GenerationConfig, mode: Mode) -> int | None:
        """Return the tokens of a row that speculates in one forward, None where it does not."""
        if mode is not Mode.SELF_SPECULATION:
            return None
        if (options.speculation or defaults.speculation) is not Speculation.ONE_FORWARD:
            if options.budget is not None:
                limit, remedy = "only speculation one_forward has it", "leave it out, or give speculation: one_forward"
                raise OptionError(f"{OPTIONS_FIELD}.budget", options.budget, limit, remedy)
            return None
        schedule = options.diffusion_only or ("threshold" if options.threshold else None)
        if schedule is not None:
            raise OptionError(
                f"{OPTIONS_FIELD}.{schedule}",
                getattr(options, schedule),
                "speculation one_forward drafts all masks at once",
                "leave it out, or use speculation linear",
            )
        return options.budget or defaults.budget

    def _threshold(
        self, options: RequestOptions, defaults: GenerationConfig, mode: Mode, algorithm: str | None
    ) -> float | None:
        """Return the confidence at which tokens are fixed, None for a fixed schedule."""
        is_scheduled = algorithm in self.family.scheduled
        if is_scheduled and options.threshold is not None:
            raise OptionError(
                f"{OPTIONS_FIELD}.threshold",
                options.threshold,
                "this algorithm follows the schedule of `steps` and has no threshold",
                "leave it out, or use algorithm threshold",
            )
        if "threshold" in options.model_fields_set:
            return options.threshold
        if is_scheduled or (options.steps is not None and options.algorithm is None):
            return None
        return defaults.draft_threshold if mode is Mode.SELF_SPECULATION else defaults.threshold


class WindowRules(BlockRules):
    """Windows of one forward, cut where their confidence ends."""

    longest_because = (
        "twice the checkpoint's block_size and half the largest of the server's routing.widths, whichever is less"
    )
    _ABSENT = ("steps", "convergence_threshold")
    """Options of blocks that take several forwards."""
    _ONE_FORWARD = "this family decodes each block in one forward"
    _NO_SCHEDULE = "this family has no fixed schedule: a window ends where confidence drops"

    def check_file(self, config: ServerConfig, block_size: int) -> None:
        """See `BlockRules`."""
        commit, generation = self.family.commit, config.generation
        longest = commit.longest_block(block_size, config.routing.max_width)
        if longest < 1:
            limit = f"the largest must be at least {commit.row_width(1)}"
            raise ConfigError("routing.widths", config.routing.widths, limit, "add a wider one")
        if (generation.block_length or 1) > longest:
            raise ConfigError(
                "generation.block_length",
                generation.block_length,
                f"at most {longest}, {self.longest_because}",
                "lower it or add a wider width",
            )
        if generation.threshold is None:
            raise ConfigError("generation.threshold", None, self._NO_SCHEDULE, "give a number")
        for name in self._ABSENT:
            value = getattr(generation, name)
            if value is not None:
                raise ConfigError(f"generation.{name}", value, self._ONE_FORWARD, "leave it out")

    def settings(
        self,
        options: RequestOptions,
        defaults: GenerationConfig,
        mode: ConcreteMode,
        algorithm: str | None,
        block_length: int,
    ) -> ModeSettings:
        """See `BlockRules`."""
        for name in self._ABSENT:
            value = getattr(options, name)
            if value is not None:
                raise OptionError(f"{OPTIONS_FIELD}.{name}", value, self._ONE_FORWARD, "leave it out")
        return ModeSettings(mode, block_length, self._threshold(options, defaults, algorithm), algorithm=algorithm)

    def _threshold(self, options: RequestOptions, defaults: GenerationConfig, algorithm: str | None) -> float | None:
        """Return the confidence up to which a window is taken, None where its drafts are verified."""
        is_given = "threshold" in options.model_fields_set
        if algorithm == WindowAlgorithm.SELF_SPECULATIVE:
            if is_given:
                raise OptionError(
                    f"{OPTIONS_FIELD}.threshold",
                    options.threshold,
                    "self_speculative verifies its drafts and has no threshold",
                    "leave it out, or use another algorithm",
                )
            return None
        if is_given and options.threshold is None:
            raise OptionError(
                f"{OPTIONS_FIELD}.threshold", None, self._NO_SCHEDULE, "give a number (1 takes one token at a time)"
            )
        return options.threshold if is_given else defaults.threshold
