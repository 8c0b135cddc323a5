// The actions of an operator. Each action asks for confirmation, and reports its result.

import { call, path } from "./api.js";
import { html, nothing, render } from "./vendor/lit-html/lit-html.js";

// The number of dialogs that were opened.
let dialogCount = 0;

/**
 * Ask for confirmation, then act.
 *
 * @param app - the page, which reads its data again after the action
 * @param action - `title` and `text` of the dialog, `verb` on the button, `danger` if the action cannot be undone,
 *   `option`: the text of a checkbox, `act(option)`: the action, `done`: the message after it, `errors`: messages by
 *   error code that replace the broker's own
 */
function confirm(app, { title, text, verb, danger, option, act, done, errors = {} }) {
  const dialog = document.getElementById("dialog");
  const number = (dialogCount += 1);
  let error = null;
  let busy = false;

  const submit = async (event) => {
    event.preventDefault();
    const ticked = new FormData(event.target).has("option");
    error = null;
    busy = true;
    show();
    try {
      await act(ticked);
      // Meanwhile the dialog may show another action.
      if (number === dialogCount) dialog.close();
      document.getElementById("status").textContent = done;
      app.reload();
    } catch (failure) {
      error = failure;
      if (failure.status === 401) {
        dialog.close();
        app.showError(failure);
      } else if (number !== dialogCount || !dialog.open) {
        app.showError(failure);
      }
    }
    busy = false;
    if (number === dialogCount) show();
  };

  const show = () => render(html`<form @submit=${submit}>
    <h2 id="dialog-title">${title}</h2>
    <p>${text}</p>
    ${option ? html`<label class="option"><input type="checkbox" name="option"> ${option}</label>` : nothing}
    ${error ? html`<p class="error" role="alert">${errors[error.code] ?? error.message}</p>` : nothing}
    <div class="buttons">
      <button type="button" autofocus @click=${() => dialog.close()}>Go back</button>
      <button type="submit" class=${danger ? "danger" : "main"} ?disabled=${busy}>${verb}</button>
    </div>
  </form>`, dialog);

  render(nothing, dialog);
  show();
  dialog.showModal();
}

export const cancelTask = (app, id) => confirm(app, {
  title: `Cancel task ${id}?`,
  text: "If the task is waiting, it ends at once. If it is running, the broker asks its tool to stop. The archive keeps a record.",
  verb: "Cancel task",
  danger: true,
  option: "End the task at once, even if its tool does not stop",
  act: (force) => call("DELETE", `${path("tasks", id)}${force ? "?force=true" : ""}`),
  done: `Task ${id} is cancelled, or it ends when its tool stops.`,
});

export const cancelFailedTask = (app, id) => confirm(app, {
  title: `Cancel task ${id}?`,
  text: "The task has failed. If you cancel it, you cannot retry it. The archive keeps every attempt.",
  verb: "Cancel task",
  danger: true,
  act: () => call("DELETE", path("tasks", id)),
  done: `Task ${id} is cancelled.`,
});

export const retryTask = (app, id) => confirm(app, {
  title: `Retry task ${id}?`,
  text: "The task becomes available again, and the broker counts its attempts from zero.",
  verb: "Retry task",
  act: () => call("POST", path("tasks", id, "retry")),
  done: `Task ${id} is available again.`,
});

export const requeueWork = (app, id, taskId) => confirm(app, {
  title: `Requeue task ${taskId}?`,
  text: "The broker asks the tool to stop. Then the task becomes available again, and this attempt does not count. "
    + "The same tool may get the task again. To prevent that, drain the tool first.",
  verb: "Requeue task",
  act: () => call("POST", path("work", id, "cancel"), { requeue: true }),
  done: `The broker has asked the tool to stop. Then task ${taskId} becomes available again.`,
});

export const drainTool = (app, id) => confirm(app, {
  title: `Drain tool ${id}?`,
  text: "The tool finishes its current work and gets no new work, until you stop draining or the tool registers again.",
  verb: "Drain tool",
  act: () => call("PATCH", path("tools", id), { draining: true }),
  done: `Tool ${id} is draining.`,
});

export const undrainTool = (app, id) => confirm(app, {
  title: `Stop draining tool ${id}?`,
  text: "The tool can get new work as soon as it has free capacity.",
  verb: "Stop draining",
  act: () => call("PATCH", path("tools", id), { draining: false }),
  done: `Tool ${id} can get new work.`,
});

export const deleteTool = (app, id) => confirm(app, {
  title: `Delete tool ${id}?`,
  text: "The broker removes the tool from the list. Its program can register again. The archive keeps its attempts.",
  verb: "Delete tool",
  danger: true,
  option: "Delete the tool even if it has work. The work is lost, and the tasks become available again.",
  act: (force) => call("DELETE", `${path("tools", id)}${force ? "?force=true" : ""}`),
  errors: { tool_busy: "The tool has unfinished work. Drain it and wait, or select the option above to delete it now." },
  done: `Tool ${id} is deleted.`,
});

/** Return true if the broker accepts a late result for a task in this state. */
export const acceptsLateResult = (state) => ["available", "scheduled", "failed"].includes(state);

export const acceptLate = (app, id, taskId) => confirm(app, {
  title: "Accept late result?",
  text: `The result arrived after the attempt had ended. If you accept it, task ${taskId} succeeds with this result.`,
  verb: "Accept result",
  act: () => call("POST", path("archive", id, "accept")),
  done: `Task ${taskId} has succeeded with the late result.`,
});

export const deleteRecord = (app, id) => confirm(app, {
  title: "Delete this record?",
  text: "The record is deleted permanently. If this attempt ended its task, the broker forgets the task, too. "
    + "You need a key with the role admin.",
  verb: "Delete record",
  danger: true,
  act: () => call("DELETE", path("archive", id)),
  done: "The record is deleted.",
});
