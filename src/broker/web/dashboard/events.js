// The stream of events, with reconnection.

import { Refused, send } from "./api.js";
import { createParser } from "./vendor/eventsource-parser/index.js";

const FIRST_RETRY = 500, LAST_RETRY = 10_000;
// The broker sends something at least every 15 s: a stream that is silent for longer is dead.
const SILENCE = 40_000;

/** Listens as long as the page is open. A browser's EventSource cannot send a key. */
export class Events {
  #lastId = null;
  #abort = null;
  #heard;
  #turned;

  /**
   * @param heard - called with `(kind, data)` of every event
   * @param turned - called with "live", "lost" (it will reconnect), or the `Refused` that ended it
   */
  constructor(heard, turned) {
    this.#heard = heard;
    this.#turned = turned;
  }

  /** Listen until the broker refuses, or this is called again. */
  async listen() {
    this.#abort?.abort();
    const { signal } = (this.#abort = new AbortController());
    let delay = FIRST_RETRY;
    const connected = () => { delay = FIRST_RETRY; };
    while (!signal.aborted) {
      const error = await this.#stream(signal, connected).catch((failed) => failed);
      if (signal.aborted) return;
      if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
        this.#turned(error);
        return;
      }
      this.#turned("lost");
      await new Promise((resolve) => setTimeout(resolve, delay * (0.5 + Math.random() / 2)));
      delay = Math.min(2 * delay, LAST_RETRY);
    }
  }

  async #stream(signal, connected) {
    const silent = new AbortController();
    const headers = { Accept: "text/event-stream" };
    if (this.#lastId !== null) headers["Last-Event-ID"] = this.#lastId;
    const answer = await send("/v1/events", { headers, signal: AbortSignal.any([signal, silent.signal]) });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = createParser({
      onEvent: ({ id, event, data }) => {
        if (id) this.#lastId = id;
        this.#heard(event, JSON.parse(data));
      },
    });
    connected();
    this.#turned("live");
    for (;;) {
      const timer = setTimeout(() => silent.abort(), SILENCE);
      const { done, value } = await reader.read().finally(() => clearTimeout(timer));
      if (done) return;
      parser.feed(value);
    }
  }
}
