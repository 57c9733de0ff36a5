/**
 * The threads of lanes. A thread takes about as long to load its program as the server takes to load its own: the first
 * ones begin before anything is known of the lanes that they will be, and wait for their start (`LaneThreadStart`).
 */
import { Worker } from "node:worker_threads";

/** The JavaScript heap of a lane; buffers and maps lie outside it. */
const LANE_HEAP_MIB_MAX = 2048;
/** Short-lived garbage of a lane is little; a small nursery keeps the idle process small. */
const LANE_NURSERY_MIB = 4;

const ahead: Worker[] = [];

function makeThread(program: URL, name: string): Worker {
  return new Worker(program, {
    name,
    resourceLimits: { maxOldGenerationSizeMb: LANE_HEAP_MIB_MAX, maxYoungGenerationSizeMb: LANE_NURSERY_MIB },
  });
}

/** Begins the threads of so many lanes. They keep no process alive. */
export function makeThreadsAhead(program: URL, count: number): void {
  for (let index = 0; index < count; index++) {
    const thread = makeThread(program, `lane ${index}`);
    // What is wrong with it is heard by whoever takes it; until then it must not end the program.
    thread.on("error", ignore);
    thread.unref();
    ahead.push(thread);
  }
}

/** A thread for lane `index`: one that was begun ahead, or a new one. */
export function takeThread(program: URL, index: number): Worker {
  const thread = ahead.shift();
  // One that has ended (-1) has told nobody why; the next one will.
  if (thread === undefined || thread.threadId === -1) return makeThread(program, `lane ${index}`);
  thread.off("error", ignore);
  thread.ref();
  return thread;
}

/** Ends the threads that nobody has taken. */
export function dropThreads(): void {
  for (const thread of ahead.splice(0)) void thread.terminate();
}

const ignore = (): void => {};
