/** What every command has: how to reach the server, and how to print. */
import { readFileSync } from "node:fs";
import type { Command } from "commander";
import { dataDirectory } from "#admin/data-place";
import { Refusal } from "#base/refusal";
import { ApiClient } from "./client.ts";
import { show } from "./output.ts";

interface GlobalOptions {
  readonly data?: string;
  readonly json?: boolean;
  readonly api?: string;
  readonly apiTokenFile?: string;
}

export class Context {
  readonly data: string;
  readonly json: boolean;
  readonly api: ApiClient;

  constructor(command: Command) {
    const options = command.optsWithGlobals<GlobalOptions>();
    this.data = dataDirectory(options.data);
    this.json = options.json === true;
    this.api = new ApiClient(
      options.api === undefined
        ? { data: this.data }
        : { url: parseUrl(options.api), token: readToken(options.apiTokenFile) },
    );
  }

  show<T>(value: T, text: (value: T) => string): void {
    show(this.json, value, text);
  }
}

function parseUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol === "http:") return url;
  throw new Refusal("bad-request", `"${text}" is not the URL of an admin API`, "Write http://ADDR:PORT.");
}

function readToken(path: string | undefined): string | undefined {
  const text = path === undefined ? process.env["ASHLAR_TOKEN"] : readFileSync(path, "utf8");
  return text
    ?.split("\n")
    .find((line) => line.trim() !== "" && !line.startsWith("#"))
    ?.trim();
}
