import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { randomFillSync } from "node:crypto";
import { test } from "node:test";
import { Memory } from "#base/memory";
import { MIB } from "#base/units";
import { useNativeHash } from "./xxhash.ts";

test("the C library's hash is taken, and gives what WebAssembly gives, at every length and place", () => {
  const native = new Memory(4 * MIB);
  const wasm = new Memory(4 * MIB);
  assert.equal(useNativeHash(native), undefined);
  randomFillSync(native.bytes.subarray(MIB));
  wasm.bytes.set(native.bytes.subarray(MIB), MIB);
  const check = (at: number, length: number): void =>
    assert.equal(native.hash(at, length), wasm.hash(at, length), `${length} bytes at ${at}`);
  for (let length = 0; length < 2200; length++) check(MIB + (length % 67), length);
  for (let block = 0; block < 256; block++) check(MIB + block * 4096, 4096);
  check(MIB, 3 * MIB);
  check(4 * MIB - 4095, 4095);
});

test("a function that computes something else is not taken", () => {
  const memory = new Memory(2 * MIB);
  const right = memory.hash(MIB, 4096);
  assert.equal(
    memory.useLongHash(() => 1),
    false,
  );
  // One that is right for short runs only, as another version of the algorithm might be.
  const other = new Memory(2 * MIB);
  assert.equal(
    memory.useLongHash((at, length) => other.hash(at, Math.min(length, 2048))),
    false,
  );
  assert.equal(memory.hash(MIB, 4096), right);
});

test("without native code, or without the package, there is a reason in words", () => {
  for (const missing of ["koffi", "xxhash-addon"]) {
    const run = spawnSync(
      process.execPath,
      [
        "--input-type=module",
        "-e",
        `
          const Module = (await import("node:module")).default;
          const resolve = Module._resolveFilename;
          Module._resolveFilename = function (name, ...rest) {
            if (name.startsWith(${JSON.stringify(missing)})) throw new Error("not installed");
            return resolve.call(this, name, ...rest);
          };
          const { useNativeHash } = await import(${JSON.stringify(new URL("./xxhash.js", import.meta.url).href)});
          const { Memory } = await import(${JSON.stringify(new URL("../../base/memory.js", import.meta.url).href)});
          const memory = new Memory(2 ** 21);
          console.log(useNativeHash(memory), memory.hash(2 ** 20, 4096));
        `,
      ],
      { encoding: "utf8" },
    );
    assert.equal(run.status, 0, run.stderr);
    assert.match(
      run.stdout,
      missing === "koffi" ? /koffi cannot be loaded: .* \d+$/m : /xxhash-addon has nothing for .* \d+$/m,
    );
  }
});
