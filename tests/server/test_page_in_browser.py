"""The live page in a browser: it asks, and shows of each answer what the server says of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from browser import CHROMIUM, Browser
from serving import Server

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")

WAYS = ("diffusion", "self_speculation")
PROMPT = "Calculate 504 * 3."

TOKENS = """[...document.querySelectorAll(".panel")[%d].querySelectorAll(".answer .token")].map((token) => ({
  pass: "pass" in token.dataset ? Number(token.dataset.pass) : null,
  number: token.querySelector("sup")?.textContent ?? null,
  text: token.lastChild.textContent,
  back: getComputedStyle(token).backgroundColor,
}))"""

CONTRASTS = """(() => {
  const context = new OffscreenCanvas(1, 1).getContext("2d");
  const luminance = (colour) => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const parts = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => value / 255);
    const [r, g, b] = parts.map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll(".answer .token[data-pass]")].map((token) => {
    const style = getComputedStyle(token);
    const [a, b] = [style.color, style.backgroundColor].map((colour) => luminance(colour) + 0.05);
    return Math.max(a, b) / Math.min(a, b);
  });
})()"""


MASK = 9
VIEWS: dict[str, tuple[list[tuple[int, list[int]]], list[int], int, list[list[tuple[int, int] | None]]]] = {
    "masks are filled": (
        [(0, [1, MASK, 3]), (0, [1, 2, 3])],
        [1, 2, 3],
        1,
        [[(1, 0)], [(1, 0), None, (3, 1)], [(1, 0), (2, 2), (3, 1)]],
    ),
    "a draft is replaced": (
        [(0, [1, 5, 6]), (1, [2, MASK, MASK]), (1, [2, 3])],
        [1, 2, 3],
        1,
        [[(1, 0)], [(1, 0), (5, 1), (6, 1)], [(1, 0), (2, 2), None], [(1, 0), (2, 2), (3, 3)]],
    ),
    "a block begins in the prompt": ([(-2, [7, 8, 1, 2])], [1, 2], 0, [[], [(1, 1), (2, 1)]]),
    "a block ends behind the answer": ([(0, [1, 2, 8])], [1, 2], 0, [[], [(1, 1), (2, 1)]]),
    "a history is cut": ([(0, [1])], [1, 2], 0, [[], [(1, 1)], [(1, 1), (2, 2)]]),
    "no forward pass": ([], [1], 1, [[(1, 0)]]),
}
"""History, the answer's tokens, how many of them the prefill gave, and by pass the token and its pass, or a mask."""


@pytest.fixture(scope="module")
def browser(nano: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page of `nano`, once it knows what is served."""
    with Browser(tmp_path_factory.mktemp("browser")) as found:
        found.show(1200, 900, "light")
        found.call("Page.navigate", url=f"{nano.url}/dlm")
        found.wait_for("""document.querySelectorAll("select option").length === 8""")
        yield found


@pytest.fixture(scope="module")
def asked(browser: Browser) -> Browser:
    """The same with answers to `PROMPT`, asked from the keyboard."""
    values = [browser.evaluate(f"""document.querySelectorAll(".mode")[{i}].value""") for i in range(2)]
    assert tuple(values) == WAYS
    browser.evaluate("""(() => {
      const send = window.fetch;
      window.heard = [];
      window.fetch = async (path, options) => {
        const response = await send(path, options);
        if (path === "generate") window.heard.push(response.clone().text());
        return response;
      };
      window.stopListening = () => { window.fetch = send; };
    })()""")
    ask(browser, PROMPT)
    browser.evaluate("window.stopListening()")
    return browser


def ask(browser: Browser, prompt: str) -> None:
    browser.evaluate("""document.querySelector("#prompt").select()""")
    browser.call("Input.insertText", text=prompt)
    browser.press("Enter", 13, modifiers=2)
    browser.wait_for("""document.querySelector("#ask").textContent === "Ask" """)


def answers_of(browser: Browser) -> list[dict[str, Any]]:
    """What the server answered to the page."""
    streams: list[str] = browser.evaluate("Promise.all(window.heard)")
    return [json.loads(stream.split("\n\n")[-3].removeprefix("data: ")) for stream in streams]


def passes_of(answer: dict[str, Any]) -> list[int]:
    """For each token, the first pass since which it has been seen at every pass; 0 where none shows it first."""
    history, output = answer["meta_info"]["dlm"]["history"], answer["output_ids"]
    passes = []
    for at, token in enumerate(output):
        since = 0
        for number, forward in enumerate(history, start=1):
            start, tokens = forward["start"], forward["tokens"]
            seen = token if at < start else tokens[at - start] if at - start < len(tokens) else None
            if seen != token:
                since = number
        passes.append(0 if at == 0 else since + 1)  # nano's prefill gives the first token
    return passes


@pytest.mark.parametrize("name", VIEWS)
def test_views_follow_from_the_history(browser: Browser, name: str) -> None:
    forwards, answer, prefilled, expected = VIEWS[name]
    history = [{"start": start, "tokens": tokens} for start, tokens in forwards]
    arguments = ", ".join(json.dumps(argument) for argument in (history, answer, MASK, prefilled))
    views = browser.evaluate(f"""import("/dlm/passes.js").then((passes) => passes.replay({arguments}))""")
    found = [[cell and (cell["id"], cell["pass"]) for cell in view] for view in views]
    assert found == expected


@pytest.mark.parametrize("panel", [0, 1], ids=WAYS)
def test_tokens_have_the_colour_and_number_of_their_pass(asked: Browser, panel: int) -> None:
    answer = answers_of(asked)[panel]
    tokens, passes = asked.evaluate(TOKENS % panel), passes_of(answer)
    assert [token["pass"] for token in tokens] == passes
    before = [None, *passes]
    assert [token["number"] for token in tokens] == [
        None if number == before[i] else str(number) for i, number in enumerate(passes)
    ]
    text = "".join(token["text"] for token in tokens).replace("↵\n", "\n")
    assert text == answer["text"] + "<|im_end|>"
    colours = {(token["pass"], token["back"]) for token in tokens}
    assert len(colours) == len({colour for _, colour in colours}) == len(set(passes)) > 2
    statistics = answer["meta_info"]["dlm"]
    facts = asked.evaluate(f"""[...document.querySelectorAll(".panel")[{panel}].querySelectorAll("dd")]
      .map((fact) => fact.textContent)""")
    accepted = statistics["acceptance_length"]
    assert facts[:3] == [str(statistics["nfe"]), str(len(passes)), f"{statistics['tokens_per_forward']:.2f}"]
    assert facts[3] == ("\N{EN DASH}" if accepted is None else f"{accepted:.2f}")
    assert facts[5] == f"{WAYS[panel]}/32: {len(passes)}"
    assert float(facts[4]) > 0


def test_the_scrubber_shows_the_answer_after_each_pass(asked: Browser) -> None:
    answer = answers_of(asked)[0]
    passes = passes_of(answer)
    asked.evaluate("""document.querySelector(".pass").focus()""")
    asked.press("Home", 36)
    for number in range(answer["meta_info"]["dlm"]["nfe"] + 1):
        shown = [token["pass"] for token in asked.evaluate(TOKENS % 0)]
        # Without drafts a token stays once it is there.
        assert shown == [fixed if fixed <= number else None for fixed in passes]
        words = asked.evaluate("""document.querySelector("output").textContent""")
        assert f"{sum(fixed <= number for fixed in passes)} of {len(passes)} tokens" in words
        asked.press("ArrowRight", 39)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_can_be_read(asked: Browser, scheme: str, width: int) -> None:
    asked.show(width, 900, scheme)
    assert min(asked.evaluate(CONTRASTS)) >= 4.5  # of WCAG's level AA
    assert asked.evaluate("document.documentElement.scrollWidth") <= width
    dark = asked.evaluate("""getComputedStyle(document.body).backgroundColor""") == "rgb(20, 22, 26)"
    assert dark == (scheme == "dark")


def test_every_field_has_a_label(asked: Browser) -> None:
    unlabelled = asked.evaluate("""[...document.querySelectorAll("input, select, textarea")]
      .filter((field) => !field.labels.length).length""")
    assert unlabelled == 0


def test_charts_show_what_the_server_has_done(asked: Browser) -> None:
    names = ("running", "waiting", "self_speculation", "diffusion", "autoregressive")
    asked.wait_for("""document.querySelectorAll("#charts li").length >= 5""")
    shown = asked.evaluate("""[...document.querySelectorAll("#charts li")].map((item) => item.textContent)""")
    assert [text.rstrip("0123456789.") for text in shown][:5] == list(names)


def test_keys_are_sent(asked: Browser) -> None:
    sent = asked.evaluate("""(async () => {
      const server = await import("/dlm/server.js");
      const [send, sent] = [window.fetch, []];
      window.fetch = (path, options) => { sent.push(options.headers.Authorization); return send(path, options); };
      await server.ask("dlm/status");
      server.setKey("the key");
      await server.ask("dlm/status");
      server.setKey("");
      window.fetch = send;
      return sent.map((value) => value ?? null);
    })()""")
    assert sent == [None, "Bearer the key"]


def test_refusals_are_the_servers_words_and_answers_are_text(asked: Browser, nano: Server) -> None:
    """Among what the page was made to do, nothing was blocked or failed but what the server refused."""
    field = """document.querySelector(".block_length").value"""
    asked.evaluate(f"{field} = 99")
    ask(asked, "<img src=x onerror=alert(1)> & <b>")
    asked.evaluate(f"{field} = ''")
    refused = nano.post("/generate", {"text": "a", "sampling_params": {"custom_params": {"dlm": {"block_length": 99}}}})
    shown = asked.evaluate("""[...document.querySelectorAll(".panel .error")].map((error) => error.textContent)""")
    assert shown == [refused.json()["error"]["message"], ""]
    assert asked.evaluate("""document.querySelectorAll(".answer img, .answer b").length""") == 0
    errors = [text for text in asked.complaints if '"level": "error"' in text or "exceptionDetails" in text]
    assert len(errors) == 1, errors
    assert "400 (Bad Request)" in errors[0]
