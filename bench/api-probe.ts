/**
 * Asks the admin API one question after the other for some seconds, from a process of its own, so that only the server's
 * delays and the machine's are in its times: `node dist/bench/api-probe.js DATA SECONDS` prints them as JSON, in ms.
 */

import { call, timed } from "#test/support/admin";
import { sleep } from "#test/support/program";

const EVERY_MS = 10;
const [data, seconds] = process.argv.slice(2) as [string, string];
const times: number[] = [];
for (const end = performance.now() + Number(seconds) * 1000; performance.now() < end; await sleep(EVERY_MS))
  times.push(await timed(() => call(data, "GET", "/v1/status")));
console.log(JSON.stringify(times));
process.exit();
