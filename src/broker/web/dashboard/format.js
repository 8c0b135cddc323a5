// Format values for people.

const MINUTE = 60, HOUR = 3600, DAY = 86400;
const number = new Intl.NumberFormat("en");

/** A count, with commas: `12,345`. */
export const count = (value) => number.format(value);

/** A count and its noun: `1 task`, `3 tasks`. */
export const counted = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** A duration in its two largest units: `4 s`, `2 min 5 s`, `3 h 10 min`, `2 d 4 h`. */
export function span(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "–";
  if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < MINUTE) return `${whole} s`;
  if (whole < HOUR) return two(whole, MINUTE, "min", 1, "s");
  if (whole < DAY) return two(whole, HOUR, "h", MINUTE, "min");
  return two(whole, DAY, "d", HOUR, "h");
}

/** A duration without tenths, for a value that changes every second. */
export const age = (seconds) => (seconds < 10 ? `${Math.max(0, Math.floor(seconds))} s` : span(seconds));

function two(seconds, large, largeName, small, smallName) {
  const rest = Math.floor((seconds % large) / small);
  return `${Math.floor(seconds / large)} ${largeName}${rest ? ` ${rest} ${smallName}` : ""}`;
}

/** A moment in the reader's time zone, without the date if it is today. */
export function moment(text) {
  if (!text) return "–";
  const at = new Date(text);
  const isToday = at.toDateString() === new Date().toDateString();
  // The Swedish format is `2026-07-02 14:05:00`.
  return isToday ? at.toLocaleTimeString("sv") : at.toLocaleString("sv");
}

/** A share as a percentage: `25%`. */
export const percent = (share) => `${Math.floor(share * 100)}%`;

/** A text on one line, shortened at its end. */
export function shortened(text, max) {
  const line = (text ?? "").replace(/\s+/g, " ").trim();
  return line.length > max ? `${line.slice(0, max - 1)}…` : line;
}

/** A text on one line, shortened in the middle, because a traceback has its error message at the end. */
export function shortenedInTheMiddle(text, max) {
  const line = shortened(text, Infinity);
  const third = Math.floor(max / 3);
  return line.length > max ? `${line.slice(0, third)} … ${line.slice(-2 * third)}` : line;
}

/** A text of the broker, with its UTC times converted to the reader's time zone. */
export const inLocalTime = (text) => text.replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z/g, moment);

/** The seconds from one moment to another. */
export const between = (from, to) => (Date.parse(to) - Date.parse(from)) / 1000;
