// What a load needs, computed from what things cost. Plain arithmetic: docs/growth.md has it in words.

// Nothing is to be busier than this: beyond it, whoever comes has to queue.
const BUSY = 0.7;
// The service's own limits, by default: docs tell of BROKER_MAX_WAITS, BROKER_POOL_SIZE and BROKER_READ_POOL_SIZE.
const WAITS_PER_PROCESS = 16_000;
const CONNECTIONS_PER_PROCESS = 13;
const MAX_CONNECTIONS = 100;
// How many calls share a transaction at most, and how many steps a task has: submit, assign, complete.
const LARGEST_SET = 500;
const STEPS = 3;
const UNDER_WAY = 2;
// What `broker serve --workers` takes.
const MOST_WORKERS = 64;

/**
 * @param {object} asked tools, tasksPerSecond, batched (0 to 1), reportsPerTask, bytesPerTask, days,
 *   databaseCores
 * @param {object} costs by the names of costs.js, as numbers
 */
export function plan(asked, costs) {
  const mixed = (one, many) => (1 - asked.batched) * one + asked.batched * many;
  const reports = asked.tasksPerSecond * asked.reportsPerTask;
  const serviceCores =
    (asked.tasksPerSecond * mixed(costs.serviceMsPerTask, costs.serviceMsInBatches) + reports * costs.serviceMsPerReport) / 1000 +
    (asked.tools / 10_000) * (costs.idlePercentPer10k / 100);
  const databaseCores =
    (asked.tasksPerSecond * mixed(costs.databaseMsPerTask, costs.databaseMsInBatches) + reports * costs.databaseMsPerReport) / 1000;

  const brokers = Math.max(1, Math.ceil(databaseCores / BUSY / asked.databaseCores));
  const processes = Math.max(
    1,
    Math.ceil(serviceCores / brokers / BUSY),
    Math.ceil(asked.tools / brokers / WAITS_PER_PROCESS),
  );
  const calls = (asked.tasksPerSecond * (1 - asked.batched) * STEPS + reports) / brokers;
  const kinds = STEPS + (asked.reportsPerTask > 0 ? 1 : 0);
  const commits = BUSY * costs.commitsThatNotify;
  return {
    serviceCores,
    databaseCores,
    brokers,
    processes,
    memoryMib: (processes * costs.mibPerProcess * brokers) + (asked.tools * costs.kibPerTool) / 1024,
    connections: processes * CONNECTIONS_PER_PROCESS,
    tooManyConnections: processes * CONNECTIONS_PER_PROCESS > MAX_CONNECTIONS,
    setSize: Math.max(1, calls / commits),
    setsAreTooLarge: calls / commits > LARGEST_SET,
    commitMs: (1000 * Math.min(processes * kinds * UNDER_WAY, Math.max(1, calls / BUSY))) / costs.commitsThatNotify,
    gbPerDay: (asked.tasksPerSecond * 86_400 * (costs.bytesPerRecord + asked.bytesPerTask)) / 1e9,
    gbKept: (asked.days * asked.tasksPerSecond * 86_400 * (costs.bytesPerRecord + asked.bytesPerTask)) / 1e9,
  };
}

/** What to do, in sentences. */
export function advice(asked, found) {
  const said = [];
  if (found.brokers > 1) {
    said.push(
      `One PostgreSQL of ${asked.databaseCores} cores is not enough: run ${found.brokers} brokers side by side, each with a database of its own, and give each tool and each submitter one of them. Or submit and complete in batches, which cost a fraction.`,
    );
  }
  if (found.processes === 1) {
    said.push("One process is enough: `broker serve`. A second one elsewhere is for when a machine fails, not for speed.");
  } else {
    said.push(
      `${found.processes} processes${found.brokers > 1 ? " for each" : ""}: ${
        found.processes > MOST_WORKERS
          ? "on several machines, behind a proxy"
          : `\`broker serve --workers ${found.processes}\` on one machine, or as many replicas behind a proxy`
      }.`,
    );
  }
  if (found.tooManyConnections) {
    said.push(
      `They would have up to ${found.connections} connections, more than PostgreSQL's usual 100: put PgBouncer in front (BROKER_LISTEN_URL past it), or raise max_connections.`,
    );
  }
  if (found.setsAreTooLarge) {
    said.push("More calls come than commits that notify can take, even 500 at a time: batches, or more brokers.");
  }
  if (found.gbKept > 500) {
    said.push("The archive grows large: BROKER_ARCHIVE_RETENTION_DAYS drops old months, and BROKER_READ_URL reads lists from a standby.");
  }
  return said;
}
