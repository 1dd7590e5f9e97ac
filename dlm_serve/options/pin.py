"""What an operator asks of the router while the server runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlm_serve.decoding import AUTOREGRESSIVELY, Choice, Mode
from dlm_serve.errors import OptionError
from dlm_serve.options.fields import Budget, Frozen, Width
from dlm_serve.options.limits import listed


class Pin(Frozen):
    """The body of `POST /dlm/routing`."""

    mode: Mode
    """How requests with mode `auto` decode from now on; `auto` leaves it to the server's policy again."""
    block_length: Width | None = None
    """Tokens, one of `routing.widths`; null is the longest block of the mode."""
    budget: Budget | None = None
    """Tokens of a forward that verifies a draft and drafts the next, one of `routing.budgets`; null does it in turn."""

    def choice(self, choices: Sequence[Choice]) -> Choice | None:
        """Return what to pin, one of `choices`, the ways to decode blocks, or autoregressive; None releases.

        Raises OptionError where requests are not moved, or not to that.
        """
        if not choices:
            limit = "requests are not moved: there is one way to decode them, or routing.policy is fixed"
            raise OptionError("mode", self.mode, limit, "let requests name a mode")
        if self.mode in (Mode.AUTO, Mode.AUTOREGRESSIVE):
            for name in ("block_length", "budget"):
                if getattr(self, name) is not None:
                    raise OptionError(name, getattr(self, name), f"mode {self.mode} has no blocks", "leave it out")
            return AUTOREGRESSIVELY if self.mode is Mode.AUTOREGRESSIVE else None
        of_mode = [choice for choice in choices if choice.mode is self.mode]
        if not of_mode:
            known = dict.fromkeys([Mode.AUTO, Mode.AUTOREGRESSIVE, *(choice.mode for choice in choices)])
            limit = f"requests with mode auto have {listed(list(known))}"
            raise OptionError("mode", self.mode, limit, "use one of these, or set generation.allow_lossy")
        in_turn = {choice.block_length: choice for choice in of_mode if choice.budget is None}
        in_one = {choice.budget: choice for choice in of_mode if choice.budget is not None}
        if self.budget is not None:
            return _one_of(in_one, "budget", self.budget)
        return _one_of(in_turn, "block_length", self.block_length or max(in_turn)) if in_turn else in_one[max(in_one)]


def _one_of(found: Mapping[int, Choice], name: str, value: int) -> Choice:
    """Return the choice with this `value` of an option. Raises OptionError if there is none."""
    if value not in found:
        limit = f"requests with mode auto have {', '.join(map(str, sorted(found))) or 'none'}"
        raise OptionError(name, value, limit, "use one of these, or leave it out")
    return found[value]
