#!/usr/bin/env node
/**
 * `npm run build`: the compiler's output in dist/, module by module, for the library, tests and profiles; and the programs
 * once more in dist/app/, each with its modules, and commander, in few files: a server that loads a dozen is there a fifth
 * sooner, and takes less memory, than one that loads 150.
 */
import { spawnSync } from "node:child_process";
import { copyFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";
import { ROOT } from "./test/ground.mjs";

const { status } = spawnSync(join(ROOT, "node_modules/.bin/tsc"), ["-p", "."], { cwd: ROOT, stdio: "inherit" });
if (status !== 0) process.exit(status ?? 1);

/** Found where they are installed: one is native, and the others are not for every run. */
const LIBRARIES = ["koffi", "zod", "smol-toml"];

rmSync(join(ROOT, "dist/app"), { recursive: true, force: true });
// Each program for itself: what two programs have in common would otherwise be a file of its own, for each combination.
for (const program of ["ashlar", "serve", "lane", "attach"])
  await build({
    absWorkingDir: ROOT,
    entryPoints: [`dist/src/bin/${program}.js`],
    outbase: "dist/src",
    outdir: "dist/app",
    // At the depth of the modules that it is made of: what they find relative to themselves stays where it is.
    chunkNames: `shared/${program}/[name]-[hash]`,
    bundle: true,
    splitting: true,
    format: "esm",
    platform: "node",
    target: "node20",
    external: LIBRARIES,
    // commander asks for Node's modules in the old way.
    banner: {
      js: `import { createRequire as makeRequire } from "node:module";\nconst require = makeRequire(import.meta.url);`,
    },
    // Error messages and profiles show names.
    minifySyntax: true,
    minifyWhitespace: true,
    logLevel: "warning",
  });
// What is bundled from others takes its terms along.
copyFileSync(join(ROOT, "node_modules/commander/LICENSE"), join(ROOT, "dist/app/commander.LICENSE"));
