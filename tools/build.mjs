#!/usr/bin/env node
/**
 * `npm run build`: the compiler's output in dist/, module by module, for the library, tests and profiles; and the programs
 * once more in dist/app/, each with its modules in few files: a server that loads 20 files is there a fifth sooner, and
 * takes less memory, than one that loads 150.
 */
import { spawnSync } from "node:child_process";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";
import { ROOT } from "./test/ground.mjs";

const { status } = spawnSync(join(ROOT, "node_modules/.bin/tsc"), ["-p", "."], { cwd: ROOT, stdio: "inherit" });
if (status !== 0) process.exit(status ?? 1);

rmSync(join(ROOT, "dist/app"), { recursive: true, force: true });
// Each program for itself: what two programs have in common would otherwise be a file of its own, for each combination.
for (const programs of [["ashlar", "serve"], ["lane"], ["attach"]])
  await build({
    absWorkingDir: ROOT,
    entryPoints: programs.map((name) => `dist/src/bin/${name}.js`),
    outbase: "dist/src",
    outdir: "dist/app",
    // At the depth of the modules that it is made of: what they find relative to themselves stays where it is.
    chunkNames: `shared/${programs[0]}/[name]-[hash]`,
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "node",
    target: "node20",
    packages: "external",
    // Error messages and profiles show names.
    minifySyntax: true,
    minifyWhitespace: true,
    logLevel: "warning",
  });
