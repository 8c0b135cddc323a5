// The page: which view is shown, what it is told, and when it is drawn.

import { forgetKey, hasKey, read } from "./api.js";
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

// However much happens, the page is drawn so often at most; and once a second, as times go on.
const DRAW_MS = 250, TICK_MS = 1000;
// The counts are read anew when something has happened, and now and then for the time an assigner last asked.
const STATS_BUSY_MS = 1000, STATS_IDLE_MS = 30_000;
// To read everything anew is not done more often than this.
const RESYNC_MS = 2000;

/**
 * What every view is given.
 *
 * A view is a class: `constructor(app, id)` with the id that its address names; `title`, for the tab;
 * `async load()`, which reads what it shows, when it is entered and when something was missed; `heard(kind, data)`,
 * which is told of every event, and with null that something of a kind was missed; `template()`, which is drawn;
 * `left()`, when another takes its place; and, where it can, `moved(id)`, when its own address changes.
 */
class App {
  live = new Live();
  stats = null;
  /** "connecting", "live" or "lost". */
  state = "connecting";
  name = "";
  view = null;
  #trouble = null;
  #signIn = null;
  #drawn = 0;
  #drawing = null;
  #clock = 0;
  #statsAt = 0;
  #readingStats = false;
  #statsDue = null;
  #resyncAt = 0;
  #resyncDue = null;
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

  /** Read what the view shows anew. */
  async load() {
    const view = this.view;
    try {
      await view.load();
      this.#trouble = null;
    } catch (error) {
      if (view === this.view) this.refused(error);
    }
    this.draw();
  }

  /** Show what went wrong; a key that is missing or not good is asked for. */
  refused(error) {
    if (error.status === 401) {
      this.#signIn ??= new SignIn(this, hasKey() ? "That key is not known to the broker." : "");
      forgetKey();
    } else {
      this.#trouble = error;
    }
    this.draw();
  }

  /** A key was given: begin anew with it. */
  signedIn() {
    this.#signIn = null;
    this.#trouble = null;
    this.#events.listen();
    this.load();
  }

  signOut() {
    forgetKey();
    location.reload();
  }

  async readStats() {
    if (this.#readingStats) return;
    this.#readingStats = true;
    try {
      const asked = Date.now();
      this.stats = await read("/v1/stats");
      this.#clock = Date.parse(this.stats.at) - (asked + Date.now()) / 2;
      this.#statsAt = performance.now();
    } catch (error) {
      if (error.status === 401) this.refused(error);
    } finally {
      this.#readingStats = false;
    }
    this.draw();
  }

  #go() {
    const [given, ...parts] = location.hash.replace(/^#\/?/, "").split("/");
    const name = Object.hasOwn(VIEWS, given) ? given : "now";
    const id = parts.map(decodeURIComponent).join("/");
    if (name === this.name && this.view.moved) {
      this.view.moved(id);
      return;
    }
    this.view?.left();
    this.name = name;
    this.view = new VIEWS[name](this, id);
    this.#trouble = null;
    document.title = `${this.view.title} · broker`;
    this.#focus();
    this.load();
    this.draw();
  }

  #focus() {
    // Who follows a link by key or by ear is to go on at what it led to.
    if (this.#drawn) document.getElementById("main").focus({ preventScroll: true });
    scrollTo(0, 0);
  }

  #heard(kind, data) {
    if (kind === "resync") {
      this.#resyncSoon(data.of);
    } else {
      this.live.hear(kind, data);
      this.view.heard(kind, data);
    }
    this.#statsSoon();
    this.draw();
  }

  #turned(state) {
    if (state instanceof Error) {
      this.state = "lost";
      this.refused(state);
      return;
    }
    // What came before we listened, or again, is read: not more than that is known of it.
    if (state === "live" && this.state !== "live") this.#resync();
    this.state = state;
    this.draw();
  }

  #resyncSoon(of) {
    if (of.some((kind) => kind !== "task")) {
      const wait = Math.max(0, this.#resyncAt + RESYNC_MS - performance.now());
      this.#resyncDue ??= setTimeout(() => this.#resync(), wait);
    }
    for (const kind of of) this.view.heard(kind, null);
  }

  async #resync() {
    clearTimeout(this.#resyncDue);
    this.#resyncDue = null;
    this.readStats();
    try {
      await this.live.read();
      this.#trouble = null;
    } catch (error) {
      this.refused(error);
    }
    // It is counted from the end, for a reading may take long.
    this.#resyncAt = performance.now();
    this.draw();
  }

  #statsSoon() {
    this.#statsDue ??= setTimeout(() => {
      this.#statsDue = null;
      this.readStats();
    }, STATS_BUSY_MS);
  }

  #tick() {
    if (!document.hidden && this.state === "live" && performance.now() - this.#statsAt > STATS_IDLE_MS) {
      this.#statsAt = performance.now();
      this.readStats();
    }
    this.draw();
  }

  #draw() {
    this.#drawing = null;
    this.#drawn = performance.now();
    render(header(this), document.getElementById("header"));
    render(
      this.#signIn?.template() ?? [this.#trouble ? trouble(this.#trouble) : nothing, this.view.template()],
      document.getElementById("main"),
    );
  }
}

new App().start();
