// Format values for people.

const MINUTE = 60, HOUR = 3600, DAY = 86400;
const number = new Intl.NumberFormat("en");

/** A count, with commas: `12,345`. */
export const count = (value) => number.format(value);

/** A count and its noun: `1 task`, `3 tasks`. */
export const counted = (value, noun) => `${count(value)} ${noun}${value === 1 ? "" : "s"}`;

/** A length of time in its two largest units: `4 s`, `2 min 5 s`, `3 h 10 min`, `2 d 4 h`. */
export function span(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "–";
  if (seconds < 9.95) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < MINUTE) return `${whole} s`;
  if (whole < HOUR) return two(whole, MINUTE, "min", 1, "s");
  if (whole < DAY) return two(whole, HOUR, "h", MINUTE, "min");
  return two(whole, DAY, "d", HOUR, "h");
}

/** The same without tenths, for a value that changes every second. */
export const age = (seconds) => (seconds < 10 ? `${Math.max(0, Math.floor(seconds))} s` : span(seconds));

function two(seconds, large, largeName, small, smallName) {
  const rest = Math.floor((seconds % large) / small);
  return `${Math.floor(seconds / large)} ${largeName}${rest ? ` ${rest} ${smallName}` : ""}`;
}

/** A moment by the reader's clock; without its date if that is today. */
export function moment(text) {
  if (!text) return "–";
  const at = new Date(text);
  const isToday = at.toDateString() === new Date().toDateString();
  // Swedish writes `2026-07-02 14:05:00`.
  return isToday ? at.toLocaleTimeString("sv") : at.toLocaleString("sv");
}

/** A share in per cent. */
export const percent = (share) => `${Math.floor(share * 100)} %`;

/** A text, shortened to fit on a line. */
export function cut(text, most) {
  const line = (text ?? "").replace(/\s+/g, " ").trim();
  return line.length > most ? `${line.slice(0, most - 1)}…` : line;
}

/** A text, shortened in its middle: an error message is at the end of a traceback, and otherwise at the beginning. */
export function middle(text, most) {
  const line = cut(text, Infinity);
  const third = Math.floor(most / 3);
  return line.length > most ? `${line.slice(0, third)} … ${line.slice(-2 * third)}` : line;
}

/** A text of the broker, with its times in UTC replaced by those of the reader's clock. */
export const inLocalTime = (text) => text.replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z/g, moment);

/** The seconds from one moment to another. */
export const between = (from, to) => (Date.parse(to) - Date.parse(from)) / 1000;
