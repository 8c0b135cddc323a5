// One attempt, archived or under way: its task, every report, and how it ended.

import { path, read, readText } from "./api.js";
import { OUTCOMES, WORK_STATES } from "./constants.js";
import { between, count, cut, moment, percent, span } from "./format.js";
import { elements, members } from "./jsontext.js";
import {
  badge, bar, block, button, download, empty, facts, recordLink, section, since, table, taskLink, toolLink, value,
} from "./parts.js";
import { acceptLate, deleteRecord, mayTakeLate, requeueWork, retryTask } from "./actions.js";
import { Thing } from "./view.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

const ATTEMPTS = 100;
const REPORTS = 500;
const DATA = 200;
const COLUMNS = ["After", { name: "Progress", kind: "progress" }, "Message", "Data"];

export class Record extends Thing {
  title = "Record";
  missing = "There is no such work, or its record was deleted.";
  #record;
  #text;
  #texts;
  #attempts;
  #taskState;

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
    const { outcome = record.state, started_at: started, ended_at: ended } = record;
    return html`<section class="card">
        <div class="head"><h1>Attempt ${record.attempt} at ${record.task_id}</h1>${badge(outcome)}
          <span class="buttons">${this.#actions()}</span></div>
        ${record.late ? html`<p class="note">A late result came ${moment(record.late.at)}, after the attempt had ended
          without it.${outcome === "succeeded" ? " It was taken." : nothing}</p>` : nothing}
        ${record.state === "running" ? bar(record.progress, "Progress") : nothing}
        ${facts({
          "Task": taskLink(record.task_id),
          "Tool": record.tool_id ? toolLink(record.tool_id) : "none: it was never assigned",
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
    return section("reports", html`Reports <span class="faint">${count(reports.length)}</span>`, [
      table(this.app, COLUMNS, reports.slice(0, REPORTS), (report, place) => [
        html`<span title=${moment(report.at)}>${span(between(started ?? report.at, report.at))}</span>`,
        report.progress === null ? "" : html`${bar(report.progress, "Progress")} ${percent(report.progress)}`,
        report.message ?? "",
        report.data === null ? "" : html`<code>${cut(this.#texts.data[place], DATA)}</code>`,
      ], "None."),
      reports.length > REPORTS ? html`<p class="faint">The first ${REPORTS} are shown; to download this gives all.</p>` : nothing,
    ]);
  }

  #beside() {
    const { items, complete } = this.#attempts;
    return section("attempts", "All attempts at this task that have ended", [
      items.length === 0 ? empty("None.") : html`<ul class="attempts">${items.map((each) => html`<li>
        ${each.work_id === this.id ? html`attempt ${each.attempt}, this one` : recordLink(each.work_id, `attempt ${each.attempt}`)}
        ${badge(each.outcome)} by ${toolLink(each.tool_id)}, ended ${moment(each.ended_at)}</li>`)}</ul>`,
      complete ? nothing : html`<p class="faint">These are the newest ${ATTEMPTS}.</p>`,
    ]);
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
  const own = members(text);
  const { needs, payload } = task ? members(own.task) : own;
  return {
    needs, payload, result: own.result,
    late: late ? members(own.late).result : undefined,
    data: elements(own.reports).slice(0, REPORTS).map((report) => members(report).data),
  };
}
