// Read something again when it may have changed, but not so often that it burdens the broker.

// After a slow read the pause is longer by this factor.
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
   * @param read - reads it, and handles its errors
   * @param pause - the shortest time between two reads, in milliseconds
   */
  constructor(read, pause) {
    this.#read = read;
    this.#pause = pause;
  }

  /** Read soon, as it may have changed. */
  soon() {
    if (this.#asleep) return;
    if (this.#reading) this.#missed = true;
    else this.#timer ??= setTimeout(() => this.#run(), Math.max(0, this.#nextAt - performance.now()));
  }

  /** Read now, as somebody waits for it, but never twice at a time: the older response might arrive last. */
  now() {
    this.#nextAt = 0;
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#urgent = this.#reading;
    this.soon();
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
      // A hidden page reads when it is shown again.
      this.#asleep = true;
      document.addEventListener("visibilitychange", () => {
        this.#asleep = false;
        this.soon();
      }, { once: true });
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
