/** What a scenario is: how a world and its script are drawn from a seed, and what may go wrong in it. */
import type { Chance } from "./env/chance.ts";
import type { World } from "./env/world.ts";
import type { Action } from "./script.ts";

/** A drawn world: plain data, so that it can be printed, cut down and played again. */
export interface Script<Setup = object> {
  readonly setup: Setup;
  readonly actions: readonly Action[];
}

export interface Scenario<Setup = object> {
  readonly name: string;
  /** One sentence: what it is about. */
  readonly about: string;
  /** The fault budget: what may go wrong in it, and what is promised all the same. */
  readonly budget: string;
  /** How often it is drawn among all scenarios. */
  readonly weight: number;
  draw(chance: Chance): Script<Setup>;
  /** Plays a script; throws a Violation, or whatever else shows a bug. Returns how it ended, in a word. */
  play(world: World, script: Script<Setup>): string;
}
