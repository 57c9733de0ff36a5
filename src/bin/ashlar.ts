/**
 * The command `ashlar`: one program for the server and for those who speak to it. They are bundled apart, so that neither
 * loads, or keeps in memory, what only the other one needs.
 */
import { readFileSync } from "node:fs";

const { version } = JSON.parse(readFileSync(new URL("../../../package.json", import.meta.url), "utf8")) as {
  version: string;
};
/** By its address: what is imported by its name goes into the same bundle. */
const serving = (): Promise<typeof import("./serve.ts")> => import(new URL("./serve.js", import.meta.url).href);

/** The options before a command that take a value. */
const WITH_VALUE = ["--data", "--api", "--api-token-file"];

const argv = process.argv.slice(2);
const first = argv.find((word, index) => !word.startsWith("-") && !WITH_VALUE.includes(argv[index - 1] ?? ""));
const { main } = first === "serve" ? await serving() : await import("./client.ts");
process.exitCode = await main(argv, version);
