"""Install the hooks of the ledger, and refuse to go on unless each is in place.

SGLang's HookRegistry logs what fails and goes on, and never applies a hook to a target that it has changed before.
"""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sglang.srt.plugins import hook_registry
from sglang.srt.plugins.hook_registry import HookRegistry, HookSource, HookType

from dlm_serve.errors import UnsupportedSGLangError
from dlm_serve.sglang.ledger import Hook, Role, hooks_of


def register(hooks: Iterable[Hook]) -> None:
    """Hand `hooks` to SGLang, which applies them once all plugins are loaded."""
    for hook in hooks:
        HookRegistry.register(
            hook.target,
            pkgutil.resolve_name(hook.hook),
            HookType(hook.kind),
            source=HookSource("dlm_serve", "dlm-serve"),  # which SGLang logs
        )


def install(role: Role) -> None:
    """Apply the hooks of `role` that are not in place yet. Raises UnsupportedSGLangError if one cannot be."""
    register(hook for hook in hooks_of(role) if not is_in_place(hook))
    with _only_warnings():
        HookRegistry.apply_hooks()
    require_in_place(role)


@contextmanager
def _only_warnings() -> Iterator[None]:
    """Keep SGLang from a line of log for each hook, in each process; what fails is still said."""
    logger = logging.getLogger(hook_registry.__name__)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def require_in_place(role: Role) -> None:
    """Raise UnsupportedSGLangError unless all hooks of `role` are in place, naming those that are not."""
    missing = [hook for hook in hooks_of(role) if not is_in_place(hook)]
    if missing:
        named = "; ".join(f"{hook.kind} {hook.target} (without it: {hook.why})" for hook in missing)
        raise UnsupportedSGLangError(
            f"dlm-serve's hooks for role {role.value!r} are not in place: {named}. Either another plugin changed the "
            "same target first, then start with SGLANG_PLUGINS=dlm_serve, or SGLang has logged above why it failed."
        )


def is_in_place(hook: Hook) -> bool:
    """Return whether who looks up the hook's target gets our subclass, or a wrapper that calls our function."""
    ours, found = pkgutil.resolve_name(hook.hook), pkgutil.resolve_name(hook.target)
    if isinstance(ours, type):
        return isinstance(found, type) and issubclass(found, ours)
    while found is not None:
        if any(cell.cell_contents is ours for cell in _closure_of(found)):
            return True
        found = getattr(found, "__wrapped__", None)
    return False


def _closure_of(function: Any) -> tuple[Any, ...]:
    """Return what SGLang's wrapper holds on to: the function that it wraps, and the hook."""
    return getattr(function, "__closure__", None) or ()
