/** The program `ashlar` without its commands: the options that all of them have, and how a command line ends. */
import { Command, CommanderError } from "commander";
import { REFUSALS, Refusal } from "#base/refusal";
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
  const json = argv.includes("--json");
  // A program that asked for JSON gets the refusal, and not the help for a person.
  if (json) for (const command of [program, ...everyCommand(program)]) command.configureOutput({ writeErr: () => {} });
  try {
    await program.parseAsync([...argv], { from: "user" });
    return Number(process.exitCode ?? 0);
  } catch (error) {
    if (!(error instanceof CommanderError)) return showRefusal(json, error);
    // Help and version that were asked for are answers; a command line that makes no sense is a bad request.
    if (error.exitCode === 0) return 0;
    const refusal = badCommandLine(error);
    return json ? showRefusal(json, refusal) : REFUSALS[refusal.code].exit;
  }
}

/** What commander found wrong with a command line, in the words of all refusals. */
function badCommandLine({ code, message }: CommanderError): Refusal {
  const what = code === "commander.help" ? "A command is missing" : message.replace(/^error: /, "");
  return new Refusal("bad-request", what.charAt(0).toUpperCase() + what.slice(1), "`ashlar help` shows the commands.");
}

function* everyCommand(command: Command): Generator<Command> {
  for (const inner of command.commands) {
    yield inner;
    yield* everyCommand(inner);
  }
}
