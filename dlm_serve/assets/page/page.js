import { ask, key, Refused, setKey, stream, textsOf } from "./server.js";
import { replay } from "./passes.js";
import { watch } from "./charts.js";

const $ = (id) => document.getElementById(id);
const REPLAY_MS = 400;

/** Create an element with a class and a text; texts are never read as HTML. */
function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

/** Show an error, or none; an error for lack of a key opens the field for it. */
function show(error, where) {
  where.hidden = !error;
  where.textContent = error ? error.message : "";
  if (error?.status === 401) $("access").open = true;
}

const valueOf = (input) => (input.value === "" ? undefined : Number(input.value));

/** A token in the colour of its pass, and under its number unless the token before has the same. */
function tokenOf(text, pass, passBefore, className = "token") {
  const token = element("span", className, text.replaceAll("\n", "↵\n"));
  token.style.setProperty("--hue", (pass * 137.5) % 360);
  token.dataset.pass = pass;
  if (pass !== passBefore) token.prepend(element("sup", "", pass));
  return token;
}

/** One way to decode: its settings, its answer, and the passes of that. */
class Panel {
  constructor(name) {
    this.root = $("panel").content.firstElementChild.cloneNode(true);
    for (const part of ["mode", "block_length", "threshold", "answer", "pass", "scrubber", "replay", "error"]) {
      this[part] = this.root.querySelector(`.${part}`);
    }
    this.root.querySelector("h2").textContent = name;
    this.answer.setAttribute("aria-label", `Answer, ${name}`);
    this.output = this.root.querySelector("output");
    this.facts = this.root.querySelector("dl");
    this.pass.addEventListener("input", () => this.showPass());
    this.replay.addEventListener("click", () => this.play());
    $("panels").append(this.root);
  }

  offer(modes, chosen) {
    this.mode.append(...modes.map((mode) => new Option(mode, mode, false, mode === chosen)));
  }

  /** Ask for an answer to the prompt `ids`, show it as it grows, then with its passes. Never throws. */
  async run(ids, sampling, mask, signal) {
    this.clear();
    const dlm = { mode: this.mode.value, history: true };
    for (const name of ["block_length", "threshold"]) {
      if (this[name].value !== "") dlm[name] = valueOf(this[name]);
    }
    const body = { input_ids: ids, sampling_params: { ...sampling, custom_params: { dlm } } };
    const start = performance.now();
    let [text, output, prefilled, about, pass] = ["", [], 0, null, null];
    try {
      for await (const chunk of stream(body, signal)) {
        about = chunk.meta_info;
        // With --incremental-streaming-output, chunks have only what is new.
        const isWhole = chunk.output_ids.length === about.completion_tokens;
        const { nfe } = about.dlm;
        const added = isWhole ? chunk.text.slice(text.length) : chunk.text;
        if (added) {
          this.answer.append(tokenOf(added, nfe, pass));
          [text, pass] = [text + added, nfe];
        }
        output = isWhole ? chunk.output_ids : [...output, ...chunk.output_ids];
        if (nfe === 0) prefilled = output.length;
        this.tell(about, (performance.now() - start) / 1000);
      }
      const { history, nfe } = about.dlm;
      const drafted = history.flatMap(({ tokens }) => tokens);
      this.texts = await textsOf([...output, ...drafted], signal);
      this.views = replay(history, output, mask, prefilled);
      this.names = this.views.map((_, i) => (i === 0 ? "After the prefill" : `After forward pass ${i} of ${nfe}`));
      if (this.views.length > history.length + 1) this.names[this.views.length - 1] = "After the last forward pass";
      this.pass.max = this.views.length - 1;
      this.pass.value = this.pass.max;
      this.scrubber.hidden = false;
      this.showPass();
    } catch (error) {
      show(signal.aborted ? new Refused("Stopped.") : error, this.error);
    }
  }

  clear() {
    clearInterval(this.playing);
    show(null, this.error);
    this.scrubber.hidden = true;
    this.answer.replaceChildren();
    this.facts.replaceChildren();
  }

  /** Show the answer as it was after the pass under the scrubber. */
  showPass() {
    const pass = Number(this.pass.value);
    const [view, last] = [this.views[pass], this.views.at(-1)];
    this.answer.replaceChildren(...last.map(({ pass: fixed }, i) => {
      const cell = view[i];
      if (!cell) return element("span", "token mask", "\u00a0");
      const className = cell.pass === fixed ? "token" : "token replaced";
      return tokenOf(this.texts.get(cell.id), cell.pass, view[i - 1]?.pass, className);
    }));
    const filled = view.filter(Boolean).length;
    const added = view.filter((cell) => cell?.pass === pass).length;
    const words = `${this.names[pass]}: ${filled} of ${last.length} tokens, ${added} of them new`;
    this.output.textContent = words;
    this.pass.setAttribute("aria-valuetext", words);
  }

  /** Move the scrubber from the first pass to the last. */
  play() {
    clearInterval(this.playing);
    this.pass.value = 0;
    this.showPass();
    this.playing = setInterval(() => {
      this.pass.stepUp();
      this.showPass();
      if (this.pass.value === this.pass.max) clearInterval(this.playing);
    }, REPLAY_MS);
  }

  tell(about, seconds) {
    const { nfe, tokens_per_forward: perForward, acceptance_length: accepted, tokens } = about.dlm;
    const facts = {
      "Forward passes": nfe,
      Tokens: about.completion_tokens,
      "Tokens per forward": perForward?.toFixed(2) ?? "–",
      "Acceptance length": accepted?.toFixed(2) ?? "–",
      Seconds: seconds.toFixed(2),
      "Decoded as": Object.entries(tokens).map(([way, number]) => `${way}: ${number}`).join("\n"),
    };
    this.facts.replaceChildren(...Object.entries(facts).map(([name, value]) => {
      const fact = element("div", "");
      fact.append(element("dt", "", name), element("dd", "", value));
      return fact;
    }));
  }
}

const panels = [new Panel("First way"), new Panel("Second way")];
let mask = null;
let running = null;

/** Ask in each of the ways that are shown, one after the other. */
async function answer() {
  running = new AbortController();
  const { signal } = running;
  const shown = panels.filter((panel) => !panel.root.hidden);
  $("ask").textContent = "Stop";
  shown.forEach((panel) => panel.clear());
  try {
    if (mask === null) introduce(await (await ask("dlm/status", undefined, signal)).json());
    const prompt = $("prompt").value;
    const body = $("chat").checked ? { messages: [{ role: "user", content: prompt }] } : { prompt };
    const { tokens } = await (await ask("tokenize", body, signal)).json();
    const sampling = { max_new_tokens: valueOf($("most")), temperature: valueOf($("temperature")) };
    for (const panel of shown) {
      if (!signal.aborted) await panel.run(tokens, sampling, mask, signal);
    }
  } catch (error) {
    show(signal.aborted ? new Refused("Stopped.") : error, shown[0].error);
  }
  running = null;
  $("ask").textContent = "Ask";
}

/** Say what is served, and offer its modes. */
function introduce(status) {
  $("about").textContent = `${status.model} (${status.family}), dlm-serve ${status.version} on SGLang ${status.sglang_version}`;
  if (mask !== null) return;
  mask = status.mask_token_id;
  const first = status.modes.includes("diffusion") ? "diffusion" : status.modes[0];
  panels[0].offer(status.modes, first);
  panels[1].offer(status.modes, status.modes.find((mode) => mode !== first) ?? first);
  if (status.modes.length === 1) $("compare").click();
}

$("compare").addEventListener("change", () => (panels[1].root.hidden = !$("compare").checked));
$("question").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) running.abort();
  else answer();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("question").requestSubmit();
});
$("key").value = key();
const poll = watch($("charts"), introduce, (error) => show(error, $("trouble")));
$("key").addEventListener("change", () => {
  setKey($("key").value);
  poll();
});
