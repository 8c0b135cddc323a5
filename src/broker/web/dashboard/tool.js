// The page of one tool: its skills, its current work and its recent attempts.

import { deleteTool, drainTool, undrainTool } from "./actions.js";
import { path, read, readText } from "./api.js";
import {
  badge, block, button, empty, facts, numberColumn, recordLink, section, since, table, taskLink, workItem,
} from "./components.js";
import { WORK_STATES } from "./constants.js";
import { between, moment, span } from "./format.js";
import { members } from "./json-text.js";
import { html } from "./vendor/lit-html/lit-html.js";
import { DetailView } from "./view.js";

const MAX_ATTEMPTS = 50;
const COLUMNS = ["Ended", "Task", "Outcome", numberColumn("Run time")];

export class Tool extends DetailView {
  notFound = "Tool not found. Check the id. The tool may have been deleted.";
  #tool;
  #skills;
  #attempts;

  async fetchData() {
    const [text, timeline] = await Promise.all([
      readText(path("tools", this.id)),
      read("/v1/overview/timeline", { tool_id: this.id, limit: MAX_ATTEMPTS }),
    ]);
    this.#tool = JSON.parse(text);
    this.#skills = members(text).skills;
    this.#attempts = timeline.items;
  }

  onEvent(kind, data) {
    if (data === null || (kind === "tool" ? data.id : data.tool_id) === this.id) this.refreshSoon();
  }

  content() {
    const tool = this.#tool;
    const work = [...(this.app.live.tools.get(this.id)?.work.values() ?? [])];
    return html`<section class="card">
        <div class="toolbar"><h1>${tool.id}</h1>${badge(tool.state)}
          <span class="buttons">
            ${tool.state === "draining"
              ? button("Stop draining", () => undrainTool(this.app, tool.id))
              : button("Drain", () => drainTool(this.app, tool.id))}
            ${button("Delete", () => deleteTool(this.app, tool.id), { danger: true })}
          </span></div>
        ${facts({
          "Load": html`${tool.load} of ${tool.capacity}`,
          "Registered": moment(tool.registered_at),
          "Last contact": html`${since(this.app, tool.seen_at)} ago. The tool goes offline after ${span(tool.lease_seconds)} without contact.`,
        })}
        ${block("Skills", this.#skills)}
      </section>
      ${section("work", "Current work", work.length === 0 ? empty("The tool has no work.")
        : html`<ul class="tiles">${work.map((each) => html`<li class="tile ${WORK_STATES.running.colour}">${workItem(this.app, each)}</li>`)}</ul>`)}
      ${section("attempts", "Recent attempts", table(this.app, COLUMNS, this.#attempts, (each) => [
        recordLink(each.work_id, moment(each.ended_at)),
        taskLink(each.task_id),
        badge(each.outcome),
        span(between(each.started_at, each.ended_at)),
      ], "No attempt has ended yet."))}`;
  }
}
