// The page: choose the view, pass events to it, and draw it.

import { currentKey, forgetKey, hasKey, read } from "./api.js";
import { errorMessage } from "./components.js";
import { Events } from "./events.js";
import { header } from "./header.js";
import { History } from "./history.js";
import { Live } from "./live.js";
import { Overview } from "./overview.js";
import { Record } from "./record.js";
import { Refresher } from "./refresher.js";
import { SignIn } from "./signin.js";
import { Task } from "./task.js";
import { Tool } from "./tool.js";
import { nothing, render } from "./vendor/lit-html/lit-html.js";
import { Waiting } from "./waiting.js";

const VIEWS = { overview: Overview, waiting: Waiting, history: History, tool: Tool, task: Task, record: Record };
// Bookmarks from earlier versions keep working.
const OLD_NAMES = { now: "overview", why: "waiting", then: "history" };

// The shortest time between two drawings, and the longest, because the page shows times.
const DRAW_MS = 250, TICK_MS = 1000;
// The statistics change with events, and with the requests of assigners, which are no events.
const STATS_BUSY_MS = 1000, STATS_IDLE_MS = 30_000;
// The shortest time between two reads of all tools.
const TOOLS_MS = 2000;

/** The page. Every view has a reference to it. */
class App {
  live = new Live();
  stats = null;
  /** "connecting", "live", "disconnected", or "signed-out": the page asks for a key. */
  state = "connecting";
  name = "";
  view = null;
  #signIn = null;
  // The last error of the view and of the tools.
  #errors = { view: null, tools: null };
  #drawnAt = 0;
  #drawTimer = null;
  // The difference between the clocks of the broker and of the browser.
  #clockOffset = 0;
  #statsAt = 0;
  #stats = new Refresher(() => this.#readStats(), STATS_BUSY_MS);
  #tools = new Refresher(() => this.#readTools(), TOOLS_MS);
  #events = new Events(
    (kind, data) => this.#onEvent(kind, data),
    (state) => this.#onConnection(state),
  );

  start() {
    addEventListener("hashchange", () => this.#navigate());
    document.addEventListener("visibilitychange", () => this.draw());
    setInterval(() => this.#tick(), TICK_MS);
    this.#navigate();
    this.#events.subscribe();
  }

  /** Return the time by the broker's clock, in milliseconds. */
  now() {
    return Date.now() + this.#clockOffset;
  }

  /** Return how many seconds ago a moment was. */
  ago(text) {
    return (this.now() - Date.parse(text)) / 1000;
  }

  /** Draw the page soon. */
  draw() {
    if (this.#drawTimer !== null || document.hidden) return;
    const wait = Math.max(0, this.#drawnAt + DRAW_MS - performance.now());
    this.#drawTimer = setTimeout(() => requestAnimationFrame(() => this.#draw()), wait);
  }

  /** Read the data of the current view again. */
  reload() {
    this.view.refreshNow();
    this.draw();
  }

  /** Have a view read its data. */
  async loadView(view) {
    try {
      await view.load();
      if (view === this.view) this.#errors.view = null;
    } catch (error) {
      if (view !== this.view) return;
      this.showError(error);
      if (isTransient(error)) view.refreshSoon();
    }
    this.draw();
  }

  /** Show an error, or ask for a key if the key is missing or not valid. */
  showError(error, source = "view") {
    if (error.status === 403 && source === "tools") {
      // The role of the key does not allow any view.
      this.#askForKey(error.message);
    } else if (error.status === 401) {
      // The user has entered another key since.
      if (hasKey() && error.key !== currentKey()) return;
      this.#askForKey(hasKey() ? "The broker does not know this key. Check the key, or ask for a new one." : "");
    } else {
      this.#errors[source] = error;
    }
    this.draw();
  }

  #askForKey(reason) {
    this.#signIn ??= new SignIn(this, reason);
    forgetKey();
    this.state = "signed-out";
  }

  /** Connect with the key that the user entered. */
  signedIn() {
    this.#signIn = null;
    this.#errors = { view: null, tools: null };
    this.state = "connecting";
    this.#events.subscribe();
    this.reload();
  }

  signOut() {
    forgetKey();
    location.reload();
  }

  #navigate() {
    const [first, ...rest] = location.hash.replace(/^#\/?/, "").split("/");
    const id = decoded(rest.join("/"));
    const wanted = Object.hasOwn(OLD_NAMES, first) ? OLD_NAMES[first] : first;
    const name = Object.hasOwn(VIEWS, wanted) && (id || !VIEWS[wanted].needsId) ? wanted : "overview";
    if (name === this.name && this.view.navigate) {
      this.view.navigate(id);
      return;
    }
    this.view?.dispose();
    this.name = name;
    this.view = new VIEWS[name](this, id);
    this.#errors.view = null;
    document.title = `${this.view.title} · broker`;
    // Keyboard and screen reader users continue in the new content after a link.
    if (this.#drawnAt) document.getElementById("main").focus({ preventScroll: true });
    scrollTo(0, 0);
    this.reload();
  }

  #onEvent(kind, data) {
    if (kind === "resync") {
      // Tools and work depend on every kind except tasks.
      if (data.of.some((each) => each !== "task")) this.#tools.schedule();
      for (const each of data.of) this.view.onEvent(each, null);
    } else {
      this.live.apply(kind, data);
      this.view.onEvent(kind, data);
    }
    this.#stats.schedule();
    this.draw();
  }

  #onConnection(state) {
    if (state instanceof Error) {
      this.state = "disconnected";
      this.showError(state, "tools");
      return;
    }
    // There were no events before the connection, so read everything again.
    if (state === "live" && this.state !== "live") {
      this.#tools.schedule();
      this.#stats.schedule();
      this.reload();
    }
    this.state = state;
    this.draw();
  }

  async #readTools() {
    try {
      await this.live.read();
      this.#errors.tools = null;
    } catch (error) {
      this.showError(error, "tools");
      if (isTransient(error)) this.#tools.schedule();
    }
    this.draw();
  }

  async #readStats() {
    this.#statsAt = performance.now();
    try {
      const sentAt = Date.now();
      this.stats = await read("/v1/stats");
      this.#clockOffset = Date.parse(this.stats.at) - (sentAt + Date.now()) / 2;
    } catch (error) {
      if (error.status === 401) this.showError(error);
    }
    this.draw();
  }

  #tick() {
    if (this.state === "live" && performance.now() - this.#statsAt > STATS_IDLE_MS) this.#stats.schedule();
    if (this.live.isIncomplete) this.#tools.schedule();
    this.draw();
  }

  #draw() {
    this.#drawTimer = null;
    this.#drawnAt = performance.now();
    render(header(this), document.getElementById("header"));
    render(this.#signIn?.template() ?? this.#content(), document.getElementById("main"));
  }

  #content() {
    let content;
    try {
      content = this.view.template();
    } catch (error) {
      // Show errors in the view's own code, too.
      this.#errors.view ??= error;
      content = nothing;
    }
    const error = this.#errors.view ?? this.#errors.tools;
    return [error ? errorMessage(error) : nothing, content];
  }
}

/** True if a retry may succeed, because the broker is unreachable or overloaded. */
const isTransient = ({ status }) => status === 0 || status === 429 || status >= 500;

/** Decode a part of the URL. An invalid part stays as it is. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

new App().start();
