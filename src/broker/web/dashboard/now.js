// Now: the tools, the work under way with its progress, and the queue.

import { read } from "./api.js";
import { TOOL_STATES } from "./constants.js";
import { count, counted } from "./format.js";
import {
  badge, bar, button, doing, empty, json, list, numbers, section, since, table, taskLink, toolLink, unnamed,
} from "./parts.js";
import { requeueWork, cancelTask } from "./actions.js";
import { View } from "./view.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

// How many are drawn until somebody asks for more.
const TILES = 200, ROWS = 50;
const WORK_OF_TILE = 3;
const WORK = ["Task", "Tool", "State", "Since", "Progress", "Last report", unnamed("Do")];
const QUEUE = ["Needs", numbers("Priority"), numbers("Tasks"), unnamed("Share"), "The oldest waits for"];

export class Now extends View {
  static pause = 2000;
  title = "Now";
  #queue = null;
  #wanted = "";
  #state = null;
  #tiles = TILES;
  #rows = ROWS;

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
      <ul class="tiles">${list(this.app, shown.slice(0, this.#tiles), (tool) => tool.id, (tool) => tile(this.app, tool))}</ul>
      ${more(shown.length, this.#tiles, "tool", () => this.#set(() => { this.#tiles = shown.length; }))}
    </section>`;
  }

  #noTools() {
    if (!this.app.live.known) return "Reading…";
    return this.app.live.tools.size ? "No tool is like that." : "No tool has registered yet. Any program can be one: broker tool --id ID --skills JSON -- PROGRAM";
  }

  #running() {
    const work = this.app.live.work(), { load } = this.app.live;
    return section("running", html`Work under way <span class="faint">${count(Math.max(work.length, load))}</span>`, [
      table(this.app, WORK, work.slice(0, this.#rows), (each) => cells(this.app, each), "No tool has any work.", ({ id }) => id),
      more(work.length, this.#rows, "piece", () => this.#set(() => { this.#rows = work.length; })),
      load > work.length ? html`<p class="faint">Of tools with much work only the oldest is shown.</p>` : nothing,
    ]);
  }

  #matches(tool) {
    const text = `${tool.id} ${tool.skills}`.toLowerCase();
    return this.#wanted.split(/\s+/).every((word) => text.includes(word));
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

const cells = (app, work) => [
  html`${taskLink(work.task_id)}${work.attempt > 1 ? html` <span class="faint">attempt ${work.attempt}</span>` : nothing}`,
  toolLink(work.tool_id),
  html`${badge(work.state)}${work.cancel_requested ? html` <span class="badge bad">asked to stop</span>` : nothing}`,
  since(app, work.started_at ?? work.assigned_at),
  work.state === "running" ? bar(work.progress, `Progress of ${work.task_id}`) : "–",
  work.message ?? "",
  html`<span class="buttons">
    ${button("Cancel", () => cancelTask(app, work.task_id), { label: `Cancel task ${work.task_id}` })}
    ${button("Take back", () => requeueWork(app, work.id, work.task_id), { label: `Take task ${work.task_id} from its tool` })}
  </span>`,
];

const queue = (app, { kinds, counted: looked, more: beyond }) => section(
  "queue",
  html`Queue <span class="faint">${beyond ? "more than " : ""}${count(looked)}</span>`,
  table(app, QUEUE, kinds, (kind) => [
    json(kind.needs),
    kind.priority,
    count(kind.tasks),
    html`<meter min="0" max=${Math.max(1, looked)} .value=${kind.tasks} aria-label="${counted(kind.tasks, "task")}"></meter>`,
    html`${since(app, kind.oldest_at)} (${taskLink(kind.oldest_id)})`,
  ], "Nothing waits."),
);

const more = (all, shown, noun, show) => all <= shown ? nothing : html`<p>
  ${count(shown)} of ${count(all)} are shown. ${button(`Show all ${counted(all, noun)}`, show)}</p>`;
