/** Runs worlds: one from a seed, many in a row, the same one again. */
import { Refusal } from "#base/refusal";
import type { Coverage } from "./coverage.ts";
import { Chance } from "./env/chance.ts";
import { Resources, World } from "./env/world.ts";
import type { Scenario, Script } from "./scenario.ts";
import { SCENARIOS } from "./scenarios/all.ts";
import { Violation } from "./violation.ts";

export interface Result {
  readonly seed: number;
  readonly scenario: Scenario;
  readonly script: Script;
  /** What was found, undefined when all is well. */
  readonly failure: string | undefined;
  readonly stack: string | undefined;
  /** How the world ended, in a word. */
  readonly end: string;
  readonly steps: number;
  readonly ioCount: number;
  readonly virtualMs: number;
  readonly trace: number;
}

export interface RunOptions {
  /** Only this scenario; otherwise the seed draws one. */
  readonly scenario?: string;
  readonly coverage?: Coverage;
  readonly onLine?: (line: string) => void;
}

/** Enough for the engine's own buffers and for all that hosts have in flight. */
const MEMORY_BYTES = 64 * 1024 * 1024;
export const makeResources = (): Resources => new Resources(MEMORY_BYTES);

export function scenarioOf(seed: number, name?: string): Scenario {
  if (name !== undefined) {
    const found = SCENARIOS.find((scenario) => scenario.name === name);
    if (found === undefined)
      throw new Error(`there is no scenario "${name}"; there are: ${SCENARIOS.map((each) => each.name).join(", ")}`);
    return found;
  }
  let drawn = new Chance(seed).fraction() * SCENARIOS.reduce((sum, { weight }) => sum + weight, 0);
  for (const scenario of SCENARIOS) {
    drawn -= scenario.weight;
    if (drawn < 0) return scenario;
  }
  return SCENARIOS[0]!;
}

/** The world of a seed. */
export function runSeed(seed: number, resources: Resources, options: RunOptions = {}): Result {
  const scenario = scenarioOf(seed, options.scenario);
  return runScript(seed, scenario, scenario.draw(new Chance(seed + 0.5e9)), resources, options);
}

/** A script in the world of a seed: the whole script, or what is left of it. */
export function runScript(
  seed: number,
  scenario: Scenario,
  script: Script,
  resources: Resources,
  options: RunOptions = {},
): Result {
  const world = new World(seed, resources);
  const { coverage } = options;
  world.onLine = options.onLine;
  if (coverage !== undefined) {
    world.onFault = (fault, node) => coverage.fault(fault, node);
    world.onState = (state) => coverage.entered(state);
  }
  let failure: string | undefined;
  let stack: string | undefined;
  let end = "failed";
  try {
    end = scenario.play(world, script);
  } catch (error) {
    failure = describeError(error);
    stack = error instanceof Error ? error.stack : undefined;
    options.onLine?.(`FAILED: ${failure}`);
  }
  const { steps, ioCount, now, trace } = world;
  world.end();
  return { seed, scenario, script, failure, stack, end, steps, ioCount, virtualMs: now, trace };
}

function describeError(error: unknown): string {
  if (error instanceof Violation) return error.message;
  if (error instanceof Refusal) return `an unexpected refusal: ${error.code}, ${error.message}`;
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
}
