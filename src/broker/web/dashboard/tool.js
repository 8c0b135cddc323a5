// One tool: its skills, its work, and its last attempts.

import { path, read, readText } from "./api.js";
import { WORK_STATES } from "./constants.js";
import { between, moment, span } from "./format.js";
import { badge, button, doing, empty, recordLink, since, taskLink } from "./parts.js";
import { deleteTool, drainTool, undrainTool } from "./actions.js";
import { member } from "./jsontext.js";
import { Thing } from "./thing.js";
import { html } from "./vendor/lit-html/lit-html.js";

const LATEST = 50;

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
    this.#skills = member(text, "skills");
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
        <dl class="facts">
          <dt>Load</dt><dd>${tool.load} of ${tool.capacity}</dd>
          <dt>Registered</dt><dd>${moment(tool.registered_at)}</dd>
          <dt>Last heard of</dt><dd>${since(this.app, tool.seen_at)} ago; offline after ${span(tool.lease_seconds)} of silence</dd>
        </dl>
        <h2>Skills</h2><pre tabindex="0" aria-label="Skills">${this.#skills}</pre>
      </section>
      <section aria-labelledby="has"><h2 id="has">At work on</h2>
        ${work.length === 0 ? empty("Nothing.") : html`<ul class="tiles">${work.map((each) => html`<li class="tile ${WORK_STATES.running.colour}">
          ${doing(this.app, each)}</li>`)}</ul>`}
      </section>
      <section aria-labelledby="did"><h2 id="did">Lately</h2>
        ${this.#attempts.length === 0 ? empty("It has ended nothing yet.") : html`<table>
          <thead><tr><th scope="col">Ended</th><th scope="col">Task</th><th scope="col">Outcome</th><th scope="col" class="number">Ran for</th></tr></thead>
          <tbody>${this.#attempts.map((each) => html`<tr>
            <td data-name="Ended">${recordLink(each.work_id, moment(each.ended_at))}</td>
            <td data-name="Task">${taskLink(each.task_id)}</td>
            <td data-name="Outcome">${badge(each.outcome)}</td>
            <td data-name="Ran for" class="number">${each.started_at ? span(between(each.started_at, each.ended_at)) : "–"}</td>
          </tr>`)}</tbody></table>`}
      </section>`;
  }
}
