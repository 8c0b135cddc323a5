// The bases of the views.

import { Again } from "./again.js";
import { empty } from "./parts.js";
import { html } from "./vendor/lit-html/lit-html.js";

/**
 * A view. The page creates it for its address, and leaves it for another one.
 *
 * It has a `title`, for the tab; `async load()`, which reads its data, at first, when something may have changed and
 * after an action; and `template()`. A view with `moved(id)` shows another address of its own without being replaced.
 * A view of one thing, `ofOne`, needs an id in its address. `pause` is the shortest time between two reads, in
 * milliseconds.
 */
export class View {
  static ofOne = false;
  static pause = 3000;
  #again;

  constructor(app) {
    this.app = app;
    this.#again = new Again(() => app.read(this), this.constructor.pause);
  }

  /** Read again soon, as something has changed. */
  changed() {
    this.#again.soon();
  }

  /** Read again at once. */
  refresh() {
    this.#again.now();
  }

  /** Handle an event; if `data` is null, some events of that kind are missing. */
  heard(_kind, _data) {
    this.changed();
  }

  /** Stop, as another view replaces this one. */
  left() {
    this.#again.stop();
  }
}

/**
 * The base of the views of one tool, one task and one attempt.
 *
 * It has `missing`, the text if the thing does not exist; `async find()`, which reads the thing or throws `Refused`; and
 * `drawn()`, its template after that.
 */
export class Thing extends View {
  static ofOne = true;
  static pause = 1000;
  // Whether the thing exists; null if that is not known yet.
  #isThere = null;

  constructor(app, id) {
    super(app);
    this.id = this.title = id;
  }

  async load() {
    try {
      await this.find();
      this.#isThere = true;
    } catch (error) {
      if (error.status !== 404) throw error;
      this.#isThere = false;
    }
  }

  template() {
    if (this.#isThere === null) return empty("Reading…");
    return this.#isThere ? this.drawn() : html`<h1>${this.title}</h1>${empty(this.missing)}`;
  }
}
