"""Flags of SGLang's that would have no effect are refused at start, not ignored."""

from __future__ import annotations

import json
from pathlib import Path

from golden import TRAINED
from processes import output_of

# In a process of its own: importing SGLang here would disturb Triton's interpreter, which the unit tests use.
REFUSALS = """
import json
from types import SimpleNamespace
from dlm_serve.sglang.defaults import _UNSUPPORTED, prepare_server_args
from dlm_serve.errors import ConfigError

fine = {name: value for name, value, _ in _UNSUPPORTED}
common = {"device": None, "model_path": MODEL_PATH, "revision": None, "dllm_algorithm_config": None}
refused = {}
for name in fine:
    try:
        prepare_server_args(SimpleNamespace(**{**fine, name: "something-else"}, **common))
    except ConfigError as error:
        refused[name] = str(error)
print(json.dumps([list(fine), refused]))
"""


def test_refused(tmp_path: Path) -> None:
    script = tmp_path / "refusals.py"
    script.write_text(REFUSALS.replace("MODEL_PATH", repr(str(TRAINED))))
    names, refused = json.loads(output_of(script).splitlines()[-1])
    assert "speculative_num_draft_tokens" in names
    for name in names:
        assert f"--{name.replace('_', '-')} = 'something-else'" in refused[name]
