// Submit or handle tasks with graphile-worker, for `broker bench --peers`.
//
// The arguments are the role, `worker` or `submitter`, the order of the workload as JSON, and the folder that
// contains graphile-worker. Variables such as PGHOST name the database. The program ends when its input ends.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const [role, json, folder] = process.argv.slice(2);
const order = JSON.parse(json);
const require = createRequire(`${folder}/`);
const { Logger, makeWorkerUtils, run } = require("graphile-worker");
const pg = require("pg");

const NAME = "task";
const LISTEN_MILLISECONDS = 2000;
const logger = new Logger(() => () => {});
const nanoseconds = () => Number(process.hrtime.bigint());

/** Handle the tasks, and print how long each one waited, in nanoseconds. */
async function work() {
  const waited = [];
  const handle = async (payload) => {
    waited.push(nanoseconds() - payload.at);
    if (waited.length === order.tasks) console.log(JSON.stringify(waited));
  };
  // A local queue and batches of completions are what graphile-worker recommends for throughput.
  const worker = {
    concurrentJobs: order.clients,
    maxPoolSize: order.clients + 2,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
  };
  const pgPool = new pg.Pool({ max: worker.maxPoolSize });
  await run({ pgPool, taskList: { [NAME]: handle }, noHandleSignals: true, logger, preset: { worker } });
  // It does not report when it listens.
  await sleep(LISTEN_MILLISECONDS);
  console.log("ready");
}

/** Submit the tasks when a line arrives. */
async function submit(lines) {
  const utils = await makeWorkerUtils({ pgPool: new pg.Pool({ max: order.clients }), logger });
  const payload = () => ({ ...order.payload, at: nanoseconds() });
  const submitOne = () => utils.addJob(NAME, payload());
  console.log("ready");
  await lines.next();
  if (order.mode === "batch") {
    for (let first = 0; first < order.tasks; first += order.batch) {
      const size = Math.min(order.batch, order.tasks - first);
      await utils.addJobs(Array.from({ length: size }, () => ({ identifier: NAME, payload: payload() })));
    }
  } else if (order.mode === "paced") {
    const submitted = [];
    const startedAt = performance.now();
    for (let index = 0; index < order.tasks; index++) {
      await sleep(startedAt + index * order.interval_seconds * 1000 - performance.now());
      submitted.push(submitOne());
    }
    await Promise.all(submitted);
  } else {
    let next = 0;
    const client = async () => {
      while (next++ < order.tasks) await submitOne();
    };
    await Promise.all(Array.from({ length: order.clients }, client));
  }
}

const input = createInterface({ input: process.stdin });
input.on("close", () => process.exit());
await (role === "worker" ? work() : submit(input[Symbol.asyncIterator]()));
