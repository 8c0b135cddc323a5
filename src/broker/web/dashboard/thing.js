// What the pages of one thing have in common: a tool's, a task's, an attempt's.

import { empty } from "./parts.js";
import { View } from "./view.js";
import { html } from "./vendor/lit-html/lit-html.js";

const READ_MS = 1000;

/**
 * The view of one thing.
 *
 * It has `missing`, a text for when there is none; `async find()`, which reads it and throws what the broker refuses; and
 * `drawn()`, its template once it was found.
 */
export class Thing extends View {
  static ofOne = true;
  // Whether it is there; null: that is not known yet.
  #isThere = null;

  constructor(app, id, title = id) {
    super(app, READ_MS);
    this.id = id;
    this.title = title;
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
