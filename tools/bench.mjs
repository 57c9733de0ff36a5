#!/usr/bin/env node
/** `npm run bench`: builds, then measures. What it can do stands in bench/main.ts. */
import { spawnSync } from "node:child_process";
import { ROOT } from "./test/ground.mjs";

const step = (program, args) => {
  const { status } = spawnSync(program, args, { cwd: ROOT, stdio: "inherit" });
  if (status !== 0) process.exit(status ?? 1);
};
step("npm", ["run", "build", "--silent"]);
step(process.execPath, ["dist/bench/main.js", ...process.argv.slice(2)]);
