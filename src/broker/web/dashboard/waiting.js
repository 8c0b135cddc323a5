// The page "Waiting": the waiting tasks with the reasons, and possible mismatches between needs and skills.

import { cancelTask } from "./actions.js";
import { read } from "./api.js";
import {
  badge, button, empty, json, numberColumn, prose, section, since, table, taskLink, toolLink, unlabelledColumn,
} from "./components.js";
import { age, count, counted } from "./format.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { View } from "./view.js";

const PAGE = 100, MAX_TASKS = 200;
// Tasks count as overtaken if at least this many newer tasks were assigned before them.
const OVERTAKEN_BY = 10;
const MAX_OVERTAKEN_BY = 1000;

const TASKS = ["Task", "Waiting time", numberColumn("Priority"), "Needs", unlabelledColumn("Reason"), unlabelledColumn("Actions")];
const OVERTAKEN = ["Needs", numberColumn("Tasks"), "Oldest task", "Waiting time", numberColumn("Overtaken by")];
const IDLE = ["Tool", "Skills", "Idle time"];

const VERDICTS = {
  no_assigner: "no assigner",
  refused_by_assigner: "refused by the assigner",
  no_tool_available: "no tool available",
  waiting_for_assigner: "not assigned yet",
  not_before_its_time: "scheduled for later",
  backing_off: "waiting for a retry",
};

export class Waiting extends View {
  title = "Waiting";
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
    return html`<h1 class="visually-hidden">Waiting</h1>
      ${this.#queue && this.#waiting?.items.length ? this.#mismatches() : nothing}
      ${this.#waiting ? this.#tasks() : empty("Loading…")}
      ${this.#queue && !this.#waiting?.items.length ? this.#mismatches() : nothing}`;
  }

  #tasks() {
    const { items, assigner_seen_at: seen, available_tools: tools } = this.#waiting;
    return section("waiting", "Waiting tasks, oldest first", [
      html`<p class="muted">${seen === null ? "No assigner has asked for tasks yet." : html`An assigner last asked for tasks ${age(this.app.ago(seen))} ago.`}
        ${counted(tools, "tool")} ${tools === 1 ? "is" : "are"} available.</p>`,
      table(this.app, TASKS, items, (task) => this.#cells(task),
        "No task is waiting. New tasks appear here until they are assigned to a tool.", ({ id }) => id),
      items.length === this.#limit && this.#limit < MAX_TASKS ? html`<p>${button("Show more", () => this.#showMore())}</p>` : nothing,
    ]);
  }

  #cells(task) {
    return [
      html`${taskLink(task.id)}${task.attempt ? html` <span class="muted detail">${task.attempt} of ${task.max_attempts} attempts used</span>` : nothing}`,
      since(this.app, task.created_at),
      task.priority,
      json(task.needs, 80),
      html`${badge(task.state, VERDICTS[task.verdict] ?? task.verdict)} <span class="detail">${prose(task.detail)}</span>`,
      button("Cancel", () => cancelTask(this.app, task.id), { label: `Cancel task ${task.id}` }),
    ];
  }

  #showMore() {
    this.#limit = MAX_TASKS;
    this.app.reload();
  }

  #mismatches() {
    const overtaken = this.#queue.kinds.filter((kind) => kind.passed_by >= OVERTAKEN_BY);
    const { unasked: idle } = this.#queue;
    return section("mismatches", "Possible mismatches", html`
      <p class="muted">Tasks that newer tasks overtake, and tools that get no work. Check the needs and skills here for spelling mistakes.</p>
      <div class="columns">
        <section aria-labelledby="overtaken">
          <h3 id="overtaken">Overtaken tasks</h3>
          ${table(this.app, OVERTAKEN, overtaken, (kind) => [
            json(kind.needs),
            count(kind.tasks),
            taskLink(kind.oldest_id),
            since(this.app, kind.oldest_at),
            `${kind.passed_by >= MAX_OVERTAKEN_BY ? `${count(MAX_OVERTAKEN_BY)} or more` : count(kind.passed_by)} newer tasks`,
          ], "No task is overtaken.")}
        </section>
        <section aria-labelledby="idle">
          <h3 id="idle">Tools idle for more than 10 minutes</h3>
          ${table(this.app, IDLE, idle, (tool) => [toolLink(tool.id), json(tool.skills), since(this.app, tool.since)],
            "No tool has been idle for that long.")}
        </section>
      </div>`);
  }
}
