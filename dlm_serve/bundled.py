"""Find the model that comes with the package by the name under which it can be served from anywhere."""

from __future__ import annotations

from pathlib import Path

NAME = "nano"
FOLDER = Path(__file__).parent / "assets" / NAME


def expand(model_path: str) -> str:
    """Return the bundled model's folder if `model_path` is its name and no local folder has a model of that name."""
    is_meant = model_path == NAME and not Path(NAME, "config.json").exists()
    return str(FOLDER) if is_meant else model_path
