// One tool: its skills, its work, and its last attempts.

import { path, read, readText } from "./api.js";
import { WORK_STATES } from "./constants.js";
import { between, moment, span } from "./format.js";
import { badge, block, button, doing, empty, facts, numbers, recordLink, section, since, table, taskLink } from "./parts.js";
import { deleteTool, drainTool, undrainTool } from "./actions.js";
import { members } from "./jsontext.js";
import { Thing } from "./view.js";
import { html } from "./vendor/lit-html/lit-html.js";

const LATEST = 50;
const COLUMNS = ["Ended", "Task", "Outcome", numbers("Ran for")];

export class Tool extends Thing {
  missing = "There is no such tool, or it was deleted.";
  #tool;
  #skills;
  #attempts;

  async find() {
    const [text, timeline] = await Promise.all([
      readText(path("tools", this.id)),
      read("/v1/overview/timeline", { tool_id: this.id, limit: LATEST }),
    ]);
    this.#tool = JSON.parse(text);
    this.#skills = members(text).skills;
    this.#attempts = timeline.items;
  }

  heard(kind, data) {
    if (data === null || (kind === "tool" ? data.id : data.tool_id) === this.id) this.changed();
  }

  drawn() {
    const tool = this.#tool;
    const work = [...(this.app.live.tools.get(this.id)?.work.values() ?? [])];
    return html`<section class="card">
        <div class="head"><h1>${tool.id}</h1>${badge(tool.state)}
          <span class="buttons">
            ${tool.state === "draining"
              ? button("Let it have work again", () => undrainTool(this.app, tool.id))
              : button("Drain", () => drainTool(this.app, tool.id))}
            ${button("Delete", () => deleteTool(this.app, tool.id), { danger: true })}
          </span></div>
        ${facts({
          "Load": html`${tool.load} of ${tool.capacity}`,
          "Registered": moment(tool.registered_at),
          "Last heard of": html`${since(this.app, tool.seen_at)} ago; offline after ${span(tool.lease_seconds)} of silence`,
        })}
        ${block("Skills", this.#skills)}
      </section>
      ${section("has", "At work on", work.length === 0 ? empty("Nothing.")
        : html`<ul class="tiles">${work.map((each) => html`<li class="tile ${WORK_STATES.running.colour}">${doing(this.app, each)}</li>`)}</ul>`)}
      ${section("did", "Lately", table(this.app, COLUMNS, this.#attempts, (each) => [
        recordLink(each.work_id, moment(each.ended_at)),
        taskLink(each.task_id),
        badge(each.outcome),
        span(between(each.started_at, each.ended_at)),
      ], "It has ended nothing yet."))}`;
  }
}
