// What things cost, as `broker bench growth idle` measures it; MEASURED says where and when.

export const MEASURED = "These were measured on 2 cores of an Intel Xeon that the database and the load had to share, 2026-11-27.";

export const COSTS = {
  serviceMsPerTask: { is: 0.58, says: "CPU of the service for a task, one call for each step, ms" },
  databaseMsPerTask: { is: 0.4, says: "CPU of PostgreSQL for it, ms" },
  serviceMsInBatches: { is: 0.08, says: "CPU of the service for a task in batches of 100, ms" },
  databaseMsInBatches: { is: 0.14, says: "CPU of PostgreSQL for it, ms" },
  serviceMsPerReport: { is: 0.1, says: "CPU of the service for a report, ms" },
  databaseMsPerReport: { is: 0.08, says: "CPU of PostgreSQL for it, ms" },
  idlePercentPer10k: { is: 0.32, says: "CPU of the service for 10,000 tools that wait, % of a core" },
  kibPerTool: { is: 15.9, says: "Memory for a tool that waits, KiB" },
  mibPerProcess: { is: 93, says: "Memory of a process that does nothing, MiB" },
  bytesPerRecord: { is: 1761, says: "Disk for a record, beside its payload, result and reports, bytes" },
  commitsThatNotify: { is: 5990, least: 1, says: "Transactions a second that notify, which PostgreSQL commits one after the other" },
};
