// The time axis, from left to right: where each moment is, and which moments have labels.

const SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const STEPS = [
  ...[1, 5, 15, 30].map((n) => n * SECOND), ...[1, 5, 15, 30].map((n) => n * MINUTE), ...[1, 3, 6, 12].map((n) => n * HOUR),
  ...[1, 2, 7, 30, 90, 365].map((n) => n * DAY),
];
// The room of a label.
const NAME = 70;
// The least width, so that everything is visible.
const LEAST_WIDTH = 2;

export class Axis {
  /**
   * @param since, until - the moments at the ends, in milliseconds
   * @param left, right - the places of the ends
   */
  constructor(since, until, left, right) {
    Object.assign(this, { since, until, left, right });
  }

  /** The place of a moment. */
  x(time) {
    return this.left + ((time - this.since) / (this.until - this.since)) * (this.right - this.left);
  }

  /** The moment at a place; beyond an end, the moment of that end. */
  time(x) {
    const share = (Math.min(Math.max(x, this.left), this.right) - this.left) / (this.right - this.left);
    return this.since + share * (this.until - this.since);
  }

  /** The beginning and the width of a bar. */
  extent(bar) {
    const x = this.x(bar.begin);
    return [x, Math.max(LEAST_WIDTH, this.x(bar.end) - x)];
  }

  /** The moments that have labels, each `{x, text}`. */
  ticks() {
    const most = (this.right - this.left) / NAME;
    const step = STEPS.find((each) => (this.until - this.since) / each <= most) ?? STEPS.at(-1);
    // Hours and days begin by the reader's clock.
    const offset = new Date(this.since).getTimezoneOffset() * MINUTE;
    const labels = [];
    for (let at = Math.ceil((this.since - offset) / step) * step + offset; at < this.until; at += step) {
      labels.push({ x: this.x(at), text: named(new Date(at), step) });
    }
    return labels;
  }
}

function named(date, step) {
  if (step > 7 * DAY) return date.toLocaleDateString("en-GB", { month: "short", year: "numeric" });
  const midnight = date.getHours() === 0 && date.getMinutes() === 0 && date.getSeconds() === 0;
  if (step >= DAY || midnight) return date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return date.toLocaleTimeString("en-GB", step < MINUTE ? {} : { hour: "2-digit", minute: "2-digit" });
}
