import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { makeThreadsAhead, takeThread } from "./lane-thread.ts";

const program = (text: string): URL => new URL(`data:text/javascript,${encodeURIComponent(text)}`);
const ANSWERS = program(`
  import { parentPort } from "node:worker_threads";
  parentPort.once("message", (text) => parentPort.postMessage(text + "!"));
`);

test("a thread that was begun ahead hears what is said to it before it has loaded, and one that was not is made", async () => {
  makeThreadsAhead(ANSWERS, 1);
  for (const index of [0, 1]) {
    const thread = takeThread(ANSWERS, index);
    thread.postMessage(`lane ${index}`);
    const [said] = await once(thread, "message");
    assert.equal(said, `lane ${index}!`);
    await thread.terminate();
  }
});

test("a thread that has ended meanwhile is not given away: whoever takes one hears why it ends", async () => {
  const broken = program(`throw new Error("no program")`);
  makeThreadsAhead(broken, 1);
  // It ends by itself; nothing is told, and nothing is thrown.
  await new Promise((resolve) => setTimeout(resolve, 500));
  const thread = takeThread(broken, 0);
  const [error] = await once(thread, "error");
  assert.match(String(error), /no program/);
});
