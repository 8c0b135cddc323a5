// The event stream, with reconnection.

import { RequestError, send } from "./api.js";
import { createParser } from "./vendor/eventsource-parser/index.js";

const FIRST_RETRY_MS = 500, LAST_RETRY_MS = 10_000;
// The broker sends something at least every 15 s, so a stream that is silent for longer is broken.
const MAX_SILENCE_MS = 40_000;

/** Subscribes to the events while the page is open. A browser's EventSource cannot send a key. */
export class Events {
  #lastId = null;
  #abort = null;
  #onEvent;
  #onConnection;

  /**
   * @param onEvent - called with `(kind, data)` for every event
   * @param onConnection - called with "live", "disconnected" (it will reconnect), or the `RequestError` that ended it
   */
  constructor(onEvent, onConnection) {
    this.#onEvent = onEvent;
    this.#onConnection = onConnection;
  }

  /** Subscribe until the broker refuses the key, or until this is called again. */
  async subscribe() {
    this.#abort?.abort();
    const { signal } = (this.#abort = new AbortController());
    let delay = FIRST_RETRY_MS;
    const connected = () => { delay = FIRST_RETRY_MS; };
    while (!signal.aborted) {
      const error = await this.#stream(signal, connected).catch((failure) => failure);
      if (signal.aborted) return;
      if (error instanceof RequestError && (error.status === 401 || error.status === 403)) {
        this.#onConnection(error);
        return;
      }
      this.#onConnection("disconnected");
      await new Promise((resolve) => setTimeout(resolve, delay * (0.5 + Math.random() / 2)));
      delay = Math.min(2 * delay, LAST_RETRY_MS);
    }
  }

  async #stream(signal, connected) {
    const silent = new AbortController();
    const headers = { Accept: "text/event-stream" };
    if (this.#lastId !== null) headers["Last-Event-ID"] = this.#lastId;
    const response = await send("/v1/events", { headers, signal: AbortSignal.any([signal, silent.signal]) });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = createParser({
      onEvent: ({ id, event, data }) => {
        if (id) this.#lastId = id;
        this.#onEvent(event, JSON.parse(data));
      },
    });
    connected();
    this.#onConnection("live");
    for (;;) {
      const timer = setTimeout(() => silent.abort(), MAX_SILENCE_MS);
      const { done, value } = await reader.read().finally(() => clearTimeout(timer));
      if (done) return;
      parser.feed(value);
    }
  }
}
