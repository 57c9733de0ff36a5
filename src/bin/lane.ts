/** A lane's thread: makes its Env, and connects a Lane to the message port of the control plane. */
import { parentPort } from "node:worker_threads";
import type { Log } from "#env/env";
import { makeEnv } from "#env/make-env";
import { Remains } from "#env/uring/remains";
import { useNativeHash } from "#env/uring/xxhash";
import { loadFronts } from "#lane/fronts";
import { Lane } from "#lane/lane";
import type { FromLane, LaneThreadStart, LogLevel, ToLane } from "#lane/messages";

const port = parentPort!;
const tell = (message: FromLane): void => port.postMessage(message);
const say = (level: LogLevel) => (fields: object, message: string) => tell({ type: "log", level, fields, message });
const log: Log = { debug: say("debug"), info: say("info"), warn: say("warn"), error: say("error") };

let env: ReturnType<typeof makeEnv> | undefined;

// A mistake in the lane ends the lane, not the server: what it holds is in its log, and a new lane opens it again. The
// Env is closed first, so that the kernel is done with the memory, and hosts see their connections end.
process.on("uncaughtException", (error) => {
  tell({ type: "dying", reason: error.stack ?? String(error) });
  try {
    env?.close();
  } finally {
    process.exit(1);
  }
});

async function begin({ env: kind, memoryBytes, cacheBytes, fronts, remains }: LaneThreadStart): Promise<Lane> {
  env = makeEnv(kind, { memoryBytes, cacheBytes, log, remains: new Remains(remains) });
  const reason = useNativeHash(env.memory);
  if (reason !== undefined) log.debug({ reason }, "checksums are computed in WebAssembly");
  return new Lane(env, await loadFronts(fronts), tell);
}

/** Calls that come while the lane is being made. */
const early: ToLane[] = [];
let take = (message: ToLane): void => void early.push(message);

port.once("message", (start: LaneThreadStart) => {
  port.on("message", (message: ToLane) => take(message));
  void begin(start).then((lane) => {
    take = (message) => lane.handle(message);
    tell({ type: "ready" });
    for (const message of early) take(message);
  });
});
