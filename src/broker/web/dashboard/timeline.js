// A timeline on a canvas: a row for each tool, a bar for each attempt. Only what is in sight is drawn.

import { age, moment } from "./format.js";
import { GAP, LANE, nearest, rowsOf } from "./lanes.js";
import { ticksOf } from "./ticks.js";

const AXIS = 24, LABELS = 150, NARROW = 90;
const MOST_HEIGHT = 480;
// Beside its colour each outcome has a mark, where there is room for it.
export const MARKS = { running: "▸", succeeded: "", failed: "✕", timed_out: "◷", lost: "?", cancelled: "–", released: "↩" };
const STRIPED = new Set(["failed", "timed_out", "lost"]);
const WHEEL = 1.3;
const HINT = "Point at a bar to see what it is; drag over a span of time to see it larger.";

export class Timeline {
  /** What is shown, to be put into a page. */
  element = document.createElement("div");
  #canvas = document.createElement("canvas");
  #scroll = document.createElement("div");
  #height = document.createElement("div");
  #line = document.createElement("p");
  #rows = [];
  #bars = [];
  #since = 0;
  #until = 1;
  #selected = null;
  #drag = null;
  #gone = new AbortController();
  #observer = new ResizeObserver(() => this.draw());
  #zoom;
  #open;

  /**
   * @param zoom - is told `(since, until)` that somebody wants to see, in milliseconds
   * @param open - is told the bar that somebody wants to read of
   */
  constructor(zoom, open) {
    this.#zoom = zoom;
    this.#open = open;
    this.element.className = "timeline";
    this.#scroll.className = "scroll";
    this.#scroll.tabIndex = 0;
    this.#scroll.setAttribute("role", "group");
    this.#scroll.setAttribute("aria-label", "Timeline. Arrows go from attempt to attempt, Enter reads of one, plus and minus zoom.");
    this.#canvas.setAttribute("aria-hidden", "true");
    this.#line.className = "line";
    this.#line.setAttribute("role", "status");
    this.#line.textContent = HINT;
    this.#scroll.append(this.#canvas, this.#height);
    this.element.append(this.#scroll, this.#line);
    this.#listen();
    this.#observer.observe(this.#scroll);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw(), { signal: this.#gone.signal });
  }

  /** Nobody looks any more. */
  left() {
    this.#gone.abort();
    this.#observer.disconnect();
  }

  /** Show attempts: `{id, task, tool, attempt, outcome, begin, end}`, times in milliseconds. */
  show(attempts, since, until) {
    this.#bars = attempts;
    this.#rows = rowsOf(attempts);
    this.look(since, until);
    const last = this.#rows.at(-1);
    const height = AXIS + (last ? last.top + last.height : LANE);
    this.#height.style.height = `${Math.max(0, height - Math.min(height, MOST_HEIGHT))}px`;
    this.#canvas.style.height = `${Math.min(height, MOST_HEIGHT)}px`;
    this.#scroll.style.maxHeight = `${MOST_HEIGHT}px`;
    if (this.#selected) this.#select(attempts.find((bar) => bar.id === this.#selected.id) ?? null);
    this.draw();
  }

  /** Look at a span of time. */
  look(since, until) {
    this.#since = since;
    this.#until = until;
  }

  draw() {
    const width = this.#scroll.clientWidth, height = this.#canvas.clientHeight;
    if (!width || !height) return;
    const ratio = devicePixelRatio;
    this.#canvas.style.width = `${width}px`;
    if (this.#canvas.width !== Math.round(width * ratio)) this.#canvas.width = Math.round(width * ratio);
    if (this.#canvas.height !== Math.round(height * ratio)) this.#canvas.height = Math.round(height * ratio);
    const pen = this.#canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.font = "12px system-ui, sans-serif";
    pen.textBaseline = "middle";
    const style = getComputedStyle(this.element);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    const ticks = ticksOf(this.#since, this.#until, width - this.#left()).map((tick) => ({ ...tick, x: this.#x(tick.at) }));
    this.#drawGrid(pen, ticks, height, colour);
    this.#drawRows(pen, width, height, colour);
    this.#drawAxis(pen, ticks, width, colour);
    if (this.#drag?.to !== undefined) this.#drawDrag(pen, height, colour);
  }

  #drawRows(pen, width, height, colour) {
    const left = this.#left(), top = this.#scroll.scrollTop;
    const stripes = pen.createPattern(striped(colour("card")), "repeat");
    for (const row of this.#rows) {
      const y = AXIS + row.top - top;
      if (y + row.height < AXIS) continue;
      if (y > height) break;
      pen.strokeStyle = colour("line");
      pen.beginPath();
      pen.moveTo(0, y + row.height - 0.5);
      pen.lineTo(width, y + row.height - 0.5);
      pen.stroke();
      pen.fillStyle = colour("text");
      pen.fillText(fitting(pen, row.tool, left - 12), 6, y + GAP / 2 + LANE / 2);
      pen.save();
      pen.beginPath();
      pen.rect(left, AXIS, width - left, height - AXIS);
      pen.clip();
      for (const bar of row.bars) this.#drawBar(pen, bar, y, colour, stripes);
      pen.restore();
    }
  }

  #drawBar(pen, bar, y, colour, stripes) {
    const [x, width] = this.#extent(bar);
    if (x + width < this.#left() || x > this.#scroll.clientWidth) return;
    const top = y + GAP / 2 + bar.lane * LANE + 1;
    pen.fillStyle = colour(COLOURS[bar.outcome]);
    pen.fillRect(x, top, width, LANE - 2);
    if (STRIPED.has(bar.outcome)) {
      pen.fillStyle = stripes;
      pen.fillRect(x, top, width, LANE - 2);
    }
    if (width > 14 && MARKS[bar.outcome]) {
      pen.fillStyle = colour("card");
      pen.fillRect(x + 2, top + 2, 12, LANE - 6);
      pen.fillStyle = colour("text");
      pen.fillText(MARKS[bar.outcome], x + 4, top + LANE / 2 - 1);
    }
    if (bar === this.#selected) {
      pen.strokeStyle = colour("text");
      pen.lineWidth = 2;
      pen.strokeRect(x - 1, top - 1, width + 2, LANE);
      pen.lineWidth = 1;
    }
  }

  #drawGrid(pen, ticks, height, colour) {
    pen.strokeStyle = colour("line");
    pen.beginPath();
    for (const { x } of ticks) {
      pen.moveTo(x, AXIS);
      pen.lineTo(x, height);
    }
    pen.stroke();
  }

  #drawAxis(pen, ticks, width, colour) {
    pen.fillStyle = colour("card");
    pen.fillRect(0, 0, width, AXIS);
    pen.fillStyle = colour("faint");
    for (const { x, text } of ticks) {
      if (x + 3 + pen.measureText(text).width < width) pen.fillText(text, x + 3, AXIS / 2);
    }
  }

  #drawDrag(pen, height, colour) {
    pen.globalAlpha = 0.25;
    pen.fillStyle = colour("accent");
    pen.fillRect(Math.min(this.#drag.from, this.#drag.to), AXIS, Math.abs(this.#drag.to - this.#drag.from), height);
    pen.globalAlpha = 1;
  }

  #listen() {
    const canvas = this.#canvas;
    this.#scroll.addEventListener("scroll", () => this.draw());
    this.#scroll.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.pointerType === "touch") return;
      canvas.setPointerCapture(event.pointerId);
      this.#drag = { from: event.offsetX };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.#drag && Math.abs(event.offsetX - this.#drag.from) > 4) this.#drag.to = event.offsetX;
      else if (!this.#drag) this.#select(this.#at(event.offsetX, event.offsetY));
      this.draw();
    });
    canvas.addEventListener("pointerup", () => this.#released());
    canvas.addEventListener("pointercancel", () => { this.#drag = null; });
    canvas.addEventListener("click", (event) => {
      const bar = this.#at(event.offsetX, event.offsetY);
      this.#select(bar);
      this.draw();
      if (bar) this.#open(bar);
    });
  }

  #released() {
    const drag = this.#drag;
    this.#drag = null;
    if (drag?.to === undefined) return;
    // The click that follows is the end of this.
    this.#canvas.addEventListener("click", (event) => event.stopImmediatePropagation(), { capture: true, once: true });
    this.#zoom(...[this.#time(drag.from), this.#time(drag.to)].sort((one, other) => one - other));
  }

  #wheel(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    this.#scale(event.deltaY > 0 ? WHEEL : 1 / WHEEL, this.#time(event.offsetX));
  }

  /** Show so many times as much, around a moment. */
  #scale(by, around = (this.#since + this.#until) / 2) {
    this.#zoom(around - (around - this.#since) * by, around + (this.#until - around) * by);
  }

  zoomIn() {
    this.#scale(0.5);
  }

  zoomOut() {
    this.#scale(2);
  }

  #key(event) {
    const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    if (event.key in steps) this.#step(...steps[event.key]);
    else if (event.key === "Enter" && this.#selected) this.#open(this.#selected);
    else if (event.key === "+" || event.key === "=") this.zoomIn();
    else if (event.key === "-") this.zoomOut();
    else return;
    event.preventDefault();
  }

  /** Go on to another row, or to another bar of this one. */
  #step(down, right) {
    const at = Math.max(0, this.#rows.findIndex((row) => row.bars.includes(this.#selected)));
    const row = this.#rows[Math.min(Math.max(at + down, 0), this.#rows.length - 1)];
    if (!row) return;
    const place = down ? nearest(row.bars, this.#selected) : row.bars.indexOf(this.#selected) + right;
    this.#select(row.bars[Math.min(Math.max(place, 0), row.bars.length - 1)]);
    const top = row.top - this.#scroll.scrollTop;
    if (top < 0 || top + row.height + AXIS > this.#canvas.clientHeight) this.#scroll.scrollTop = row.top;
    this.draw();
  }

  #select(bar) {
    if (bar === this.#selected) return;
    this.#selected = bar;
    this.#line.textContent = bar ? inWords(bar) : HINT;
    this.#canvas.style.cursor = bar ? "pointer" : "default";
  }

  #at(x, y) {
    if (x < this.#left() || y < AXIS) return null;
    const down = y - AXIS + this.#scroll.scrollTop;
    const row = this.#rows.find(({ top, height }) => down >= top && down < top + height);
    const lane = row ? Math.floor((down - row.top - GAP / 2) / LANE) : 0;
    return row?.bars.findLast((bar) => {
      const [left, width] = this.#extent(bar);
      return bar.lane === lane && x >= left - 1 && x <= left + width + 1;
    }) ?? null;
  }

  #left() {
    return this.#scroll.clientWidth < 600 ? NARROW : LABELS;
  }

  #x(time) {
    const left = this.#left();
    return left + ((time - this.#since) / (this.#until - this.#since)) * (this.#scroll.clientWidth - left);
  }

  #time(x) {
    const left = this.#left();
    const share = (Math.max(x, left) - left) / (this.#scroll.clientWidth - left);
    return this.#since + share * (this.#until - this.#since);
  }

  #extent(bar) {
    const x = this.#x(bar.begin);
    return [x, Math.max(2, this.#x(bar.end) - x)];
  }
}

/** By which of the page's colours an outcome is drawn. */
export const COLOURS = {
  running: "accent", succeeded: "good", failed: "bad", timed_out: "slow", lost: "gone", cancelled: "odd", released: "away",
};

function inWords(bar) {
  const length = age((bar.end - bar.begin) / 1000);
  const begin = moment(new Date(bar.begin).toISOString());
  const how = bar.outcome === "running" ? `has been running for ${length}` : `${bar.outcome.replace("_", " ")} after ${length}`;
  return `${bar.tool}: task ${bar.task}, attempt ${bar.attempt}, ${how}, begun ${begin}.`;
}

function fitting(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let length = text.length;
  while (length > 1 && pen.measureText(`${text.slice(0, length)}…`).width > width) length -= 1;
  return `${text.slice(0, length)}…`;
}

function striped(colour) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const pen = tile.getContext("2d");
  pen.strokeStyle = colour;
  pen.lineWidth = 1.5;
  pen.beginPath();
  pen.moveTo(0, 6);
  pen.lineTo(6, 0);
  pen.stroke();
  return tile;
}
