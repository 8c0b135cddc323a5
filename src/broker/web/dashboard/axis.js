// The time axis: the positions of moments, and the moments that have labels.

const SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const STEPS = [
  ...[1, 5, 15, 30].map((n) => n * SECOND), ...[1, 5, 15, 30].map((n) => n * MINUTE), ...[1, 3, 6, 12].map((n) => n * HOUR),
  ...[1, 2, 7, 30, 90, 365].map((n) => n * DAY),
];
// The width of a label.
const LABEL_WIDTH = 70;
// The minimum width of a bar, so that every bar is visible.
const MIN_WIDTH = 2;

export class Axis {
  /**
   * @param since, until - the moments at the ends, in milliseconds
   * @param left, right - the positions of the ends
   */
  constructor(since, until, left, right) {
    Object.assign(this, { since, until, left, right });
  }

  /** Return the position of a moment. */
  x(time) {
    return this.left + ((time - this.since) / (this.until - this.since)) * (this.right - this.left);
  }

  /** Return the moment at a position. Beyond an end, return the moment of that end. */
  time(x) {
    const share = (Math.min(Math.max(x, this.left), this.right) - this.left) / (this.right - this.left);
    return this.since + share * (this.until - this.since);
  }

  /** Return the left end and the width of a bar. */
  extent(bar) {
    const x = this.x(bar.begin);
    return [x, Math.max(MIN_WIDTH, this.x(bar.end) - x)];
  }

  /** Return the moments that have labels, each as `{x, text}`. */
  ticks() {
    const max = (this.right - this.left) / LABEL_WIDTH;
    const step = STEPS.find((each) => (this.until - this.since) / each <= max) ?? STEPS.at(-1);
    // Hours and days start in the reader's time zone.
    const offset = new Date(this.since).getTimezoneOffset() * MINUTE;
    const labels = [];
    for (let at = Math.ceil((this.since - offset) / step) * step + offset; at < this.until; at += step) {
      labels.push({ x: this.x(at), text: labelOf(new Date(at), step) });
    }
    return labels;
  }
}

function labelOf(date, step) {
  if (step > 7 * DAY) return date.toLocaleDateString("en-GB", { month: "short", year: "numeric" });
  const midnight = date.getHours() === 0 && date.getMinutes() === 0 && date.getSeconds() === 0;
  if (step >= DAY || midnight) return date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return date.toLocaleTimeString("en-GB", step < MINUTE ? {} : { hour: "2-digit", minute: "2-digit" });
}
