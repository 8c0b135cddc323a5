// Plots over a span of time: how much ended and how, and how long it had waited and run.

import uPlot from "./vendor/uplot/uPlot.esm.js";
import { count, span } from "./format.js";

const HEIGHT = 200;
// The bad ones on top, where they are seen.
const OUTCOMES = [
  ["succeeded", "good"], ["released", "away"], ["cancelled", "odd"], ["failed", "bad"], ["timed_out", "slow"], ["lost", "gone"],
];
const TIMES = [
  ["wait_median_seconds", "waited, half of them at most", "accent", []],
  ["wait_p95_seconds", "waited, 95 of 100 at most", "accent", [4, 4]],
  ["run_median_seconds", "ran, half of them at most", "odd", []],
  ["run_p95_seconds", "ran, 95 of 100 at most", "odd", [4, 4]],
];
// There is no half of an attempt.
const COUNTS = [1, 2, 5].flatMap((n) => [0, 1, 2, 3, 4, 5].map((tens) => n * 10 ** tens)).sort((one, other) => one - other);
// A logarithm has no zero.
const LEAST_SECONDS = 0.001;

/** One plot, in an element that is put into a page. */
class Chart {
  element = document.createElement("div");
  #plot = null;
  #gone = false;
  #observer = new ResizeObserver(() => this.#fit());
  #zoom;

  constructor(zoom, label) {
    this.#zoom = zoom;
    this.element.className = "chart";
    this.element.setAttribute("role", "group");
    this.element.setAttribute("aria-label", label);
    this.#observer.observe(this.element);
  }

  /** Nobody looks any more. */
  left() {
    this.#observer.disconnect();
    this.#plot?.destroy();
    this.#plot = null;
    this.#gone = true;
  }

  /** Show a history, as `/v1/overview/history` answers it. */
  show(history) {
    if (this.#gone) return;
    this.#plot?.destroy();
    const style = getComputedStyle(this.element.isConnected ? this.element : document.body);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const { options, data } = this.draw(history, colour);
    this.#plot = new uPlot({
      width: Math.max(200, this.element.clientWidth),
      height: HEIGHT,
      cursor: { sync: { key: "then" }, drag: { setScale: false } },
      ...options,
      hooks: { setSelect: [(plot) => this.#selected(plot)] },
    }, data, this.element);
  }

  #selected(plot) {
    const { left, width } = plot.select;
    if (width > 4) this.#zoom(plot.posToVal(left, "x") * 1000, plot.posToVal(left + width, "x") * 1000);
  }

  #fit() {
    if (this.#plot && this.element.clientWidth) this.#plot.setSize({ width: this.element.clientWidth, height: HEIGHT });
  }
}

/** How many attempts ended, by outcome, one on the other. */
export class Throughput extends Chart {
  draw(history, colour) {
    const sums = [];
    OUTCOMES.forEach(([name], place) => {
      sums.push(history.items.map((bucket, at) => bucket[name] + (place ? sums[place - 1][at] : 0)));
    });
    // Those that reach highest are drawn first, and covered by the rest.
    const series = OUTCOMES.map(([name, shade], place) => ({
      label: name.replace("_", " "),
      stroke: colour("card"),
      width: 1,
      fill: colour(shade),
      paths: uPlot.paths.bars({ size: [1], align: 1 }),
      points: { show: false },
      value: (plot, value, column, at) => at === null ? "–" : count(history.items[at]?.[OUTCOMES[place][0]] ?? 0),
    })).reverse();
    return {
      options: { axes: axes(colour, count, COUNTS), scales: { x: extent(history), y: { range: (plot, least, most) => [0, Math.max(1, most * 1.05)] } }, series: [time(), ...series] },
      data: [times(history), ...sums.reverse()],
    };
  }
}

/** How long tasks had waited and run. */
export class Durations extends Chart {
  draw(history, colour) {
    const series = TIMES.map(([, label, shade, dash]) => ({
      label, dash, stroke: colour(shade), width: 2, spanGaps: true,
      points: { show: true, size: 5 },
      value: (plot, value) => value === null ? "–" : span(value),
    }));
    const data = TIMES.map(([name]) => history.items.map((bucket) => bucket[name] === null ? null : Math.max(LEAST_SECONDS, bucket[name])));
    return {
      options: { axes: axes(colour, brief), scales: { x: extent(history), y: { distr: 3 } }, series: [time(), ...series] },
      data: [times(history), ...data],
    };
  }
}

/** A length of time on an axis: `10 s`, `1.7 min`, `28 h`. */
function brief(seconds) {
  const [unit, name] = seconds < 100 ? [1, "s"] : seconds < 6000 ? [60, "min"] : [3600, "h"];
  return `${Number((seconds / unit).toPrecision(2))} ${name}`;
}

const extent = ({ since, until }) => ({ range: [Date.parse(since) / 1000, Date.parse(until) / 1000] });

const times = (history) => history.items.map((bucket) => Date.parse(bucket.at) / 1000);

const time = () => ({ label: "from", value: (plot, value) => value === null ? "–" : new Date(value * 1000).toLocaleTimeString("en-GB") });

function axes(colour, inWords, incrs) {
  const both = { stroke: colour("faint"), grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1 } };
  return [
    { ...both, values: [
      [86400, "{YYYY}-{MM}-{DD}", null, null, null, null, null, null, 1],
      [3600, "{HH}:{mm}", "\n{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
      [60, "{HH}:{mm}", "\n{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
      [1, "{HH}:{mm}:{ss}", "\n{MM}-{DD}", null, "\n{MM}-{DD}", null, null, null, 1],
    ] },
    { ...both, size: 62, incrs, values: (plot, values) => values.map((value) => value === null ? "" : inWords(value)) },
  ];
}
