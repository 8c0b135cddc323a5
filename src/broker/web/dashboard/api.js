// Requests to the broker's API. The key is kept only in this tab, until the tab is closed.

const KEY = "broker-key";
// A request without a response for this long has failed.
const TIMEOUT_MS = 30_000;

/** A request that the broker refused, or that got no response (status 0). */
export class RequestError extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `The broker returned status ${status}.`);
    this.status = status;
    this.code = problem.code ?? null;
    /** The key that was sent. */
    this.key = null;
  }
}

export const currentKey = () => sessionStorage.getItem(KEY);
export const hasKey = () => currentKey() !== null;
export const setKey = (key) => sessionStorage.setItem(KEY, key);
export const forgetKey = () => sessionStorage.removeItem(KEY);

/**
 * Send a request, with the key if there is one. Throws `RequestError` unless a successful response arrives in time. A
 * request with a signal of its own has no time limit.
 */
export async function send(path, { method = "GET", body, headers = {}, signal } = {}) {
  const key = currentKey();
  const all = { ...headers };
  if (key !== null) all.Authorization = `Bearer ${key}`;
  if (body !== undefined) all["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method, headers: all, cache: "no-store",
      signal: signal ?? AbortSignal.timeout(TIMEOUT_MS),
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new RequestError(0, { detail: "The broker does not respond. Check that it is running and that you can reach it." });
  }
  if (response.ok) return response;
  const error = new RequestError(response.status, await response.json().catch(() => ({})));
  error.key = key;
  throw error;
}

/** Call the API. Returns the JSON of the response, or null if the response has no body. */
export async function call(method, path, body) {
  const text = await readText(path, { method, body });
  return text === "" ? null : JSON.parse(text);
}

/** Read from the API, with those query parameters that are not null or undefined. */
export const read = (path, query = {}) => call("GET", withQuery(path, query));

/** Read JSON as text, with all digits of its numbers. */
export async function readText(path, options) {
  const response = await send(path, options);
  return response.text().catch(() => {
    throw new RequestError(0, { detail: "The connection closed before the response was complete. Reload the page." });
  });
}

/** Return a path of the API: `path("tools", id)`. */
export const path = (...parts) => `/v1/${parts.map(encodeURIComponent).join("/")}`;

function withQuery(path, query) {
  const given = Object.entries(query).filter(([, value]) => value !== null && value !== undefined);
  return given.length ? `${path}?${new URLSearchParams(given)}` : path;
}
