// The page of one task: its state and the reason, its data and its attempts.

import { cancelFailedTask, cancelTask, requeueWork, retryTask } from "./actions.js";
import { path, read, readText } from "./api.js";
import {
  badge, block, button, facts, numberColumn, progressBar, prose, recordLink, section, since, table, toolLink, unlabelledColumn,
  value,
} from "./components.js";
import { OUTCOMES, WORK_STATES } from "./constants.js";
import { between, moment, span } from "./format.js";
import { members } from "./json-text.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { DetailView } from "./view.js";

const MAX_ATTEMPTS = 100;
const COLUMNS = [numberColumn("Attempt"), "Tool", "Outcome", "Assigned", numberColumn("Run time"), unlabelledColumn("Record")];

export class Task extends DetailView {
  notFound = "Task not found. Check the id. The records of the task may have been deleted.";
  #task;
  #values;
  #explanation;
  #attempts;

  async fetchData() {
    const [text, explanation, attempts] = await Promise.all([
      readText(path("tasks", this.id)),
      read(path("tasks", this.id, "explain")),
      read("/v1/overview/timeline", { task_id: this.id, limit: MAX_ATTEMPTS }),
    ]);
    this.#task = JSON.parse(text);
    this.#values = members(text);
    [this.#explanation, this.#attempts] = [explanation, attempts];
  }

  onEvent(kind, data) {
    if (data === null || (kind === "task" ? data.id : data.task_id) === this.id) this.refreshSoon();
  }

  content() {
    const task = this.#task;
    return html`<section class="card">
        <div class="toolbar"><h1>${task.id}</h1>${badge(task.state)}<span class="buttons">${this.#actions()}</span></div>
        <p>${prose(this.#explanation.detail)}</p>
        ${this.#progress()}
        ${facts({
          "Submitted": html`${moment(task.created_at)}, ${since(this.app, task.created_at)} ago`,
          "Not before": task.not_before && moment(task.not_before),
          "Priority": task.priority,
          "Attempts used": html`${task.attempt} of ${task.max_attempts}`,
          "Time limit": task.timeout_seconds && span(task.timeout_seconds),
          "Ended": task.ended_at && moment(task.ended_at),
          "Assigner's remark": task.remark || null,
        })}
        ${task.error ? block("Error", task.error) : nothing}
        ${value("Needs", this.#values.needs)}
        ${value("Payload", this.#values.payload)}
        ${["succeeded", "failed"].includes(task.state) ? value("Result", this.#values.result) : nothing}
      </section>
      ${section("attempts", "Ended attempts", [
        table(this.app, COLUMNS, this.#attempts.items, (each) => [
          each.attempt,
          toolLink(each.tool_id),
          badge(each.outcome),
          moment(each.assigned_at),
          span(between(each.started_at, each.ended_at)),
          recordLink(each.work_id, "Details"),
        ], "No attempt has ended yet."),
        this.#attempts.complete ? nothing : html`<p class="muted">Showing the newest ${MAX_ATTEMPTS}.</p>`,
      ])}`;
  }

  #actions() {
    const { id, state, work_id: work } = this.#task;
    return [
      state === "failed" ? button("Retry", () => retryTask(this.app, id)) : nothing,
      work && state in WORK_STATES
        ? button("Requeue", () => requeueWork(this.app, work, id)) : nothing,
      OUTCOMES[state]?.ends_task
        ? nothing
        : button("Cancel", () => (state === "failed" ? cancelFailedTask : cancelTask)(this.app, id), { danger: true }),
    ];
  }

  #progress() {
    const work = this.app.live.work().find((each) => each.task_id === this.id);
    return work && work.state === "running" ? progressBar(work.progress, "Progress") : nothing;
  }
}
