// The form that asks for a key. The key stays in this tab.

import { setKey } from "./api.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

export class SignIn {
  #app;
  #error;

  constructor(app, error) {
    this.#app = app;
    this.#error = error;
  }

  template() {
    return html`<form class="sign-in" @submit=${(event) => this.#submit(event)}>
      <h1>Sign in</h1>
      <p>The dashboard needs a key with the role <em>operator</em>. The person who runs the broker can create one:
        <code class="detail">broker keys create --role operator --name NAME</code></p>
      ${this.#error ? html`<p class="error" role="alert">${this.#error}</p>` : nothing}
      <label>Key <input type="password" name="key" autocomplete="off" required autofocus></label>
      <p class="muted">The key stays in this browser tab. Close the tab to remove it.</p>
      <button type="submit">Sign in</button>
    </form>`;
  }

  #submit(event) {
    event.preventDefault();
    const key = new FormData(event.target).get("key").trim();
    if (!key) return;
    // A header cannot contain other characters.
    if (!/^[\x21-\x7e]+$/.test(key)) {
      this.#error = "This is not a valid key. A key has only ASCII letters, digits and punctuation, without spaces.";
      this.#app.draw();
      return;
    }
    setKey(key);
    this.#app.signedIn();
  }
}
