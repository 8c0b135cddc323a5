// One attempt, from the archive or under way: what it was about, every report, and how it ended.

import { call, path, read, readText, Refused } from "./api.js";
import { between, count, moment, percent, span } from "./format.js";
import { member } from "./jsontext.js";
import { badge, bar, button, empty, recordLink, taskLink, toolLink, value } from "./parts.js";
import { acceptLate, deleteRecord, requeueWork, retryTask } from "./actions.js";
import { View } from "./view.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

const READ_MS = 1000;
const ATTEMPTS = 100;
const REPORTS = 500;

export class Record extends View {
  static ofOne = true;
  #id;
  #record = null;
  #texts = {};
  #attempts = null;
  #taskState = null;
  #gone = false;

  constructor(app, id) {
    super(app, READ_MS);
    this.#id = id;
    this.title = "Record";
  }

  async load() {
    const text = await this.#find();
    this.#gone = text === null;
    if (text !== null) {
      const record = JSON.parse(text);
      const task = member(text, "task") ?? text;
      this.#texts = { needs: member(task, "needs"), payload: member(task, "payload"), result: member(text, "result") };
      [this.#attempts, this.#taskState] = await Promise.all([this.#others(record.task_id), this.#stateOf(record.task_id)]);
      this.#record = record;
    }
    this.app.draw();
  }

  heard(kind, data) {
    if (data === null || data.id === this.#id || data.work_id === this.#id) this.changed();
  }

  template() {
    if (this.#gone) return html`<h1>Record</h1>${empty("There is no such work, or its record was deleted.")}`;
    const record = this.#record;
    if (record === null) return empty("Reading…");
    const { outcome = record.state, started_at: started } = record;
    return html`<section class="card">
        <div class="head"><h1>Attempt ${record.attempt} at ${record.task_id}</h1>${badge(outcome)}
          <span class="buttons">${this.#actions()}</span></div>
        ${record.late ? html`<p class="note">A late result came ${moment(record.late.at)}, after the attempt had ended
          without it.</p>` : nothing}
        ${record.ended_at ? nothing : bar(record.progress, "Progress")}
        <dl class="facts">
          <dt>Task</dt><dd>${taskLink(record.task_id)}</dd>
          <dt>Tool</dt><dd>${record.tool_id ? toolLink(record.tool_id) : "none: it was never assigned"}</dd>
          <dt>Assigned</dt><dd>${moment(record.assigned_at)}${this.#waited()}</dd>
          <dt>Started</dt><dd>${moment(started)}</dd>
          ${record.ended_at ? html`<dt>Ended</dt><dd>${moment(record.ended_at)}${started
            ? `, after ${span(between(started, record.ended_at))}` : nothing}</dd>` : nothing}
        </dl>
        ${record.error ? html`<h2>Error</h2><pre tabindex="0" aria-label="Error">${record.error}</pre>` : nothing}
        ${value("Result", this.#texts.result)}
        ${record.late ? value("Late result", JSON.stringify(record.late.result)) : nothing}
        ${value("Needs", this.#texts.needs)}
        ${value("Payload", this.#texts.payload)}
      </section>
      ${this.#reports()}
      ${this.#beside()}`;
  }

  /** The text of the record, or of the work under way; null: there is neither. */
  async #find() {
    for (const kind of ["archive", "work"]) {
      try {
        return await readText(path(kind, this.#id));
      } catch (error) {
        if (!(error instanceof Refused) || error.status !== 404) throw error;
      }
    }
    return null;
  }

  async #others(task) {
    return read("/v1/overview/timeline", { task_id: task, limit: ATTEMPTS });
  }

  async #stateOf(task) {
    try {
      return (await call("GET", path("tasks", task))).state;
    } catch (error) {
      if (error.status !== 404) throw error;
      return null;
    }
  }

  #waited() {
    const { task, attempt, assigned_at: assigned } = this.#record;
    if (!task || attempt > 1 || !assigned) return nothing;
    return `, after ${span(between(task.created_at, assigned))} of waiting`;
  }

  #actions() {
    const { task_id: task, ended_at: ended, late, outcome } = this.#record;
    if (!ended) return button("Take back", () => requeueWork(this.app, this.#id, task));
    return [
      late && outcome !== "succeeded" && ["available", "scheduled", "failed"].includes(this.#taskState)
        ? button("Take the late result", () => acceptLate(this.app, this.#id, task)) : nothing,
      this.#taskState === "failed" ? button("Try the task again", () => retryTask(this.app, task)) : nothing,
      button("Delete the record", () => deleteRecord(this.app, this.#id), { danger: true }),
    ];
  }

  #reports() {
    const { reports, started_at: started } = this.#record;
    return html`<section aria-labelledby="reports"><h2 id="reports">Reports <span class="faint">${count(reports.length)}</span></h2>
      ${reports.length === 0 ? empty("None.") : html`<table>
        <thead><tr><th scope="col">After</th><th scope="col">Progress</th><th scope="col">Message</th><th scope="col">Data</th></tr></thead>
        <tbody>${reports.slice(0, REPORTS).map((report) => html`<tr>
          <td data-name="After"><span title=${moment(report.at)}>${span(between(started ?? report.at, report.at))}</span></td>
          <td data-name="Progress">${report.progress === null ? "" : html`${bar(report.progress, "Progress")} ${percent(report.progress)}`}</td>
          <td data-name="Message">${report.message ?? ""}</td>
          <td data-name="Data">${report.data === null ? "" : html`<code>${JSON.stringify(report.data).slice(0, 200)}</code>`}</td>
        </tr>`)}</tbody></table>`}
      ${reports.length > REPORTS ? html`<p class="faint">The first ${REPORTS} are shown; all are in <code>${path("archive", this.#id)}</code>.</p>` : nothing}
    </section>`;
  }

  #beside() {
    return html`<section aria-labelledby="attempts"><h2 id="attempts">All attempts at this task that have ended</h2>
      ${this.#attempts.items.length === 0 ? empty("None.") : html`<ul class="attempts">${this.#attempts.items.map((each) => html`<li>
        ${each.work_id === this.#id ? html`attempt ${each.attempt}, this one` : recordLink(each.work_id, `attempt ${each.attempt}`)}
        ${badge(each.outcome)} by ${toolLink(each.tool_id)}, ended ${moment(each.ended_at)}</li>`)}</ul>`}
      ${this.#attempts.complete ? nothing : html`<p class="faint">These are the newest ${ATTEMPTS}.</p>`}
    </section>`;
  }
}
