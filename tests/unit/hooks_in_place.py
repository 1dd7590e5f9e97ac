"""Run by test_ledger.py: start as SGLang's processes do, with all hooks and with each of them failing in turn."""

from __future__ import annotations

import json
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

from golden import TRAINED
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.server_args import ServerArgs

from dlm_serve import plugin
from dlm_serve.sglang import compat, install
from dlm_serve.sglang.ledger import ENTRY_HOOKS, HOOKS, RESOLVE, Hook, Role
from dlm_serve.sglang.seams import SEAMS

ALL = (*ENTRY_HOOKS, *HOOKS)
CONTRACT = "sglang.srt.entrypoints.api_contract.generate_contract_error"


def refusal(start: Callable[[], Any]) -> str:
    """What `start` raises."""
    try:
        start()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "started"


def start_without(failing: Hook, ours: ServerArgs, prepared: ServerArgs) -> str:
    """The refusal of a start in which the hook `failing` is not in place."""
    found = install.is_in_place
    install.is_in_place = lambda hook: hook is not failing and found(hook)
    try:
        if failing is RESOLVE:
            return refusal(lambda: plugin.before_publish(ours, role="tokenizer"))
        if failing.role in (Role.EVERY, Role.LAUNCHER):
            return refusal(lambda: plugin.before_resolve(ours))
        if failing.role is Role.MAIN:
            return refusal(lambda: plugin.before_publish(prepared, role="tokenizer"))
        return refusal(lambda: plugin.before_publish(prepared, role="scheduler"))
    finally:
        install.is_in_place = found


def main() -> None:
    load_plugins()
    other = ServerArgs(model_path="none", device="cpu")
    ours = ServerArgs(model_path=str(TRAINED), device="cpu")
    found: dict[str, Any] = {}
    for role in ("tokenizer", "scheduler"):
        plugin.before_publish(other, role=role)
    found["in place for another model"] = [hook.target for hook in HOOKS if install.is_in_place(hook)]

    prepared = ServerArgs(model_path=str(TRAINED), device="cpu")
    plugin.before_resolve(prepared)
    HookRegistry.register(CONTRACT, print, HookType.BEFORE)
    HookRegistry.apply_hooks()
    found["too late"] = refusal(lambda: plugin.before_publish(prepared, role="tokenizer"))
    undo(CONTRACT)

    apply = HookRegistry._apply_target
    HookRegistry._apply_target = refuse_to_apply
    found["not applied"] = refusal(lambda: plugin.before_publish(prepared, role="scheduler"))
    HookRegistry._apply_target = apply

    for role in ("tokenizer", "scheduler"):
        plugin.before_publish(prepared, role=role)
    found["missing"] = [hook.target for hook in ALL if not install.is_in_place(hook)]
    found["probe"] = refusal(lambda: compat.require((*ALL, *SEAMS))).replace("started", "passed")
    found["refusals"] = {hook.target: start_without(hook, ours, prepared) for hook in ALL}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


def refuse_to_apply(target: str, hooks: list[Any]) -> None:
    """Fail as `HookRegistry._apply_target` may."""
    raise AttributeError(target)


def undo(target: str) -> None:
    """Take back all changes to the function `target`."""
    module, name = target.rsplit(".", 1)
    owner = pkgutil.resolve_name(module)
    setattr(owner, name, getattr(owner, name).__wrapped__)
    HookRegistry._patched.discard(target)
    HookRegistry._hooks.pop(target)


if __name__ == "__main__":
    main()
