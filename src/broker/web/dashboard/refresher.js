// Repeat a read when its data may have changed, with a pause between reads that protects the broker.

// After a slow read the pause is longer by this factor.
const PAUSE_FACTOR = 5;

export class Refresher {
  #read;
  #pause;
  #timer = null;
  #reading = false;
  #missed = false;
  #urgent = false;
  #suspended = false;
  #nextAt = 0;

  /**
   * @param read - reads the data, and handles its errors
   * @param pause - the shortest time between two reads, in milliseconds
   */
  constructor(read, pause) {
    this.#read = read;
    this.#pause = pause;
  }

  /** Schedule a read, because the data may have changed. */
  schedule() {
    if (this.#suspended) return;
    if (this.#reading) this.#missed = true;
    else this.#timer ??= setTimeout(() => this.#run(), Math.max(0, this.#nextAt - performance.now()));
  }

  /** Read without a pause. Two reads never overlap, because the older response might arrive last. */
  runNow() {
    this.#nextAt = 0;
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#urgent = this.#reading;
    this.schedule();
  }

  /** Stop reading. */
  stop() {
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#missed = false;
    this.#read = async () => {};
  }

  async #run() {
    this.#timer = null;
    if (document.hidden) {
      // A hidden page reads when it becomes visible.
      this.#suspended = true;
      document.addEventListener("visibilitychange", () => {
        this.#suspended = false;
        this.schedule();
      }, { once: true });
      return;
    }
    this.#reading = true;
    const startedAt = performance.now();
    await this.#read();
    const duration = performance.now() - startedAt;
    this.#nextAt = this.#urgent ? 0 : performance.now() + Math.max(this.#pause, PAUSE_FACTOR * duration);
    this.#reading = this.#urgent = false;
    if (this.#missed) {
      this.#missed = false;
      this.schedule();
    }
  }
}
