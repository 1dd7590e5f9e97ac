"""SGLang finds the switch for thinking in the templates of our models, off by default."""

from __future__ import annotations

import pytest
from sglang.srt.parser.template_detection import ReasoningToggleConfig, detect_reasoning_pattern

from dlm_serve.sglang.frontend.reasoning import thinking_switch
from dlm_serve.training.tokenizer import CHAT_TEMPLATE

OFF = (False, ReasoningToggleConfig(toggle_param="enable_thinking", default_enabled=False))
ON = (False, ReasoningToggleConfig(toggle_param="enable_thinking", default_enabled=True))
RELEASED = "{%- set enable_thinking = enable_thinking if enable_thinking is defined else False -%}<think>"


def test_the_bundled_models_needs_no_help() -> None:
    assert detect_reasoning_pattern(CHAT_TEMPLATE) == OFF


@pytest.mark.parametrize(
    ("template", "found"),
    [
        (RELEASED, OFF),
        (RELEASED.replace("False", "true"), ON),
        ("{{ messages }}", (False, None)),
        (None, (False, None)),
    ],
)
def test_switch(template: str | None, found: tuple[bool, ReasoningToggleConfig | None]) -> None:
    assert thinking_switch(detect_reasoning_pattern(template), template) == found
