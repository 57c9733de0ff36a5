/** The command `ashlar`: one program for the server and for those who speak to it. */
import { readFileSync } from "node:fs";
import { makeThreadAhead } from "#admin/lane-thread";

const { version } = JSON.parse(readFileSync(new URL("../../../package.json", import.meta.url), "utf8")) as {
  version: string;
};

/** The options before a command that take a value. */
const WITH_VALUE = ["--data", "--api", "--api-token-file"];

const argv = process.argv.slice(2);
const first = argv.find((word, index) => !word.startsWith("-") && !WITH_VALUE.includes(argv[index - 1] ?? ""));
const serves = first === "serve";
if (serves && !argv.includes("--help") && !argv.includes("-h")) makeThreadAhead(new URL("./lane.js", import.meta.url));
const { main } = await import("./main.ts");
process.exitCode = await main(argv, version, serves);
