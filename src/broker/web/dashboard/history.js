// The page "History": the timeline of attempts, their numbers and durations, and the failures.

import { acceptLate, acceptsLateResult, retryTask } from "./actions.js";
import { read } from "./api.js";
import { Durations, durationsInWords, Throughput, throughputInWords } from "./charts.js";
import {
  badge, button, empty, numberColumn, recordLink, section, table, taskLink, toolLink, unlabelledColumn,
} from "./components.js";
import { BARS } from "./drawing.js";
import { count, moment, shortenedInTheMiddle, span } from "./format.js";
import { Timeline } from "./timeline.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { View } from "./view.js";

// The address has the two ends of a time range, or the length of a range that always ends now.
const RANGES = { "1h": "Last hour", "8h": "Last 8 hours", "24h": "Last 24 hours", "7d": "Last 7 days" };
const DEFAULT_RANGE = "1h";
const UNITS = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const MIN_LENGTH = 2000, MAX_LENGTH = 3660 * UNITS.d;
// No archive has earlier or later records.
const EARLIEST = Date.UTC(1990), LATEST = Date.UTC(2990);
const MAX_ATTEMPTS = 2000, BUCKETS = 60;
// The number of failures at first, the factor for each "Show more", and the maximum.
const FAILURES = 20, MORE_FACTOR = 5, MAX_FAILURES = 1000;
const ROWS = 200;
const ATTEMPT_COLUMNS = ["Ended", "Tool", "Task", numberColumn("Attempt"), "Outcome", numberColumn("Duration")];
const FAILURE_COLUMNS = ["Ended", "Task", "Tool", "Outcome", "Error", "Last message", "Task state", unlabelledColumn("Actions")];

export class History extends View {
  title = "History";
  #length = null;
  #since = 0;
  #until = 0;
  #attempts = null;
  #history = null;
  #failures = null;
  #limit = FAILURES;
  // True if the data belongs to another time range.
  #isStale = true;
  #tableIsOpen = false;
  #timeline = new Timeline({
    show: (since, until) => this.#showRange(since, until),
    zoom: (factor, around) => this.#zoom(factor, around),
    open: ({ id }) => { location.hash = `#/record/${id}`; },
  });
  #throughput = new Throughput((since, until) => this.#showRange(since, until), "Ended attempts by outcome");
  #durations = new Durations((since, until) => this.#showRange(since, until), "Waiting and run times");

  #darkScheme = matchMedia("(prefers-color-scheme: dark)");
  #recolour = () => {
    this.#throughput.recolour();
    this.#durations.recolour();
    this.app.draw();
  };

  constructor(app, address) {
    super(app);
    this.#darkScheme.addEventListener("change", this.#recolour);
    this.#setRange(address);
  }

  /** Show another time range. */
  navigate(address) {
    this.#setRange(address);
    this.app.reload();
  }

  async load() {
    const { since, until } = this.#range();
    // The beginning is rounded, so that all viewers of the last hour share queries for a while.
    const begin = this.#length ? since - (since % (this.#length / BUCKETS)) : since;
    const query = { since: new Date(begin).toISOString(), until: this.#length ? null : new Date(until).toISOString() };
    const request = this.#request();
    const [attempts, history, failures] = await Promise.all([
      read("/v1/overview/timeline", { ...query, limit: MAX_ATTEMPTS }),
      read("/v1/overview/history", { ...query, buckets: BUCKETS }),
      read("/v1/overview/failures", { ...query, limit: this.#limit }),
    ]);
    // The user may have chosen another range meanwhile.
    if (request !== this.#request()) return;
    this.#isStale = false;
    this.#attempts = attempts;
    this.#history = history;
    this.#failures = failures;
    this.#throughput.show(history);
    this.#durations.show(history);
  }

  onEvent(kind, data) {
    if (this.#range().until < this.app.now() || (kind !== "archive" && data !== null)) return;
    // Show the attempt as ended at once, without waiting for the next read.
    if (data?.tool_id && this.#attempts) this.#add(data);
    this.refreshSoon();
  }

  #add(attempt) {
    const { items } = this.#attempts;
    items.unshift(attempt);
    if (items.length <= MAX_ATTEMPTS) return;
    items.pop();
    this.#attempts.complete = false;
  }

  dispose() {
    super.dispose();
    this.#darkScheme.removeEventListener("change", this.#recolour);
    for (const each of [this.#timeline, this.#throughput, this.#durations]) each.dispose();
  }

  template() {
    return html`<h1 class="visually-hidden">History</h1>
      ${this.#toolbar()}
      ${this.#attempts ? this.#content() : empty("Loading…")}`;
  }

  #toolbar() {
    const { since, until } = this.#range();
    return html`<div class="toolbar">
      <div class="buttons" role="group" aria-label="Time range">
        ${Object.entries(RANGES).map(([name, text]) => html`<button type="button" aria-pressed=${this.#length === lengthOf(name)}
          @click=${() => this.#open(name)}>${text}</button>`)}
      </div>
      <div class="buttons" role="group" aria-label="Zoom and move">
        ${button("Zoom in", () => this.#zoom(0.5))}
        ${button("Zoom out", () => this.#zoom(2))}
        ${button("Earlier", () => this.#showRange(since - (until - since), since))}
        ${this.#length ? nothing : button("Later", () => this.#showRange(until, until + (until - since)))}
        ${this.#length ? nothing : button("Now", () => this.#openLast(until - since))}
      </div>
      <span class="muted">${atTime(since)} to ${this.#length ? "now" : atTime(until)}</span>
    </div>`;
  }

  #content() {
    const { since, until } = this.#range();
    const bars = this.#bars();
    this.#timeline.show(bars, { since, until, from: this.#knownFrom() });
    return html`
      ${section("timeline", "Timeline", [
        html`<p>${this.#isStale ? "Loading…" : throughputInWords(this.#history)}</p>`,
        this.#timeline.element,
        legend(),
        this.#attempts.complete ? nothing
          : html`<p class="muted">Only the newest ${count(MAX_ATTEMPTS)} attempts are shown. Zoom in to see the others.</p>`,
        this.#table(bars),
      ])}
      <div class="columns">
        ${section("throughput", "Ended attempts", html`<div class="card">${this.#throughput.element}
          <p class="muted">Each bar covers ${span(this.#history.bucket_seconds)}.</p></div>`)}
        ${section("durations", "Waiting and run times",
          html`<div class="card">${this.#durations.element}<p class="muted">${durationsInWords(this.#history)}</p></div>`)}
      </div>
      ${this.#failureSection()}`;
  }

  /** The ended attempts, and the running ones that started before the end of the range. */
  #bars() {
    const { until } = this.#range();
    const now = this.app.now();
    const running = this.app.live.work().map((work) => barOf(work, work.id, "running", now));
    const past = this.#attempts.items.map((each) => barOf(each, each.work_id, each.outcome, Date.parse(each.ended_at)));
    // An attempt in both lists has ended, and gets one bar.
    const bars = new Map([...running.filter(({ begin }) => begin < until), ...past].map((bar) => [bar.id, bar]));
    return [...bars.values()];
  }

  /** The moment from which on all attempts are known. */
  #knownFrom() {
    const { complete, items } = this.#attempts;
    return complete ? -Infinity : Date.parse(items.at(-1).ended_at);
  }

  #table(bars) {
    const newest = bars.toSorted((one, other) => other.end - one.end).slice(0, ROWS);
    return html`<details ?hidden=${bars.length === 0} @toggle=${(event) => { this.#tableIsOpen = event.target.open; this.app.draw(); }}>
      <summary>Show as a table</summary>
      ${this.#tableIsOpen ? [
        table(this.app, ATTEMPT_COLUMNS, newest, (bar) => [
          recordLink(bar.id, bar.outcome === "running" ? "running" : atTime(bar.end)),
          toolLink(bar.tool),
          taskLink(bar.task),
          bar.attempt,
          badge(bar.outcome),
          span((bar.end - bar.begin) / 1000),
        ], "", ({ id }) => id),
        bars.length > ROWS ? html`<p class="muted">Showing the newest ${ROWS} of ${count(bars.length)}.</p>` : nothing,
      ] : nothing}
    </details>`;
  }

  #failureSection() {
    const { items, next } = this.#failures;
    return section("failures", "Failures", [
      table(this.app, FAILURE_COLUMNS, items, (each) => this.#cells(each), "No attempt failed in this time range.", (each) => each.work_id),
      next === null ? nothing : items.length >= MAX_FAILURES
        ? html`<p class="muted">Showing the newest ${count(MAX_FAILURES)}. Zoom in to see the others.</p>`
        : html`<p>${button("Show more", () => this.#showMore())}</p>`,
    ]);
  }

  #cells(each) {
    const { work_id: id, task_id: task, task_state: state } = each;
    return [
      recordLink(id, moment(each.ended_at)),
      html`${taskLink(task)} <span class="muted detail">attempt ${each.attempt}</span>`,
      toolLink(each.tool_id),
      badge(each.outcome),
      shortenedInTheMiddle(each.error, 240),
      shortenedInTheMiddle(each.message, 160),
      state ? badge(state) : "unknown",
      html`<span class="buttons">
        ${each.late && acceptsLateResult(state)
          ? button("Accept late result", () => acceptLate(this.app, id, task), { label: `Accept late result of task ${task}` }) : nothing}
        ${state === "failed" ? button("Retry", () => retryTask(this.app, task), { label: `Retry task ${task}` }) : nothing}
      </span>`,
    ];
  }

  #showMore() {
    this.#limit = Math.min(MORE_FACTOR * this.#limit, MAX_FAILURES);
    this.app.reload();
  }

  #range() {
    if (!this.#length) return { since: this.#since, until: this.#until };
    const until = this.app.now();
    return { since: until - this.#length, until };
  }

  #request() {
    return [this.#length, this.#since, this.#until, this.#limit].join();
  }

  #setRange(address) {
    const [begin, end] = address.split("/").map(Date.parse);
    this.#isStale = true;
    this.#limit = FAILURES;
    if (end - begin >= MIN_LENGTH && begin >= EARLIEST && end <= LATEST) {
      this.#length = null;
      [this.#since, this.#until] = [begin, end];
    } else {
      this.#length = lengthOf(address) ?? lengthOf(DEFAULT_RANGE);
    }
  }

  #open(address) {
    location.hash = `#/history/${address}`;
  }

  #openLast(length) {
    this.#open(addressOf(Math.min(length, MAX_LENGTH)));
  }

  /** Show another range. A range that would end in the future keeps its length and ends now. */
  #showRange(since, until) {
    if (until - since < MIN_LENGTH || since < EARLIEST) return;
    if (until >= this.app.now()) this.#openLast(until - since);
    else this.#open([since, until].map((time) => new Date(time).toISOString()).join("/"));
  }

  /** Zoom by a factor around a moment. The default is the middle, or now if the range ends now. */
  #zoom(factor, around) {
    const { since, until } = this.#range();
    const centre = around ?? (this.#length ? until : (since + until) / 2);
    this.#showRange(centre - (centre - since) * factor, centre + (until - centre) * factor);
  }
}

const legend = () => html`<ul class="legend" aria-label="Legend">
  ${Object.entries(BARS).map(([name, { mark, label }]) => html`<li>${badge(name, `${mark} ${label}`)}</li>`)}
</ul>`;

const barOf = ({ task_id: task, tool_id: tool, attempt, started_at, assigned_at }, id, outcome, end) =>
  ({ id, task, tool, attempt, outcome, begin: Date.parse(started_at ?? assigned_at), end });

const atTime = (time) => moment(new Date(time).toISOString());

/** Return the length in an address, in milliseconds, or null if it has none. */
function lengthOf(address) {
  const [, number, unit] = /^([1-9]\d{0,9})([smhd])$/.exec(address) ?? [];
  return unit ? Math.min(Math.max(number * UNITS[unit], MIN_LENGTH), MAX_LENGTH) : null;
}

/** Return the address for a length, in the largest unit that divides it. */
function addressOf(length) {
  const rounded = Math.round(length / UNITS.s) * UNITS.s;
  const unit = Object.keys(UNITS).findLast((each) => rounded % UNITS[each] === 0);
  return `${rounded / UNITS[unit]}${unit}`;
}
