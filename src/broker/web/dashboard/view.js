// What all views have in common.

import { Again } from "./again.js";

/**
 * A view: made when its address is gone to, and left when another's is.
 *
 * It has a `title`, for the tab; `async load()`, which reads what it shows: when it is entered, when something may have
 * changed and when an action was taken; and `template()`, which is drawn. One that can shows another address of its own
 * by `moved(id)`; one that is `ofOne` thing has an address only with its id.
 */
export class View {
  static ofOne = false;
  #again;

  /**
   * @param app - the page
   * @param pause - what is shown is read anew no more often than this, in milliseconds
   */
  constructor(app, pause) {
    this.app = app;
    this.#again = new Again(() => app.read(this), pause);
  }

  /** Read anew what is shown, as something of it has changed. */
  changed() {
    this.#again.soon();
  }

  /** Read anew at once what is shown. */
  refresh() {
    this.#again.now();
  }

  /** Something has happened: an event's kind and data; null: something of that kind was missed. */
  heard(_kind, _data) {
    this.changed();
  }

  /** Another view takes its place. */
  left() {
    this.#again.stop();
  }
}
