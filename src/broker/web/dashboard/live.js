// The present tools and their work: read once, then updated by events.

import { read } from "./api.js";

const PAGE = 1000;
// The most work that is read of a tool.
const MOST_WORK = 16;

export class Live {
  /** The tools by id, in the order of their ids; each has `work`, a Map by id. */
  tools = new Map();
  /** Whether the tools have been read. */
  known = false;
  // Events that arrived during a read; null if there is no read.
  #meanwhile = null;

  /** Read everything again. */
  async read() {
    this.#meanwhile = [];
    try {
      this.tools = await readAll();
      this.known = true;
    } finally {
      for (const [kind, data] of this.#meanwhile) this.#apply(kind, data);
      this.#meanwhile = null;
    }
  }

  /** Apply an event. During a read it is kept for afterwards, as it may be newer. */
  hear(kind, data) {
    if (this.#meanwhile) this.#meanwhile.push([kind, data]);
    else this.#apply(kind, data);
  }

  /** Whether the known work differs from the load of the tools: then an event is missing. */
  get isOdd() {
    for (const { load, work } of this.tools.values()) {
      if (work.size < Math.min(load, MOST_WORK) || work.size > load) return true;
    }
    return false;
  }

  /** The load of all tools. */
  get load() {
    return [...this.tools.values()].reduce((sum, tool) => sum + tool.load, 0);
  }

  /** All known work, the oldest first. */
  work() {
    const all = [...this.tools.values()].flatMap((tool) => [...tool.work.values()]);
    return all.sort((one, other) => (one.id < other.id ? -1 : 1));
  }

  // A changed tool is a new object, so that views notice the change.
  #apply(kind, data) {
    if (kind === "tool") this.#takeTool(data);
    else if (kind === "work") this.#change(data.tool_id, (work) => work.set(data.id, data));
    else if (kind === "archive" && data.tool_id !== null) {
      this.#change(data.tool_id, (work) => work.delete(data.work_id));
    }
  }

  #takeTool(data) {
    if (data.state === "deleted") {
      this.tools.delete(data.id);
      return;
    }
    const known = this.tools.get(data.id);
    this.tools.set(data.id, { seen_at: null, work: new Map(), ...known, ...data });
    if (!known) this.tools = new Map([...this.tools].sort(([one], [other]) => (one < other ? -1 : 1)));
  }

  #change(id, change) {
    const known = this.tools.get(id);
    if (!known) return;
    const work = new Map(known.work);
    change(work);
    this.tools.set(id, { ...known, work });
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
