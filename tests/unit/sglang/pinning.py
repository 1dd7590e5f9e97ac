"""Run by test_dlm_routes.py: our routes on an HTTP server like SGLang's, with its keys; answers to requests as JSON."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from golden import TRAINED
from sglang.srt.utils.auth import add_api_key_middleware

from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.options.server_file import ServerConfig
from dlm_serve.sglang.frontend import dlm_routes, refusals
from dlm_serve.sglang.serving import PIN, Serving


class Manager:
    """SGLang's tokenizer manager, of two replicas."""

    def __init__(self) -> None:
        checkpoint = Checkpoint.find(str(TRAINED), None)
        assert checkpoint is not None
        self.serving = Serving(checkpoint, ServerConfig())
        self.told: list[Any] = []

    async def set_internal_state(self, request: Any) -> list[bool]:
        """Note what the replicas are told."""
        self.told.append(self.serving.pins[request.server_args[PIN]])
        return [True, True]


def answer_to(body: dict[str, Any], admin_api_key: str | None, api_key: str | None, sent: str | None) -> dict[str, Any]:
    """What a server with these keys answers to `body` with the key `sent`, and what it then tells its replicas."""
    app = FastAPI()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": error.errors()[0]["msg"]}, 400)

    manager = Manager()
    state = SimpleNamespace(tokenizer_manager=manager)
    server: Any = SimpleNamespace(app=app, get_global_state=lambda: state)
    sys.modules[refusals.HTTP_SERVER] = server
    arguments: Any = SimpleNamespace(skip_tokenizer_init=False)
    refusals.answer_refusals(arguments)
    for _ in range(2):
        dlm_routes.add_routes()
    if admin_api_key or api_key:
        add_api_key_middleware(app, api_key=api_key, admin_api_key=admin_api_key)
    headers = {"Authorization": f"Bearer {sent}"} if sent else {}
    response = TestClient(app, raise_server_exceptions=False).post(dlm_routes.ROUTING, json=body, headers=headers)
    return {"status": response.status_code, "answer": response.json(), "told": manager.told}


if __name__ == "__main__":
    found = [answer_to(*request) for request in json.loads(sys.argv[1])]
    sys.stdout.write("\n" + json.dumps(found) + "\n")
