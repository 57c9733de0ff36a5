import assert from "node:assert/strict";
import { test } from "node:test";
import { Flow, Gathering } from "./gathering.ts";

interface Client {
  /** Requests in flight. */
  readonly depth: number;
  /** Microseconds from one answer to the next request, and before the first answer after it has run out of them. */
  readonly think: number;
  readonly wake: number;
}
/** What a lane needs for a receive with all that belongs to it, and for a request, in microseconds. */
interface Lane {
  readonly receive: number;
  readonly request: number;
}

/** A lane and one client, one after the other in a single time. Requests per millisecond, and the share of held receives. */
function run(client: Client, lane: Lane, millis: number): { rate: number; held: number } {
  let now = 0;
  const gathering = new Gathering(() => now / 1000);
  const flow = new Flow();
  /** When each answer that the client has not taken will be there, and when each request on its way will. */
  const answers: number[] = new Array(client.depth).fill(0);
  let requests: number[] = [];
  let free = 0;
  let done = 0;
  let receives = 0;
  let held = 0;
  /** The client goes on with what it has until `until`. */
  const answer = (until: number): void => {
    while (answers.length > 0) {
      const start = Math.max(free, answers[0]! + (answers[0]! > free ? client.wake : 0));
      if (start + client.think > until) return;
      free = start + client.think;
      answers.shift();
      requests.push(free);
    }
  };
  while (now < millis * 1000) {
    answer(now);
    if (requests.length === 0) {
      // The lane sleeps until the next request comes.
      answer(Number.POSITIVE_INFINITY);
      now = Math.max(now, requests[0]!);
    }
    const came = requests.filter((at) => at <= now).length;
    requests = requests.slice(came);
    now += lane.receive + came * lane.request;
    answers.push(...new Array<number>(came).fill(now));
    done += came;
    receives++;
    if (!gathering.choose(flow, came)) continue;
    held++;
    now += gathering.begin();
  }
  return { rate: done / millis, held: held / receives };
}

const FIO: Client = { depth: 32, think: 10, wake: 3 };
const LANE: Lane = { receive: 10, request: 4 };

test("a client with many requests in flight has them gathered: the lane receives far less often", () => {
  const { rate, held } = run(FIO, LANE, 2000);
  assert.ok(held > 0.5, `${held} of the receives are held`);
  assert.ok(rate > 85, `${rate} requests per millisecond`);
});

test("a client with one request in flight is held back once in thousands of times", () => {
  const { held } = run({ ...FIO, depth: 1 }, LANE, 2000);
  assert.ok(held < 0.005, `${held} of the receives are held`);
});

test("a client that runs out of requests while it is held back is let go", () => {
  const few = { ...FIO, depth: 4 };
  const { rate, held } = run(few, LANE, 4000);
  assert.ok(held < 0.1, `${held} of the receives are held`);
  const alone = run({ ...few, depth: 2 }, LANE, 1000).rate;
  assert.ok(rate > alone, "more in flight is not slower");
});

test("where requests are far apart, nothing is held back for long", () => {
  const { held } = run({ ...FIO, depth: 1, think: 400 }, LANE, 4000);
  assert.ok(held < 0.02, `${held} of the receives are held`);
});

test("a hold is as long as it takes to bring some requests, and never long", () => {
  let now = 0;
  const gathering = new Gathering(() => now);
  const flow = new Flow();
  const last = (requests: number): number => {
    let micros = 0;
    for (let n = 0; n < 500; n++) {
      now += 0.1;
      if (gathering.choose(flow, requests)) micros = gathering.begin();
    }
    return micros;
  };
  assert.equal(last(3), 150);
  assert.equal(last(32), 20);
});
