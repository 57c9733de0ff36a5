/** What real clients once said is answered as it was then, byte for byte, also when it comes one byte at a time. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { MIB } from "#base/units";
import { goldenFront, readConversations } from "#test/support/nbd-golden";
import { StillEnv, StillLine } from "#test/support/still-env";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

describe("recorded conversations of NBD clients", () => {
  for (const { name, title, connections } of readConversations())
    for (const chunkMax of [1, 7, Number.POSITIVE_INFINITY])
      it(`${name} (${title}), at most ${chunkMax} bytes at a time`, () => {
        const env = new StillEnv(32 * MIB);
        const front = goldenFront(env);
        for (const turns of connections) {
          const line = new StillLine(env, { host: "" });
          line.chunkMax = chunkMax;
          front.accept(line);
          env.settle();
          for (const { who, bytes } of turns) {
            if (who === "C") {
              line.give(bytes);
              env.settle();
            } else {
              assert.equal(hex(line.heard()), hex(bytes));
            }
          }
          // A client that leaves does not wait for the answer to its goodbye.
          if (turns.at(-1)!.who === "S") assert.equal(line.heard().length, 0);
          line.finish();
          env.settle();
        }
        assert.equal(env.memory.used, 0);
      });
});
