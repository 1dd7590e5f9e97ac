"""Tell SGLang where a chat template has its switch for thinking."""

from __future__ import annotations

import re
from typing import Any

from sglang.srt.parser.template_detection import ReasoningToggleConfig

_OFF_BY_DEFAULT = re.compile(
    r"enable_thinking\s*=\s*enable_thinking\s+if\s+enable_thinking\s+is\s+defined\s+else\s+false", re.I
)


def thinking_switch(found: tuple[bool, Any], template: str | None) -> tuple[bool, Any]:
    """After `detect_reasoning_pattern`: find the switch as Nemotron-Labs-Diffusion's template writes it."""
    if found[1] is None and template is not None and _OFF_BY_DEFAULT.search(template):
        return False, ReasoningToggleConfig(toggle_param="enable_thinking", default_enabled=False)
    return found
