// One task: its state and why, its data, and every attempt at it.

import { path, read, readText } from "./api.js";
import { OUTCOMES, WORK_STATES } from "./constants.js";
import { between, inLocalTime, moment, span } from "./format.js";
import { member } from "./jsontext.js";
import { badge, bar, button, empty, recordLink, since, toolLink, value } from "./parts.js";
import { cancelTask, deleteTask, requeueWork, retryTask } from "./actions.js";
import { Thing } from "./thing.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

const ATTEMPTS = 100;

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
    this.#values = Object.fromEntries(["needs", "payload", "result"].map((name) => [name, member(text, name)]));
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
        <dl class="facts">
          <dt>Submitted</dt><dd>${moment(task.created_at)}, ${since(this.app, task.created_at)} ago</dd>
          ${task.not_before ? html`<dt>Not before</dt><dd>${moment(task.not_before)}</dd>` : nothing}
          <dt>Priority</dt><dd>${task.priority}</dd>
          <dt>Attempts</dt><dd>${task.attempt} of ${task.max_attempts}</dd>
          ${task.timeout_seconds ? html`<dt>May run for</dt><dd>${span(task.timeout_seconds)}</dd>` : nothing}
          ${task.ended_at ? html`<dt>Ended</dt><dd>${moment(task.ended_at)}</dd>` : nothing}
          ${task.remark ? html`<dt>Assigner's remark</dt><dd>${task.remark}</dd>` : nothing}
        </dl>
        ${task.error ? html`<h2>Error</h2><pre tabindex="0" aria-label="Error">${task.error}</pre>` : nothing}
        ${value("Needs", this.#values.needs)}
        ${value("Payload", this.#values.payload)}
        ${["succeeded", "failed"].includes(task.state) ? value("Result", this.#values.result) : nothing}
      </section>
      <section aria-labelledby="attempts"><h2 id="attempts">Attempts that have ended</h2>
        ${this.#attempts.items.length === 0 ? empty("None.") : html`<table>
          <thead><tr><th scope="col" class="number">Attempt</th><th scope="col">Tool</th><th scope="col">Outcome</th>
            <th scope="col">Assigned</th><th scope="col" class="number">Ran for</th><th scope="col">Record</th></tr></thead>
          <tbody>${this.#attempts.items.map((each) => html`<tr>
            <td data-name="Attempt" class="number">${each.attempt}</td>
            <td data-name="Tool">${toolLink(each.tool_id)}</td>
            <td data-name="Outcome">${badge(each.outcome)}</td>
            <td data-name="Assigned">${moment(each.assigned_at)}</td>
            <td data-name="Ran for" class="number">${each.started_at ? span(between(each.started_at, each.ended_at)) : "–"}</td>
            <td>${recordLink(each.work_id, "Read it")}</td>
          </tr>`)}</tbody></table>`}
        ${this.#attempts.complete ? nothing : html`<p class="faint">These are the newest ${ATTEMPTS}.</p>`}
      </section>`;
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
