// JSON as text: JavaScript's numbers would lose digits.

const PLAIN = /[^"[\]{},:\s]+/y, BETWEEN = /[\s,:]*/y;

/** The members of an object as texts, by name. */
export function members(text) {
  const parts = elements(text);
  return Object.fromEntries(parts.flatMap((part, place) => (place % 2 ? [[JSON.parse(parts[place - 1]), part]] : [])));
}

/** The elements of an array as texts; of an object, its names and values in turn. */
export function elements(text) {
  const texts = [];
  let at = past(BETWEEN, text, text.search(/[[{]/) + 1);
  while (text[at] !== "]" && text[at] !== "}") {
    const end = endOf(text, at);
    texts.push(text.slice(at, end));
    at = past(BETWEEN, text, end);
  }
  return texts;
}

/** The end of the value that begins at a place. */
function endOf(text, at) {
  let depth = 0;
  do {
    const sign = text[at];
    if (sign === '"') {
      at = endOfString(text, at);
    } else if ("[{]}".includes(sign)) {
      depth += "[{".includes(sign) ? 1 : -1;
      at += 1;
    } else {
      at = past(PLAIN, text, at);
    }
    if (depth > 0) at = past(BETWEEN, text, at);
  } while (depth > 0);
  return at;
}

// A regular expression would overflow the stack on a string of some megabytes.
function endOfString(text, at) {
  do at = text.indexOf('"', at + 1);
  while (isEscaped(text, at));
  return at + 1;
}

/** Whether an odd number of backslashes precedes a place. */
function isEscaped(text, at) {
  let first = at;
  while (text[first - 1] === "\\") first -= 1;
  return (at - first) % 2 === 1;
}

/** The place after what a pattern matches at a place. */
function past(pattern, text, at) {
  pattern.lastIndex = at;
  return at + pattern.exec(text)[0].length;
}
