"""Say in the log, when the main process starts, what is served, how requests decode, and where to look."""

from __future__ import annotations

import logging

from dlm_serve.decoding import Mode
from dlm_serve.sglang.frontend.page import PAGE
from dlm_serve.sglang.protocols import ServerArgsLike
from dlm_serve.sglang.serving import Serving

logger = logging.getLogger(__name__)


def announce(serving: Serving, server_args: ServerArgsLike) -> None:
    """Log three lines about what SGLang's `server_args` start."""
    family, config = serving.checkpoint.family, serving.config
    default = config.generation.mode
    logger.info("dlm-serve: %s, of the family %s", server_args.served_model_name or server_args.model_path, family.name)
    logger.info(
        "dlm-serve: modes %s; without one a request has %s; blocks as wide as %s",
        ", ".join(family.modes),
        f"{default}, which begins as {family.auto}" if default is Mode.AUTO else default,
        ", ".join(map(str, serving.widths)),
    )
    logger.info("dlm-serve: page at http://%s:%s%s once the server is ready", server_args.host, server_args.port, PAGE)
