/**
 * Nothing goes wrong at all: hosts and operators do all they may, many things at once. Whatever is answered with an error
 * that it does not deserve is a bug.
 */
import type { Scenario } from "../scenario.ts";
import { type EngineSetup, playEngine } from "../worlds/engine-world.ts";
import { drawSetup, drawWorkload } from "./engine-draw.ts";

export const fairWeather: Scenario<EngineSetup> = {
  name: "fair-weather",
  about: "nothing goes wrong",
  budget: "nothing",
  weight: 1,
  draw: (chance) => ({
    setup: drawSetup(chance),
    actions: drawWorkload(chance, { actions: [50, 200], io: 100, control: 15, crashes: 0, reopens: 1 }),
  }),
  play: playEngine,
};
