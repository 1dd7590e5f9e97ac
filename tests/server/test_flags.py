"""Flags of SGLang's that would have no effect are refused at start, not ignored."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from golden import TRAINED

from dlm_serve.engine.defaults import _UNSUPPORTED, prepare_server_args
from dlm_serve.errors import ConfigError


@pytest.mark.parametrize("field", [field for field, _, _ in _UNSUPPORTED])
def test_refused(field: str) -> None:
    args = {name: fine for name, fine, _ in _UNSUPPORTED}
    asked = SimpleNamespace(
        **{**args, field: "something-else"},
        device=None,
        model_path=str(TRAINED),
        revision=None,
        dllm_algorithm_config=None,
    )
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')} = 'something-else'"):
        prepare_server_args(asked)
