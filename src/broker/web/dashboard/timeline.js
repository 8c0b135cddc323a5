// A timeline on a canvas: a row per tool, a bar per attempt.

import { Axis } from "./axis.js";
import { OUTCOMES } from "./constants.js";
import { AXIS, coloursOf, draw } from "./drawing.js";
import { moment, span } from "./format.js";
import { GAP, LANE, nearest, rowsOf } from "./lanes.js";
import { html, render } from "./vendor/lit-html/lit-html.js";

const LABELS_WIDTH = 150, NARROW_LABELS_WIDTH = 90, NARROW = 600;
const MAX_HEIGHT = 480;
const WHEEL_FACTOR = 1.3;
// The maximum distance of a pointer from a bar. A finger is less exact than a mouse.
const MAX_DISTANCE = { mouse: 1, other: 10 };
// A shorter movement is a click.
const CLICK_WIDTH = 4;
const HINT = "Point at a bar for details. Click it to open its record. Drag over a time range to zoom in.";
const LABEL = "Timeline. Use the arrow keys to go from attempt to attempt. Use Home and End to go to the first and last attempt"
  + " of a tool. Press Enter to open a record, and plus or minus to zoom. Press Shift with the left or right arrow key to move"
  + " in time.";

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
  // The positions where the pointer was pressed and where it is now, null if it is not pressed.
  #drag = null;
  #actions;
  #resizeObserver = new ResizeObserver(() => this.draw());

  /**
   * @param actions - `show(since, until)` to show a time range in milliseconds, `zoom(factor, around)` to zoom around a
   *   moment or around the default, `open(bar)` to open the record of a bar
   */
  constructor(actions) {
    this.#actions = actions;
    this.element.className = "timeline";
    render(html`<div class="scroll" tabindex="0" role="application" aria-label=${LABEL}
        @scroll=${() => this.draw()} @keydown=${(event) => this.#onKey(event)}><canvas aria-hidden="true"
        @wheel=${{ handleEvent: (event) => this.#onWheel(event), passive: false }}
        @pointerdown=${(event) => this.#onPointerDown(event)} @pointermove=${(event) => this.#onPointerMove(event)}
        @pointerup=${(event) => this.#onPointerUp(event)} @pointercancel=${() => this.#endDrag()}></canvas><div></div></div>
      <p class="line" role="status">${HINT}</p>`, this.element);
    [this.#scroll, this.#line] = this.element.children;
    [this.#canvas, this.#height] = this.#scroll.children;
    this.#scroll.style.maxHeight = `${MAX_HEIGHT}px`;
    this.#resizeObserver.observe(this.#scroll);
  }

  /**
   * Show attempts.
   *
   * @param bars - `{id, task, tool, attempt, outcome, begin, end}`, times in milliseconds
   * @param range - `since`, `until`, and `from`: the moment from which on all attempts are known
   */
  show(bars, { since, until, from }) {
    this.#rows = rowsOf(bars);
    [this.#since, this.#until, this.#from] = [since, until, from];
    const last = this.#rows.at(-1);
    const total = AXIS + (last ? last.top + last.height : GAP + LANE), visible = Math.min(total, MAX_HEIGHT);
    this.#canvas.style.height = `${visible}px`;
    this.#height.style.height = `${total - visible}px`;
    if (this.#selected) this.#select(bars.find(({ id }) => id === this.#selected.id) ?? null);
    this.draw();
  }

  /** Remove the timeline. */
  dispose() {
    this.#resizeObserver.disconnect();
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
      selected: this.#selected, band: this.#isDragging() ? [this.#drag.from, this.#drag.to] : null,
    }, coloursOf(this.element));
  }

  #axis() {
    const width = this.#scroll.clientWidth;
    return new Axis(this.#since, this.#until, width < NARROW ? NARROW_LABELS_WIDTH : LABELS_WIDTH, width);
  }

  #isDragging() {
    return this.#drag !== null && Math.abs(this.#drag.to - this.#drag.from) > CLICK_WIDTH;
  }

  #onPointerDown(event) {
    if (event.button !== 0 || !event.isPrimary) return;
    this.#canvas.setPointerCapture(event.pointerId);
    this.#drag = { from: event.offsetX, to: event.offsetX };
  }

  #onPointerMove(event) {
    if (this.#drag) {
      this.#drag.to = event.offsetX;
      this.draw();
    } else if (this.#select(this.#at(event))) {
      this.draw();
    }
  }

  #endDrag() {
    this.#drag = null;
    this.draw();
  }

  #onPointerUp(event) {
    if (!this.#drag) return;
    const { from, to } = this.#drag, wasDragging = this.#isDragging();
    this.#endDrag();
    if (wasDragging) {
      const axis = this.#axis();
      this.#actions.show(axis.time(Math.min(from, to)), axis.time(Math.max(from, to)));
      return;
    }
    const bar = this.#at(event), again = bar !== null && bar === this.#selected;
    if (this.#select(bar)) this.draw();
    // A mouse has already selected the bar. A finger selects it first, and opens it at the second tap.
    if (bar && (again || event.pointerType === "mouse")) this.#actions.open(bar);
  }

  #onWheel(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    this.#actions.zoom(event.deltaY > 0 ? WHEEL : 1 / WHEEL, this.#axis().time(event.offsetX));
  }

  #onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const keys = {
      ArrowRight: () => (event.shiftKey ? this.#move(1) : this.#step(0, 1)),
      ArrowLeft: () => (event.shiftKey ? this.#move(-1) : this.#step(0, -1)),
      ArrowDown: () => this.#step(1, 0),
      ArrowUp: () => this.#step(-1, 0),
      Home: () => this.#step(0, -Infinity),
      End: () => this.#step(0, Infinity),
      Enter: () => this.#selected && this.#actions.open(this.#selected),
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
    this.#actions.zoom(by, around ?? undefined);
  }

  /** Move to an earlier (-1) or a later (1) range, by half of its length. */
  #move(direction) {
    const by = (direction * (this.#until - this.#since)) / 2;
    this.#actions.show(this.#since + by, this.#until + by);
  }

  /** Select a bar in another row, or another bar in this row. */
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

  /** Select a bar, or none, and describe it. Returns true if the selection changed. */
  #select(bar) {
    if (bar === this.#selected) return false;
    this.#selected = bar;
    const text = bar ? inWords(bar) : HINT;
    // Screen readers announce every change, even to the same text.
    if (this.#line.textContent !== text) this.#line.textContent = text;
    this.#canvas.style.cursor = bar ? "pointer" : "default";
    return true;
  }

  /** Return the bar at a pointer, or null. */
  #at({ offsetX: x, offsetY: y, pointerType }) {
    const axis = this.#axis();
    if (x < axis.left || y < AXIS) return null;
    const down = y - AXIS + this.#scroll.scrollTop;
    const row = this.#rows.find(({ top, height }) => top + height > down);
    if (!row) return null;
    const lane = Math.floor((down - row.top - GAP / 2) / LANE);
    let closest = null, closestDistance = MAX_DISTANCE[pointerType] ?? MAX_DISTANCE.other;
    for (const bar of row.bars) {
      const [left, width] = axis.extent(bar);
      const distance = bar.lane === lane ? Math.max(left - x, x - left - width, 0) : Infinity;
      if (distance <= closestDistance) [closest, closestDistance] = [bar, distance];
    }
    return closest;
  }
}

function inWords({ tool, task, attempt, outcome, begin, end }) {
  const startedAt = moment(new Date(begin).toISOString());
  const status = outcome === "running" ? `running since ${startedAt}`
    : `${OUTCOMES[outcome].label} after ${span((end - begin) / 1000)}, started ${startedAt}`;
  return `${tool}: task ${task}, attempt ${attempt}, ${status}.`;
}
