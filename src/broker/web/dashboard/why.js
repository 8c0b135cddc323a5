// Why: the waiting tasks and the reasons, and who is left out.

import { read } from "./api.js";
import { age, count, counted, inLocalTime } from "./format.js";
import { badge, button, empty, json, since, taskLink, toolLink } from "./parts.js";
import { cancelTask } from "./actions.js";
import { View } from "./view.js";
import { repeat } from "./vendor/lit-html/directives/repeat.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

const PAGE = 100, MOST = 200;
const READ_MS = 3000;
// After this many later tasks were assigned first, a kind of needs counts as left out.
const OFTEN = 10;

const VERDICTS = {
  no_assigner: "no assigner",
  refused_by_assigner: "refused by the assigner",
  no_tool_available: "no tool has room",
  waiting_for_assigner: "the assigner has not chosen it",
  not_before_its_time: "not before its time",
  backing_off: "waits to be tried again",
};

export class Why extends View {
  title = "Why";
  #waiting = null;
  #queue = null;
  #limit = PAGE;

  constructor(app) {
    super(app, READ_MS);
  }

  async load() {
    [this.#waiting, this.#queue] = await Promise.all([
      read("/v1/overview/waiting", { limit: this.#limit }),
      read("/v1/overview/queue"),
    ]);
  }

  template() {
    return html`<h1 class="for-ears">Why</h1>
      ${this.#queue && this.#waiting?.items.length ? this.#leftOut() : nothing}
      ${this.#waiting ? this.#tasks() : empty("Reading…")}
      ${this.#queue && !this.#waiting?.items.length ? this.#leftOut() : nothing}`;
  }

  #tasks() {
    const { items, assigner_seen_at: seen, available_tools: tools } = this.#waiting;
    return html`<section aria-labelledby="waiting">
      <h2 id="waiting">Waiting, for longest first</h2>
      <p class="faint">${seen === null ? "No assigner has ever asked" : html`An assigner asked ${age(this.app.ago(seen))} ago`};
        ${counted(tools, "tool")} could be given work.</p>
      ${items.length === 0 ? empty("Nothing waits.") : html`<table>
        <thead><tr><th scope="col">Task</th><th scope="col">Waits for</th><th scope="col" class="number">Priority</th>
          <th scope="col">Needs</th><th scope="col">Why</th><th scope="col">Do</th></tr></thead>
        <tbody>${repeat(items, (task) => task.id, (task) => this.#task(task))}</tbody>
      </table>`}
      ${items.length === this.#limit && this.#limit < MOST ? html`<p>${button("Show more", () => this.#more())}</p>` : nothing}
    </section>`;
  }

  #task(task) {
    return html`<tr>
      <td data-name="Task">${taskLink(task.id)}${task.attempt ? html` <span class="faint">${task.attempt} of ${task.max_attempts} attempts made</span>` : nothing}</td>
      <td data-name="Waits for">${since(this.app, task.created_at)}</td>
      <td data-name="Priority" class="number">${task.priority}</td>
      <td data-name="Needs">${json(task.needs, 80)}</td>
      <td>${badge(task.state, VERDICTS[task.verdict] ?? task.verdict)}
        <span class="detail">${inLocalTime(task.detail)}</span></td>
      <td>${button("Cancel", () => cancelTask(this.app, task.id), { label: `Cancel task ${task.id}` })}</td>
    </tr>`;
  }

  #more() {
    this.#limit = MOST;
    this.app.load();
  }

  #leftOut() {
    const passed = this.#queue.kinds.filter((kind) => kind.passed_by >= OFTEN);
    const { unasked } = this.#queue;
    return html`<section aria-labelledby="wallflowers">
      <h2 id="wallflowers">Wallflowers</h2>
      <p class="faint">Needs that others go before again and again, and tools that nobody asks: a hint that needs and skills are not as they were meant.</p>
      <div class="columns">
        <section aria-labelledby="passed">
          <h3 id="passed">Passed over</h3>
          ${passed.length === 0 ? empty("No needs are passed over.") : html`<table>
            <thead><tr><th scope="col">Needs</th><th scope="col" class="number">Tasks</th><th scope="col">The oldest</th>
              <th scope="col" class="number">Passed by</th></tr></thead>
            <tbody>${passed.map((kind) => html`<tr>
              <td data-name="Needs">${json(kind.needs)}</td>
              <td data-name="Tasks" class="number">${count(kind.tasks)}</td>
              <td data-name="The oldest">${taskLink(kind.oldest_id)}, ${since(this.app, kind.oldest_at)}</td>
              <td data-name="Passed by" class="number">${kind.passed_by >= 1000 ? "1,000 or more" : count(kind.passed_by)} later ones</td>
            </tr>`)}</tbody></table>`}
        </section>
        <section aria-labelledby="unasked">
          <h3 id="unasked">With room, and without work for long</h3>
          ${unasked.length === 0 ? empty("No tool with room has been idle for long.") : html`<table>
            <thead><tr><th scope="col">Tool</th><th scope="col">Skills</th><th scope="col">Idle for</th></tr></thead>
            <tbody>${unasked.map((tool) => html`<tr>
              <td data-name="Tool">${toolLink(tool.id)}</td>
              <td data-name="Skills">${json(tool.skills)}</td>
              <td data-name="Idle for">${since(this.app, tool.since)}</td>
            </tr>`)}</tbody></table>`}
        </section>
      </div>
    </section>`;
  }
}
