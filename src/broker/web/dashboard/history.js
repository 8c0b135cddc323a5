// A history in words, for who does not see its plots, and for all who want to know it at once.

import { OUTCOMES } from "./constants.js";
import { count, counted, span } from "./format.js";

/** How much ended, and how. */
export function ended({ items, complete }) {
  const sums = Object.entries(OUTCOMES).map(([name, { label }]) => [items.reduce((sum, part) => sum + part[name], 0), label]);
  const all = sums.reduce((sum, [number]) => sum + number, 0);
  if (!all) return "Nothing ended in this span of time.";
  const parts = sums.filter(([number]) => number).map(([number, label]) => `${count(number)} ${label}`);
  return `${complete ? "" : "Of the newest: "}${counted(all, "attempt")} ended: ${parts.join(", ")}.`;
}

/** How long tasks waited and ran, from the least median of a part of the span to the greatest. */
export function lasted({ items }) {
  const told = [["wait", "wait_median_seconds"], ["run", "run_median_seconds"]]
    .map(([what, name]) => [what, items.map((part) => part[name]).filter((seconds) => seconds !== null)])
    .filter(([, medians]) => medians.length)
    .map(([what, medians]) => `${what} ${range(span(Math.min(...medians)), span(Math.max(...medians)))}`);
  return told.length ? `Medians of its parts: ${told.join(", ")}.` : "Nothing waited or ran in this span of time.";
}

const range = (least, most) => (least === most ? least : `${least} to ${most}`);
