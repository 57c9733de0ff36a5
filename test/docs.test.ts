/** What the documents promise is what the program does: exit codes, commands, units. */
import assert from "node:assert/strict";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { REFUSALS } from "#base/refusal";
import { run, runAny } from "./support/program.ts";
import { ASHLAR } from "./support/server.ts";
import { tempFolder } from "./support/temp.ts";

test("docs/cli.md lists every code with its exit status and HTTP status", () => {
  const rows = [...readFileSync("docs/cli.md", "utf8").matchAll(/^\| `([a-z-]+)` \| (\d+) \| (\d+) \|/gm)];
  const told = Object.fromEntries(
    rows.map(([, code, exit, http]) => [code, { http: Number(http), exit: Number(exit) }]),
  );
  assert.deepEqual(told, REFUSALS);
});

test("docs/cli.md names every command that there is", async () => {
  const text = readFileSync("docs/cli.md", "utf8");
  const help = await run(process.execPath, [ASHLAR, "--help"]);
  const commands = [...help.slice(help.indexOf("Commands:")).matchAll(/^ {2}([a-z]+)/gm)].map((match) => match[1]!);
  for (const command of commands)
    if (command !== "help")
      assert.ok(new RegExp(`\`${command}\\b|ashlar ${command}\\b`).test(text), `docs/cli.md lacks ${command}`);
});

test("every document that another one leads to is there", () => {
  for (const path of [
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "docs/cli.md",
    "docs/api.md",
    "docs/operations.md",
  ])
    for (const [, link] of readFileSync(path, "utf8").matchAll(/\]\(([^)#:]+)(?:#[^)]*)?\)/g)) {
      const target = join(path.includes("/") ? "docs" : ".", link!);
      // Results come with the first benchmark.
      if (target.startsWith("bench/")) continue;
      assert.ok(existsSync(target), `${path}: ${link}`);
    }
});

test("systemd takes the unit files", async (t) => {
  const folder = tempFolder(t);
  for (const name of ["ashlar.service", "ashlar.socket"]) {
    const text = readFileSync(join("packaging", name), "utf8");
    writeFileSync(join(folder, name), text.replace("/usr/bin/ashlar", ASHLAR));
  }
  const { status, stderr } = await runAny("systemd-analyze", [
    "verify",
    join(folder, "ashlar.service"),
    join(folder, "ashlar.socket"),
  ]);
  assert.equal(status, 0, stderr);
});

test("the configuration that is shipped is one", async () => {
  const { stderr } = await runAny(process.execPath, [
    ASHLAR,
    "serve",
    "--config",
    "packaging/ashlar.toml",
    "--data",
    "/proc/none",
    "--nbd",
    "off",
  ]);
  assert.match(stderr, /cannot be made/, `it was read, and then the directory was refused: ${stderr}`);
});
