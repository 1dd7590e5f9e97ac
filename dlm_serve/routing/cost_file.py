"""Keep measured costs in a file, so that a restart need not measure again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlm_serve.routing.costs import CostTable

logger = logging.getLogger(__name__)

FOLDER_VARIABLE = "DLM_SERVE_CACHE"
_FORMAT = 1


class CostFile:
    """The file of one `key`: what the measurements depend on, such as GPU, model and versions."""

    def __init__(self, key: Mapping[str, Any], folder: Path | None = None) -> None:
        """Use a file in `folder`, else in `DLM_SERVE_CACHE`, else in `~/.cache/dlm_serve`."""
        text = json.dumps({"format": _FORMAT, **key}, sort_keys=True)
        self._key = json.loads(text)  # as it is read again: with text for numbers as keys, and lists for tuples
        digest = hashlib.sha256(text.encode()).hexdigest()
        named = os.environ.get(FOLDER_VARIABLE)
        folder = folder or (Path(named) if named else Path.home() / ".cache" / "dlm_serve")
        self.path = folder / f"costs-{digest[:16]}.json"

    def read(self) -> CostTable | None:
        """Return the costs in the file; None where there is none for the key, or it is damaged, which is logged."""
        try:
            content = json.loads(self.path.read_text())
            if content["key"] != self._key:
                raise ValueError("it is for something else")
            return _table_of(content["costs"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("Ignored the step times in %s, which cannot be used (%s): measuring again", self.path, error)
            return None

    def write(self, costs: CostTable) -> None:
        """Write `costs`; what keeps it from that is logged."""
        content = {
            "key": self._key,
            "costs": {
                "widths": list(costs.widths),
                "decode_ms": costs.decode_ms.tolist(),
                "block_ms": costs.block_ms.tolist(),
                "decode_context_ms": costs.decode_context_ms,
                "block_context_ms": costs.block_context_ms.tolist(),
            },
        }
        unfinished = self.path.with_suffix(f".{os.getpid()}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(content))
            unfinished.replace(self.path)
        except OSError as error:
            logger.warning("Step times were not kept for the next start: %s", error)


def _table_of(costs: Mapping[str, Any]) -> CostTable:
    """Return the table; raises ValueError if it is none."""
    table = CostTable(
        tuple(int(width) for width in costs["widths"]),
        np.asarray(costs["decode_ms"], dtype=np.float64),
        np.asarray(costs["block_ms"], dtype=np.float64),
        float(costs["decode_context_ms"]),
        np.asarray(costs["block_context_ms"], dtype=np.float64),
    )
    shape = (len(table.widths), len(table.decode_ms))
    if table.block_ms.shape != shape or table.block_context_ms.shape != shape[:1]:
        raise ValueError("its sizes do not fit together")
    are_positive = (table.decode_ms[1:] > 0).all() and (table.block_ms[:, 1:] > 0).all()
    if not (are_positive and np.isfinite(table.decode_ms).all()):
        raise ValueError("not all of its times are positive numbers")
    return table
