// One attempt, archived or under way: its task, every report, and how it ended.

import { path, read, readText } from "./api.js";
import { OUTCOMES, WORK_STATES } from "./constants.js";
import { between, count, cut, moment, percent, span } from "./format.js";
import { elements, member } from "./jsontext.js";
import { badge, bar, button, download, empty, recordLink, since, taskLink, toolLink, value } from "./parts.js";
import { acceptLate, deleteRecord, mayTakeLate, requeueWork, retryTask } from "./actions.js";
import { Thing } from "./thing.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

const ATTEMPTS = 100;
const REPORTS = 500;
const DATA = 200;

export class Record extends Thing {
  missing = "There is no such work, or its record was deleted.";
  #record;
  #text;
  #texts;
  #attempts;
  #taskState;

  constructor(app, id) {
    super(app, id, "Record");
  }

  async find() {
    const text = await this.#read();
    const record = JSON.parse(text);
    [this.#attempts, this.#taskState] = await Promise.all([
      read("/v1/overview/timeline", { task_id: record.task_id, limit: ATTEMPTS }), this.#stateOf(record),
    ]);
    this.#text = text;
    this.#texts = textsOf(text, record);
    this.#record = record;
  }

  heard(kind, data) {
    if (data === null || data.id === this.id || data.work_id === this.id) this.changed();
  }

  drawn() {
    const record = this.#record;
    const { outcome = record.state, started_at: started } = record;
    return html`<section class="card">
        <div class="head"><h1>Attempt ${record.attempt} at ${record.task_id}</h1>${badge(outcome)}
          <span class="buttons">${this.#actions()}</span></div>
        ${record.late ? html`<p class="note">A late result came ${moment(record.late.at)}, after the attempt had ended
          without it.${outcome === "succeeded" ? " It was taken." : nothing}</p>` : nothing}
        ${record.state === "running" ? bar(record.progress, "Progress") : nothing}
        <dl class="facts">
          <dt>Task</dt><dd>${taskLink(record.task_id)}</dd>
          <dt>Tool</dt><dd>${record.tool_id ? toolLink(record.tool_id) : "none: it was never assigned"}</dd>
          <dt>Assigned</dt><dd>${moment(record.assigned_at)}${this.#waited()}</dd>
          <dt>Started</dt><dd>${moment(started)}${started && !record.ended_at ? html`, ${since(this.app, started)} ago` : nothing}</dd>
          ${record.ended_at ? html`<dt>Ended</dt><dd>${moment(record.ended_at)}${started
            ? `, after ${span(between(started, record.ended_at))}` : nothing}</dd>` : nothing}
        </dl>
        ${record.error ? html`<h2>Error</h2><pre tabindex="0" aria-label="Error">${record.error}</pre>` : nothing}
        ${value("Result", this.#texts.result)}
        ${record.late ? value("Late result", this.#texts.late) : nothing}
        ${value("Needs", this.#texts.needs)}
        ${value("Payload", this.#texts.payload)}
      </section>
      ${this.#reports()}
      ${this.#beside()}`;
  }

  /** Read the record, or the work under way, as text. */
  async #read() {
    const work = () => readText(path("work", this.id));
    // The API also returns work that has ended, but the record has more.
    if (isUnderWay(this.#record) || this.app.live.work().some(({ id }) => id === this.id)) {
      const text = await work();
      if (isUnderWay(JSON.parse(text))) return text;
    }
    return await unlessMissing(readText(path("archive", this.id))) ?? work();
  }

  /** The state of its task if actions on the task may be possible; null otherwise, or if the task is unknown. */
  async #stateOf({ outcome, task_id: task }) {
    if (outcome === undefined || OUTCOMES[outcome].ends_task) return null;
    return (await unlessMissing(read(path("tasks", task))))?.state ?? null;
  }

  #waited() {
    const { task, attempt, assigned_at: assigned } = this.#record;
    if (!task || attempt > 1 || !assigned) return nothing;
    const waited = Math.min(...[task.created_at, task.not_before].filter(Boolean).map((from) => between(from, assigned)));
    return `, after ${span(waited)} of waiting`;
  }

  #actions() {
    const { task_id: task, ended_at: ended, late, outcome } = this.#record;
    const file = button("Download", () => download(`${this.id}.json`, this.#text), { label: "Download all of this as JSON" });
    if (!ended) return [button("Take back", () => requeueWork(this.app, this.id, task)), file];
    return [
      file,
      late && outcome !== "succeeded" && mayTakeLate(this.#taskState)
        ? button("Take the late result", () => acceptLate(this.app, this.id, task)) : nothing,
      this.#taskState === "failed" ? button("Try the task again", () => retryTask(this.app, task)) : nothing,
      button("Delete the record", () => deleteRecord(this.app, this.id), { danger: true }),
    ];
  }

  #reports() {
    const { reports, started_at: started } = this.#record;
    return html`<section aria-labelledby="reports"><h2 id="reports">Reports <span class="faint">${count(reports.length)}</span></h2>
      ${reports.length === 0 ? empty("None.") : html`<table>
        <thead><tr><th scope="col">After</th><th scope="col">Progress</th><th scope="col">Message</th><th scope="col">Data</th></tr></thead>
        <tbody>${reports.slice(0, REPORTS).map((report, place) => html`<tr>
          <td data-name="After"><span title=${moment(report.at)}>${span(between(started ?? report.at, report.at))}</span></td>
          <td data-name="Progress" class="progress">${report.progress === null ? "" : html`${bar(report.progress, "Progress")} ${percent(report.progress)}`}</td>
          <td data-name="Message">${report.message ?? ""}</td>
          <td data-name="Data">${report.data === null ? "" : html`<code>${cut(this.#texts.data[place], DATA)}</code>`}</td>
        </tr>`)}</tbody></table>`}
      ${reports.length > REPORTS ? html`<p class="faint">The first ${REPORTS} are shown; to download this gives all.</p>` : nothing}
    </section>`;
  }

  #beside() {
    return html`<section aria-labelledby="attempts"><h2 id="attempts">All attempts at this task that have ended</h2>
      ${this.#attempts.items.length === 0 ? empty("None.") : html`<ul class="attempts">${this.#attempts.items.map((each) => html`<li>
        ${each.work_id === this.id ? html`attempt ${each.attempt}, this one` : recordLink(each.work_id, `attempt ${each.attempt}`)}
        ${badge(each.outcome)} by ${toolLink(each.tool_id)}, ended ${moment(each.ended_at)}</li>`)}</ul>`}
      ${this.#attempts.complete ? nothing : html`<p class="faint">These are the newest ${ATTEMPTS}.</p>`}
    </section>`;
  }
}

/** The response; null if the thing does not exist. */
async function unlessMissing(reading) {
  try {
    return await reading;
  } catch (error) {
    if (error.status !== 404) throw error;
    return null;
  }
}

const isUnderWay = (work) => work?.state in WORK_STATES;

/** The JSON values in it as text, with all digits. */
function textsOf(text, { task, late }) {
  const about = task ? member(text, "task") : text;
  return {
    needs: member(about, "needs"),
    payload: member(about, "payload"),
    result: member(text, "result"),
    late: late ? member(member(text, "late"), "result") : undefined,
    data: elements(member(text, "reports")).slice(0, REPORTS).map((report) => member(report, "data")),
  };
}
