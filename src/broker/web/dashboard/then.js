// Then: what was done by whom and when, how much and how quickly, and what went wrong.

import { read } from "./api.js";
import { count, counted, middle, moment, span } from "./format.js";
import { badge, button, empty, recordLink, taskLink, toolLink } from "./parts.js";
import { acceptLate, retryTask } from "./actions.js";
import { Durations, Throughput } from "./charts.js";
import { MARKS, Timeline } from "./timeline.js";
import { View } from "./view.js";
import { repeat } from "./vendor/lit-html/directives/repeat.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

const HOUR = 3_600_000;
// The spans that go on with the time, by how they are called in the address.
const SPANS = { "1h": ["Last hour", HOUR], "8h": ["8 hours", 8 * HOUR], "24h": ["24 hours", 24 * HOUR], "7d": ["7 days", 168 * HOUR] };
const DEFAULT = "1h";
// What may be looked at: not less, and nothing that is in no archive.
const LEAST = 2000, EARLIEST = Date.UTC(1990), LATEST = Date.UTC(2990);
const ATTEMPTS = 2000, BUCKETS = 60, FAILURES = 20, MOST_FAILURES = 1000;
const ROWS = 200;
const READ_MS = 3000;
const BAD = ["failed", "timed_out", "lost"];
const WAITS = ["available", "scheduled", "failed"];

export class Then extends View {
  title = "Then";
  #name = null;
  #length = 0;
  #since = 0;
  #until = 0;
  #attempts = null;
  #history = null;
  #failures = null;
  #more = false;
  #wanted = FAILURES;
  #asTable = false;
  #timeline = new Timeline((since, until) => this.#look(since, until), (bar) => this.#open(bar));
  #throughput = new Throughput((since, until) => this.#look(since, until), "Attempts that ended, by outcome");
  #durations = new Durations((since, until) => this.#look(since, until), "How long tasks waited and ran");

  constructor(app, address) {
    super(app, READ_MS);
    this.#set(address);
  }

  /** Another span is asked for. */
  moved(address) {
    this.#set(address);
    this.app.load();
  }

  async load() {
    const { since, until } = this.#times();
    // All who look at the last hour ask for the same, for a while.
    const begin = this.#name ? since - (since % (this.#length / BUCKETS)) : since;
    const query = { since: new Date(begin).toISOString(), until: this.#name ? null : new Date(until).toISOString() };
    const asked = [this.#name, this.#since, this.#until].join();
    const [timeline, history, failures] = await Promise.all([
      read("/v1/overview/timeline", { ...query, limit: ATTEMPTS }),
      read("/v1/overview/history", { ...query, buckets: BUCKETS }),
      read("/v1/overview/failures", { ...query, limit: this.#wanted }),
    ]);
    // Meanwhile another one may have been.
    if (asked !== [this.#name, this.#since, this.#until].join()) return;
    this.#attempts = timeline;
    this.#history = history;
    this.#failures = failures.items;
    this.#more = failures.next !== null;
    this.#throughput.show(history);
    this.#durations.show(history);
    this.app.draw();
  }

  heard(kind, data) {
    if (!this.#name || (kind !== "archive" && data !== null)) return;
    // It is under way no more, and in the answer to come.
    if (data?.tool_id && this.#attempts) {
      const others = this.#attempts.items.filter((each) => each.work_id !== data.work_id);
      this.#attempts = { ...this.#attempts, items: [data, ...others].slice(0, ATTEMPTS) };
    }
    this.changed();
  }

  left() {
    super.left();
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
        ${Object.entries(SPANS).map(([name, [text]]) => html`<button type="button" aria-pressed=${this.#name === name}
          @click=${() => this.#go(name)}>${text}</button>`)}
      </div>
      <div class="buttons">
        ${button("Zoom in", () => this.#timeline.zoomIn())}
        ${button("Zoom out", () => this.#timeline.zoomOut())}
        ${this.#name ? nothing : button("Earlier", () => this.#look(since - (until - since), since))}
        ${this.#name ? nothing : button("Later", () => this.#look(until, until + (until - since)))}
      </div>
      <span class="faint">${moment(new Date(since).toISOString())} to ${this.#name ? "now" : moment(new Date(until).toISOString())}</span>
    </div>`;
  }

  #shown() {
    const { since, until } = this.#times();
    const bars = this.#bars();
    this.#timeline.show(bars, since, until);
    return html`<section aria-labelledby="timeline">
        <h2 id="timeline">Timeline</h2>
        <p>${this.#inWords()}</p>
        ${bars.length ? html`${this.#timeline.element}${legend()}` : nothing}
        ${this.#attempts.complete ? nothing
          : html`<p class="faint">The newest ${count(ATTEMPTS)} attempts of this span are shown; zoom in to see all.</p>`}
        ${bars.length ? this.#table(bars) : nothing}
      </section>
      <div class="columns">
        <section aria-labelledby="throughput"><h2 id="throughput">Ended, every ${span(this.#history.bucket_seconds)}</h2>
          <div class="card">${this.#throughput.element}</div></section>
        <section aria-labelledby="durations"><h2 id="durations">Waited and ran for</h2>
          <div class="card">${this.#durations.element}</div></section>
      </div>
      ${this.#failed()}`;
  }

  /** What has ended, and what is under way where the span reaches now. */
  #bars() {
    const ended = this.#attempts.items.map((each) => ({
      id: each.work_id, task: each.task_id, tool: each.tool_id, attempt: each.attempt, outcome: each.outcome,
      begin: Date.parse(each.started_at ?? each.assigned_at), end: Date.parse(each.ended_at),
    }));
    const { until } = this.#times();
    const known = new Set(ended.map((bar) => bar.id));
    const now = this.app.now();
    if (until < now - LEAST) return ended;
    const running = this.app.live.work().filter((work) => !known.has(work.id)).map((work) => ({
      id: work.id, task: work.task_id, tool: work.tool_id, attempt: work.attempt, outcome: "running",
      begin: Date.parse(work.started_at ?? work.assigned_at), end: now,
    }));
    return [...ended, ...running];
  }

  #inWords() {
    const sum = (name) => this.#history.items.reduce((all, bucket) => all + bucket[name], 0);
    const all = ["succeeded", "cancelled", "released", ...BAD].reduce((so, name) => so + sum(name), 0);
    if (!all) return "Nothing ended in this span of time.";
    const told = [["succeeded", "succeeded"], ["failed", "failed"], ["timed_out", "timed out"], ["lost", "lost"],
      ["cancelled", "cancelled"], ["released", "given back"]].filter(([name]) => sum(name));
    const beyond = this.#history.complete ? "" : "More than these: ";
    return `${beyond}${counted(all, "attempt")} ended: ${told.map(([name, text]) => `${count(sum(name))} ${text}`).join(", ")}.`;
  }

  #table(bars) {
    return html`<p>${button("The same as a table", () => { this.#asTable = !this.#asTable; this.app.draw(); }, { expanded: this.#asTable })}</p>
      ${this.#asTable ? html`<table>
        <thead><tr><th scope="col">Ended</th><th scope="col">Tool</th><th scope="col">Task</th><th scope="col" class="number">Attempt</th>
          <th scope="col">Outcome</th><th scope="col" class="number">Ran for</th></tr></thead>
        <tbody>${repeat(bars.toSorted((one, other) => other.end - one.end).slice(0, ROWS), (bar) => bar.id, (bar) => html`<tr>
          <td data-name="Ended">${recordLink(bar.id, bar.outcome === "running" ? "under way" : moment(new Date(bar.end).toISOString()))}</td>
          <td data-name="Tool">${toolLink(bar.tool)}</td>
          <td data-name="Task">${taskLink(bar.task)}</td>
          <td data-name="Attempt" class="number">${bar.attempt}</td>
          <td data-name="Outcome">${badge(bar.outcome)}</td>
          <td data-name="Ran for" class="number">${span((bar.end - bar.begin) / 1000)}</td></tr>`)}</tbody>
      </table>
      ${bars.length > ROWS ? html`<p class="faint">These are the newest ${ROWS} of ${count(bars.length)}.</p>` : nothing}` : nothing}`;
  }

  #failed() {
    return html`<section aria-labelledby="failures">
      <h2 id="failures">What went wrong</h2>
      ${this.#failures.length === 0 ? empty("Nothing, in this span of time.") : html`<table>
        <thead><tr><th scope="col">Ended</th><th scope="col">Task</th><th scope="col">Tool</th><th scope="col">Outcome</th>
          <th scope="col">Error</th><th scope="col">Last report</th><th scope="col">Its task now</th><th scope="col">Do</th></tr></thead>
        <tbody>${repeat(this.#failures, (each) => each.work_id, (each) => this.#failure(each))}</tbody></table>`}
      ${this.#more && this.#wanted < MOST_FAILURES ? html`<p>${button("Show more", () => this.#readMore())}</p>` : nothing}
    </section>`;
  }

  #failure(each) {
    const { work_id: id, task_id: task, task_state: state } = each;
    return html`<tr>
      <td data-name="Ended">${recordLink(id, moment(each.ended_at))}</td>
      <td data-name="Task">${taskLink(task)} <span class="faint">attempt ${each.attempt}</span></td>
      <td data-name="Tool">${toolLink(each.tool_id)}</td>
      <td data-name="Outcome">${badge(each.outcome)}</td>
      <td data-name="Error">${middle(each.error, 240)}</td>
      <td data-name="Last report">${middle(each.message, 160)}</td>
      <td data-name="Its task now">${state ? badge(state) : "not known"}</td>
      <td><span class="buttons">
        ${each.late && WAITS.includes(state)
          ? button("Take the late result", () => acceptLate(this.app, id, task), { label: `Take the late result of task ${task}` }) : nothing}
        ${state === "failed" ? button("Try again", () => retryTask(this.app, task), { label: `Try task ${task} again` }) : nothing}
      </span></td></tr>`;
  }

  #readMore() {
    this.#wanted = Math.min(5 * this.#wanted, MOST_FAILURES);
    this.app.load();
  }

  #times() {
    if (!this.#name) return { since: this.#since, until: this.#until };
    const until = this.app.now();
    return { since: until - this.#length, until };
  }

  #set(address) {
    const [begin, end] = address.split("/").map(Date.parse);
    this.#attempts = null;
    this.#wanted = FAILURES;
    if (end - begin >= LEAST && begin >= EARLIEST && end <= LATEST) {
      this.#name = null;
      [this.#since, this.#until] = [begin, end];
    } else {
      this.#name = Object.hasOwn(SPANS, address) ? address : DEFAULT;
      this.#length = SPANS[this.#name][1];
    }
  }

  #go(address) {
    location.hash = `#/then/${address}`;
  }

  #look(since, until) {
    if (until - since < LEAST || since < EARLIEST || until > LATEST) return;
    this.#go([since, until].map((time) => encodeURIComponent(new Date(time).toISOString())).join("/"));
  }

  #open(bar) {
    location.hash = `#/record/${bar.id}`;
  }
}

const legend = () => html`<ul class="legend" aria-label="Legend">
  ${Object.entries(MARKS).map(([name, mark]) => html`<li><span class="badge ${name}">${mark} ${name.replace("_", " ")}</span></li>`)}
</ul>`;
