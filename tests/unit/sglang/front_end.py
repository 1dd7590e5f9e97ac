"""Run by test_fields.py: the HTTP server of each of some models without a scheduler, and what becomes of requests.

Written as JSON, by the model's path: of each request its HTTP status, and the message of a refusal or the modes in
which it may decode, the first of which is that in which it starts.
"""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

from sglang.srt.plugins import load_plugins

load_plugins()  # before the names that it changes are looked up

from fastapi.testclient import TestClient  # noqa: E402
from sglang.srt.entrypoints import http_server  # noqa: E402
from sglang.srt.entrypoints.anthropic.serving import AnthropicServing  # noqa: E402
from sglang.srt.entrypoints.engine import init_tokenizer_manager  # noqa: E402
from sglang.srt.entrypoints.openai.serving_chat import OpenAIServingChat  # noqa: E402
from sglang.srt.entrypoints.openai.serving_completions import OpenAIServingCompletion  # noqa: E402
from sglang.srt.entrypoints.openai.serving_responses import OpenAIServingResponses  # noqa: E402
from sglang.srt.runtime_context import publish  # noqa: E402
from sglang.srt.server_args import PortArgs, ServerArgs  # noqa: E402

from dlm_serve.options.request_rules import PLAN, PLAN_KEY  # noqa: E402
from dlm_serve.sglang.frontend.admission import DlmTokenizerManager  # noqa: E402

Request = tuple[str, dict[str, Any]]
"""The path and the body."""


class Manager(DlmTokenizerManager):
    """Keeps requests that it would send to the scheduler, and refuses them."""

    admitted: list[Any]

    def _dispatch_to_scheduler(self, obj: Any) -> None:
        self.admitted.append(obj)
        raise ValueError("there is no scheduler")


def manager_of(model_path: str) -> Manager:
    """The manager of a server of `model_path`, which the routes then ask."""
    args = ServerArgs(model_path=model_path, log_level="error", enable_custom_logit_processor=True)
    args.resolve_once()
    publish(args, role="tokenizer")
    manager: Manager
    manager, templates = init_tokenizer_manager(args, PortArgs.init_new(args), Manager)
    manager.max_req_input_len = 500
    manager.admitted = []
    http_server.set_global_state(SimpleNamespace(tokenizer_manager=manager, template_manager=templates))
    state = http_server.app.state
    state.openai_serving_chat = OpenAIServingChat(manager, templates)
    state.openai_serving_completion = OpenAIServingCompletion(manager, templates)
    state.openai_serving_responses = OpenAIServingResponses(manager, templates)
    state.anthropic_serving = AnthropicServing(state.openai_serving_chat)
    return manager


def answer_to(request: Request, manager: Manager) -> tuple[int, Any]:
    """What becomes of one request."""
    manager.admitted.clear()
    path, body = request
    response = TestClient(http_server.app, raise_server_exceptions=False).post(path, json=body)
    if not manager.admitted:
        return response.status_code, response.text
    plan = PLAN.validate_json(manager.admitted[0].sampling_params.custom_params[PLAN_KEY])
    return 200, [settings.mode for settings in plan.permitted]


def main(model_paths: list[str], requests: list[Request]) -> None:
    found = {}
    for path in model_paths:
        manager = manager_of(path)
        found[path] = [answer_to(request, manager) for request in requests]
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*json.loads(sys.argv[1]))
