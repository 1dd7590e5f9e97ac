"""Give the large model a tokenizer with as many tokens as its vocabulary has rows.

XGrammar clears rows that no token stands for one by one in every mask. With the small model's tokenizer, masks would
cost many times what they cost with that of a release, which has a token for each row.
"""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["fill_tokenizer"]


def fill_tokenizer(file: Path, vocab_size: int) -> None:
    """Add a token to the `tokenizer.json` at `file` for each id below `vocab_size` that has none.

    No merge makes them, so texts are encoded as before. Tokenizers of other kinds than BPE are left as they are.
    """
    content = json.loads(file.read_text(encoding="utf-8"))
    model = content.get("model", {})
    if model.get("type") != "BPE":
        return
    taken = {*model["vocab"].values(), *(token["id"] for token in content.get("added_tokens", ()))}
    added = {f"<unused{index}>": index for index in range(vocab_size) if index not in taken}
    if added:
        model["vocab"] |= added
        file.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")
