/**
 * XXH3 of the C library, several times as fast as the one in WebAssembly: the npm package `xxhash-addon` brings it,
 * compiled for Node, and its function is called with an address, without Node's own binding, which would want an object
 * per call. It serves every Env; it is here because raw addresses exist in this folder only.
 */
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import type { Memory } from "#base/memory";
import { koffi } from "../libc.ts";

/** The first is the one that chooses among SSE2, AVX2 and AVX-512; the second is there where there is no choice. */
const FUNCTIONS = ["XXH3_64bits_dispatch", "XXH3_64bits"] as const;

/** Lets `memory` use it for what is long. The answer is why it does not: then WebAssembly goes on doing it. */
export function useNativeHash(memory: Memory): string | undefined {
  const native = koffi();
  if ("missing" in native) return native.missing;
  let why = `xxhash-addon has nothing for ${process.platform}-${process.arch}`;
  for (const file of addonFiles())
    for (const name of FUNCTIONS)
      try {
        // The hash has 64 bits, and a caller of a function that returns 32 looks at the low ones.
        const call = native.load(file).func(`int32_t ${name}(intptr_t, size_t)`) as (
          at: number,
          length: number,
        ) => number;
        const base = Number(native.address(memory.bytes));
        if (memory.useLongHash((at, length) => call(base + at, length) >>> 0)) return undefined;
        why = `${name} of xxhash-addon is not XXH3-64`;
      } catch (error) {
        why = `xxhash-addon: ${error instanceof Error ? error.message : error}`;
      }
  return why;
}

/** What there may be for this system: of two C libraries, only one's can be loaded. */
function addonFiles(): string[] {
  let root: string;
  try {
    root = dirname(createRequire(import.meta.url).resolve("xxhash-addon/package.json"));
  } catch {
    return [];
  }
  const directory = join(root, "prebuilds", `${process.platform}-${process.arch}`);
  return ["addon.napi.node", "addon.napi.glibc.node", "addon.napi.musl.node"]
    .map((name) => join(directory, name))
    .filter((file) => existsSync(file));
}
