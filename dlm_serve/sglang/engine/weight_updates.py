"""New weights for a server that runs: all are checked before the first tensor is replaced."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqOutput, UpdateWeightsFromTensorReqOutput
from sglang.srt.managers.scheduler_components.weight_updater import SchedulerWeightUpdaterManager

from dlm_serve.errors import CheckpointError, InvalidValueError, OptionError
from dlm_serve.models.checkpoint import Checkpoint
from dlm_serve.sglang.serving import current

_LOAD_FORMATS = ("auto", "safetensors")


class DlmWeightUpdater(SchedulerWeightUpdaterManager):  # type: ignore[misc]  # the base is untyped
    """Refuses weights that are not of the model that runs, where SGLang's scheduler would die of them."""

    def update_weights_from_disk(self, recv_req: Any) -> Any:
        """Load the checkpoint at `recv_req.model_path`, its draft adapter included."""
        runner = self.tp_worker.model_runner
        try:
            _check_load_format(recv_req.load_format)
            serving, checkpoint = current(), _find(recv_req.model_path, runner.model_config.revision)
            serving.checkpoint.check_update(checkpoint)
            runner.model.check_tensors(checkpoint.tensor_shapes())
            adapter = runner.model.draft_adapter_update(checkpoint.draft_adapter(serving.config.lora.draft_adapter))
        except InvalidValueError as refused:
            return UpdateWeightFromDiskReqOutput(success=False, message=str(refused))
        if runner.model.draft_adapter is not None:
            runner.model.draft_adapter.update(adapter)
        return super().update_weights_from_disk(recv_req)

    def flush_cache_after_weight_update(self, recv_req: Any, success: bool, message: str) -> Any:
        """Let the router forget what it learned of the weights before, too."""
        if success:
            self.draft_worker.router.start_anew()
        return super().flush_cache_after_weight_update(recv_req, success, message)

    def update_weights_from_tensor(self, recv_req: Any) -> Any:
        """Load tensors that the client has sent; what cannot be loaded is answered, as that from disk is."""
        try:
            return super().update_weights_from_tensor(recv_req)
        except Exception as error:
            torch.distributed.barrier(group=self.tp_cpu_group)  # where the ranks that could load wait
            return UpdateWeightsFromTensorReqOutput(success=False, message=f"{type(error).__name__}: {error}")


def _check_load_format(load_format: str | None) -> None:
    if load_format not in _LOAD_FORMATS:
        raise OptionError(
            "load_format", load_format, f"must be one of {', '.join(_LOAD_FORMATS)}", "ask for one of them"
        )


def _find(model_path: str, revision: str | None) -> Checkpoint:
    checkpoint = Checkpoint.find(model_path, revision)
    if checkpoint is None:
        limit = "is no checkpoint of a family that dlm-serve serves"
        raise CheckpointError("model_path", model_path, limit, "give a folder, or a hub id that is in the cache")
    return checkpoint
