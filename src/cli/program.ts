/** The program `ashlar` without its commands: the options that all of them have, and how a command line ends. */
import { Command, CommanderError } from "commander";
import { REFUSALS } from "#base/refusal";
import { showRefusal } from "./output.ts";

/** @param addCommands adds the commands that this run may need. */
export function makeProgram(version: string, addCommands: (program: Command) => void): Command {
  const program = new Command("ashlar")
    .description("Network block storage: thin, snapshotted, instantly cloned volumes served to hosts as disks")
    .version(version)
    .option("--data <dir>", "the server's data directory (ASHLAR_DATA, ./data or /var/lib/ashlar)")
    .option("--json", "print JSON")
    .option("--api <url>", "speak to a server at http://ADDR:PORT rather than through its data directory")
    .option("--api-token-file <file>", "the token for --api (or ASHLAR_TOKEN)")
    .showHelpAfterError("(`ashlar help` shows the commands)")
    .configureHelp({ sortSubcommands: false, showGlobalOptions: true })
    .exitOverride();
  addCommands(program);
  for (const command of everyCommand(program)) command.exitOverride();
  return program;
}

/** Runs a command line, and returns the exit status. */
export async function runProgram(program: Command, argv: readonly string[]): Promise<number> {
  try {
    await program.parseAsync([...argv], { from: "user" });
    return Number(process.exitCode ?? 0);
  } catch (error) {
    if (!(error instanceof CommanderError)) return showRefusal(argv.includes("--json"), error);
    // Help and version that were asked for are answers; a command line that makes no sense is a bad request.
    return error.exitCode === 0 ? 0 : REFUSALS["bad-request"].exit;
  }
}

function* everyCommand(command: Command): Generator<Command> {
  for (const inner of command.commands) {
    yield inner;
    yield* everyCommand(inner);
  }
}
