// The header: links to the views, the connection, the counts, and a warning.

import { hasKey } from "./api.js";
import { ASSIGNER_ABSENT_SECONDS, OUTCOMES } from "./constants.js";
import { age, between, count } from "./format.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

const VIEWS = [["overview", "Overview"], ["waiting", "Waiting"], ["history", "History"]];
const STATES = { connecting: "Connecting…", live: "Connected", disconnected: "Not connected", "signed-out": "Signed out" };

export const header = (app) => html`
  <div class="bar">
    <a class="home" href="#/overview"><img src="/dashboard/icon.svg" alt="" width="24" height="24">broker</a>
    <nav aria-label="Pages">
      ${VIEWS.map(([name, text]) => html`<a href="#/${name}"
        aria-current=${app.name === name ? "page" : nothing}>${text}</a>`)}
      <a href="/docs">API</a>
      <a href="/help/">Help</a>
    </nav>
    <form class="search" role="search" @submit=${openTask}><input type="search" name="id" placeholder="Find a task by id"
      aria-label="Find a task by id"></form>
    <span class="state ${app.state}">${STATES[app.state]}</span>
    ${hasKey() ? html`<button type="button" class="plain" @click=${() => app.signOut()}>Sign out</button>` : nothing}
  </div>
  ${app.stats ? counts(app.stats) : nothing}
  ${app.stats ? warning(app.stats) : nothing}
`;

function openTask(event) {
  event.preventDefault();
  const id = new FormData(event.target).get("id").trim();
  if (id) location.hash = `#/task/${encodeURIComponent(id)}`;
}

function counts({ tasks, tools, last_minute: minute }) {
  const failed = Object.keys(OUTCOMES).filter((name) => OUTCOMES[name].went_wrong).reduce((sum, name) => sum + minute[name], 0);
  return html`<dl class="counts" aria-label="Counts">
    ${one("waiting", tasks.available + tasks.scheduled, "#/waiting")}
    ${one("running", tasks.running + tasks.assigned, "#/overview")}
    ${one("failed", tasks.failed, "#/history", tasks.failed > 0)}
    ${one(tools.idle === 1 ? "tool available" : "tools available", tools.idle)}
    ${one(tools.offline === 1 ? "tool offline" : "tools offline", tools.offline, "#/overview", tools.offline > 0)}
    ${one("submitted per minute", minute.submitted)}
    ${one("succeeded per minute", minute.succeeded)}
    ${one("failed per minute", failed, "#/history", failed > 0)}
  </dl>`;
}

const one = (name, value, href, alarming) => html`<div class=${alarming ? "alarming" : nothing}>
  <dt>${name}</dt><dd>${href ? html`<a href=${href}>${count(value)}</a>` : count(value)}</dd></div>`;

/** A warning if tasks wait but no assigner asks for them. */
function warning({ at, assigner_seen_at: seen, tasks }) {
  if (!tasks.available) return nothing;
  if (seen === null) return alarm(html`No assigner has asked for tasks yet, so tasks stay in the queue. To start one, run <code>broker assign</code>`);
  // Compare with the time of the statistics, because an assigner may have asked since then.
  const silence = between(seen, at);
  return silence > ASSIGNER_ABSENT_SECONDS
    ? alarm(`No assigner has asked for tasks for ${age(silence)}, so tasks stay in the queue. Check that an assigner is running.`)
    : nothing;
}

const alarm = (text) => html`<p class="alarm" role="alert">${text}</p>`;
