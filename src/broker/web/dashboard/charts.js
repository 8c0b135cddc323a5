// A history in plots, and in words: how many attempts ended and how, and how long they waited and ran.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { OUTCOMES } from "./constants.js";
import { count, counted, span } from "./format.js";

const HEIGHT = 200;
// What went wrong is on top, where people see it.
const STACK = Object.entries(OUTCOMES).sort(([, one], [, other]) => one.went_wrong - other.went_wrong);
const TIMES = [
  ["wait_median_seconds", "wait, median", "accent", []],
  ["wait_p95_seconds", "wait, 95 %", "accent", [4, 4]],
  ["run_median_seconds", "run, median", "odd", []],
  ["run_p95_seconds", "run, 95 %", "odd", [4, 4]],
];
// Attempts are whole numbers.
const COUNTS = [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5].map((tens) => n * 10 ** tens)).sort((one, other) => one - other);
// A logarithmic axis has no zero.
const LEAST_SECONDS = 0.001;
// A narrower selection is a click.
const STILL = 4;

/** One plot, in an element for the page. */
class Chart {
  element = document.createElement("div");
  #history = null;
  #plot = null;
  #gone = false;
  #zoom;
  #resized = new ResizeObserver(() => this.#fit());

  /**
   * @param zoom - called with the selected span `(since, until)`, in milliseconds
   * @param label - the name of the plot, for screen readers
   */
  constructor(zoom, label) {
    this.#zoom = zoom;
    this.element.className = "chart";
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", label);
    this.#resized.observe(this.element);
  }

  /** Show a history, a response of `/v1/overview/history`. */
  show(history) {
    this.#history = history;
    if (this.#plot) this.#plot.setData(this.#data());
    else this.recolour();
  }

  /** Draw again, with the present colours of the page. */
  recolour() {
    if (this.#gone || !this.#history) return;
    this.#plot?.destroy();
    const style = getComputedStyle(this.element.isConnected ? this.element : document.body);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.#plot = new uPlot({
      width: Math.max(200, this.element.clientWidth),
      height: HEIGHT,
      cursor: { sync: { key: "then" }, drag: { setScale: false } },
      axes: axes(colour, this.inWords, this.steps),
      scales: { x: { range: () => [seconds(this.#history.since), seconds(this.#history.until)] }, y: this.scale },
      series: [time(), ...this.series(colour, (at) => this.#history.items[at])],
      hooks: { setSelect: [(plot) => this.#selected(plot)] },
    }, this.#data(), this.element);
  }

  /** Remove the plot. */
  left() {
    this.#resized.disconnect();
    this.#plot?.destroy();
    this.#plot = null;
    this.#gone = true;
  }

  #data() {
    return [this.#history.items.map(({ at }) => seconds(at)), ...this.columns(this.#history.items)];
  }

  #selected(plot) {
    const { left, width } = plot.select;
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    if (width > STILL) this.#zoom(plot.posToVal(left, "x") * 1000, plot.posToVal(left + width, "x") * 1000);
  }

  #fit() {
    if (this.#plot && this.element.clientWidth) this.#plot.setSize({ width: this.element.clientWidth, height: HEIGHT });
  }
}

/** How many attempts ended, stacked by outcome. */
export class Throughput extends Chart {
  inWords = count;
  steps = COUNTS;
  scale = { range: (plot, least, most) => [0, Math.max(1, most * 1.05)] };

  // The highest are drawn first, and the others over them.
  columns(parts) {
    const sums = parts.map(() => 0);
    return STACK.map(([name]) => parts.map((part, at) => (sums[at] += part[name]))).reverse();
  }

  series(colour, partAt) {
    return STACK.map(([name, { label, colour: shade }]) => ({
      label,
      stroke: colour("card"),
      width: 1,
      fill: colour(shade),
      paths: uPlot.paths.bars({ size: [1], align: 1 }),
      points: { show: false },
      value: (plot, value, column, at) => at === null ? "–" : count(partAt(at)?.[name] ?? 0),
    })).reverse();
  }
}

/** How long tasks waited and ran. */
export class Durations extends Chart {
  inWords = brief;
  scale = { distr: 3 };

  columns(parts) {
    return TIMES.map(([name]) => parts.map(({ [name]: value }) => value === null ? null : Math.max(LEAST_SECONDS, value)));
  }

  series(colour) {
    return TIMES.map(([, label, shade, dash]) => ({
      label, dash, stroke: colour(shade), width: 2, spanGaps: true,
      points: { show: true, size: 5 },
      value: (plot, value) => value === null ? "–" : span(value),
    }));
  }
}

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

/** A length of time on an axis: `10 s`, `1.7 min`, `28 h`. */
function brief(seconds) {
  const [unit, name] = seconds < 100 ? [1, "s"] : seconds < 6000 ? [60, "min"] : [3600, "h"];
  return `${Number((seconds / unit).toPrecision(2))} ${name}`;
}

const seconds = (text) => Date.parse(text) / 1000;

const time = () => ({ label: "from", value: (plot, value) => value === null ? "–" : new Date(value * 1000).toLocaleTimeString("en-GB") });

function axes(colour, inWords, incrs) {
  const both = { stroke: colour("faint"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 } };
  return [
    { ...both, space: 80, values: [
      [86400, "{YYYY}-{MM}-{DD}", null, null, null, null, null, null, 1],
      [3600, "{HH}:{mm}", "\n{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
      [60, "{HH}:{mm}", "\n{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
      [1, "{HH}:{mm}:{ss}", "\n{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
    ] },
    { ...both, size: 62, incrs, values: (plot, values) => values.map((value) => value === null ? "" : inWords(value)) },
  ];
}
