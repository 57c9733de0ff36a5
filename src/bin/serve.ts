/** The program of a server. The threads of the lanes that it has volumes for begin before anything else is loaded. */
import { availableParallelism } from "node:os";
import { dataDirectory, setsIn } from "#admin/data-place";
import { makeThreadsAhead } from "#admin/lane-thread";

/** @returns the exit status. */
export async function main(argv: readonly string[], version: string): Promise<number> {
  const laneProgram = new URL("./lane.js", import.meta.url);
  if (!argv.includes("--help") && !argv.includes("-h")) makeThreadsAhead(laneProgram, lanesExpected(argv));
  const { serving } = await import("./serving.ts");
  return await serving(argv, version, laneProgram);
}

/** With any of these a server may have other than one lane per core, or another data directory. */
const LANES_DEPEND_ON = /^--(lanes|env|iscsi|config)(=|$)/;

/** How many lanes will begin at once, as far as it can be told from here; one begins always. */
function lanesExpected(argv: readonly string[]): number {
  if (argv.some((word) => LANES_DEPEND_ON.test(word))) return 1;
  const at = argv.findLastIndex((word) => word === "--data" || word.startsWith("--data="));
  const given = argv[at] === "--data" ? argv[at + 1] : argv[at]?.slice("--data=".length);
  try {
    return Math.min(availableParallelism(), Math.max(1, setsIn(dataDirectory(given)).length));
  } catch {
    // It is new, or whoever takes it says what is wrong.
    return 1;
  }
}
