// The head of the page: the views, the connection, the counts, and warnings.

import { hasKey } from "./api.js";
import { ASSIGNER_ABSENT_SECONDS, OUTCOMES } from "./constants.js";
import { age, between, count } from "./format.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

const VIEWS = [["now", "Now"], ["why", "Why"], ["then", "Then"]];
const STATES = { connecting: "Connecting…", live: "Live", lost: "Not connected", out: "Signed out" };

export const header = (app) => html`
  <div class="bar">
    <a class="name" href="#/now"><img src="/dashboard/icon.svg" alt="" width="24" height="24">broker</a>
    <nav aria-label="Views">
      ${VIEWS.map(([name, text]) => html`<a href="#/${name}"
        aria-current=${app.name === name ? "page" : nothing}>${text}</a>`)}
      <a href="/docs">API</a>
    </nav>
    <form class="find" role="search" @submit=${find}><input type="search" name="id" placeholder="Find a task by its id"
      aria-label="Find a task by its id"></form>
    <span class="state ${app.state}">${STATES[app.state]}</span>
    ${hasKey() ? html`<button type="button" class="plain" @click=${() => app.signOut()}>Sign out</button>` : nothing}
  </div>
  ${app.stats ? counts(app.stats) : nothing}
  ${app.stats ? warning(app.stats) : nothing}
`;

function find(event) {
  event.preventDefault();
  const id = new FormData(event.target).get("id").trim();
  if (id) location.hash = `#/task/${encodeURIComponent(id)}`;
}

function counts({ tasks, tools, last_minute: minute }) {
  const failed = Object.keys(OUTCOMES).filter((name) => OUTCOMES[name].went_wrong).reduce((sum, name) => sum + minute[name], 0);
  return html`<dl class="counts" aria-label="Counts">
    ${one("waiting", tasks.available + tasks.scheduled, "#/why")}
    ${one("running", tasks.running + tasks.assigned, "#/now")}
    ${one("held as failed", tasks.failed, "#/then", tasks.failed > 0)}
    ${one("tools with room", tools.idle)}
    ${one("tools offline", tools.offline, "#/now", tools.offline > 0)}
    ${one("submitted a minute", minute.submitted)}
    ${one("done a minute", minute.succeeded)}
    ${one("failed a minute", failed, "#/then", failed > 0)}
  </dl>`;
}

const one = (name, value, href, alarming) => html`<div class=${alarming ? "alarming" : nothing}>
  <dt>${name}</dt><dd>${href ? html`<a href=${href}>${count(value)}</a>` : count(value)}</dd></div>`;

/** A warning if no assigner asks, while tasks wait for one. */
function warning({ at, assigner_seen_at: seen, tasks }) {
  if (!tasks.available) return nothing;
  if (seen === null) return alarm("No assigner has ever asked for tasks: nothing is given to tools. Start one, for example by the command: broker assign");
  // At the time of the statistics: an assigner may have asked since then.
  const silent = between(seen, at);
  return silent > ASSIGNER_ABSENT_SECONDS
    ? alarm(`No assigner has asked for ${age(silent)}: nothing is given to tools. Is it running?`)
    : nothing;
}

const alarm = (text) => html`<p class="alarm" role="alert">${text}</p>`;
