"""Flags of SGLang's that would have no effect are refused at start, not ignored."""

from __future__ import annotations

import json
import subprocess
import sys

from golden import TRAINED
from serving import START_SECONDS

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


def test_refused() -> None:
    script = REFUSALS.replace("MODEL_PATH", repr(str(TRAINED)))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=START_SECONDS, check=True
    )
    names, refused = json.loads(done.stdout.splitlines()[-1])
    assert "speculative_num_draft_tokens" in names
    for name in names:
        assert f"--{name.replace('_', '-')} = 'something-else'" in refused[name]
