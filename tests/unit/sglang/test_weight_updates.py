"""What happens beside the replacement of weights."""

from __future__ import annotations

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from dlm_serve.sglang.engine.weight_updates import DlmWeightUpdater


@pytest.mark.parametrize("success", [True, False])
def test_the_router_forgets_what_it_learned_of_other_weights(success: bool) -> None:
    updater, router = DlmWeightUpdater.__new__(DlmWeightUpdater), Mock()
    updater.draft_worker = SimpleNamespace(router=router)
    updater.flush_cache_after_weight_update(SimpleNamespace(flush_cache=False), success, "")
    assert router.start_anew.call_count == success
