// The page: chooses the view, gives it the events, and draws it.

import { Again } from "./again.js";
import { forgetKey, hasKey, keyInUse, read } from "./api.js";
import { Events } from "./events.js";
import { header } from "./header.js";
import { Live } from "./live.js";
import { SignIn } from "./signin.js";
import { trouble } from "./parts.js";
import { nothing, render } from "./vendor/lit-html/lit-html.js";
import { Now } from "./now.js";
import { Record } from "./record.js";
import { Task } from "./task.js";
import { Then } from "./then.js";
import { Tool } from "./tool.js";
import { Why } from "./why.js";

const VIEWS = { now: Now, why: Why, then: Then, tool: Tool, task: Task, record: Record };

// The shortest time between two drawings; and the longest, as the page shows times.
const DRAW_MS = 250, TICK_MS = 1000;
// The statistics are read again after events, and now and then for the time an assigner last asked.
const STATS_BUSY_MS = 1000, STATS_IDLE_MS = 30_000;
// The shortest time between two reads of all tools.
const TOOLS_MS = 2000;

/** The page; every view gets it. */
class App {
  live = new Live();
  stats = null;
  /** "connecting", "live", "lost", or "out": the page asks for a key. */
  state = "connecting";
  name = "";
  view = null;
  #signIn = null;
  // The last error of the view, and of the tools.
  #trouble = { view: null, tools: null };
  #drawn = 0;
  #drawing = null;
  #clock = 0;
  #statsAt = 0;
  #stats = new Again(() => this.#readStats(), STATS_BUSY_MS);
  #tools = new Again(() => this.#readTools(), TOOLS_MS);
  #events = new Events(
    (kind, data) => this.#heard(kind, data),
    (state) => this.#turned(state),
  );

  start() {
    addEventListener("hashchange", () => this.#go());
    document.addEventListener("visibilitychange", () => this.draw());
    setInterval(() => this.#tick(), TICK_MS);
    this.#go();
    this.#events.listen();
  }

  /** The time by the broker's clock, in milliseconds. */
  now() {
    return Date.now() + this.#clock;
  }

  /** How many seconds ago a moment was. */
  ago(text) {
    return (this.now() - Date.parse(text)) / 1000;
  }

  /** Draw the page soon. */
  draw() {
    if (this.#drawing !== null || document.hidden) return;
    const wait = Math.max(0, this.#drawn + DRAW_MS - performance.now());
    this.#drawing = setTimeout(() => requestAnimationFrame(() => this.#draw()), wait);
  }

  /** Read again what the view shows. */
  load() {
    this.view.refresh();
    this.draw();
  }

  /** Have a view read what it shows. */
  async read(view) {
    try {
      await view.load();
      if (view === this.view) this.#trouble.view = null;
    } catch (error) {
      if (view !== this.view) return;
      this.refused(error);
      if (mayPass(error)) view.changed();
    }
    this.draw();
  }

  /** Show an error, or ask for a key if it is missing or not valid. */
  refused(error, what = "view") {
    if (error.status === 403 && what === "tools") {
      // The key has another role and can see nothing here.
      this.#askForKey(error.message);
    } else if (error.status === 401) {
      // The error is about a key that was replaced since.
      if (hasKey() && error.key !== keyInUse()) return;
      this.#askForKey(hasKey() ? "That key is not known to the broker." : "");
    } else {
      this.#trouble[what] = error;
    }
    this.draw();
  }

  #askForKey(why) {
    this.#signIn ??= new SignIn(this, why);
    forgetKey();
    this.state = "out";
  }

  /** Start again with the key that was entered. */
  signedIn() {
    this.#signIn = null;
    this.#trouble = { view: null, tools: null };
    this.state = "connecting";
    this.#events.listen();
    this.load();
  }

  signOut() {
    forgetKey();
    location.reload();
  }

  #go() {
    const [given, ...parts] = location.hash.replace(/^#\/?/, "").split("/");
    const id = decoded(parts.join("/"));
    const name = Object.hasOwn(VIEWS, given) && (id || !VIEWS[given].ofOne) ? given : "now";
    if (name === this.name && this.view.moved) {
      this.view.moved(id);
      return;
    }
    this.view?.left();
    this.name = name;
    this.view = new VIEWS[name](this, id);
    this.#trouble.view = null;
    document.title = `${this.view.title} · broker`;
    // Keyboard and screen reader users continue in the new content after a link.
    if (this.#drawn) document.getElementById("main").focus({ preventScroll: true });
    scrollTo(0, 0);
    this.load();
  }

  #heard(kind, data) {
    if (kind === "resync") {
      // Tools and work depend on all kinds except tasks.
      if (data.of.some((each) => each !== "task")) this.#tools.soon();
      for (const each of data.of) this.view.heard(each, null);
    } else {
      this.live.hear(kind, data);
      this.view.heard(kind, data);
    }
    this.#stats.soon();
    this.draw();
  }

  #turned(state) {
    if (state instanceof Error) {
      this.state = "lost";
      this.refused(state, "tools");
      return;
    }
    // No event tells what happened before the connection: read everything again.
    if (state === "live" && this.state !== "live") {
      this.#tools.soon();
      this.#stats.soon();
      this.load();
    }
    this.state = state;
    this.draw();
  }

  async #readTools() {
    try {
      await this.live.read();
      this.#trouble.tools = null;
    } catch (error) {
      this.refused(error, "tools");
      if (mayPass(error)) this.#tools.soon();
    }
    this.draw();
  }

  async #readStats() {
    this.#statsAt = performance.now();
    try {
      const asked = Date.now();
      this.stats = await read("/v1/stats");
      this.#clock = Date.parse(this.stats.at) - (asked + Date.now()) / 2;
    } catch (error) {
      if (error.status === 401) this.refused(error);
    }
    this.draw();
  }

  #tick() {
    if (this.state === "live" && performance.now() - this.#statsAt > STATS_IDLE_MS) this.#stats.soon();
    if (this.live.isOdd) this.#tools.soon();
    this.draw();
  }

  #draw() {
    this.#drawing = null;
    this.#drawn = performance.now();
    render(header(this), document.getElementById("header"));
    render(this.#signIn?.template() ?? this.#shown(), document.getElementById("main"));
  }

  #shown() {
    let view;
    try {
      view = this.view.template();
    } catch (error) {
      // Show any error of the view to the reader.
      this.#trouble.view ??= error;
      view = nothing;
    }
    const failed = this.#trouble.view ?? this.#trouble.tools;
    return [failed ? trouble(failed) : nothing, view];
  }
}

/** Whether a retry may succeed: the broker is not reachable, or overloaded. */
const mayPass = ({ status }) => status === 0 || status === 429 || status >= 500;

/** A decoded part of the address; an invalid one stays as it is. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

new App().start();
