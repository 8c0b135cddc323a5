// The page "Overview": the tools, the work in progress, and the queue.

import { cancelTask, requeueWork } from "./actions.js";
import { read } from "./api.js";
import {
  badge, button, empty, json, list, numberColumn, progressBar, section, since, table, taskLink, toolLink,
  unlabelledColumn, workItem,
} from "./components.js";
import { TOOL_STATES } from "./constants.js";
import { count, counted } from "./format.js";
import { MAX_WORK } from "./live.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";
import { View } from "./view.js";

// The numbers of tiles and rows that are drawn until the user asks for more.
const TILES = 200, ROWS = 50;
const WORK_PER_TILE = 3;
const WORK = ["Task", "Tool", "State", "Elapsed", "Progress", "Last message", unlabelledColumn("Actions")];
const QUEUE = ["Needs", numberColumn("Priority"), numberColumn("Tasks"), unlabelledColumn("Share"), "Longest wait", "Oldest task"];
const SEARCH = "Find a tool by name or skill";

export class Overview extends View {
  static pause = 2000;
  title = "Overview";
  #queue = null;
  #search = "";
  #state = null;
  #tiles = TILES;
  #rows = ROWS;

  async load() {
    this.#queue = await read("/v1/overview/queue");
  }

  template() {
    return html`<h1 class="visually-hidden">Overview</h1>
      ${this.#tools()}
      ${this.#running()}
      ${this.#queue ? queue(this.app, this.#queue) : nothing}`;
  }

  #tools() {
    const { live } = this.app;
    const matching = [...live.tools.values()].filter((tool) => this.#matches(tool));
    const shown = this.#state ? matching.filter((tool) => tool.state === this.#state) : matching;
    return html`<section aria-labelledby="tools">
      <div class="toolbar">
        <h2 id="tools">Tools</h2>
        <input type="search" placeholder=${SEARCH} aria-label=${SEARCH}
          @input=${(event) => this.#set(() => { this.#search = event.target.value.toLowerCase(); })}>
        <div class="buttons" role="group" aria-label="Show only tools in this state">
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
    if (!this.app.live.isLoaded) return "Loading…";
    return this.app.live.tools.size
      ? "No tool matches. Change the search text, or choose another state."
      : html`No tool has registered yet. To use any program as a tool, run <code>broker tool --id ID --skills JSON -- PROGRAM</code>. <a href="/help/get-started/first-task/">Your first task</a> shows all steps.`;
  }

  #running() {
    const { live } = this.app, work = live.work();
    const isPartial = [...live.tools.values()].some((tool) => tool.load > MAX_WORK);
    return section("running", html`Work in progress <span class="muted">${count(Math.max(work.length, live.load))}</span>`, [
      table(this.app, WORK, work.slice(0, this.#rows), (each) => cells(this.app, each),
        "No work in progress. Work appears here when an assigner assigns a task to a tool.", ({ id }) => id),
      more(work.length, this.#rows, "work item", () => this.#set(() => { this.#rows = work.length; })),
      isPartial ? html`<p class="muted">Only the oldest ${MAX_WORK} work items of each tool are shown.</p>` : nothing,
    ]);
  }

  #matches(tool) {
    const text = `${tool.id} ${tool.skills}`.toLowerCase();
    return this.#search.split(/\s+/).every((word) => text.includes(word));
  }

  #set(change) {
    change();
    this.app.draw();
  }
}

function tile(app, tool) {
  const work = [...tool.work.values()];
  const hidden = tool.load - Math.min(work.length, WORK_PER_TILE);
  return html`<li class="tile ${TOOL_STATES[tool.state].colour}">
    <div class="toolbar">${toolLink(tool.id)}
      <span>${tool.capacity > 1 ? html`<span class="muted">load ${tool.load} of ${tool.capacity}</span> ` : nothing}${badge(tool.state)}</span></div>
    ${work.slice(0, WORK_PER_TILE).map((each) => workItem(app, each))}
    ${hidden > 0 ? html`<p class="muted">and ${hidden} more</p>` : nothing}
    ${work.length === 0 ? html`<p class="muted">${json(tool.skills, 60)}</p>` : nothing}
  </li>`;
}

const cells = (app, work) => [
  html`${taskLink(work.task_id)}${work.attempt > 1 ? html` <span class="muted detail">attempt ${work.attempt}</span>` : nothing}`,
  toolLink(work.tool_id),
  html`${badge(work.state)}${work.cancel_requested ? html` <span class="badge red">stop requested</span>` : nothing}`,
  since(app, work.started_at ?? work.assigned_at),
  work.state === "running" ? progressBar(work.progress, `Progress of ${work.task_id}`) : "–",
  work.message ?? "",
  html`<span class="buttons">
    ${button("Cancel", () => cancelTask(app, work.task_id), { label: `Cancel task ${work.task_id}` })}
    ${button("Requeue", () => requeueWork(app, work.id, work.task_id), { label: `Requeue task ${work.task_id}` })}
  </span>`,
];

const queue = (app, { kinds, counted: total, more: isPartial }) => section(
  "queue",
  html`Queue <span class="muted">${isPartial ? "more than " : ""}${count(total)}</span>`,
  table(app, QUEUE, kinds, (kind) => [
    json(kind.needs),
    kind.priority,
    count(kind.tasks),
    html`<meter min="0" max=${Math.max(1, total)} .value=${kind.tasks} aria-label="${counted(kind.tasks, "task")}"></meter>`,
    since(app, kind.oldest_at),
    taskLink(kind.oldest_id),
  ], html`The queue is empty. To submit a task, run <code>broker submit --needs JSON --payload JSON</code>`),
);

const more = (total, shown, noun, showAll) => total <= shown ? nothing : html`<p>
  Showing ${count(shown)} of ${count(total)}. ${button(`Show all ${counted(total, noun)}`, showAll)}</p>`;
