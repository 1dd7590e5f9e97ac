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
PREFERRED = """
from types import SimpleNamespace
from dlm_serve.sglang.defaults import _sampling_defaults
from dlm_serve.errors import ConfigError

serving = SimpleNamespace(checkpoint=SimpleNamespace(generation_defaults=lambda: {"temperature": 0.0, "top_k": 3}))
for given in (None, {"temperature": 0.5}, '{"top_p": 0.5}', {"top_p": 0.5, "presence_penalty": 0.5}):
    try:
        print(_sampling_defaults(SimpleNamespace(preferred_sampling_params=given), serving))
    except ConfigError as error:
        print(error)
"""


def test_refused(tmp_path: Path) -> None:
    script = tmp_path / "refusals.py"
    script.write_text(REFUSALS.replace("MODEL_PATH", repr(str(TRAINED))))
    names, refused = json.loads(output_of(script).splitlines()[-1])
    assert "speculative_num_draft_tokens" in names
    for name in names:
        assert f"--{name.replace('_', '-')} = 'something-else'" in refused[name]


def test_parameters_that_a_server_prefers(tmp_path: Path) -> None:
    """What only autoregression has is for requests to say: with a pinned mode, a server's would be refused."""
    script = tmp_path / "preferred.py"
    script.write_text(PREFERRED)
    *found, refused = output_of(script).splitlines()[-4:]
    assert found == [
        "{'temperature': 0.0, 'top_k': 3}",
        "{'temperature': 0.5, 'top_k': 3}",
        "{'temperature': 0.0, 'top_k': 3, 'top_p': 0.5}",
    ]
    assert refused.startswith("--preferred-sampling-params = {'presence_penalty': 0.5}: only temperature, top_p, ")
