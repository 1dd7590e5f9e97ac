"""Say the mode with the model's name, for clients that can send no other field: `nano:diffusion`."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from sglang.srt.entrypoints.openai.protocol import DEFAULT_MODEL_NAME, ModelCard

from dlm_serve.decoding import Mode
from dlm_serve.errors import OptionError
from dlm_serve.sglang.serving import current


def aliases(served: str) -> list[str]:
    """Return the names by which the model `served` may be asked for in each of its modes."""
    return [f"{served}:{mode}" for mode in (Mode.AUTO, *current().checkpoint.family.modes)]


def mode_of(model: str, served: str) -> str | None:
    """Return the mode that the name `model` of a request says; None if it says none.

    Names of other models are left to SGLang. Raises OptionError if it is ours with what is no mode of it.
    """
    base, colon, mode = model.rpartition(":")
    if not colon or model == served or base not in (served, DEFAULT_MODEL_NAME):
        return None
    names = aliases(served)
    if f"{served}:{mode}" not in names:
        raise OptionError("model", model, "there is no such model", f"use {', '.join([served, *names])}")
    return mode


def list_aliases(app: FastAPI, http_server: Any) -> None:
    """Let the server's `/v1/models` list the aliases too; `http_server` is SGLang's module."""

    def served() -> str:
        name: str = http_server.get_global_state().tokenizer_manager.served_model_name
        return name

    def card(alias: str, listed: ModelCard) -> ModelCard:
        return ModelCard(id=alias, root=listed.id, parent=listed.id, max_model_len=listed.max_model_len)

    async def models() -> Any:
        found = await http_server.available_models()
        found.data += [card(alias, found.data[0]) for alias in aliases(served())]
        return found

    async def model(model: str) -> Any:
        name = served()
        if model in aliases(name):
            return card(model, await http_server.retrieve_model(name))
        return await http_server.retrieve_model(model)

    for path, answer in (("/v1/models/{model:path}", model), ("/v1/models", models)):
        app.add_api_route(path, answer, methods=["GET"])
        app.router.routes.insert(0, app.router.routes.pop())  # before SGLang's own
