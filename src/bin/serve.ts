/** The program of a server. Its first lane's thread begins before anything else is loaded. */
import { makeThreadAhead } from "#admin/lane-thread";

/** @returns the exit status. */
export async function main(argv: readonly string[], version: string): Promise<number> {
  const laneProgram = new URL("./lane.js", import.meta.url);
  if (!argv.includes("--help") && !argv.includes("-h")) makeThreadAhead(laneProgram);
  const { serving } = await import("./serving.ts");
  return await serving(argv, version, laneProgram);
}
