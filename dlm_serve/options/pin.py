"""What an operator asks of the router while the server runs."""

from __future__ import annotations

from collections.abc import Sequence

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
            raise OptionError("mode", str(self.mode), limit, "let requests name a mode")
        lengths = [choice.block_length for choice in choices if choice.mode is self.mode and choice.budget is None]
        if self.mode in (Mode.AUTO, Mode.AUTOREGRESSIVE):
            if self.block_length is not None:
                raise OptionError("block_length", self.block_length, f"mode {self.mode} has no blocks", "leave it out")
            return AUTOREGRESSIVELY if self.mode is Mode.AUTOREGRESSIVE else None
        if not lengths:
            known = dict.fromkeys([Mode.AUTO, Mode.AUTOREGRESSIVE, *(choice.mode for choice in choices)])
            limit = f"requests with mode auto have {listed(list(known))}"
            raise OptionError("mode", str(self.mode), limit, "use one of these, or set generation.allow_lossy")
        if self.block_length not in (None, *lengths):
            limit = f"mode {self.mode} has blocks of {', '.join(map(str, sorted(lengths)))} tokens"
            raise OptionError("block_length", self.block_length, limit, "use one of these")
        if self.budget is None:
            return Choice(self.mode, self.block_length or max(lengths))
        found = {choice.budget: choice for choice in choices if choice.mode is self.mode}
        if self.budget not in found:
            budgets = sorted(budget for budget in found if budget is not None)
            limit = f"mode {self.mode} has {listed(budgets) if budgets else 'no budgets'}"
            raise OptionError("budget", self.budget, limit, "use one of these" if budgets else "leave it out")
        return found[self.budget]
