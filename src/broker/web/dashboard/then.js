// Then: the attempts of each tool over time, how many and how quick, and what went wrong.

import { read } from "./api.js";
import { count, middle, moment, span } from "./format.js";
import { badge, button, empty, numbers, recordLink, section, table, taskLink, toolLink, unnamed } from "./parts.js";
import { acceptLate, mayTakeLate, retryTask } from "./actions.js";
import { Durations, ended, lasted, Throughput } from "./charts.js";
import { BARS } from "./drawing.js";
import { Timeline } from "./timeline.js";
import { View } from "./view.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

// The address has two moments, or the length of a span that ends now and moves on with the time.
const SPANS = { "1h": "Last hour", "8h": "8 hours", "24h": "24 hours", "7d": "7 days" };
const DEFAULT = "1h";
const UNITS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const LEAST = 2000, MOST = 3660 * UNITS.d;
// No archive has records before or after these.
const EARLIEST = Date.UTC(1990), LATEST = Date.UTC(2990);
const ATTEMPTS = 2000, BUCKETS = 60;
// How many failures are shown at first, the factor if somebody asks for more, and the most.
const FAILURES = 20, MORE = 5, MOST_FAILURES = 1000;
const ROWS = 200;
const BARS_AS_TABLE = ["Ended", "Tool", "Task", numbers("Attempt"), "Outcome", numbers("Ran for")];
const FAILED = ["Ended", "Task", "Tool", "Outcome", "Error", "Last report", "Its task now", unnamed("Do")];

export class Then extends View {
  title = "Then";
  #length = null;
  #since = 0;
  #until = 0;
  #attempts = null;
  #history = null;
  #failures = null;
  #most = FAILURES;
  // Whether the data is of another span than the one to show.
  #old = true;
  #asTable = false;
  #timeline = new Timeline({
    look: (since, until) => this.#look(since, until),
    scale: (by, around) => this.#scale(by, around),
    open: ({ id }) => { location.hash = `#/record/${id}`; },
  });
  #throughput = new Throughput((since, until) => this.#look(since, until), "Attempts that ended, by outcome");
  #durations = new Durations((since, until) => this.#look(since, until), "How long tasks waited and ran");

  #dark = matchMedia("(prefers-color-scheme: dark)");
  #recolour = () => {
    this.#throughput.recolour();
    this.#durations.recolour();
    this.app.draw();
  };

  constructor(app, address) {
    super(app);
    this.#dark.addEventListener("change", this.#recolour);
    this.#set(address);
  }

  /** Show another span. */
  moved(address) {
    this.#set(address);
    this.app.load();
  }

  async load() {
    const { since, until } = this.#times();
    // Rounded, so that all viewers of the last hour share queries for a while.
    const begin = this.#length ? since - (since % (this.#length / BUCKETS)) : since;
    const query = { since: new Date(begin).toISOString(), until: this.#length ? null : new Date(until).toISOString() };
    const asked = this.#asked();
    const [attempts, history, failures] = await Promise.all([
      read("/v1/overview/timeline", { ...query, limit: ATTEMPTS }),
      read("/v1/overview/history", { ...query, buckets: BUCKETS }),
      read("/v1/overview/failures", { ...query, limit: this.#most }),
    ]);
    // Somebody may have chosen another span meanwhile.
    if (asked !== this.#asked()) return;
    this.#old = false;
    this.#attempts = attempts;
    this.#history = history;
    this.#failures = failures;
    this.#throughput.show(history);
    this.#durations.show(history);
  }

  heard(kind, data) {
    if (this.#times().until < this.app.now() || (kind !== "archive" && data !== null)) return;
    // The attempt is not under way any more: show it as ended until the next read.
    if (data?.tool_id && this.#attempts) this.#add(data);
    this.changed();
  }

  #add(attempt) {
    const { items } = this.#attempts;
    items.unshift(attempt);
    if (items.length <= ATTEMPTS) return;
    items.pop();
    this.#attempts.complete = false;
  }

  left() {
    super.left();
    this.#dark.removeEventListener("change", this.#recolour);
    for (const each of [this.#timeline, this.#throughput, this.#durations]) each.left();
  }

  template() {
    return html`<h1 class="for-ears">Then</h1>
      ${this.#spans()}
      ${this.#attempts ? this.#shown() : empty("Reading…")}`;
  }

  #spans() {
    const { since, until } = this.#times();
    return html`<div class="head">
      <div class="buttons" role="group" aria-label="Span of time">
        ${Object.entries(SPANS).map(([name, text]) => html`<button type="button" aria-pressed=${this.#length === lengthOf(name)}
          @click=${() => this.#go(name)}>${text}</button>`)}
      </div>
      <div class="buttons" role="group" aria-label="Move">
        ${button("Zoom in", () => this.#scale(0.5))}
        ${button("Zoom out", () => this.#scale(2))}
        ${button("Earlier", () => this.#look(since - (until - since), since))}
        ${this.#length ? nothing : button("Later", () => this.#look(until, until + (until - since)))}
        ${this.#length ? nothing : button("Now", () => this.#goNow(until - since))}
      </div>
      <span class="faint">${atTime(since)} to ${this.#length ? "now" : atTime(until)}</span>
    </div>`;
  }

  #shown() {
    const { since, until } = this.#times();
    const bars = this.#bars();
    this.#timeline.show(bars, { since, until, from: this.#knownFrom() });
    return html`
      ${section("timeline", "Timeline", [
        html`<p>${this.#old ? "Reading…" : ended(this.#history)}</p>`,
        this.#timeline.element,
        legend(),
        this.#attempts.complete ? nothing
          : html`<p class="faint">The newest ${count(ATTEMPTS)} attempts of this span are shown; zoom in to see all.</p>`,
        this.#table(bars),
      ])}
      <div class="columns">
        ${section("throughput", html`Ended, every ${span(this.#history.bucket_seconds)}`,
          html`<div class="card">${this.#throughput.element}</div>`)}
        ${section("durations", "Waited and ran for",
          html`<div class="card">${this.#durations.element}<p class="faint">${lasted(this.#history)}</p></div>`)}
      </div>
      ${this.#failed()}`;
  }

  /** The attempts that ended, and those under way that began in the span. */
  #bars() {
    const { until } = this.#times();
    const now = this.app.now();
    const running = this.app.live.work().map((work) => barOf(work, work.id, "running", now));
    const past = this.#attempts.items.map((each) => barOf(each, each.work_id, each.outcome, Date.parse(each.ended_at)));
    // One bar per attempt: an attempt in both lists has ended.
    const bars = new Map([...running.filter(({ begin }) => begin < until), ...past].map((bar) => [bar.id, bar]));
    return [...bars.values()];
  }

  /** The moment since which all attempts are known. */
  #knownFrom() {
    const { complete, items } = this.#attempts;
    return complete ? -Infinity : Date.parse(items.at(-1).ended_at);
  }

  #table(bars) {
    const newest = bars.toSorted((one, other) => other.end - one.end).slice(0, ROWS);
    return html`<details ?hidden=${bars.length === 0} @toggle=${(event) => { this.#asTable = event.target.open; this.app.draw(); }}>
      <summary>The same as a table</summary>
      ${this.#asTable ? [
        table(this.app, BARS_AS_TABLE, newest, (bar) => [
          recordLink(bar.id, bar.outcome === "running" ? "under way" : atTime(bar.end)),
          toolLink(bar.tool),
          taskLink(bar.task),
          bar.attempt,
          badge(bar.outcome),
          span((bar.end - bar.begin) / 1000),
        ], "", ({ id }) => id),
        bars.length > ROWS ? html`<p class="faint">These are the newest ${ROWS} of ${count(bars.length)}.</p>` : nothing,
      ] : nothing}
    </details>`;
  }

  #failed() {
    const { items, next } = this.#failures;
    return section("failures", "What went wrong", [
      table(this.app, FAILED, items, (each) => this.#cells(each), "Nothing, in this span of time.", (each) => each.work_id),
      next === null ? nothing : items.length >= MOST_FAILURES
        ? html`<p class="faint">These are the newest ${count(MOST_FAILURES)}; zoom in to see others.</p>`
        : html`<p>${button("Show more", () => this.#showMore())}</p>`,
    ]);
  }

  #cells(each) {
    const { work_id: id, task_id: task, task_state: state } = each;
    return [
      recordLink(id, moment(each.ended_at)),
      html`${taskLink(task)} <span class="faint">attempt ${each.attempt}</span>`,
      toolLink(each.tool_id),
      badge(each.outcome),
      middle(each.error, 240),
      middle(each.message, 160),
      state ? badge(state) : "not known",
      html`<span class="buttons">
        ${each.late && mayTakeLate(state)
          ? button("Take the late result", () => acceptLate(this.app, id, task), { label: `Take the late result of task ${task}` }) : nothing}
        ${state === "failed" ? button("Try again", () => retryTask(this.app, task), { label: `Try task ${task} again` }) : nothing}
      </span>`,
    ];
  }

  #showMore() {
    this.#most = Math.min(MORE * this.#most, MOST_FAILURES);
    this.app.load();
  }

  #times() {
    if (!this.#length) return { since: this.#since, until: this.#until };
    const until = this.app.now();
    return { since: until - this.#length, until };
  }

  #asked() {
    return [this.#length, this.#since, this.#until, this.#most].join();
  }

  #set(address) {
    const [begin, end] = address.split("/").map(Date.parse);
    this.#old = true;
    this.#most = FAILURES;
    if (end - begin >= LEAST && begin >= EARLIEST && end <= LATEST) {
      this.#length = null;
      [this.#since, this.#until] = [begin, end];
    } else {
      this.#length = lengthOf(address) ?? lengthOf(DEFAULT);
    }
  }

  #go(address) {
    location.hash = `#/then/${address}`;
  }

  #goNow(length) {
    this.#go(addressOf(Math.min(length, MOST)));
  }

  /** Show another span. A span that would end in the future keeps its length and ends now. */
  #look(since, until) {
    if (until - since < LEAST || since < EARLIEST) return;
    if (until >= this.app.now()) this.#goNow(until - since);
    else this.#go([since, until].map((time) => new Date(time).toISOString()).join("/"));
  }

  /** Zoom by a factor around a moment; without one, around the middle, or up to now. */
  #scale(by, around) {
    const { since, until } = this.#times();
    const still = around ?? (this.#length ? until : (since + until) / 2);
    this.#look(still - (still - since) * by, still + (until - still) * by);
  }
}

const legend = () => html`<ul class="legend" aria-label="Legend">
  ${Object.entries(BARS).map(([name, { mark, label }]) => html`<li>${badge(name, `${mark} ${label}`)}</li>`)}
</ul>`;

const barOf = ({ task_id: task, tool_id: tool, attempt, started_at, assigned_at }, id, outcome, end) =>
  ({ id, task, tool, attempt, outcome, begin: Date.parse(started_at ?? assigned_at), end });

const atTime = (time) => moment(new Date(time).toISOString());

/** The length that an address names, in milliseconds; null if it names none. */
function lengthOf(address) {
  const [, number, unit] = /^([1-9]\d{0,9})([smhd])$/.exec(address) ?? [];
  return unit ? Math.min(Math.max(number * UNITS[unit], LEAST), MOST) : null;
}

/** The name of a length in an address, in the largest unit that divides it. */
function addressOf(length) {
  const whole = Math.round(length / UNITS.s) * UNITS.s;
  const unit = Object.keys(UNITS).findLast((each) => whole % UNITS[each] === 0);
  return `${whole / UNITS[unit]}${unit}`;
}
