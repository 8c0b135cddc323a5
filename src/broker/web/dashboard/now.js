// Now: the tools, the work under way with its progress, and the queue.

import { read } from "./api.js";
import { TOOL_STATES } from "./constants.js";
import { count, counted } from "./format.js";
import { badge, bar, button, doing, empty, json, since, taskLink, toolLink } from "./parts.js";
import { requeueWork, cancelTask } from "./actions.js";
import { View } from "./view.js";
import { guard } from "./vendor/lit-html/directives/guard.js";
import { repeat } from "./vendor/lit-html/directives/repeat.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

// How many are drawn until somebody asks for more.
const TILES = 200, ROWS = 50;
const WORK_OF_TILE = 3;
const QUEUE_MS = 2000;

export class Now extends View {
  title = "Now";
  #queue = null;
  #wanted = "";
  #state = null;
  #tiles = TILES;
  #rows = ROWS;

  constructor(app) {
    super(app, QUEUE_MS);
  }

  async load() {
    this.#queue = await read("/v1/overview/queue");
  }

  template() {
    return html`<h1 class="for-ears">Now</h1>
      ${this.#tools()}
      ${this.#running()}
      ${this.#queue ? queue(this.app, this.#queue) : nothing}`;
  }

  #tools() {
    const { live } = this.app;
    const matching = [...live.tools.values()].filter((tool) => this.#matches(tool));
    const shown = this.#state ? matching.filter((tool) => tool.state === this.#state) : matching;
    return html`<section aria-labelledby="tools">
      <div class="head">
        <h2 id="tools">Tools</h2>
        <input type="search" placeholder="Find a tool or what it can do" aria-label="Find a tool or what it can do"
          @input=${(event) => this.#set(() => { this.#wanted = event.target.value.toLowerCase(); })}>
        <div class="buttons" role="group" aria-label="Show only tools that are">
          ${Object.entries(TOOL_STATES).map(([state, { label }]) => html`<button type="button" aria-pressed=${this.#state === state}
            @click=${() => this.#set(() => { this.#state = this.#state === state ? null : state; })}>
            ${label} ${count(matching.filter((tool) => tool.state === state).length)}</button>`)}
        </div>
      </div>
      ${shown.length === 0 ? empty(this.#noTools()) : nothing}
      <ul class="tiles">${repeat(shown.slice(0, this.#tiles), (tool) => tool.id,
        (tool) => guard([tool, Math.floor(this.app.now() / 1000)], () => tile(this.app, tool)))}</ul>
      ${more(shown.length, this.#tiles, "tool", () => this.#set(() => { this.#tiles = shown.length; }))}
    </section>`;
  }

  #noTools() {
    if (!this.app.live.known) return "Reading…";
    return this.app.live.tools.size ? "No tool is like that." : "No tool has registered yet. Any program can be one: broker tool --id ID --skills JSON -- PROGRAM";
  }

  #running() {
    const work = this.app.live.work(), { load } = this.app.live;
    return html`<section aria-labelledby="running">
      <h2 id="running">Work under way <span class="faint">${count(Math.max(work.length, load))}</span></h2>
      ${work.length === 0 ? empty("No tool has any work.") : html`<table>
        <thead><tr><th scope="col">Task</th><th scope="col">Tool</th><th scope="col">State</th><th scope="col">Since</th>
          <th scope="col">Progress</th><th scope="col">Last report</th><th scope="col">Do</th></tr></thead>
        <tbody>${repeat(work.slice(0, this.#rows), (each) => each.id,
          (each) => guard([each, Math.floor(this.app.now() / 1000)], () => row(this.app, each)))}</tbody>
      </table>`}
      ${more(work.length, this.#rows, "piece", () => this.#set(() => { this.#rows = work.length; }))}
      ${load > work.length
        ? html`<p class="faint">Of tools with much work only the oldest is shown.</p>` : nothing}
    </section>`;
  }

  #matches(tool) {
    const wanted = this.#wanted;
    const text = `${tool.id} ${tool.skills}`.toLowerCase();
    return wanted.split(/\s+/).every((word) => text.includes(word));
  }

  #set(change) {
    change();
    this.app.draw();
  }
}

function tile(app, tool) {
  const work = [...tool.work.values()];
  return html`<li class="tile ${TOOL_STATES[tool.state].colour}">
    <div class="head">${toolLink(tool.id)}
      <span>${tool.capacity > 1 ? html`<span class="faint">${tool.load} of ${tool.capacity}</span> ` : nothing}${badge(tool.state)}</span></div>
    ${work.slice(0, WORK_OF_TILE).map((each) => doing(app, each))}
    ${tool.load > Math.min(work.length, WORK_OF_TILE)
      ? html`<p class="faint">and ${tool.load - Math.min(work.length, WORK_OF_TILE)} more</p>` : nothing}
    ${work.length === 0 ? html`<p class="faint">${json(tool.skills, 60)}</p>` : nothing}
  </li>`;
}

const row = (app, work) => html`<tr>
  <td data-name="Task">${taskLink(work.task_id)}${work.attempt > 1 ? html` <span class="faint">attempt ${work.attempt}</span>` : nothing}</td>
  <td data-name="Tool">${toolLink(work.tool_id)}</td>
  <td data-name="State">${badge(work.state)}${work.cancel_requested ? html` <span class="badge bad">asked to stop</span>` : nothing}</td>
  <td data-name="Since">${since(app, work.started_at ?? work.assigned_at)}</td>
  <td data-name="Progress">${work.state === "running" ? bar(work.progress, `Progress of ${work.task_id}`) : "–"}</td>
  <td data-name="Last report">${work.message ?? ""}</td>
  <td><span class="buttons">
    ${button("Cancel", () => cancelTask(app, work.task_id), { label: `Cancel task ${work.task_id}` })}
    ${button("Take back", () => requeueWork(app, work.id, work.task_id), { label: `Take task ${work.task_id} from its tool` })}
  </span></td>
</tr>`;

function queue(app, { kinds, counted: looked, more: beyond }) {
  return html`<section aria-labelledby="queue">
    <h2 id="queue">Queue <span class="faint">${beyond ? "more than " : ""}${count(looked)}</span></h2>
    ${kinds.length === 0 ? empty("Nothing waits.") : html`<table>
      <thead><tr><th scope="col">Needs</th><th scope="col" class="number">Priority</th><th scope="col" class="number">Tasks</th>
        <th scope="col">Share</th><th scope="col">The oldest waits for</th></tr></thead>
      <tbody>${kinds.map((kind) => html`<tr>
        <td data-name="Needs">${json(kind.needs)}</td>
        <td data-name="Priority" class="number">${kind.priority}</td>
        <td data-name="Tasks" class="number">${count(kind.tasks)}</td>
        <td><meter min="0" max=${Math.max(1, looked)} .value=${kind.tasks} aria-label="${counted(kind.tasks, "task")}"></meter></td>
        <td data-name="The oldest waits for">${since(app, kind.oldest_at)} (${taskLink(kind.oldest_id)})</td>
      </tr>`)}</tbody>
    </table>`}
  </section>`;
}

const more = (all, shown, noun, show) => all <= shown ? nothing : html`<p>
  ${count(shown)} of ${count(all)} are shown. ${button(`Show all ${counted(all, noun)}`, show)}</p>`;
