"""Draw the pictures of the documentation as SVG: a request's life, and one decode step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
INK, FAINT, LINE = "#1f2933", "#5f6b7a", "#9aa5b1"

# What a cell shows, by its letter: fill colour, outline, and what the legend calls it.
CELLS = {
    "P": ("#f6b04c", "#b97412", "pending token, no KV yet"),
    "M": ("#e4e7eb", "#9aa5b1", "mask"),
    "T": ("#8fb7ea", "#3f6fae", "predicted token"),
    "S": ("#c9b6ea", "#6f4fb0", "second choice"),
    "K": ("#7cc89a", "#2f7d50", "committed, KV is final"),
    "X": ("#f0a3a3", "#b04545", "rejected draft"),
    "-": ("#ffffff", "#cbd2d9", "padding"),
}
CELL, GAP = 13, 2
STRIDE = CELL + GAP
BLOCK = 8
BLOCK_WIDTH = BLOCK * STRIDE - GAP


@dataclass
class Picture:
    """An SVG picture of a size in pixels, drawn on white so that it reads on any page."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def rect(self, x: int, y: int, width: int, height: int, fill: str, stroke: str, radius: int = 2) -> None:
        """Draw a rectangle with its upper left corner at (`x`, `y`)."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{fill}" stroke="{stroke}"/>'
        )

    def text(
        self, x: int, y: int, text: str, size: int = 13, *, anchor: str = "start", bold: bool = False, fill: str = INK
    ) -> None:
        """Write one line whose baseline is at `y`."""
        weight = ' font-weight="bold"' if bold else ""
        style = f'font-size="{size}" text-anchor="{anchor}" fill="{fill}"{weight}'
        self.parts.append(f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>')

    def arrow(self, x: int, y: int, to_x: int, to_y: int | None = None) -> None:
        """Draw an arrow from (`x`, `y`) to (`to_x`, `to_y`), horizontal unless `to_y` is given."""
        end = y if to_y is None else to_y
        self.parts.append(
            f'<line x1="{x}" y1="{y}" x2="{to_x}" y2="{end}" stroke="{FAINT}" stroke-width="1.5" '
            'marker-end="url(#head)"/>'
        )

    def box(self, x: int, y: int, width: int, height: int, title: str, lines: Sequence[str]) -> None:
        """Draw a box with a bold title and lines of smaller text below it."""
        self.rect(x, y, width, height, "#f5f7fa", LINE, radius=6)
        self.text(x + width // 2, y + 22, title, 14, anchor="middle", bold=True)
        for number, line in enumerate(lines):
            self.text(x + width // 2, y + 41 + 16 * number, line, 12, anchor="middle", fill=FAINT)

    def cells(self, x: int, y: int, letters: str) -> None:
        """Draw one cell for each of `letters`, keys of CELLS, from (`x`, `y`) to the right."""
        for number, letter in enumerate(letters):
            fill, stroke, _ = CELLS[letter]
            self.rect(x + number * STRIDE, y, CELL, CELL, fill, stroke)

    def legend(self, x: int, y: int, entries: Sequence[tuple[str, int]]) -> None:
        """Explain cells in one line, each entry a letter and the pixels it takes."""
        for letter, width in entries:
            self.cells(x, y, letter)
            self.text(x + STRIDE + 4, y + CELL - 2, CELLS[letter][2], 12, fill=FAINT)
            x += width

    def svg(self) -> str:
        """Return the text of the SVG file."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" font-family="{FONT}" role="img">',
                f"<title>{escape(self.title)}</title>",
                '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
                f'orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="{FAINT}"/></marker></defs>',
                f'<rect width="{self.width}" height="{self.height}" rx="8" fill="#ffffff"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def request() -> str:
    """Return the picture of a request's life: admission, prefill, blocks by mode, output."""
    picture = Picture(1020, 438, "A request's life, from admission to output")
    boxes = (
        (20, 190, "Admission", ("options, server file and", "family: a decode plan")),
        (240, 190, "Prefill", ("encodes the prompt, predicts", "the pending token")),
        (
            460,
            310,
            "Blocks, until the answer ends",
            ("decode steps in the request's mode:", "denoise, draft, verify, commit, decode"),
        ),
        (800, 200, "Output", ("tokens as they are emitted,", "statistics in meta_info.dlm")),
    )
    for x, width, title, lines in boxes:
        picture.box(x, 24, width, 72, title, lines)
    for start, end in ((210, 238), (430, 458), (770, 798)):
        picture.arrow(start, 60, end)

    lanes = (
        (
            "diffusion",
            "its own answers",
            (("PMMMMMMM", "denoise"), ("PTMTTMMM", "denoise"), ("PTTTTTTT", "commit"), ("KKKKKKKKP", "")),
            "emits 8 tokens",
        ),
        (
            "self_speculation",
            "the answers of autoregressive",
            (("PMMMMMMM", "draft"), ("PTTTTTTT", "verify"), ("KKKKKPXX", "")),
            "emits 5 tokens: 4 drafted, 1 the model's own",
        ),
        (
            "autoregressive",
            "one token per forward",
            (("P", "decode"), ("KP", "decode"), ("KKP", "decode"), ("KKKP", "")),
            "emits 1 token each",
        ),
    )
    for number, (mode, remark, stages, emitted) in enumerate(lanes):
        y = 130 + 84 * number
        picture.rect(20, y, 980, 70, "#fbfcfd", "#e4e7eb", radius=6)
        picture.text(34, y + 31, mode, 14, bold=True)
        picture.text(34, y + 50, remark, 12, fill=FAINT)
        x = 250
        for cells, phase in stages:
            picture.cells(x, y + 20, cells)
            end = x + len(cells) * STRIDE - GAP
            if phase:
                picture.arrow(end + 8, y + 20 + CELL // 2, end + 62)
                picture.text(end + 35, y + 18, phase, 12, anchor="middle")
            else:
                picture.text(end, y + 54, emitted, 12, anchor="end", fill=FAINT)
            x = end + 70
    picture.legend(34, 394, (("P", 195), ("M", 75), ("T", 140), ("K", 175), ("X", 130)))
    note = "Each arrow below the boxes is one forward pass. Shown for Nemotron-Labs-Diffusion with blocks of 8."
    picture.text(34, 426, note, 12, fill=FAINT)
    return picture.svg()


def step() -> str:
    """Return the picture of one decode step: rows in several phases through one forward."""
    picture = Picture(1020, 508, "One decode step: rows in several phases share one forward")
    columns = (
        (150, "tokens in", ""),
        (312, "attention spec", "who sees whom"),
        (460, "model", ""),
        (566, "token choice", "a token per position"),
        (720, "advance", "the row afterwards"),
        (872, "step output", "emitted"),
    )
    for x, name, remark in columns:
        middle = x + {"attention spec": 52, "model": 36}.get(name, BLOCK_WIDTH // 2)
        picture.text(middle, 34, name, 14, anchor="middle", bold=True)
        picture.text(middle, 51, remark, 12, anchor="middle", fill=FAINT)
    rows = (
        ("denoise", "diffusion", "PTMMTMMM", True, "TTTTTTTT", "PTTMTTMM", ""),
        ("commit", "diffusion", "PTTTTTTT", False, "-------T", "PMMMMMMM", "TTTTTTTT"),
        ("draft", "self_speculation", "PMMMMMMM", True, "TTTTTTTT", "PTTTTTTT", ""),
        ("verify", "self_speculation", "PTTTTTTT", False, "TTTTTTTT", "PMMMMMMM", "TTTTT"),
        ("decode", "autoregressive", "P-------", False, "T-------", "P-------", "T"),
    )
    top, height = 70, 78
    for number, (phase, mode, cells, sees_all, chosen, after, emitted) in enumerate(rows):
        y = top + height * number
        picture.rect(12, y, 996, height - 8, "#fbfcfd", "#e4e7eb", radius=6)
        middle = y + (height - 8) // 2
        picture.text(24, middle - 3, phase, 14, bold=True)
        picture.text(24, middle + 15, mode, 12, fill=FAINT)
        cell_y = middle - CELL // 2
        picture.cells(150, cell_y, cells)
        picture.arrow(150 + BLOCK_WIDTH + 8, middle, 304)
        _mask(picture, 312, middle - 26, sees_all=sees_all, num_tokens=1 if phase == "decode" else BLOCK)
        picture.text(376, middle - 3, "no KV" if sees_all else "KV", 12)
        picture.text(376, middle + 13, "kept", 12)
        picture.arrow(418, middle, 456)
        picture.arrow(536, middle, 560)
        picture.cells(566, cell_y, chosen)
        picture.arrow(566 + BLOCK_WIDTH + 6, middle, 714)
        picture.cells(720, cell_y, after)
        if emitted:
            picture.cells(872, cell_y, emitted)
        else:
            picture.text(872, middle + 4, "nothing yet", 12, fill=FAINT)
    bottom = top + height * len(rows) - 8
    picture.rect(460, top - 6, 72, bottom - top + 12, "#e8eef7", "#3f6fae", radius=6)
    for number, line in enumerate(("one", "forward,", "one CUDA", "graph")):
        picture.text(496, (top + bottom) // 2 - 24 + 18 * number, line, 13, anchor="middle")
    picture.legend(24, bottom + 22, (("P", 195), ("M", 75), ("T", 140), ("-", 100)))
    _mask(picture, 540, bottom + 22, sees_all=False, num_tokens=2, size=7)
    picture.text(564, bottom + 33, "row: query, column: key it sees; committed KV is seen by all", 12, fill=FAINT)
    return picture.svg()


def one_forward() -> str:
    """Return the picture of a row that speculates in one forward: chain, groups, who sees whom, whose KV is kept."""
    picture = Picture(1020, 474, "A row that verifies a draft and drafts the next in one forward")
    size, left, top, chain = 22, 190, 98, "PTTTTT"
    behind = ((1, "S"), (1, "MMM"), (3, "MM"), (5, "MMM"))  # the column that each stands behind, and its tokens
    columns = [(column, column) for column in range(len(chain))]  # of each column: what it stands behind, its group
    for anchor, tokens in behind:
        columns += [(anchor, len(columns))] * len(tokens)
    letters = chain + "".join(tokens for _, tokens in behind)
    for number, (letter, (anchor, first)) in enumerate(zip(letters, columns, strict=True)):
        fill, stroke, _ = CELLS[letter]
        x, y = left + number * size, top + number * size
        offset = number if number < len(chain) else anchor + 1 + number - first
        for place in ((x, top - 34), (left - 34, y)):
            picture.rect(*place, size - 3, size - 3, fill, stroke)
        picture.text(x + 9, top - 42, str(offset), 11, anchor="middle", fill=FAINT)
        for key in range(len(columns)):
            in_group = number >= len(chain) and columns[key] == (anchor, first)
            seen = key <= anchor or in_group
            picture.rect(
                left + key * size, y, size - 3, size - 3, "#3f6fae" if seen else "#ffffff", "#c5d3e6", radius=0
            )
    picture.text(left - 48, top - 42, "position", 12, anchor="end", fill=FAINT)
    picture.text(left - 48, top - 20, "tokens in", 13, anchor="end", bold=True)
    names = ("the chain", "second choice", *(f"group behind {anchor}" for anchor, _ in behind[1:]))
    middles = (3.0, 6.5, 8.5, 11.0, 13.5)
    for name, middle in zip(names, middles, strict=True):
        picture.text(left - 48, top + int(middle * size) + 4, name, 12, anchor="end")
    x = left + len(columns) * size + 36
    remarks = (
        (
            "The chain",
            "the newest token and the draft behind it; causal, as in autoregression.",
            "Its KV is kept, that of rejected tokens until it is overwritten.",
        ),
        (
            "The groups",
            "masks behind the tokens at which verification is likeliest to stop.",
            "They see the chain up to there and each other; no KV is kept.",
        ),
        (
            "Verification",
            "stops behind 1, say: the draft at 2 is not what the model chooses.",
            "Tokens up to there are emitted, and the model's own at position 2.",
        ),
        (
            "The next row",
            "begins with that token; its draft is what the group behind 1 found",
            "for positions 3 and 4. Had none stood there: the nearest before it.",
        ),
        (
            "The second choice",
            "in place of the draft at 2. If the model chooses it, it says what follows,",
            "and the next draft begins with that. The adapter counts in groups alone.",
        ),
    )
    for number, (name, *lines) in enumerate(remarks):
        y = top + 8 + 62 * number
        picture.text(x, y, name, 14, bold=True)
        for at, line in enumerate(lines):
            picture.text(x, y + 18 + 16 * at, line, 12, fill=FAINT)
    picture.legend(24, 446, (("P", 195), ("T", 140), ("S", 120), ("M", 75)))
    picture.rect(560, 446, CELL, CELL, "#3f6fae", "#c5d3e6", radius=0)
    picture.text(578, 457, "row: query, column: key it sees; committed KV is seen by all", 12, fill=FAINT)
    return picture.svg()


def _mask(picture: Picture, x: int, y: int, *, sees_all: bool, num_tokens: int, size: int = 7) -> None:
    """Draw which new keys each of `num_tokens` queries sees: all of them, or those up to itself."""
    shift = (BLOCK - 1) * size // 2 if num_tokens == 1 else 0
    for query in range(num_tokens):
        for key in range(num_tokens):
            seen = sees_all or key <= query
            fill = "#3f6fae" if seen else "#ffffff"
            picture.rect(
                x + shift + key * size, y + shift + query * size, size - 1, size - 1, fill, "#c5d3e6", radius=0
            )


PAGES: dict[str, Callable[[], str]] = {
    "pictures/request.svg": request,
    "pictures/step.svg": step,
    "pictures/one_forward.svg": one_forward,
}
"""Files in this folder, and the functions that return their text."""
