// The time from left to right: which moment is where, and which are named.

const SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const STEPS = [
  ...[1, 5, 15, 30].map((n) => n * SECOND), ...[1, 5, 15, 30].map((n) => n * MINUTE), ...[1, 3, 6, 12].map((n) => n * HOUR),
  ...[1, 2, 7, 30, 90, 365].map((n) => n * DAY),
];
// So much room has a name.
const NAME = 70;
// Nothing is so short that it could not be seen.
const LEAST_WIDTH = 2;

export class Axis {
  /**
   * @param since, until - the moments at its ends, in milliseconds
   * @param left, right - where they are
   */
  constructor(since, until, left, right) {
    Object.assign(this, { since, until, left, right });
  }

  /** Where a moment is. */
  x(time) {
    return this.left + ((time - this.since) / (this.until - this.since)) * (this.right - this.left);
  }

  /** Which moment is there; beyond an end it is that of the end. */
  time(x) {
    const share = (Math.min(Math.max(x, this.left), this.right) - this.left) / (this.right - this.left);
    return this.since + share * (this.until - this.since);
  }

  /** Where a bar begins, and how wide it is. */
  extent(bar) {
    const x = this.x(bar.begin);
    return [x, Math.max(LEAST_WIDTH, this.x(bar.end) - x)];
  }

  /** The moments that have names, each `{x, text}`. */
  ticks() {
    const most = (this.right - this.left) / NAME;
    const step = STEPS.find((each) => (this.until - this.since) / each <= most) ?? STEPS.at(-1);
    // Steps of hours and days are even by the reader's clock.
    const offset = new Date(this.since).getTimezoneOffset() * MINUTE;
    const found = [];
    for (let at = Math.ceil((this.since - offset) / step) * step + offset; at < this.until; at += step) {
      found.push({ x: this.x(at), text: named(new Date(at), step) });
    }
    return found;
  }
}

function named(date, step) {
  if (step > 7 * DAY) return date.toLocaleDateString("en-GB", { month: "short", year: "numeric" });
  const midnight = date.getHours() === 0 && date.getMinutes() === 0 && date.getSeconds() === 0;
  if (step >= DAY || midnight) return date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  return date.toLocaleTimeString("en-GB", step < MINUTE ? {} : { hour: "2-digit", minute: "2-digit" });
}
