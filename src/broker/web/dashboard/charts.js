// Charts of a history, and their summaries in words: numbers of attempts by outcome, waiting times and run times.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { OUTCOMES } from "./constants.js";
import { count, counted, span } from "./format.js";

const HEIGHT = 200;
// Failures are on top, where people see them.
const STACK = Object.entries(OUTCOMES).sort(([, one], [, other]) => one.went_wrong - other.went_wrong);
const TIMES = [
  ["wait_median_seconds", "median wait", "blue", []],
  ["wait_p95_seconds", "95th percentile wait", "blue", [4, 4]],
  ["run_median_seconds", "median run", "amber", []],
  ["run_p95_seconds", "95th percentile run", "amber", [4, 4]],
];
// The axis of counts has only whole numbers.
const COUNT_STEPS = [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5].map((tens) => n * 10 ** tens)).sort((one, other) => one - other);
// A logarithmic axis has no zero.
const MIN_SECONDS = 0.001;
// A narrower selection is a click.
const CLICK_WIDTH = 4;

/** A chart, with its element for the page. */
class Chart {
  element = document.createElement("div");
  #history = null;
  #plot = null;
  #isDisposed = false;
  #zoom;
  #resizeObserver = new ResizeObserver(() => this.#fit());

  /**
   * @param zoom - called with the selected range `(since, until)`, in milliseconds
   * @param label - the name of the chart, for screen readers
   */
  constructor(zoom, label) {
    this.#zoom = zoom;
    this.element.className = "chart";
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", label);
    this.#resizeObserver.observe(this.element);
  }

  /** Show a response of `/v1/overview/history`. */
  show(history) {
    this.#history = history;
    if (this.#plot) this.#plot.setData(this.#data());
    else this.recolour();
  }

  /** Draw again, with the current colours of the page. */
  recolour() {
    if (this.#isDisposed || !this.#history) return;
    this.#plot?.destroy();
    const style = getComputedStyle(this.element.isConnected ? this.element : document.body);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    this.#plot = new uPlot({
      width: Math.max(200, this.element.clientWidth),
      height: HEIGHT,
      cursor: { sync: { key: "history" }, drag: { setScale: false } },
      axes: axes(colour, this.inWords, this.steps),
      scales: { x: { range: () => [seconds(this.#history.since), seconds(this.#history.until)] }, y: this.scale },
      series: [time(), ...this.series(colour, (at) => this.#history.items[at])],
      hooks: { setSelect: [(plot) => this.#selected(plot)] },
    }, this.#data(), this.element);
  }

  /** Remove the chart. */
  dispose() {
    this.#resizeObserver.disconnect();
    this.#plot?.destroy();
    this.#plot = null;
    this.#isDisposed = true;
  }

  #data() {
    return [this.#history.items.map(({ at }) => seconds(at)), ...this.columns(this.#history.items)];
  }

  #selected(plot) {
    const { left, width } = plot.select;
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    if (width > CLICK_WIDTH) this.#zoom(plot.posToVal(left, "x") * 1000, plot.posToVal(left + width, "x") * 1000);
  }

  #fit() {
    if (this.#plot && this.element.clientWidth) this.#plot.setSize({ width: this.element.clientWidth, height: HEIGHT });
  }
}

/** The number of ended attempts, stacked by outcome. */
export class Throughput extends Chart {
  inWords = count;
  steps = COUNT_STEPS;
  scale = { range: (plot, min, max) => [0, Math.max(1, max * 1.05)] };

  // The highest bars are drawn first, and the others over them.
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

/** The waiting times of tasks and the run times of attempts. */
export class Durations extends Chart {
  inWords = axisLabel;
  scale = { distr: 3 };

  columns(parts) {
    return TIMES.map(([name]) => parts.map(({ [name]: value }) => value === null ? null : Math.max(MIN_SECONDS, value)));
  }

  series(colour) {
    return TIMES.map(([, label, shade, dash]) => ({
      label, dash, stroke: colour(shade), width: 2, spanGaps: true,
      points: { show: true, size: 5 },
      value: (plot, value) => value === null ? "–" : span(value),
    }));
  }
}

/** A summary of the ended attempts by outcome. */
export function throughputInWords({ items, complete }) {
  const sums = Object.entries(OUTCOMES).map(([name, { label }]) => [items.reduce((sum, part) => sum + part[name], 0), label]);
  const all = sums.reduce((sum, [number]) => sum + number, 0);
  if (!all) return "No attempt ended in this time range. Zoom out, or choose a longer range.";
  const parts = sums.filter(([number]) => number).map(([number, label]) => `${count(number)} ${label}`);
  return complete
    ? `${counted(all, "attempt")} ended: ${parts.join(", ")}.`
    : `The newest ${counted(all, "attempt")}: ${parts.join(", ")}. Older attempts are not counted.`;
}

/** A summary of the waiting and run times: the lowest and the highest median of the parts of the range. */
export function durationsInWords({ items }) {
  const ranges = [["Median waiting time", "wait_median_seconds"], ["Median run time", "run_median_seconds"]]
    .map(([what, name]) => [what, items.map((part) => part[name]).filter((seconds) => seconds !== null)])
    .filter(([, medians]) => medians.length)
    .map(([what, medians]) => `${what}: ${range(span(Math.min(...medians)), span(Math.max(...medians)))}.`);
  return ranges.length ? ranges.join(" ") : "No attempt ended in this time range.";
}

const range = (min, max) => (min === max ? min : `${min} to ${max}`);

/** A duration on an axis: `10 s`, `1.7 min`, `28 h`. */
function axisLabel(seconds) {
  const [unit, name] = seconds < 100 ? [1, "s"] : seconds < 6000 ? [60, "min"] : [3600, "h"];
  return `${Number((seconds / unit).toPrecision(2))} ${name}`;
}

const seconds = (text) => Date.parse(text) / 1000;

const time = () => ({ label: "time", value: (plot, value) => value === null ? "–" : new Date(value * 1000).toLocaleTimeString("en-GB") });

function axes(colour, inWords, incrs) {
  const both = { stroke: colour("muted"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 } };
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
