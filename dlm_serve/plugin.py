"""The plugin that SGLang loads in each of its processes.

SGLang is extended through its own seams where it has them: a registered speculative algorithm, platform, model
package and configuration classes. The rest are the hooks of `sglang.ledger`. They are installed only in a process
that serves one of our models, and only those that its role needs.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from typing import Any

from dlm_serve.errors import UnsupportedSGLangError
from dlm_serve.sglang import compat
from dlm_serve.sglang.ledger import ENTRY_HOOKS, HOOKS, RESOLVE, Role
from dlm_serve.sglang.seams import ENTRY_SEAMS, SEAMS

MODEL_PACKAGE = "dlm_serve.models"


def register() -> None:
    """Entry point of `sglang.srt.plugins`, called once in every SGLang process.

    SGLang swallows what this raises, so an unsupported SGLang is reported where it does not: when a
    server for one of our models resolves its arguments.
    """
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    from dlm_serve.sglang import install

    try:
        compat.require((*ENTRY_HOOKS, *ENTRY_SEAMS))
    except UnsupportedSGLangError as error:
        unsupported = error

        def refuse(server_args: Any) -> None:
            if _is_ours(server_args):
                raise unsupported

        HookRegistry.register(RESOLVE.target, refuse, HookType.BEFORE)
        return
    _register_algorithm()
    install.register(ENTRY_HOOKS)


def before_cli_args(parser: ArgumentParser) -> None:
    """Before `ServerArgs.add_cli_args`: let `--help` end with what is ours."""
    from dlm_serve.sglang.frontend.usage import add_usage

    add_usage(parser)


def before_resolve(server_args: Any) -> None:
    """Before `ServerArgs.resolve_once`, in the main process: set what our models need, and probe SGLang for them.

    Raises UnsupportedSGLangError, ConfigError or CheckpointError.
    """
    if getattr(server_args, "_resolution_finished", False):
        return
    from dlm_serve.sglang.defaults import prepare_server_args

    if prepare_server_args(server_args):
        from dlm_serve.sglang import install

        compat.require((*HOOKS, *SEAMS))
        install.require_in_place(Role.EVERY)
        install.install(Role.LAUNCHER)


def before_publish(server_args: Any, *, role: str, **_: Any) -> None:
    """Before `runtime_context.publish`, in each process: install its hooks if it serves one of our models.

    Raises UnsupportedSGLangError if one of them cannot be.
    """
    from dlm_serve.sglang import install
    from dlm_serve.sglang.algorithm import NAME
    from dlm_serve.sglang.frontend.announce import announce
    from dlm_serve.sglang.frontend.dlm_routes import add_routes
    from dlm_serve.sglang.frontend.refusals import answer_refusals
    from dlm_serve.sglang.serving import current

    if server_args.speculative_algorithm != NAME:
        _refuse_unprepared(server_args)
        return
    if role == "tokenizer":
        install.install(Role.MAIN)
        answer_refusals(server_args)
        add_routes()
        announce(current(), server_args)
    elif role == "scheduler":
        for scheduler_role in _scheduler_roles():
            install.install(scheduler_role)
        _register_models()


def _refuse_unprepared(server_args: Any) -> None:
    """Raise UnsupportedSGLangError for a model of ours that `before_resolve` has not seen: it is not in place."""
    from dlm_serve.sglang import install

    if not install.is_in_place(RESOLVE) and _is_ours(server_args):
        install.require_in_place(Role.EVERY)


def _is_ours(server_args: Any) -> bool:
    from dlm_serve.models.checkpoint import Checkpoint

    return Checkpoint.find(server_args.model_path, server_args.revision) is not None


def _worker_class(server_args: Any) -> type:
    """Return the worker class, for which SGLang's scheduler asks before it builds its pools and backends.

    Raises UnsupportedSGLangError where the scheduler has started without our hooks.
    """
    from dlm_serve.sglang import install
    from dlm_serve.sglang.engine.worker import DlmWorker

    for role in _scheduler_roles():
        install.require_in_place(role)
    return DlmWorker


def _scheduler_roles() -> tuple[Role, ...]:
    from dlm_serve.platform import is_active

    return (Role.SCHEDULER, Role.CPU_SCHEDULER) if is_active() else (Role.SCHEDULER,)


def _register_algorithm() -> None:
    from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

    from dlm_serve.models.configuration import register_configs
    from dlm_serve.sglang.algorithm import NAME, DlmAlgorithm

    register_configs()
    SpeculativeAlgorithm.register(NAME, supports_overlap=True, spec_class=DlmAlgorithm)(_worker_class)


def _register_models() -> None:
    """Add our model classes to SGLang's, beside those of a package that the user has named.

    Where none is named, ours is, in time for the registry's import: SGLang then imports its own models only if they
    are asked for, which takes seconds.
    """
    named = os.environ.setdefault("SGLANG_EXTERNAL_MODEL_PACKAGE", MODEL_PACKAGE)
    if named == MODEL_PACKAGE and "sglang.srt.models.registry" not in sys.modules:
        return
    from sglang.srt.models.registry import ModelRegistry

    ModelRegistry.register(MODEL_PACKAGE, overwrite=True)
