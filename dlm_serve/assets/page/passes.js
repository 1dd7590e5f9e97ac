/** What an answer looked like after each of its forward passes. */

/**
 * Return views of an answer: views[k] holds, by position, what stood after forward pass k: { id, pass }, where `pass`
 * is since when, or null for a mask. views[0] is what the prefill gave, and the last view is the answer.
 *
 * history: `meta_info.dlm.history`. ids: the answer's tokens. mask: the mask's id. prefilled: how many of the first
 * tokens no forward pass decided. A history that was cut leaves the rest of the answer to one more view.
 */
export function replay(history, ids, mask, prefilled) {
  const views = [ids.slice(0, prefilled).map((id) => ({ id, pass: 0 }))];
  history.forEach(({ start, tokens }, i) => {
    const before = views[i];
    const view = before.slice(0, Math.max(start, 0));
    tokens.forEach((id, j) => {
      const at = start + j;
      if (at < 0 || at >= ids.length) return;
      view[at] = id === mask ? null : before[at]?.id === id ? before[at] : { id, pass: i + 1 };
    });
    views.push(Array.from(view, (cell) => cell ?? null));
  });
  const last = views.at(-1);
  if (ids.some((id, i) => last[i]?.id !== id)) {
    views.push(ids.map((id, i) => (last[i]?.id === id ? last[i] : { id, pass: views.length })));
  }
  return views;
}
