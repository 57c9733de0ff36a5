/**
 * Cuts a failing history down: leaves out halves, quarters, … single actions as long as what is left still fails.
 * in the same way, as far as its first words tell.
 */
import type { Resources } from "./env/world.ts";
import { type Result, runScript } from "./runner.ts";
import type { Action } from "./script.ts";

export function shrink(failed: Result, resources: Resources, runsMax = 2000): Result {
  const kind = kindOf(failed.failure ?? "");
  let best = failed;
  let runs = 0;
  for (let size = Math.ceil(best.script.actions.length / 2); size >= 1; size = Math.floor(size / 2)) {
    for (let progress = true; progress; ) {
      progress = false;
      for (let from = best.script.actions.length - size; from >= 0 && runs < runsMax; from -= size) {
        const actions: Action[] = [...best.script.actions];
        actions.splice(from, size);
        const result = runScript(failed.seed, failed.scenario, { ...best.script, actions }, resources);
        runs++;
        if (result.failure === undefined || kindOf(result.failure) !== kind) continue;
        best = result;
        progress = true;
      }
    }
  }
  return best.script.actions.length === 0 ? shrinkSetup(best, kind, resources) : best;
}

/** Where a world draws what happens while it runs, its setup says how much of it: less of each, as long as it fails. */
function shrinkSetup(failed: Result, kind: string, resources: Resources): Result {
  let best = failed;
  for (const [name, value] of Object.entries(failed.script.setup)) {
    if (typeof value !== "number") continue;
    for (const less of [0, 1, Math.floor(value / 4), Math.floor(value / 2)]) {
      if (less >= value) continue;
      const setup = { ...best.script.setup, [name]: less };
      const result = runScript(failed.seed, failed.scenario, { ...best.script, setup }, resources);
      if (result.failure === undefined || kindOf(result.failure) !== kind) continue;
      best = result;
      break;
    }
  }
  return best;
}

/** What kind of failure it is: its message without numbers, as far as those matter. */
const kindOf = (failure: string): string => failure.replaceAll(/[a-z]*\d+/g, "#").slice(0, 60);
