// The page: what is asked, what it needs, and what to do; every change is computed at once.

import { html, render } from "/dashboard/vendor/lit-html/lit-html.js";
import { COSTS, MEASURED } from "./costs.js";
import { advice, plan } from "./plan.js";

const ASKED = {
  tools: { is: 200, says: "Tools", most: 1e7 },
  tasksPerSecond: { is: 20, says: "Tasks a second, when it is busiest", most: 1e6 },
  batched: { is: 0, says: "Of them in batches, 0 to 1", most: 1 },
  reportsPerTask: { is: 5, says: "Reports for each task", most: 1e5 },
  bytesPerTask: { is: 2000, says: "Payload, result and reports of a task, bytes", most: 1e9 },
  days: { is: 365, says: "Days that the archive is kept", most: 36500 },
  databaseCores: { is: 8, says: "Cores that one PostgreSQL can have", least: 1, most: 1024 },
};

const values = (fields) => Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, field.is]));
const asked = values(ASKED);
const costs = values(COSTS);
// Beyond all that is measured.
const MOST = 1e6;
// What cannot be computed with, by its name: what it is, and why, in the browser's own words.
const refused = new Map();

const number = (value, digits = 0) => value.toLocaleString("en", { maximumFractionDigits: digits });
const size = (gb) => (gb >= 1000 ? `${number(gb / 1000, 1)} TB` : gb >= 1 ? `${number(gb, 1)} GB` : `${number(gb * 1000, 1)} MB`);

function input(given, name, field) {
  const change = (event) => {
    refused.delete(name);
    if (event.target.checkValidity()) given[name] = event.target.valueAsNumber;
    else refused.set(name, `${field.says}. ${event.target.validationMessage}`);
    show();
  };
  return html`<label>${field.says}
    <input type="number" name=${name} min=${field.least ?? 0} max=${field.most ?? MOST} step="any" required .value=${String(field.is)} @input=${change}>
  </label>`;
}

// What is between backticks is to be typed.
const typed = (said) => said.split("`").map((part, place) => (place % 2 ? html`<code>${part}</code>` : part));

function row(what, figure, says) {
  return html`<tr><th scope="row">${what}</th><td class="figure">${figure}</td><td>${says}</td></tr>`;
}

function show() {
  const found = plan(asked, costs);
  const each = found.brokers > 1 ? ", each" : "";
  render(
    html`
      <h1>What a load needs</h1>
      <p>From what a task, a report and a waiting tool cost, as <code>broker bench growth idle</code> measures it. ${MEASURED}</p>
      <form @submit=${(event) => event.preventDefault()}>
        <fieldset><legend>What is asked</legend>${Object.entries(ASKED).map(([name, field]) => input(asked, name, field))}</fieldset>
      </form>
      <section aria-live="polite" aria-label="What it needs">
        <h2>What it needs</h2>
        ${[...refused.values()].map((said) => html`<p class="refused">The figures are without this entry: ${said}</p>`)}
        <table>
          <tbody>
            ${row("CPU of the service", `${number(found.serviceCores, 2)} cores`, "in all, when it is busiest")}
            ${row("CPU of PostgreSQL", `${number(found.databaseCores, 2)} cores`, "in all, when it is busiest")}
            ${row("Brokers", number(found.brokers), "each with a PostgreSQL of its own, busy to 70 % at most")}
            ${row(`Processes${each}`, number(found.processes), "each busy to 70 % of a core at most, with 16,000 waiting tools at most")}
            ${row("Memory of the service", `${number(found.memoryMib)} MiB`, "in all; without what large requests take")}
            ${row(`Database connections${each}`, number(found.connections), "at most: 8 and a listener for each process")}
            ${row("Calls that share a commit", number(found.setSize, 1), "on average at least; a set has 500 at most")}
            ${row("Waiting for a commit", `${number(found.commitMs, 1)} ms`, "at most: commits that notify come one after the other")}
            ${row("The archive, a day", size(found.gbPerDay), "at this rate all day long")}
            ${row("The archive, kept", size(found.gbKept), `after ${number(asked.days)} days`)}
          </tbody>
        </table>
      </section>
      <section aria-label="What to do">
        <h2>What to do</h2>
        <ul class="advice">${advice(asked, found).map((said) => html`<li>${typed(said)}</li>`)}</ul>
      </section>
      <details>
        <summary>What things cost: put in what your machine measures</summary>
        <form @submit=${(event) => event.preventDefault()}>
          <fieldset><legend>Costs</legend>${Object.entries(COSTS).map(([name, field]) => input(costs, name, field))}</fieldset>
        </form>
      </details>
    `,
    document.getElementById("main"),
  );
}

show();
