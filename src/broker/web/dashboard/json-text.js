// Read parts of JSON as text, because JavaScript's numbers lose digits.

const PLAIN = /[^"[\]{},:\s]+/y, BETWEEN = /[\s,:]*/y;

/** Return the members of an object as texts, by name. */
export function members(text) {
  const parts = elements(text);
  return Object.fromEntries(parts.flatMap((part, index) => (index % 2 ? [[JSON.parse(parts[index - 1]), part]] : [])));
}

/** Return the elements of an array as texts. For an object, return its names and values in turn. */
export function elements(text) {
  const texts = [];
  let at = skip(BETWEEN, text, text.search(/[[{]/) + 1);
  while (text[at] !== "]" && text[at] !== "}") {
    const end = endOf(text, at);
    texts.push(text.slice(at, end));
    at = skip(BETWEEN, text, end);
  }
  return texts;
}

/** Return the end of the value that starts at a position. */
function endOf(text, at) {
  let depth = 0;
  do {
    const character = text[at];
    if (character === '"') {
      at = endOfString(text, at);
    } else if ("[{]}".includes(character)) {
      depth += "[{".includes(character) ? 1 : -1;
      at += 1;
    } else {
      at = skip(PLAIN, text, at);
    }
    if (depth > 0) at = skip(BETWEEN, text, at);
  } while (depth > 0);
  return at;
}

// A regular expression overflows the stack on a string of several megabytes.
function endOfString(text, at) {
  do at = text.indexOf('"', at + 1);
  while (isEscaped(text, at));
  return at + 1;
}

/** Return true if an odd number of backslashes precedes a position. */
function isEscaped(text, at) {
  let first = at;
  while (text[first - 1] === "\\") first -= 1;
  return (at - first) % 2 === 1;
}

/** Return the position after the match of a pattern at a position. */
function skip(pattern, text, at) {
  pattern.lastIndex = at;
  return at + pattern.exec(text)[0].length;
}
