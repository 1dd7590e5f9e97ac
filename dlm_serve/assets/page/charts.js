/** Charts of what the server does, from `/dlm/status` and `/v1/loads`. */

import { ask } from "./server.js";

const POLL_MS = 2000;
const KEPT = 90; // samples: three minutes
const SVG = "http://www.w3.org/2000/svg";

const numeral = (value) => (Number.isInteger(value) ? value : value.toFixed(1));

function svgLine(points, index) {
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points);
  line.setAttribute("class", `series${index % 5}`);
  return line;
}

function svgOf(width, height, ...lines) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  svg.append(...lines);
  return svg;
}

/** A chart that grows by one sample at a time; series differ in their dashes, and say their values. */
class Chart {
  constructor(where, name) {
    this.samples = [];
    this.names = [];
    this.figure = document.createElement("figure");
    this.caption = document.createElement("figcaption");
    this.name = name;
    where.append(this.figure);
    this.draw();
  }

  /** Add values by the names of their series. */
  add(sample) {
    this.samples = [...this.samples, sample].slice(-KEPT);
    this.names = [...new Set([...this.names, ...Object.keys(sample)])];
    this.draw();
  }

  draw() {
    const most = Math.max(1, ...this.samples.flatMap(Object.values));
    this.caption.textContent = `${this.name} (at most ${numeral(most)})`;
    const left = KEPT - this.samples.length;
    const lines = this.names.map((name, n) =>
      svgLine(this.samples.map((sample, i) => `${left + i},${100 - (95 * (sample[name] ?? 0)) / most}`).join(" "), n));
    const legend = document.createElement("ul");
    legend.append(...this.names.map((name, n) => {
      const item = document.createElement("li");
      const value = document.createElement("b");
      const now = this.samples.at(-1)[name] ?? 0;
      value.textContent = numeral(now);
      item.append(svgOf(40, 10, svgLine("0,5 40,5", n)), name, value);
      return item;
    }));
    this.figure.replaceChildren(this.caption, svgOf(KEPT - 1, 100, ...lines), legend);
  }
}

/** Add up objects of numbers by key. */
function sum(parts) {
  const total = {};
  for (const part of parts) for (const [name, value] of Object.entries(part)) total[name] = (total[name] ?? 0) + value;
  return total;
}

/**
 * Draw charts below `where` for as long as the page is seen. Each answer of `/dlm/status` is told to `onStatus`, an
 * error or null to `onError`. Return a function that asks at once.
 */
export function watch(where, onStatus, onError) {
  const load = new Chart(where, "Requests");
  const speed = new Chart(where, "Tokens per second, by mode");
  const ways = new Chart(where, "Requests of mode auto, by mode and width");
  let before = null;

  async function poll() {
    try {
      const responses = await Promise.all([ask("dlm/status"), ask("v1/loads?include=core")]);
      const [status, { loads }] = await Promise.all(responses.map((response) => response.json()));
      const { num_running_reqs: running, num_waiting_reqs: waiting } = sum(loads);
      onStatus(status);
      onError(null);
      load.add({ running, waiting });
      // A replica keeps its last decision when it has nothing more to decide about.
      ways.add(running ? sum(status.replicas.map((replica) => replica.requests)) : {});
      const now = { at: performance.now(), tokens: sum(status.replicas.map((r) => r.counters.dlm_tokens_total ?? {})) };
      if (before) {
        const seconds = (now.at - before.at) / 1000;
        // Counters that fell are those of a server that was started anew.
        const rate = (mode) => Math.max(0, (now.tokens[mode] ?? 0) - (before.tokens[mode] ?? 0)) / seconds;
        speed.add(Object.fromEntries(status.modes.map((mode) => [mode, rate(mode)])));
      }
      before = now;
    } catch (error) {
      onError(error);
    }
  }

  setInterval(() => document.hidden || poll(), POLL_MS);
  poll();
  return poll;
}
