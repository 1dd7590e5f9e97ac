"""What an operator asks of the router while the server runs."""

from __future__ import annotations

from collections.abc import Sequence

from dlm_serve.decoding import Choice, Mode
from dlm_serve.errors import OptionError
from dlm_serve.options.fields import Frozen, Width
from dlm_serve.options.limits import listed


class Pin(Frozen):
    """The body of `POST /dlm/routing`."""

    mode: Mode
    """How requests with mode `auto` decode from now on; `auto` leaves it to the server's policy again."""
    block_length: Width | None = None
    """Tokens, one of `routing.widths`; null is the longest block of the mode."""

    def choice(self, choices: Sequence[Choice]) -> Choice | None:
        """Return what to pin, one of `choices`, the ways to decode blocks, or autoregressive; None releases.

        Raises OptionError where requests are not moved, or not to that.
        """
        if not choices:
            limit = "requests are not moved: there is one way to decode them, or routing.policy is fixed"
            raise OptionError("mode", str(self.mode), limit, "let requests name a mode")
        lengths = [length for mode, length in choices if mode is self.mode]
        if self.mode in (Mode.AUTO, Mode.AUTOREGRESSIVE):
            if self.block_length is not None:
                raise OptionError("block_length", self.block_length, f"mode {self.mode} has no blocks", "leave it out")
            return (Mode.AUTOREGRESSIVE, 1) if self.mode is Mode.AUTOREGRESSIVE else None
        if not lengths:
            known = dict.fromkeys([Mode.AUTO, Mode.AUTOREGRESSIVE, *(mode for mode, _ in choices)])
            limit = f"requests with mode auto have {listed(list(known))}"
            raise OptionError("mode", str(self.mode), limit, "use one of these, or set generation.allow_lossy")
        if self.block_length not in (None, *lengths):
            limit = f"mode {self.mode} has blocks of {', '.join(map(str, sorted(lengths)))} tokens"
            raise OptionError("block_length", self.block_length, limit, "use one of these")
        return self.mode, self.block_length or max(lengths)
