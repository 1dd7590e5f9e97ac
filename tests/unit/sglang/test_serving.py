"""What a server holds ready does not depend on what requests get that name no mode."""

from __future__ import annotations

import pytest
from golden import TRAINED

from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.options.server_file import ServerConfig
from dlm_serve.sglang.serving import Serving


def serving(**generation: str) -> Serving:
    checkpoint = Checkpoint.find(str(TRAINED))
    assert checkpoint is not None
    return Serving(checkpoint, ServerConfig.model_validate({"generation": generation}))


@pytest.mark.parametrize("mode", ["autoregressive", "diffusion", "self_speculation"])
def test_requests_with_mode_auto_have_the_same_choices(mode: str) -> None:
    assert len(serving().choices) > 1
    assert serving(mode=mode).choices == serving().choices
