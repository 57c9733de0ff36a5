/** `ashlar serve` as the command line describes it. */
import type { Command } from "commander";
import { FRONTS } from "#admin/fronts";

/** @param run does it. */
export function addServe(program: Command, run: (command: Command) => Promise<void>): void {
  const serve = program
    .command("serve")
    .description("run a server on a data directory, which is made when it is new")
    .option("--config <file>", "read settings from a TOML file; flags go before it");
  for (const [name, { title, addressDefault, several, switches }] of Object.entries(FRONTS)) {
    const where = several === true ? "ADDR:PORT[,ADDR:PORT]" : "ADDR:PORT, unix:PATH";
    serve.option(`--${name} <address>`, `${title} on ${where}, or off (${addressDefault})`);
    for (const [flag, what] of Object.entries(switches ?? {})) serve.option(`--${flag}`, what);
  }
  serve
    .option("--http <address>", "the admin API and metrics on ADDR:PORT too (off)")
    .option("--http-token-file <file>", "tokens, one per line, for --http")
    .option("--env <env>", "auto, uring or node (auto)")
    .option("--lanes <count>", "threads that do I/O (one per core with uring, 1 with node)")
    .option("--memory <size>", "for requests in flight (512M)")
    .option("--cache <size>", "for blocks that were read lately, 0 for none (an eighth of the machine's memory)")
    .option("--capacity <size>", "use no more than this of the file system")
    .option("--soft-percent <percent>", "warn when so much is used (80)", Number)
    .option("--hard-percent <percent>", "make no new volumes when so much is used (95)", Number)
    .option("--tls-cert <file>", "PEM certificate for fronts with TLS")
    .option("--tls-key <file>", "its PEM key")
    .option("--tls-ca <file>", "PEM of who signs hosts' certificates: then hosts must show one")
    .option("--tls-psk <file>", "pre-shared keys, identity:hex per line")
    .option("--tls-require", "refuse hosts that do not use TLS")
    .option("--trust-the-network", "listen beyond this machine without proof of who a host is")
    .option("--log-level <level>", "debug, info, warn or error (info)")
    .option("--log-format <format>", "auto, json or text (auto)")
    .option("--drain-seconds <seconds>", "how long SIGTERM lets what is in flight finish (30)", Number)
    .action((_options: object, command: Command) => run(command));
}
