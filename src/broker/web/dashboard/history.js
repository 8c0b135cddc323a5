// A history in words, for people who do not see the plots, or want it short.

import { OUTCOMES } from "./constants.js";
import { count, counted, span } from "./format.js";

/** How many attempts ended, and how. */
export function ended({ items, complete }) {
  const sums = Object.entries(OUTCOMES).map(([name, { label }]) => [items.reduce((sum, part) => sum + part[name], 0), label]);
  const all = sums.reduce((sum, [number]) => sum + number, 0);
  if (!all) return "Nothing ended in this span of time.";
  const parts = sums.filter(([number]) => number).map(([number, label]) => `${count(number)} ${label}`);
  return `${complete ? "" : "Of the newest: "}${counted(all, "attempt")} ended: ${parts.join(", ")}.`;
}

/** How long tasks waited and ran: the least and the greatest median of the parts of the span. */
export function lasted({ items }) {
  const ranges = [["wait", "wait_median_seconds"], ["run", "run_median_seconds"]]
    .map(([what, name]) => [what, items.map((part) => part[name]).filter((seconds) => seconds !== null)])
    .filter(([, medians]) => medians.length)
    .map(([what, medians]) => `${what} ${range(span(Math.min(...medians)), span(Math.max(...medians)))}`);
  return ranges.length ? `Medians of its parts: ${ranges.join(", ")}.` : "Nothing waited or ran in this span of time.";
}

const range = (least, most) => (least === most ? least : `${least} to ${most}`);
