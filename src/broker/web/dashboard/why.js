// Why: the waiting tasks and the reasons, and who is left out.

import { read } from "./api.js";
import { age, count, counted, inLocalTime } from "./format.js";
import { badge, button, empty, json, numbers, section, since, table, taskLink, toolLink, unnamed } from "./parts.js";
import { cancelTask } from "./actions.js";
import { View } from "./view.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

const PAGE = 100, MOST = 200;
// After this many later tasks were assigned first, a kind of needs counts as left out.
const OFTEN = 10;

const WAITING = ["Task", "Waits for", numbers("Priority"), "Needs", unnamed("Why"), unnamed("Do")];
const PASSED = ["Needs", numbers("Tasks"), "The oldest", numbers("Passed by")];
const UNASKED = ["Tool", "Skills", "Idle for"];

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
    return section("waiting", "Waiting, for longest first", [
      html`<p class="faint">${seen === null ? "No assigner has ever asked" : html`An assigner asked ${age(this.app.ago(seen))} ago`};
        ${counted(tools, "tool")} could be given work.</p>`,
      table(this.app, WAITING, items, (task) => this.#cells(task), "Nothing waits.", ({ id }) => id),
      items.length === this.#limit && this.#limit < MOST ? html`<p>${button("Show more", () => this.#more())}</p>` : nothing,
    ]);
  }

  #cells(task) {
    return [
      html`${taskLink(task.id)}${task.attempt ? html` <span class="faint">${task.attempt} of ${task.max_attempts} attempts made</span>` : nothing}`,
      since(this.app, task.created_at),
      task.priority,
      json(task.needs, 80),
      html`${badge(task.state, VERDICTS[task.verdict] ?? task.verdict)} <span class="detail">${inLocalTime(task.detail)}</span>`,
      button("Cancel", () => cancelTask(this.app, task.id), { label: `Cancel task ${task.id}` }),
    ];
  }

  #more() {
    this.#limit = MOST;
    this.app.load();
  }

  #leftOut() {
    const passed = this.#queue.kinds.filter((kind) => kind.passed_by >= OFTEN);
    const { unasked } = this.#queue;
    return section("wallflowers", "Wallflowers", html`
      <p class="faint">Needs that others go before again and again, and tools that nobody asks: a hint that needs and skills are not as they were meant.</p>
      <div class="columns">
        <section aria-labelledby="passed">
          <h3 id="passed">Passed over</h3>
          ${table(this.app, PASSED, passed, (kind) => [
            json(kind.needs),
            count(kind.tasks),
            html`${taskLink(kind.oldest_id)}, ${since(this.app, kind.oldest_at)}`,
            `${kind.passed_by >= 1000 ? "1,000 or more" : count(kind.passed_by)} later ones`,
          ], "No needs are passed over.")}
        </section>
        <section aria-labelledby="unasked">
          <h3 id="unasked">With room, and without work for long</h3>
          ${table(this.app, UNASKED, unasked, (tool) => [toolLink(tool.id), json(tool.skills), since(this.app, tool.since)],
            "No tool with room has been idle for long.")}
        </section>
      </div>`);
  }
}
