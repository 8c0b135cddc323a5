// Parts of the page that several views use.

import { STATES } from "./constants.js";
import { age, count, cut, moment, percent } from "./format.js";
import { guard } from "./vendor/lit-html/directives/guard.js";
import { repeat } from "./vendor/lit-html/directives/repeat.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

// The most characters of a value that are shown.
const MOST_SHOWN = 20_000;
const KEPT_MS = 60_000;

const link = (view, id) => `#/${view}/${encodeURIComponent(id)}`;

export const taskLink = (id) => html`<a class="id" href=${link("task", id)}>${id}</a>`;
export const toolLink = (id) => html`<a class="id" href=${link("tool", id)}>${id}</a>`;
export const recordLink = (id, text) => html`<a href=${link("record", id)}>${text ?? id}</a>`;

/** A state or an outcome, in its colour and in words. */
export const badge = (state, text = STATES[state].label) => html`<span class="badge ${STATES[state].colour}">${text}</span>`;

/** A progress bar; without a number it is indeterminate. */
export function bar(progress, label) {
  return progress === null
    ? html`<progress aria-label=${label}></progress>`
    : html`<progress max="1" .value=${progress} aria-label=${label}>${percent(progress)}</progress>`;
}

/** How long ago a moment was; the moment itself is the title. */
export const since = (app, text) =>
  html`<time datetime=${text} title=${moment(text)}>${age(app.ago(text))}</time>`;

/** The work of a tool: its age, its progress and its last message. */
export const doing = (app, work) => html`<div class="doing">
  ${taskLink(work.task_id)} ${since(app, work.started_at ?? work.assigned_at)}
  ${work.state === "running" ? bar(work.progress, `Progress of ${work.task_id}`) : nothing}
  <span class="message">${work.cancel_requested ? "Asked to stop. " : ""}${work.state === "assigned" ? "Not started yet" : work.message ?? ""}</span>
</div>`;

/** JSON on a line. */
export const json = (text, most = 120) => html`<code title=${text.length > most ? text : nothing}>${cut(text, most)}</code>`;

/** Facts about a thing, by name; null if one is not known. */
export const facts = (all) => html`<dl class="facts">${Object.entries(all).map(([name, fact]) =>
  fact === null ? nothing : html`<dt>${name}</dt><dd>${fact}</dd>`)}</dl>`;

/** A text under a heading. */
export const block = (title, text) => html`<h2>${title}</h2><pre tabindex="0" aria-label=${title}>${text}</pre>`;

/** A JSON value; a long one is shortened, with a button to download all of it. Nothing if it is null. */
export function value(title, text) {
  if (text === undefined || text === "null") return nothing;
  const isLong = text.length > MOST_SHOWN;
  return html`${block(title, isLong ? `${text.slice(0, MOST_SHOWN)}…` : text)}
    ${isLong ? html`<p class="buttons"><span class="faint">These are the first ${count(MOST_SHOWN)} of
      ${count(text.length)} characters.</span>
      ${button("Download all", () => download(`${title}.json`, text), { label: `Download all of ${title}` })}</p>` : nothing}`;
}

/** Download a text as a file with a name. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  // Some browsers begin to read it later.
  setTimeout(() => URL.revokeObjectURL(url), KEPT_MS);
}

/** A list of items, drawn again if they are other objects, and every second, as they show times. */
export const list = (app, items, key, template) => repeat(items, key,
  (item, place) => guard([item, Math.floor(app.now() / 1000)], () => template(item, place)));

/** A column of numbers. */
export const numbers = (name) => ({ name, kind: "number" });
/** A column whose cells say what they are: on a narrow screen they need no name. */
export const unnamed = (name) => ({ name, label: nothing });

/**
 * A table with a row for each item, or a text if there are none.
 *
 * @param columns - the names of the columns, or what `numbers` and `unnamed` return
 * @param cells - called with an item and its place; returns the cells of its row
 * @param none - the text if there are no items
 * @param key - called with an item; returns what it is recognized by
 */
export function table(app, columns, items, cells, none, key) {
  if (items.length === 0) return empty(none);
  const all = columns.map((column) => (typeof column === "string" ? { name: column } : column));
  const cell = ({ name, label = name, kind = nothing }, content) => html`<td data-name=${label} class=${kind}>${content}</td>`;
  return html`<table>
    <thead><tr>${all.map(({ name, kind = nothing }) => html`<th scope="col" class=${kind}>${name}</th>`)}</tr></thead>
    <tbody>${list(app, items, key, (item, place) => html`<tr>${cells(item, place).map((content, at) => cell(all[at], content))}</tr>`)}</tbody>
  </table>`;
}

/** A part of a view, with a heading. */
export const section = (id, heading, content) => html`<section aria-labelledby=${id}><h2 id=${id}>${heading}</h2>${content}</section>`;

export const empty = (text) => html`<p class="empty">${text}</p>`;

/** An error, shown and announced to screen readers. */
export const trouble = (error) => html`<p class="trouble" role="alert">${error.message}</p>`;

/** A button that acts on a task, a tool or a record. */
export const button = (text, act, { danger = false, label } = {}) => html`<button type="button"
  class=${danger ? "danger" : nothing} aria-label=${label ?? nothing} @click=${act}>${text}</button>`;
