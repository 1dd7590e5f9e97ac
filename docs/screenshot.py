"""Write docs/pictures/page.png: `PYTHONPATH=tests/support python docs/screenshot.py URL`, of a server of nano."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from browser import Browser

PICTURE = Path(__file__).parent / "pictures" / "page.png"

LOAD = """import("/dlm/server.js").then((server) => {
  for (let i = 1; i <= 8; i++) {
    const sampling_params = { max_new_tokens: 60 * i, ignore_eos: true };
    server.ask("generate", { text: "Count.", sampling_params });
  }
})"""
"""Requests for the charts to show."""


def take(url: str, profile: Path) -> None:
    """Ask the page of the server at `url` in two ways, and picture one of the answers as it denoises."""
    with Browser(profile) as browser:
        browser.show(1100, 900, "light")
        browser.call("Emulation.setScrollbarsHidden", hidden=True)
        browser.call("Page.navigate", url=f"{url}/dlm")
        browser.wait_for("""document.querySelectorAll("select option").length === 8""")
        for _ in range(2):  # the first one also warms up
            browser.evaluate("""document.querySelector("#ask").click()""")
            browser.wait_for("""document.querySelector("#ask").textContent === "Ask" """)
            time.sleep(3)
        browser.evaluate(LOAD)
        time.sleep(12)
        browser.evaluate("""document.querySelector(".pass").focus()""")
        browser.press("Home", 36)
        browser.press("ArrowRight", 39)
        browser.screenshot(PICTURE)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        take(sys.argv[1], Path(folder))
