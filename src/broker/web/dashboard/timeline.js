// A timeline on a canvas: a row per tool, a bar per attempt.

import { Axis } from "./axis.js";
import { OUTCOMES } from "./constants.js";
import { AXIS, coloursOf, draw } from "./drawing.js";
import { moment, span } from "./format.js";
import { GAP, LANE, nearest, rowsOf } from "./lanes.js";
import { html, render } from "./vendor/lit-html/lit-html.js";

const LABELS = 150, NARROW_LABELS = 90, NARROW = 600;
const MOST_HEIGHT = 480;
const WHEEL = 1.3;
// How near a pointer must be to a bar; a finger is less exact than a mouse.
const NEAR = { mouse: 1, other: 10 };
// A shorter movement is a click.
const STILL = 4;
const HINT = "Point at a bar to see what it is; drag over a span of time to see it larger.";
const LABEL = "Timeline. Arrows go from attempt to attempt, Home and End to the first and last of a tool,"
  + " Enter reads of one, plus and minus zoom, Shift with arrows moves in time.";

export class Timeline {
  /** The element for the page. */
  element = document.createElement("div");
  #scroll;
  #canvas;
  #height;
  #line;
  #rows = [];
  #since = 0;
  #until = 1;
  #from = -Infinity;
  #selected = null;
  // Where the pointer was pressed, and where it is now.
  #drag = null;
  #does;
  #resized = new ResizeObserver(() => this.draw());

  /**
   * @param does - the actions: `look(since, until)` in milliseconds, `scale(by, around)` to zoom by a factor around a
   *   moment or anywhere, `open(bar)` to show its record
   */
  constructor(does) {
    this.#does = does;
    this.element.className = "timeline";
    render(html`<div class="scroll" tabindex="0" role="application" aria-label=${LABEL}
        @scroll=${() => this.draw()} @keydown=${(event) => this.#key(event)}><canvas aria-hidden="true"
        @wheel=${{ handleEvent: (event) => this.#wheel(event), passive: false }}
        @pointerdown=${(event) => this.#pressed(event)} @pointermove=${(event) => this.#moved(event)}
        @pointerup=${(event) => this.#released(event)} @pointercancel=${() => this.#let()}></canvas><div></div></div>
      <p class="line" role="status">${HINT}</p>`, this.element);
    [this.#scroll, this.#line] = this.element.children;
    [this.#canvas, this.#height] = this.#scroll.children;
    this.#scroll.style.maxHeight = `${MOST_HEIGHT}px`;
    this.#resized.observe(this.#scroll);
  }

  /**
   * Show attempts.
   *
   * @param bars - `{id, task, tool, attempt, outcome, begin, end}`, times in milliseconds
   * @param span - `since`, `until`, and `from`: the moment since which the attempts are complete
   */
  show(bars, { since, until, from }) {
    this.#rows = rowsOf(bars);
    [this.#since, this.#until, this.#from] = [since, until, from];
    const last = this.#rows.at(-1);
    const all = AXIS + (last ? last.top + last.height : GAP + LANE), seen = Math.min(all, MOST_HEIGHT);
    this.#canvas.style.height = `${seen}px`;
    this.#height.style.height = `${all - seen}px`;
    if (this.#selected) this.#select(bars.find(({ id }) => id === this.#selected.id) ?? null);
    this.draw();
  }

  /** Remove the timeline. */
  left() {
    this.#resized.disconnect();
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
    draw(pen, {
      axis: this.#axis(), rows: this.#rows, top: this.#scroll.scrollTop, width, height, from: this.#from,
      selected: this.#selected, band: this.#drawnOver() ? [this.#drag.from, this.#drag.to] : null,
    }, coloursOf(this.element));
  }

  #axis() {
    const width = this.#scroll.clientWidth;
    return new Axis(this.#since, this.#until, width < NARROW ? NARROW_LABELS : LABELS, width);
  }

  #drawnOver() {
    return this.#drag !== null && Math.abs(this.#drag.to - this.#drag.from) > STILL;
  }

  #pressed(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#drag = { from: event.offsetX, to: event.offsetX };
  }

  #moved(event) {
    if (this.#drag) {
      this.#drag.to = event.offsetX;
      this.draw();
    } else if (this.#select(this.#at(event))) {
      this.draw();
    }
  }

  #let() {
    this.#drag = null;
    this.draw();
  }

  #released(event) {
    if (!this.#drag) return;
    const { from, to } = this.#drag, drawn = this.#drawnOver();
    this.#let();
    if (drawn) {
      const axis = this.#axis();
      this.#does.look(axis.time(Math.min(from, to)), axis.time(Math.max(from, to)));
      return;
    }
    const bar = this.#at(event), again = bar !== null && bar === this.#selected;
    if (this.#select(bar)) this.draw();
    // A mouse has already selected the bar. A finger selects it first, and opens it at the second tap.
    if (bar && (again || event.pointerType === "mouse")) this.#does.open(bar);
  }

  #wheel(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    this.#does.scale(event.deltaY > 0 ? WHEEL : 1 / WHEEL, this.#axis().time(event.offsetX));
  }

  #key(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const keys = {
      ArrowRight: () => (event.shiftKey ? this.#move(1) : this.#step(0, 1)),
      ArrowLeft: () => (event.shiftKey ? this.#move(-1) : this.#step(0, -1)),
      ArrowDown: () => this.#step(1, 0),
      ArrowUp: () => this.#step(-1, 0),
      Home: () => this.#step(0, -Infinity),
      End: () => this.#step(0, Infinity),
      Enter: () => this.#selected && this.#does.open(this.#selected),
      "+": () => this.#zoom(0.5),
      "=": () => this.#zoom(0.5),
      "-": () => this.#zoom(2),
    };
    if (!Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  }

  /** Zoom around the selected bar, so that it stays visible. */
  #zoom(by) {
    const bar = this.#selected;
    const around = bar && (Math.max(bar.begin, this.#since) + Math.min(bar.end, this.#until)) / 2;
    this.#does.scale(by, around ?? undefined);
  }

  /** Move to an earlier (-1) or a later (1) span, by half of its length. */
  #move(way) {
    const by = (way * (this.#until - this.#since)) / 2;
    this.#does.look(this.#since + by, this.#until + by);
  }

  /** Select a bar of another row, or another bar of this row. */
  #step(down, right) {
    const at = this.#rows.findIndex(({ bars }) => bars.includes(this.#selected));
    const row = this.#rows[at < 0 ? 0 : Math.min(Math.max(at + down, 0), this.#rows.length - 1)];
    if (!row) return;
    const { bars } = row;
    if (at < 0) this.#select(bars.at(-1));
    else if (down) this.#select(nearest(bars, this.#selected.begin));
    else this.#select(bars[Math.min(Math.max(bars.indexOf(this.#selected) + right, 0), bars.length - 1)]);
    const top = row.top - this.#scroll.scrollTop;
    if (top < 0 || top + row.height + AXIS > this.#canvas.clientHeight) this.#scroll.scrollTop = row.top;
    this.draw();
  }

  /** Select a bar, or none, and describe it. Returns whether the selection changed. */
  #select(bar) {
    if (bar === this.#selected) return false;
    this.#selected = bar;
    const text = bar ? inWords(bar) : HINT;
    // A screen reader would announce the same text again.
    if (this.#line.textContent !== text) this.#line.textContent = text;
    this.#canvas.style.cursor = bar ? "pointer" : "default";
    return true;
  }

  /** The bar at a pointer, or null. */
  #at({ offsetX: x, offsetY: y, pointerType }) {
    const axis = this.#axis();
    if (x < axis.left || y < AXIS) return null;
    const down = y - AXIS + this.#scroll.scrollTop;
    const row = this.#rows.find(({ top, height }) => top + height > down);
    if (!row) return null;
    const lane = Math.floor((down - row.top - GAP / 2) / LANE);
    let closest = null, least = NEAR[pointerType] ?? NEAR.other;
    for (const bar of row.bars) {
      const [left, width] = axis.extent(bar);
      const distance = bar.lane === lane ? Math.max(left - x, x - left - width, 0) : Infinity;
      if (distance <= least) [closest, least] = [bar, distance];
    }
    return closest;
  }
}

function inWords({ tool, task, attempt, outcome, begin, end }) {
  const began = moment(new Date(begin).toISOString());
  const how = outcome === "running" ? `under way since ${began}`
    : `${OUTCOMES[outcome].label} after ${span((end - begin) / 1000)}, begun ${began}`;
  return `${tool}: task ${task}, attempt ${attempt}, ${how}.`;
}
