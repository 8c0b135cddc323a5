// The form that asks for a key. The key stays in this tab.

import { useKey } from "./api.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

export class SignIn {
  #app;
  #why;

  constructor(app, why) {
    this.#app = app;
    this.#why = why;
  }

  template() {
    return html`<form class="sign-in" @submit=${(event) => this.#submit(event)}>
      <h1>Sign in</h1>
      <p>This broker has keys. To look, and to act, takes one with the role <em>operator</em>
        (<code>broker keys create --role operator --name ME</code>).</p>
      ${this.#why ? html`<p class="trouble" role="alert">${this.#why}</p>` : nothing}
      <label>Key <input type="password" name="key" autocomplete="off" required autofocus></label>
      <p class="hint">It is kept until this tab is closed, and nowhere else.</p>
      <button type="submit">Sign in</button>
    </form>`;
  }

  #submit(event) {
    event.preventDefault();
    const key = new FormData(event.target).get("key").trim();
    if (!key) return;
    // A text that a header cannot contain is no key.
    if (!/^[\x21-\x7e]+$/.test(key)) {
      this.#why = "That is no key: keys are of letters, digits and signs, without spaces.";
      this.#app.draw();
      return;
    }
    useKey(key);
    this.#app.signedIn();
  }
}
