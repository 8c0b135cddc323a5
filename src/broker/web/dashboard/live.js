// The tools and their current work: read once, then updated by events.

import { read } from "./api.js";

const PAGE = 1000;
/** The maximum number of work items that are read for a tool. */
export const MAX_WORK = 16;

export class Live {
  /** The tools by id, in the order of their ids. Each has `work`, a Map by id. */
  tools = new Map();
  /** True once the tools have been read. */
  isLoaded = false;
  // Events that arrived during a read, null at other times.
  #pending = null;

  /** Read all tools and their work again. */
  async read() {
    this.#pending = [];
    try {
      this.tools = await readAll();
      this.isLoaded = true;
    } finally {
      for (const [kind, data] of this.#pending) this.#update(kind, data);
      this.#pending = null;
    }
  }

  /** Apply an event. During a read, keep it for afterwards, because it may be newer than the response. */
  apply(kind, data) {
    if (this.#pending) this.#pending.push([kind, data]);
    else this.#update(kind, data);
  }

  /** True if the known work differs from the load of a tool, which means that an event is missing. */
  get isIncomplete() {
    for (const { load, work } of this.tools.values()) {
      if (work.size < Math.min(load, MAX_WORK) || work.size > load) return true;
    }
    return false;
  }

  /** The sum of the loads of all tools. */
  get load() {
    return [...this.tools.values()].reduce((sum, tool) => sum + tool.load, 0);
  }

  /** All known work, oldest first. */
  work() {
    const all = [...this.tools.values()].flatMap((tool) => [...tool.work.values()]);
    return all.sort((one, other) => (one.id < other.id ? -1 : 1));
  }

  // A changed tool is a new object, so views notice the change.
  #update(kind, data) {
    if (kind === "tool") this.#updateTool(data);
    else if (kind === "work") this.#updateWork(data.tool_id, (work) => work.set(data.id, data));
    else if (kind === "archive" && data.tool_id !== null) {
      this.#updateWork(data.tool_id, (work) => work.delete(data.work_id));
    }
  }

  #updateTool(data) {
    if (data.state === "deleted") {
      this.tools.delete(data.id);
      return;
    }
    const known = this.tools.get(data.id);
    this.tools.set(data.id, { seen_at: null, work: new Map(), ...known, ...data });
    if (!known) this.tools = new Map([...this.tools].sort(([one], [other]) => (one < other ? -1 : 1)));
  }

  #updateWork(toolId, change) {
    const known = this.tools.get(toolId);
    if (!known) return;
    const work = new Map(known.work);
    change(work);
    this.tools.set(toolId, { ...known, work });
  }
}

async function readAll() {
  const tools = new Map();
  let after = null;
  do {
    const page = await read("/v1/overview/tools", { limit: PAGE, after });
    for (const tool of page.items) {
      tools.set(tool.id, { ...tool, work: new Map(tool.work.map((work) => [work.id, work])) });
    }
    after = page.next;
  } while (after !== null);
  return tools;
}
