// Components that several views use.

import { STATES } from "./constants.js";
import { age, count, inLocalTime, moment, percent, shortened } from "./format.js";
import { guard } from "./vendor/lit-html/directives/guard.js";
import { repeat } from "./vendor/lit-html/directives/repeat.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

// The maximum number of characters of a value that are shown.
const MAX_SHOWN = 20_000;
const DOWNLOAD_MS = 60_000;

const link = (view, id) => `#/${view}/${encodeURIComponent(id)}`;

export const taskLink = (id) => html`<a class="id" href=${link("task", id)}>${id}</a>`;
export const toolLink = (id) => html`<a class="id" href=${link("tool", id)}>${id}</a>`;
export const recordLink = (id, text) => html`<a href=${link("record", id)}>${text ?? id}</a>`;

/** A state or an outcome, as words in its colour. */
export const badge = (state, text = STATES[state].label) => html`<span class="badge ${STATES[state].colour}">${text}</span>`;

/** A progress bar. Without a number it is indeterminate. */
export function progressBar(progress, label) {
  return progress === null
    ? html`<progress aria-label=${label}></progress>`
    : html`<progress max="1" .value=${progress} aria-label=${label}>${percent(progress)}</progress>`;
}

/** How long ago a moment was. The tooltip shows the moment itself. */
export const since = (app, text) =>
  html`<time datetime=${text} title=${moment(text)}>${age(app.ago(text))}</time>`;

/** A work item of a tool: its age, its progress and its last message. */
export const workItem = (app, work) => html`<div class="work-item">
  ${taskLink(work.task_id)} ${since(app, work.started_at ?? work.assigned_at)}
  ${work.state === "running" ? progressBar(work.progress, `Progress of ${work.task_id}`) : nothing}
  <span class="message">${work.cancel_requested ? "Stop requested. " : ""}${work.state === "assigned" ? "Not started yet" : work.message ?? ""}</span>
</div>`;

/** JSON on one line. If it is shortened, the tooltip shows all of it. */
export const json = (text, max = 120) => html`<code title=${text.length > max ? text : nothing}>${shortened(text, max)}</code>`;

/** A list of facts by name. Facts that are null are left out. */
export const facts = (byName) => html`<dl class="facts">${Object.entries(byName).map(([name, fact]) =>
  fact === null ? nothing : html`<dt>${name}</dt><dd>${fact}</dd>`)}</dl>`;

/** A text under a heading. */
export const block = (title, text) => html`<h2>${title}</h2><pre tabindex="0" aria-label=${title}>${text}</pre>`;

/** A JSON value. A long value is shortened, with a button to download all of it. Nothing if the value is null. */
export function value(title, text) {
  if (text === undefined || text === "null") return nothing;
  const isLong = text.length > MAX_SHOWN;
  return html`${block(title, isLong ? `${text.slice(0, MAX_SHOWN)}…` : text)}
    ${isLong ? html`<p class="buttons"><span class="muted">Showing the first ${count(MAX_SHOWN)} of
      ${count(text.length)} characters.</span>
      ${button("Download all", () => download(`${title}.json`, text), { label: `Download all of ${title}` })}</p>` : nothing}`;
}

/** Download a text as a file. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  // Some browsers start to read the URL later.
  setTimeout(() => URL.revokeObjectURL(url), DOWNLOAD_MS);
}

/** A list of items. It draws an item again if the item is another object, and every second, because items show times. */
export const list = (app, items, key, template) => repeat(items, key,
  (item, index) => guard([item, Math.floor(app.now() / 1000)], () => template(item, index)));

/** A column of numbers. */
export const numberColumn = (name) => ({ name, kind: "number" });
/** A column whose cells need no name on a narrow screen. */
export const unlabelledColumn = (name) => ({ name, label: nothing });

/**
 * A table with a row for each item, or a text if there are no items.
 *
 * @param columns - the names of the columns, or results of `numberColumn` and `unlabelledColumn`
 * @param cells - called with an item and its index, returns the cells of its row
 * @param emptyText - the text if there are no items
 * @param key - called with an item, returns a value that identifies it
 */
export function table(app, columns, items, cells, emptyText, key) {
  if (items.length === 0) return empty(emptyText);
  const all = columns.map((column) => (typeof column === "string" ? { name: column } : column));
  const cell = ({ name, label = name, kind = nothing }, content) => html`<td data-name=${label} class=${kind}>${content}</td>`;
  return html`<table>
    <thead><tr>${all.map(({ name, kind = nothing }) => html`<th scope="col" class=${kind}>${name}</th>`)}</tr></thead>
    <tbody>${list(app, items, key, (item, index) => html`<tr>${cells(item, index).map((content, column) => cell(all[column], content))}</tr>`)}</tbody>
  </table>`;
}

/** Show a text of the broker: times in the local time zone, and text between backticks as code. */
export const prose = (text) => inLocalTime(text).split(/`([^`]+)`/)
  .map((part, index) => (index % 2 ? html`<code>${part}</code>` : part));

/** A section of a view, with a heading. */
export const section = (id, heading, content) => html`<section aria-labelledby=${id}><h2 id=${id}>${heading}</h2>${content}</section>`;

export const empty = (text) => html`<p class="empty">${text}</p>`;

/** An error, shown and announced to screen readers. */
export const errorMessage = (error) => html`<p class="error" role="alert">${error.message}</p>`;

/** A button that acts on a task, a tool or a record. */
export const button = (text, onClick, { danger = false, label } = {}) => html`<button type="button"
  class=${danger ? "danger" : nothing} aria-label=${label ?? nothing} @click=${onClick}>${text}</button>`;
