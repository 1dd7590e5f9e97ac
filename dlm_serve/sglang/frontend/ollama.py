"""SGLang's Ollama routes, where they would lose what a request or an answer says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
from fastapi.responses import StreamingResponse
from sglang.srt.entrypoints.ollama.protocol import (
    OllamaChatStreamResponse,
    OllamaGenerateStreamResponse,
    OllamaMessage,
)
from sglang.srt.entrypoints.ollama.serving import OllamaServing

from dlm_serve.sglang.frontend.model_names import aliases


class DlmOllamaServing(OllamaServing):  # type: ignore[misc]  # the base is untyped
    """Answers Ollama's clients: with the seed they give, the end of a stream, and the names of all modes."""

    tokenizer_manager: Any

    def get_tags(self) -> Any:
        """List the model, and the names by which each of its modes is asked for."""
        tags = super().get_tags()
        served = tags.models[0]
        tags.models += [served.model_copy(update={"name": name, "model": name}) for name in aliases(served.name)]
        return tags

    def _convert_options_to_sampling_params(self, options: dict[str, Any] | None = None) -> dict[str, Any]:
        params: dict[str, Any] = super()._convert_options_to_sampling_params(options)
        if "seed" in params:
            params["sampling_seed"] = params.pop("seed")
        return params

    async def _stream_chat_response(self, gen_request: Any, raw_request: Any, model_name: str) -> StreamingResponse:
        def line(text: str, **end: Any) -> OllamaChatStreamResponse:
            message = OllamaMessage(role="assistant", content=text)
            return OllamaChatStreamResponse(model=model_name, created_at=self._get_timestamp(), message=message, **end)

        return await self._streamed(gen_request, raw_request, line)

    async def _stream_generate_response(self, gen_request: Any, raw_request: Any, model_name: str) -> StreamingResponse:
        def line(text: str, **end: Any) -> OllamaGenerateStreamResponse:
            return OllamaGenerateStreamResponse(
                model=model_name, created_at=self._get_timestamp(), response=text, **end
            )

        return await self._streamed(gen_request, raw_request, line)

    async def _streamed(self, gen_request: Any, raw_request: Any, line: Callable[..., Any]) -> StreamingResponse:
        """Return a stream whose request has been read: what is wrong with it is raised before HTTP 200 is sent."""
        chunks = self.tokenizer_manager.generate_request(gen_request, raw_request)
        first = await anext(chunks)

        async def lines() -> AsyncIterator[bytes]:
            chunk, num_sent = first, 0
            while True:
                text, reason = chunk["text"], chunk["meta_info"]["finish_reason"]
                if len(text) > num_sent:
                    yield _encoded(line(text[num_sent:], done=False))
                    num_sent = len(text)
                if reason is not None:
                    yield _encoded(line("", done=True, done_reason=reason["type"]))
                    return
                chunk = await anext(chunks)

        return StreamingResponse(lines(), media_type="application/x-ndjson")


def _encoded(response: Any) -> bytes:
    return orjson.dumps(response.model_dump()) + b"\n"
