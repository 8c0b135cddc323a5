// The actions of an operator: each asks once, and says what happened.

import { call, path } from "./api.js";
import { html, nothing, render } from "./vendor/lit-html/lit-html.js";

// How many questions were asked.
let asked = 0;

/**
 * Ask, and act.
 *
 * @param app - the page, which reads everything it shows again afterwards
 * @param about - `title` and `text` of the question, `verb` on the button, `danger`: the action cannot be undone,
 *   `option`: the text of a checkbox, `act(option)`: the action, `done`: the message after it, `errors`: messages by
 *   error code, instead of the broker's own
 */
function ask(app, { title, text, verb, danger, option, act, done, errors = {} }) {
  const dialog = document.getElementById("dialog");
  const number = (asked += 1);
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
      // The dialog may show another question by now: leave that open.
      if (number === asked) dialog.close();
      document.getElementById("said").textContent = done;
      app.load();
    } catch (failed) {
      error = failed;
      if (failed.status === 401) {
        dialog.close();
        app.refused(failed);
      } else if (number !== asked || !dialog.open) {
        app.refused(failed);
      }
    }
    busy = false;
    if (number === asked) show();
  };

  const show = () => render(html`<form @submit=${submit}>
    <h2 id="dialog-title">${title}</h2>
    <p>${text}</p>
    ${option ? html`<label class="option"><input type="checkbox" name="option"> ${option}</label>` : nothing}
    ${error ? html`<p class="trouble" role="alert">${errors[error.code] ?? error.message}</p>` : nothing}
    <div class="buttons">
      <button type="button" autofocus @click=${() => dialog.close()}>Leave it</button>
      <button type="submit" class=${danger ? "danger" : "main"} ?disabled=${busy}>${verb}</button>
    </div>
  </form>`, dialog);

  render(nothing, dialog);
  show();
  dialog.showModal();
}

export const cancelTask = (app, id) => ask(app, {
  title: `Cancel task ${id}?`,
  text: "A task that waits is taken away; of one that runs the tool is asked to stop. The archive keeps what was done.",
  verb: "Cancel the task",
  danger: true,
  option: "Take it away at once, whether its tool stops or not",
  act: (force) => call("DELETE", `${path("tasks", id)}${force ? "?force=true" : ""}`),
  done: `Task ${id} is cancelled, or its tool is asked to stop.`,
});

export const deleteTask = (app, id) => ask(app, {
  title: `Delete task ${id}?`,
  text: "It has failed, and is not tried again. The archive keeps every attempt at it.",
  verb: "Delete the task",
  danger: true,
  act: () => call("DELETE", path("tasks", id)),
  done: `Task ${id} is deleted.`,
});

export const retryTask = (app, id) => ask(app, {
  title: `Try task ${id} again?`,
  text: "It is offered again, its attempts counted afresh.",
  verb: "Try again",
  act: () => call("POST", path("tasks", id, "retry")),
  done: `Task ${id} is offered again.`,
});

export const requeueWork = (app, id, taskId) => ask(app, {
  title: `Take task ${taskId} from its tool?`,
  text: "The tool is asked to stop, and the task is offered again; that counts as no attempt. The same tool may get it once more: to prevent that, drain it first.",
  verb: "Take it back",
  act: () => call("POST", path("work", id, "cancel"), { requeue: true }),
  done: `The tool is asked to give task ${taskId} back.`,
});

export const drainTool = (app, id) => ask(app, {
  title: `Drain tool ${id}?`,
  text: "It finishes what it has, and gets no more until it registers anew or is let back in.",
  verb: "Drain",
  act: () => call("PATCH", path("tools", id), { draining: true }),
  done: `Tool ${id} gets no more work.`,
});

export const undrainTool = (app, id) => ask(app, {
  title: `Let tool ${id} have work again?`,
  text: "It is offered to the assigner as soon as it has room.",
  verb: "Let it",
  act: () => call("PATCH", path("tools", id), { draining: false }),
  done: `Tool ${id} gets work again.`,
});

export const deleteTool = (app, id) => ask(app, {
  title: `Delete tool ${id}?`,
  text: "It is taken from the list; its program may register again. The archive keeps what it has done.",
  verb: "Delete the tool",
  danger: true,
  option: "Even if it has work: that is then lost, and its tasks go back",
  act: (force) => call("DELETE", `${path("tools", id)}${force ? "?force=true" : ""}`),
  errors: { tool_busy: "It has unfinished work. Drain it and wait, or tick the box to give that work up." },
  done: `Tool ${id} is deleted.`,
});

/** Whether the broker accepts a late result for a task in this state. */
export const mayTakeLate = (state) => ["available", "scheduled", "failed"].includes(state);

export const acceptLate = (app, id, taskId) => ask(app, {
  title: "Take the late result?",
  text: `It came after the attempt had ended without it. It becomes the result of task ${taskId}, which is then over.`,
  verb: "Take it",
  act: () => call("POST", path("archive", id, "accept")),
  done: `The late result is the result of task ${taskId} now.`,
});

export const deleteRecord = (app, id) => ask(app, {
  title: "Delete this record?",
  text: "It is gone for good, and a task that ended by it is not known any more. It takes a key with the role admin.",
  verb: "Delete the record",
  danger: true,
  act: () => call("DELETE", path("archive", id)),
  done: "The record is deleted.",
});
