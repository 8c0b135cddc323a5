// The base of the views of one tool, one task and one attempt.

import { empty } from "./parts.js";
import { View } from "./view.js";
import { html } from "./vendor/lit-html/lit-html.js";

const READ_MS = 1000;

/**
 * The view of one thing.
 *
 * It has `missing`, the text if the thing does not exist; `async find()`, which reads the thing or throws `Refused`; and
 * `drawn()`, its template after that.
 */
export class Thing extends View {
  static ofOne = true;
  // Whether the thing exists; null if that is not known yet.
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
