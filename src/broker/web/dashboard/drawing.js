// Draw the visible part of a timeline, with failures on top of other attempts.

import { OUTCOMES, WORK_STATES } from "./constants.js";
import { GAP, LANE } from "./lanes.js";

/** The height of the axis above the rows. */
export const AXIS = 24;
/** The kinds of bars. A wide bar has a mark as well as a colour. */
export const BARS = { running: WORK_STATES.running, ...OUTCOMES };
const PAGE = ["card", "line", "text", "muted", "background", "accent"];
// Failures are striped and as high as their lane. Other bars are plain and lower, so people can distinguish them
// without colours, even if they are narrow.
const INSET = 3;
const MARK_WIDTH = 14;

/** Return the current colours of the page, by name. */
export function coloursOf(element) {
  const style = getComputedStyle(element);
  const names = new Set([...PAGE, ...Object.values(BARS).map(({ colour }) => colour)]);
  return Object.fromEntries([...names].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/**
 * Draw a timeline.
 *
 * @param pen - the context of an empty canvas
 * @param view - `axis`, `rows`, `top` (the scroll position of the rows), `width`, `height`, `selected` (a bar or null),
 *   `from` (the moment from which on all bars are known), `band` (the two ends of a selection, or null)
 * @param colours - by name
 */
export function draw(pen, view, colours) {
  const { axis, width, height, band } = view;
  pen.font = "12px system-ui, sans-serif";
  pen.textBaseline = "middle";
  const ticks = axis.ticks();
  clipped(pen, axis.left, AXIS, width, height, () => {
    drawUnknown(pen, view, colours);
    drawGrid(pen, ticks, height, colours);
  });
  drawRows(pen, view, colours);
  drawAxis(pen, ticks, width, colours);
  if (band) {
    pen.globalAlpha = 0.25;
    pen.fillStyle = colours.accent;
    pen.fillRect(Math.min(...band), AXIS, Math.abs(band[1] - band[0]), height);
    pen.globalAlpha = 1;
  }
}

function clipped(pen, left, top, right, bottom, drawInside) {
  pen.save();
  pen.beginPath();
  pen.rect(left, top, right - left, bottom - top);
  pen.clip();
  drawInside();
  pen.restore();
}

/** Mark the part of the time range whose bars are not known. */
function drawUnknown(pen, { axis, from, height }, colours) {
  if (from <= axis.since) return;
  const right = Math.min(axis.x(from), axis.right);
  pen.fillStyle = colours.background;
  pen.fillRect(axis.left, AXIS, right - axis.left, height);
  const text = "older attempts are not shown";
  if (pen.measureText(text).width + 2 * GAP > right - axis.left) return;
  pen.fillStyle = colours.muted;
  pen.fillText(text, axis.left + GAP, AXIS + GAP / 2 + LANE / 2);
}

function drawGrid(pen, ticks, height, colours) {
  pen.strokeStyle = colours.line;
  pen.beginPath();
  for (const { x } of ticks) {
    pen.moveTo(x, AXIS);
    pen.lineTo(x, height);
  }
  pen.stroke();
}

function drawRows(pen, view, colours) {
  const { axis, rows, top, width, height } = view;
  const stripes = pen.createPattern(striped(colours.card), "repeat");
  for (const row of rows) {
    const y = AXIS + row.top - top;
    if (y + row.height <= AXIS || y > height) continue;
    pen.strokeStyle = colours.line;
    pen.beginPath();
    pen.moveTo(0, y + row.height - 0.5);
    pen.lineTo(width, y + row.height - 0.5);
    pen.stroke();
    pen.fillStyle = colours.text;
    pen.fillText(fitted(pen, row.tool, axis.left - 2 * GAP), GAP, y + GAP / 2 + LANE / 2);
    clipped(pen, axis.left, AXIS, width, height, () => {
      const visible = row.bars.filter((bar) => bar.end >= axis.since && bar.begin <= axis.until);
      for (const bar of visible) if (!BARS[bar.outcome].went_wrong) drawBar(pen, view, bar, y, colours);
      for (const bar of visible) if (BARS[bar.outcome].went_wrong) drawBar(pen, view, bar, y, colours, stripes);
    });
  }
}

function drawBar(pen, { axis, selected }, bar, y, colours, stripes) {
  const { colour, mark: symbol } = BARS[bar.outcome];
  const [x, width] = axis.extent(bar);
  const inset = stripes ? 1 : INSET;
  const top = y + GAP / 2 + bar.lane * LANE + inset, height = LANE - 2 * inset;
  pen.fillStyle = colours[colour];
  pen.fillRect(x, top, width, height);
  // On a narrow bar, stripes only make the colour pale.
  if (stripes && width > LANE / 2) {
    pen.fillStyle = stripes;
    pen.fillRect(x, top, width, height);
  }
  // If a bar starts before the axis, its mark is at the left end of the axis.
  const mark = Math.max(x, axis.left) + 2;
  if (symbol && mark + MARK_WIDTH < x + width) {
    pen.fillStyle = colours.card;
    pen.fillRect(mark, top + 1, MARK_WIDTH - 2, height - 2);
    pen.fillStyle = colours.text;
    pen.fillText(symbol, mark + 2, top + height / 2);
  }
  if (bar === selected) {
    pen.strokeStyle = colours.text;
    pen.lineWidth = 2;
    pen.strokeRect(x - 1, top - 1, width + 2, height + 2);
    pen.lineWidth = 1;
  }
}

function drawAxis(pen, ticks, width, colours) {
  pen.fillStyle = colours.card;
  pen.fillRect(0, 0, width, AXIS);
  pen.fillStyle = colours.muted;
  for (const { x, text } of ticks) {
    if (x + 3 + pen.measureText(text).width < width) pen.fillText(text, x + 3, AXIS / 2);
  }
}

function fitted(pen, text, width) {
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
