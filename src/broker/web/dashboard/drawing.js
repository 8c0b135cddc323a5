// How a timeline is drawn. Only what is in sight is, and what went wrong is never hidden by what went well.

import { OUTCOMES, WORK_STATES } from "./constants.js";
import { firstBelow, GAP, LANE } from "./lanes.js";

/** How high the axis above the rows is. */
export const AXIS = 24;
/** What a bar can stand for. Where there is room, it has a mark beside its colour. */
export const BARS = { running: WORK_STATES.running, ...OUTCOMES };
const PAGE = ["card", "line", "text", "faint", "ground"];
// What went wrong is striped and as high as its lane; the rest is plain and lower, so that both are told apart
// without colours, however narrow they are.
const LOWER = 3;
const MARK = 14;

/** The colours of the page as they are now, by name. */
export function coloursOf(element) {
  const style = getComputedStyle(element);
  const names = new Set([...PAGE, ...Object.values(BARS).map(({ colour }) => colour)]);
  return Object.fromEntries([...names].map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

/**
 * Draw a timeline.
 *
 * @param pen - of a canvas that is clear
 * @param view - `axis`, `rows`, `top` (how far they are scrolled), `width`, `height`, `selected` (a bar or null),
 *   `from` (since when all bars are known), `band` (two places between which it is marked, or null)
 * @param colours - by name
 */
export function draw(pen, view, colours) {
  const { axis, width, height, band } = view;
  pen.font = "12px system-ui, sans-serif";
  pen.textBaseline = "middle";
  const ticks = axis.ticks();
  inside(pen, axis.left, AXIS, width, height, () => {
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

function inside(pen, left, top, right, bottom, act) {
  pen.save();
  pen.beginPath();
  pen.rect(left, top, right - left, bottom - top);
  pen.clip();
  act();
  pen.restore();
}

/** Where nothing is shown though there may be something. */
function drawUnknown(pen, { axis, from, height }, colours) {
  if (from <= axis.since) return;
  const right = Math.min(axis.x(from), axis.right);
  pen.fillStyle = colours.ground;
  pen.fillRect(axis.left, AXIS, right - axis.left, height);
  const text = "older ones are not shown";
  if (pen.measureText(text).width + 2 * GAP > right - axis.left) return;
  pen.fillStyle = colours.faint;
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
  for (let place = firstBelow(rows, top); place < rows.length; place += 1) {
    const row = rows[place], y = AXIS + row.top - top;
    if (y > height) break;
    pen.strokeStyle = colours.line;
    pen.beginPath();
    pen.moveTo(0, y + row.height - 0.5);
    pen.lineTo(width, y + row.height - 0.5);
    pen.stroke();
    pen.fillStyle = colours.text;
    pen.fillText(fitting(pen, row.tool, axis.left - 2 * GAP), GAP, y + GAP / 2 + LANE / 2);
    inside(pen, axis.left, AXIS, width, height, () => {
      const seen = row.bars.filter((bar) => bar.end >= axis.since && bar.begin <= axis.until);
      for (const bar of seen) if (!BARS[bar.outcome].went_wrong) drawBar(pen, view, bar, y, colours);
      for (const bar of seen) if (BARS[bar.outcome].went_wrong) drawBar(pen, view, bar, y, colours, stripes);
    });
  }
}

function drawBar(pen, { axis, selected }, bar, y, colours, stripes) {
  const { colour, mark: sign } = BARS[bar.outcome];
  const [x, width] = axis.extent(bar);
  const inset = stripes ? 1 : LOWER;
  const top = y + GAP / 2 + bar.lane * LANE + inset, height = LANE - 2 * inset;
  pen.fillStyle = colours[colour];
  pen.fillRect(x, top, width, height);
  // Stripes on what is as narrow as they are would only make it pale.
  if (stripes && width > LANE / 2) {
    pen.fillStyle = stripes;
    pen.fillRect(x, top, width, height);
  }
  // The mark of a bar that began before the axis does is at its left end.
  const mark = Math.max(x, axis.left) + 2;
  if (sign && mark + MARK < x + width) {
    pen.fillStyle = colours.card;
    pen.fillRect(mark, top + 1, MARK - 2, height - 2);
    pen.fillStyle = colours.text;
    pen.fillText(sign, mark + 2, top + height / 2);
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
  pen.fillStyle = colours.faint;
  for (const { x, text } of ticks) {
    if (x + 3 + pen.measureText(text).width < width) pen.fillText(text, x + 3, AXIS / 2);
  }
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
