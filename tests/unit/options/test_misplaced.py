"""Options elsewhere than in `custom_params.dlm`, and names that are nearly ours, are refused with the right place."""

from __future__ import annotations

import pytest

from dlm_serve.errors import OptionError
from dlm_serve.options.misplaced import refuse_misplaced
from dlm_serve.options.written import as_written


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("dlm", "custom_params.dlm,"),
        ("dllm", "custom_params.dlm,"),
        ("DLM", "custom_params.dlm,"),
        ("dlm_options", "custom_params.dlm,"),
        ("mode", "custom_params.dlm.mode,"),
        ("threshold", "custom_params.dlm.threshold,"),
        ("treshold", "custom_params.dlm.threshold,"),
        ("block_length", "custom_params.dlm.block_length,"),
        ("block-length", "custom_params.dlm.block_length,"),
        ("blok_length", "custom_params.dlm.block_length,"),
        ("steps", "custom_params.dlm.steps,"),
        ("extra_body", "without it"),
    ],
)
def test_names_that_are_ours_elsewhere(name: str, place: str) -> None:
    with pytest.raises(OptionError) as refused:
        refuse_misplaced({name: 8}, "sampling_params.")
    assert refused.value.field == f"sampling_params.{name}"
    assert place in refused.value.remedy


@pytest.mark.parametrize("name", ["model", "models", "stop", "seed", "thinking_budget", "metadata", "store", "tools"])
def test_names_of_others(name: str) -> None:
    refuse_misplaced({name: 8})


@pytest.mark.parametrize(
    ("name", "fields", "written"),
    [
        ("json_schema", {"prompt", "json_schema"}, "json_schema"),
        ("json_schema", {"messages", "response_format"}, "response_format"),
        ("json_schema", {"messages", "tools"}, "tools"),
        ("structural_tag", {"messages", "tools"}, "tools"),
        ("return_logprob", {"messages", "logprobs", "top_logprobs"}, "logprobs"),
        ("return_logprob", {"input_ids"}, "return_logprob"),
        ("min_new_tokens", {"min_tokens"}, "min_tokens"),
        ("max_new_tokens", {"max_completion_tokens"}, "max_completion_tokens"),
        ("regex", {"response_format"}, "regex"),
    ],
)
def test_fields_are_named_as_they_were_written(name: str, fields: set[str], written: str) -> None:
    assert as_written(name, fields) == written
