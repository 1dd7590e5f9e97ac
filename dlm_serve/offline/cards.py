"""The function of SDLM's authors that is none of a model's, called as their card calls it."""

from __future__ import annotations

from typing import Any

from dlm_serve.errors import OptionError
from dlm_serve.offline.model import DiffusionLM, sdlm_options

History = list[tuple[list[str], int]]
"""For each step that brought tokens: the answer so far, in a list of one, and its number of tokens."""


def SDLM_generate(  # noqa: N802  # as the authors call it
    model: DiffusionLM,
    tokenizer: Any,
    model_inputs: Any,
    max_gen_len: int = 1024,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    threshold: float = 0.9,
    n_future_tokens: int = 4,
    only_first_token_keep: bool = False,
    use_cache: bool = True,
    alg: str = "prob_conf",
    save_history: bool = False,
) -> list[str] | tuple[list[str], History]:
    """Return the answer to one prompt, in a list; with `save_history`, also how it grew.

    `model_inputs` is what the tokenizer returned, with `input_ids` (1, length). Pieces of the history may hold several
    windows where they arrived together. Raises OptionError.
    """
    rows = model_inputs.input_ids.tolist()
    if len(rows) != 1:
        raise OptionError("model_inputs", len(rows), "must be one prompt", "use DiffusionLM.SDLM_generate for batches")
    options, sampling = sdlm_options(temperature, top_k, top_p, threshold, n_future_tokens, only_first_token_keep, alg)
    ids: list[int] = []
    history: History = []
    for ids in model.growing(rows[0], max_gen_len, options, sampling):
        if save_history:
            history.append((tokenizer.batch_decode([ids]), len(ids)))
    response: list[str] = tokenizer.batch_decode([ids])
    return (response, history) if save_history else response
