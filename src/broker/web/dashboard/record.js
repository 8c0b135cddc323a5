// The page of one attempt, ended or running: its task, its reports and its outcome.

import { acceptLate, acceptsLateResult, deleteRecord, requeueWork, retryTask } from "./actions.js";
import { path, read, readText } from "./api.js";
import {
  badge, block, button, download, empty, facts, progressBar, recordLink, section, since, table, taskLink, toolLink, value,
} from "./components.js";
import { OUTCOMES, WORK_STATES } from "./constants.js";
import { between, count, moment, percent, shortened, span } from "./format.js";
import { elements, members } from "./json-text.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { DetailView } from "./view.js";

const MAX_ATTEMPTS = 100;
const MAX_REPORTS = 500;
const MAX_DATA = 200;
const COLUMNS = ["Elapsed", { name: "Progress", kind: "progress" }, "Message", "Data"];

export class Record extends DetailView {
  title = "Record";
  notFound = "Record not found. Check the id. The record may have been deleted.";
  #record;
  #text;
  #texts;
  #attempts;
  #taskState;

  async fetchData() {
    const text = await this.#read();
    const record = JSON.parse(text);
    [this.#attempts, this.#taskState] = await Promise.all([
      read("/v1/overview/timeline", { task_id: record.task_id, limit: MAX_ATTEMPTS }), this.#stateOf(record),
    ]);
    this.#text = text;
    this.#texts = textsOf(text, record);
    this.#record = record;
  }

  onEvent(kind, data) {
    if (data === null || data.id === this.id || data.work_id === this.id) this.refreshSoon();
  }

  content() {
    const record = this.#record;
    const { outcome = record.state, started_at: started, ended_at: ended } = record;
    return html`<section class="card">
        <div class="toolbar"><h1>Attempt ${record.attempt} of task ${record.task_id}</h1>${badge(outcome)}
          <span class="buttons">${this.#actions()}</span></div>
        ${record.late ? html`<p class="note">A late result arrived at ${moment(record.late.at)}, after the attempt had
          ended.${outcome === "succeeded" ? " It was accepted." : nothing}</p>` : nothing}
        ${record.state === "running" ? progressBar(record.progress, "Progress") : nothing}
        ${facts({
          "Task": taskLink(record.task_id),
          "Tool": record.tool_id ? toolLink(record.tool_id) : "none, the task was never assigned",
          "Assigned": html`${moment(record.assigned_at)}${this.#waited()}`,
          "Started": html`${moment(started)}${started && !ended ? html`, ${since(this.app, started)} ago` : nothing}`,
          "Ended": ended ? html`${moment(ended)}${started ? `, after ${span(between(started, ended))}` : nothing}` : null,
        })}
        ${record.error ? block("Error", record.error) : nothing}
        ${value("Result", this.#texts.result)}
        ${record.late ? value("Late result", this.#texts.late) : nothing}
        ${value("Needs", this.#texts.needs)}
        ${value("Payload", this.#texts.payload)}
      </section>
      ${this.#reports()}
      ${this.#otherAttempts()}`;
  }

  /** Read the record, or the running work, as text. */
  async #read() {
    const work = () => readText(path("work", this.id));
    // The API also returns work that has ended, but the record has more fields.
    if (isActive(this.#record) || this.app.live.work().some(({ id }) => id === this.id)) {
      const text = await work();
      if (isActive(JSON.parse(text))) return text;
    }
    return await unlessMissing(readText(path("archive", this.id))) ?? work();
  }

  /** Return the state of the task, or null if the attempt ended the task or the task is unknown. */
  async #stateOf({ outcome, task_id: task }) {
    if (outcome === undefined || OUTCOMES[outcome].ends_task) return null;
    return (await unlessMissing(read(path("tasks", task))))?.state ?? null;
  }

  #waited() {
    const { task, attempt, assigned_at: assigned } = this.#record;
    if (!task || attempt > 1 || !assigned) return nothing;
    const waited = Math.min(...[task.created_at, task.not_before].filter(Boolean).map((from) => between(from, assigned)));
    return `, after waiting ${span(waited)}`;
  }

  #actions() {
    const { task_id: task, ended_at: ended, late, outcome } = this.#record;
    const file = button("Download", () => download(`${this.id}.json`, this.#text), { label: "Download this record as JSON" });
    if (!ended) return [button("Requeue", () => requeueWork(this.app, this.id, task)), file];
    return [
      file,
      late && outcome !== "succeeded" && acceptsLateResult(this.#taskState)
        ? button("Accept late result", () => acceptLate(this.app, this.id, task)) : nothing,
      this.#taskState === "failed" ? button("Retry task", () => retryTask(this.app, task)) : nothing,
      button("Delete record", () => deleteRecord(this.app, this.id), { danger: true }),
    ];
  }

  #reports() {
    const { reports, started_at: started } = this.#record;
    return section("reports", html`Reports <span class="muted">${count(reports.length)}</span>`, [
      table(this.app, COLUMNS, reports.slice(0, MAX_REPORTS), (report, index) => [
        html`<span title=${moment(report.at)}>${span(between(started ?? report.at, report.at))}</span>`,
        report.progress === null ? "" : html`${progressBar(report.progress, "Progress")} ${percent(report.progress)}`,
        report.message ?? "",
        report.data === null ? "" : html`<code>${shortened(this.#texts.data[index], MAX_DATA)}</code>`,
      ], "No reports."),
      reports.length > MAX_REPORTS ? html`<p class="muted">Showing the first ${MAX_REPORTS} reports. Download the record to get all of them.</p>` : nothing,
    ]);
  }

  #otherAttempts() {
    const { items, complete } = this.#attempts;
    return section("attempts", "Ended attempts of this task", [
      items.length === 0 ? empty("No attempt has ended yet.") : html`<ul class="attempts">${items.map((each) => html`<li>
        ${each.work_id === this.id ? html`attempt ${each.attempt} (this one)` : recordLink(each.work_id, `attempt ${each.attempt}`)}
        ${badge(each.outcome)} on ${toolLink(each.tool_id)}, ended ${moment(each.ended_at)}</li>`)}</ul>`,
      complete ? nothing : html`<p class="muted">Showing the newest ${MAX_ATTEMPTS}.</p>`,
    ]);
  }
}

/** Return the result of a request, or null if the broker returns 404. */
async function unlessMissing(request) {
  try {
    return await request;
  } catch (error) {
    if (error.status !== 404) throw error;
    return null;
  }
}

const isActive = (work) => work?.state in WORK_STATES;

/** Return the JSON values of a record as text, with all digits. */
function textsOf(text, { task, late }) {
  const own = members(text);
  const { needs, payload } = task ? members(own.task) : own;
  return {
    needs, payload, result: own.result,
    late: late ? members(own.late).result : undefined,
    data: elements(own.reports).slice(0, MAX_REPORTS).map((report) => members(report).data),
  };
}
