// The base of all views.

import { Again } from "./again.js";

/**
 * A view. The page creates it for its address, and leaves it for another one.
 *
 * It has a `title`, for the tab; `async load()`, which reads its data, at first, when something may have changed and
 * after an action; and `template()`. A view with `moved(id)` shows another address of its own without being replaced.
 * A view of one thing, `ofOne`, needs an id in its address.
 */
export class View {
  static ofOne = false;
  #again;

  /**
   * @param app - the page
   * @param pause - the shortest time between two reads, in milliseconds
   */
  constructor(app, pause) {
    this.app = app;
    this.#again = new Again(() => app.read(this), pause);
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
