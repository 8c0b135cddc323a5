// Reading something anew when it may have changed, and not more often than is good for the broker.

// After a reading that took long, so many times as long is waited.
const PAUSES = 5;

export class Again {
  #read;
  #pause;
  #timer = null;
  #reading = false;
  #missed = false;
  #urgent = false;
  #asleep = false;
  #nextAt = 0;

  /**
   * @param read - reads it, and copes with its errors
   * @param pause - the shortest time between two readings, in milliseconds
   */
  constructor(read, pause) {
    this.#read = read;
    this.#pause = pause;
  }

  /** It may have changed. */
  soon() {
    if (this.#asleep) return;
    if (this.#reading) this.#missed = true;
    else this.#timer ??= setTimeout(() => this.#run(), Math.max(0, this.#nextAt - performance.now()));
  }

  /** It has changed, and somebody waits to see it. Of two readings at once the older might come last. */
  now() {
    this.#nextAt = 0;
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#urgent = this.#reading;
    this.soon();
  }

  /** Nobody looks any more. */
  stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#missed = false;
    this.#read = async () => {};
  }

  #awake() {
    this.#asleep = false;
    this.soon();
  }

  async #run() {
    this.#timer = null;
    if (document.hidden) {
      // When somebody looks is soon enough.
      this.#asleep = true;
      document.addEventListener("visibilitychange", () => this.#awake(), { once: true });
      return;
    }
    this.#reading = true;
    const began = performance.now();
    await this.#read();
    const took = performance.now() - began;
    this.#nextAt = this.#urgent ? 0 : performance.now() + Math.max(this.#pause, PAUSES * took);
    this.#reading = this.#urgent = false;
    if (this.#missed) {
      this.#missed = false;
      this.soon();
    }
  }
}
