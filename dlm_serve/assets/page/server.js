/** Requests to the server that this page came from. Errors are the server's words. */

const KEY = "dlm-serve key";

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export const key = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (value) => sessionStorage.setItem(KEY, value.trim());

/** Fetch `path` with the key, `body` as JSON where there is one. Throws Refused unless the answer is a success. */
export async function ask(path, body, signal) {
  const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
  const post = { method: "POST", body: JSON.stringify(body), headers: { ...headers, "Content-Type": "application/json" } };
  const response = await fetch(path, { signal, ...(body === undefined ? { headers } : post) });
  if (response.ok) return response;
  const text = await response.text();
  throw new Refused(messageOf(text) || `HTTP ${response.status}`, response.status);
}

/** Yield each chunk of a streamed `/generate`. Throws Refused for an error that the stream reports. */
export async function* stream(body, signal) {
  const response = await ask("generate", { ...body, stream: true }, signal);
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    const events = (rest + piece.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      const finish = chunk.meta_info?.finish_reason;
      if (chunk.error) throw new Refused(messageOf(data), chunk.error.code);
      if (finish?.type === "abort") throw new Refused(finish.message ?? "aborted", finish.status_code);
      yield chunk;
    }
  }
  throw new Refused("The server ended the stream before its answer was complete.");
}

const pieces = new Map();

/** Return the texts of token ids by id; texts that were asked for before are remembered. */
export async function textsOf(ids, signal) {
  const unknown = [...new Set(ids)].filter((id) => !pieces.has(id));
  if (unknown.length) {
    const body = { tokens: unknown.map((id) => [id]), skip_special_tokens: false };
    const { text } = await (await ask("detokenize", body, signal)).json();
    unknown.forEach((id, i) => pieces.set(id, text[i]));
  }
  return pieces;
}

/** The message of an error, which some routes nest and others do not. */
function messageOf(text) {
  try {
    const content = JSON.parse(text);
    const error = content.error ?? content;
    const message = error.message ?? error.detail ?? error;
    return typeof message === "string" ? message : JSON.stringify(message);
  } catch {
    return text;
  }
}
