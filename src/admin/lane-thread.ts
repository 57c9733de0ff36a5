/**
 * The threads of lanes. A thread takes about as long to load its program as the server takes to load its own: the first
 * one begins before anything is known of the lane that it will be, and waits for its start (`LaneThreadStart`).
 */
import { Worker } from "node:worker_threads";

/** The JavaScript heap of a lane; buffers and maps lie outside it. */
const LANE_HEAP_MIB_MAX = 2048;
/** Short-lived garbage of a lane is little; a small nursery keeps the idle process small. */
const LANE_NURSERY_MIB = 4;

let ahead: Worker | undefined;

function makeThread(program: URL, name: string): Worker {
  return new Worker(program, {
    name,
    resourceLimits: { maxOldGenerationSizeMb: LANE_HEAP_MIB_MAX, maxYoungGenerationSizeMb: LANE_NURSERY_MIB },
  });
}

/** Begins the thread of the lane that every server has. It keeps no process alive. */
export function makeThreadAhead(program: URL): void {
  ahead = makeThread(program, "lane 0");
  // What is wrong with it is heard by whoever takes it; until then it must not end the program.
  ahead.on("error", ignore);
  ahead.unref();
}

/** A thread for lane `index`: one that was begun ahead, or a new one. */
export function takeThread(program: URL, index: number): Worker {
  const thread = ahead;
  ahead = undefined;
  // One that has ended (-1) has told nobody why; the next one will.
  if (thread === undefined || thread.threadId === -1) return makeThread(program, `lane ${index}`);
  thread.off("error", ignore);
  thread.ref();
  return thread;
}

const ignore = (): void => {};
