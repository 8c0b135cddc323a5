// JSON as text: JavaScript's numbers would lose digits.

const PLAIN = /[^"[\]{},:\s]+/y;

/** The text of a member, given the text of the object; undefined if there is no such member. */
export function member(text, name) {
  let at = text.indexOf("{") + 1;
  for (;;) {
    at = skip(text, at);
    if (text[at] !== '"') return undefined;
    const key = stringAt(text, at);
    at = skip(text, at + key.length);
    const begin = skip(text, at + 1);
    const end = endOf(text, begin);
    if (JSON.parse(key) === name) return text.slice(begin, end);
    at = skip(text, end);
    if (text[at] !== ",") return undefined;
    at += 1;
  }
}

/** The texts of the elements of an array, given the text of the array. */
export function elements(text) {
  const texts = [];
  let at = skip(text, text.indexOf("[") + 1);
  while (text[at] !== "]") {
    const end = endOf(text, at);
    texts.push(text.slice(at, end));
    at = skip(text, end);
    if (text[at] === ",") at = skip(text, at + 1);
  }
  return texts;
}

/** The end of the value that begins at a place. */
function endOf(text, at) {
  let depth = 0;
  do {
    const sign = text[at];
    if (sign === '"') {
      at += stringAt(text, at).length;
    } else if (sign === "{" || sign === "[") {
      depth += 1;
      at += 1;
    } else if (sign === "}" || sign === "]") {
      depth -= 1;
      at += 1;
    } else if (sign === "," || sign === ":") {
      at += 1;
    } else {
      PLAIN.lastIndex = at;
      at += PLAIN.exec(text)[0].length;
    }
    if (depth > 0) at = skip(text, at);
  } while (depth > 0);
  return at;
}

// A regular expression would overflow the stack on a string of some megabytes.
function stringAt(text, at) {
  let end = at;
  do end = text.indexOf('"', end + 1);
  while (isEscaped(text, end));
  return text.slice(at, end + 1);
}

/** Whether an odd number of backslashes precedes a place. */
function isEscaped(text, at) {
  let first = at;
  while (text[first - 1] === "\\") first -= 1;
  return (at - first) % 2 === 1;
}

function skip(text, at) {
  while (/\s/.test(text[at] ?? "")) at += 1;
  return at;
}
