// The tools and their work as they are now: read once, and kept by what is heard since.

import { read } from "./api.js";

const PAGE = 1000;
// Of a tool with much work so much is read.
const MOST_WORK = 16;

export class Live {
  /** The tools by id, in the order of their ids; each has `work`, a Map by id. */
  tools = new Map();
  /** Whether the tools have been read. */
  known = false;
  // What was heard while everything was read; null: it is not read now.
  #meanwhile = null;

  /** Read everything anew. */
  async read() {
    this.#meanwhile = [];
    try {
      this.tools = await readAll();
      this.known = true;
    } finally {
      for (const [kind, data] of this.#meanwhile) this.#take(kind, data);
      this.#meanwhile = null;
    }
  }

  /** Take what was heard. While everything is read, it is kept for afterwards: it may be newer. */
  hear(kind, data) {
    if (this.#meanwhile) this.#meanwhile.push([kind, data]);
    else this.#take(kind, data);
  }

  /** Whether more or less work is known than the tools say they have: then something was not told. */
  get isOdd() {
    for (const { load, work } of this.tools.values()) {
      if (work.size < Math.min(load, MOST_WORK) || work.size > load) return true;
    }
    return false;
  }

  /** How much work all tools have. */
  get load() {
    let sum = 0;
    for (const tool of this.tools.values()) sum += tool.load;
    return sum;
  }

  /** All work under way that is known, that which has had it for longest first. */
  work() {
    const all = [];
    for (const tool of this.tools.values()) all.push(...tool.work.values());
    return all.sort((one, other) => (one.id < other.id ? -1 : 1));
  }

  // A tool that changes is a new object: so whoever has drawn the old one sees that it did.
  #take(kind, data) {
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
    if (known) {
      this.tools.set(data.id, { ...known, ...data });
    } else {
      this.tools.set(data.id, { seen_at: null, work: new Map(), ...data });
      this.tools = new Map([...this.tools].sort(([one], [other]) => (one < other ? -1 : 1)));
    }
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
