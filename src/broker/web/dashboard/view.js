// The base classes of the views.

import { empty } from "./components.js";
import { Refresher } from "./refresher.js";
import { html } from "./vendor/lit-html/lit-html.js";

/**
 * A view. The page creates it for a URL, and disposes of it when the URL leads to another view.
 *
 * A subclass has a `title` for the browser tab, `async load()`, which reads the data, and `template()`. A view with
 * `navigate(address)` shows another address of its own without being replaced. A view with `needsId` shows one tool,
 * task or attempt, whose id is in the URL. `pause` is the shortest time between two reads, in milliseconds.
 */
export class View {
  static needsId = false;
  static pause = 3000;
  #refresher;

  constructor(app) {
    this.app = app;
    this.#refresher = new Refresher(() => app.loadView(this), this.constructor.pause);
  }

  /** Read the data again soon, because something has changed. */
  refreshSoon() {
    this.#refresher.schedule();
  }

  /** Read the data again at once. */
  refreshNow() {
    this.#refresher.runNow();
  }

  /** Handle an event. If `data` is null, some events of that kind are missing. */
  onEvent(_kind, _data) {
    this.refreshSoon();
  }

  /** Stop, because another view replaces this one. */
  dispose() {
    this.#refresher.stop();
  }
}

/**
 * The base class of the views of one tool, one task and one attempt.
 *
 * A subclass has `notFound`, the text if the item does not exist, `async fetchData()`, which reads the item or throws
 * `RequestError`, and `content()`, the template after that.
 */
export class DetailView extends View {
  static needsId = true;
  static pause = 1000;
  // True if the item exists, null before the first read.
  #exists = null;

  constructor(app, id) {
    super(app);
    this.id = this.title = id;
  }

  async load() {
    try {
      await this.fetchData();
      this.#exists = true;
    } catch (error) {
      if (error.status !== 404) throw error;
      this.#exists = false;
    }
  }

  template() {
    if (this.#exists === null) return empty("Loading…");
    return this.#exists ? this.content() : html`<h1>${this.title}</h1>${empty(this.notFound)}`;
  }
}
