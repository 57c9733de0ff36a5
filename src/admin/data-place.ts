/** Where the data directory is, and how much lies in it: what is to be known before anything of a server is loaded. */
import { existsSync, readdirSync } from "node:fs";
import { join } from "node:path";

const DATA_DEFAULT = "/var/lib/ashlar";

/** `--data`, or ASHLAR_DATA, or `./data` where a server has been, or the system's directory. */
export function dataDirectory(given: string | undefined): string {
  if (given !== undefined) return given;
  const variable = process.env["ASHLAR_DATA"];
  if (variable !== undefined && variable !== "") return variable;
  return existsSync("data/ashlar.json") ? "data" : DATA_DEFAULT;
}

/** Version sets that are there, in order of their names. */
export function setsIn(directory: string): string[] {
  return readdirSync(join(directory, "sets"))
    .filter((name) => /^[0-9a-f]{32}$/.test(name))
    .sort();
}
