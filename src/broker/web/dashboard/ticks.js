// The axis of a timeline: which moments are named, and how.

const SECOND = 1000, MINUTE = 60 * SECOND, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const STEPS = [
  ...[1, 5, 15, 30].map((n) => n * SECOND), ...[1, 5, 15, 30].map((n) => n * MINUTE),
  ...[1, 3, 6, 12].map((n) => n * HOUR), ...[1, 7, 30].map((n) => n * DAY),
];
// What a name takes, in pixels.
const ROOM = 70;

/** The moments that are named on an axis of so many pixels: `{at, text}`. */
export function ticksOf(since, until, width) {
  const step = STEPS.find((each) => (each / (until - since)) * width > ROOM) ?? STEPS.at(-1);
  // Steps of hours and days are even by the reader's clock.
  const offset = new Date(since).getTimezoneOffset() * MINUTE;
  const ticks = [];
  for (let at = Math.ceil((since - offset) / step) * step + offset; at < until; at += step) {
    ticks.push({ at, text: label(at, step) });
  }
  return ticks;
}

function label(at, step) {
  const date = new Date(at);
  if (step >= DAY || (date.getHours() === 0 && date.getMinutes() === 0 && step >= MINUTE)) {
    return date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  }
  return date.toLocaleTimeString("en-GB", step < MINUTE ? {} : { hour: "2-digit", minute: "2-digit" });
}
