// Requests to the broker's API. The key is kept only in this tab, until it is closed.

const KEY = "broker-key";
// A request without a response for this long has failed.
const PATIENCE_MS = 30_000;

/** A refused request, or one without a response (status 0). */
export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `The broker answered ${status}.`);
    this.status = status;
    this.code = problem.code ?? null;
    /** The key that was sent. */
    this.key = null;
  }
}

export const keyInUse = () => sessionStorage.getItem(KEY);
export const hasKey = () => keyInUse() !== null;
export const useKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

/**
 * Send a request with the key, if there is one. Throws `Refused` unless the response is a success and in time. A
 * request with a signal of its own has no time limit.
 */
export async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const key = keyInUse();
  const all = { ...headers };
  if (key !== null) all.Authorization = `Bearer ${key}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method, headers: all, cache: "no-store",
      signal: signal ?? AbortSignal.timeout(PATIENCE_MS),
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, { detail: "The broker does not answer. Is it running?" });
  }
  if (answer.ok) return answer;
  const refused = new Refused(answer.status, await answer.json().catch(() => ({})));
  refused.key = key;
  throw refused;
}

/** Call the API. Returns the JSON of the response, or null if it has none. */
export async function call(method, path, body) {
  const text = await readText(path, { method, body });
  return text === "" ? null : JSON.parse(text);
}

/** Read from the API, with those query parameters that are not null or undefined. */
export const read = (path, query = {}) => call("GET", withQuery(path, query));

/** Read JSON as text, with all digits of its numbers. */
export async function readText(path, options) {
  const answer = await send(path, options);
  return answer.text().catch(() => { throw new Refused(0, { detail: "The broker's answer broke off." }); });
}

/** A path of the API: `path("tools", id)`. */
export const path = (...parts) => `/v1/${parts.map(encodeURIComponent).join("/")}`;

function withQuery(path, query) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}
