// One task: its state and why, its data, and every attempt at it.

import { path, read, readText } from "./api.js";
import { OUTCOMES, WORK_STATES } from "./constants.js";
import { between, inLocalTime, moment, span } from "./format.js";
import { members } from "./jsontext.js";
import {
  badge, bar, block, button, facts, numbers, recordLink, section, since, table, toolLink, unnamed, value,
} from "./parts.js";
import { cancelTask, deleteTask, requeueWork, retryTask } from "./actions.js";
import { Thing } from "./view.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

const ATTEMPTS = 100;
const COLUMNS = [numbers("Attempt"), "Tool", "Outcome", "Assigned", numbers("Ran for"), unnamed("Record")];

export class Task extends Thing {
  missing = "There is no such task, or its record was deleted.";
  #task;
  #values;
  #explanation;
  #attempts;

  async find() {
    const [text, explanation, attempts] = await Promise.all([
      readText(path("tasks", this.id)),
      read(path("tasks", this.id, "explain")),
      read("/v1/overview/timeline", { task_id: this.id, limit: ATTEMPTS }),
    ]);
    this.#task = JSON.parse(text);
    this.#values = members(text);
    [this.#explanation, this.#attempts] = [explanation, attempts];
  }

  heard(kind, data) {
    if (data === null || (kind === "task" ? data.id : data.task_id) === this.id) this.changed();
  }

  drawn() {
    const task = this.#task;
    return html`<section class="card">
        <div class="head"><h1>${task.id}</h1>${badge(task.state)}<span class="buttons">${this.#actions()}</span></div>
        <p>${inLocalTime(this.#explanation.detail)}</p>
        ${this.#underWay()}
        ${facts({
          "Submitted": html`${moment(task.created_at)}, ${since(this.app, task.created_at)} ago`,
          "Not before": task.not_before && moment(task.not_before),
          "Priority": task.priority,
          "Attempts": html`${task.attempt} of ${task.max_attempts}`,
          "May run for": task.timeout_seconds && span(task.timeout_seconds),
          "Ended": task.ended_at && moment(task.ended_at),
          "Assigner's remark": task.remark || null,
        })}
        ${task.error ? block("Error", task.error) : nothing}
        ${value("Needs", this.#values.needs)}
        ${value("Payload", this.#values.payload)}
        ${["succeeded", "failed"].includes(task.state) ? value("Result", this.#values.result) : nothing}
      </section>
      ${section("attempts", "Attempts that have ended", [
        table(this.app, COLUMNS, this.#attempts.items, (each) => [
          each.attempt,
          toolLink(each.tool_id),
          badge(each.outcome),
          moment(each.assigned_at),
          span(between(each.started_at, each.ended_at)),
          recordLink(each.work_id, "Read it"),
        ], "None."),
        this.#attempts.complete ? nothing : html`<p class="faint">These are the newest ${ATTEMPTS}.</p>`,
      ])}`;
  }

  #actions() {
    const { id, state, work_id: work } = this.#task;
    return [
      state === "failed" ? button("Try again", () => retryTask(this.app, id)) : nothing,
      work && state in WORK_STATES
        ? button("Take back", () => requeueWork(this.app, work, id)) : nothing,
      OUTCOMES[state]?.ends_task
        ? nothing : state === "failed"
          ? button("Delete", () => deleteTask(this.app, id), { danger: true })
          : button("Cancel", () => cancelTask(this.app, id), { danger: true }),
    ];
  }

  #underWay() {
    const work = this.app.live.work().find((each) => each.task_id === this.id);
    return work && work.state === "running" ? bar(work.progress, "Progress") : nothing;
  }
}
