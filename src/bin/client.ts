/** The command line without a server in it. `serve` is there for the help that names it. */
import { addCommands } from "#cli/commands";
import { makeProgram, runProgram } from "#cli/program";
import { addServe } from "./serve-command.ts";

/** @returns the exit status. */
export async function main(argv: readonly string[], version: string): Promise<number> {
  const program = makeProgram(version, (all) => {
    addServe(all, () => Promise.reject(new Error("the server is another program")));
    addCommands(all);
  });
  return await runProgram(program, argv);
}
