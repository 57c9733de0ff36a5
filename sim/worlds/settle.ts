/** How a world with a server that dies runs on until something has come about; and what goes wrong with its network. */
import type { Millis } from "#base/units";
import type { SimNode } from "../env/sim-node.ts";
import type { World } from "../env/world.ts";
import type { NetTrouble } from "../script.ts";

/** What a world is in the middle of. */
export interface Course {
  /** The server is to die at step `world.stopAtStep`. */
  readonly isDoomed: () => boolean;
  readonly die: () => void;
  /** The script has not been played to its end. */
  readonly hasMore: () => boolean;
  /** All faults end. */
  readonly calm: () => void;
  /** What is asked for is answered within this time, once all has been asked and faults have ended. */
  readonly answerMsMax: Millis;
}

/** Runs on until `isDone` says so. False when it does not come to that. */
export function runUntil(world: World, isDone: () => boolean, course: Course): boolean {
  let deadline = Number.POSITIVE_INFINITY;
  while (!isDone()) {
    if (course.isDoomed() && world.steps >= world.stopAtStep) course.die();
    if (!world.step()) {
      if (!course.isDoomed()) break;
      // Nothing happens any more: then now is as good a time as any.
      course.die();
      continue;
    }
    if (course.hasMore()) continue;
    if (deadline === Number.POSITIVE_INFINITY) {
      course.calm();
      deadline = world.now + course.answerMsMax;
    } else if (world.now > deadline) {
      if (!course.isDoomed()) break;
      // So little happens that it would never come.
      course.die();
      deadline = world.now + course.answerMsMax;
    }
  }
  return isDone();
}

/**
 * Something goes wrong with the network: between the server and one host, or everywhere, for no longer than `faultsMsMax`.
 * One that loses every longer message for hours lets nothing through: that is no fault to survive.
 */
export function troubleNetwork(
  world: World,
  server: SimNode,
  host: SimNode,
  trouble: NetTrouble,
  faultsMsMax: Millis,
): void {
  const { network } = world;
  switch (trouble.kind) {
    case "faults":
      Object.assign(network.faults, { reset: trouble.reset, vanish: trouble.vanish, clog: trouble.clog });
      world.plan(faultsMsMax, () => network.faults.stop());
      return;
    case "partition": {
      const [from, to] = trouble.fromServer ? [server, host] : [host, server];
      network.cut(from, to, trouble.bothWays, trouble.net);
      world.plan(trouble.ms, () => network.heal(from, to, trouble.net));
      return;
    }
    case "reset-all":
      world.fault("connection reset", server);
      for (const line of network.lines) line.reset();
      return;
  }
}
