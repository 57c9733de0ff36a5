// Assembles src/base/hash.wat into src/base/hash-wasm.ts. With --check, only says whether that file is up to date.
import { readFileSync, writeFileSync } from "node:fs";
import wabt from "wabt";

const source = new URL("../src/base/hash.wat", import.meta.url);
const target = new URL("../src/base/hash-wasm.ts", import.meta.url);

/** The text of the generated file. */
export async function assemble() {
  const { parseWat } = await wabt();
  const module = parseWat("hash.wat", readFileSync(source, "utf8"), { simd: true });
  module.validate({ simd: true });
  const { buffer } = module.toBinary({});
  module.destroy();
  const lines = Buffer.from(buffer)
    .toString("base64")
    .match(/.{1,108}/g);
  return [
    "/** Generated from hash.wat by `node tools/hash-wasm.mjs`; do not edit. */",
    "export const HASH_WASM =",
    `${lines.map((line) => `  "${line}"`).join(" +\n")};\n`,
  ].join("\n");
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  const text = await assemble();
  if (!process.argv.includes("--check")) writeFileSync(target, text);
  else if (readFileSync(target, "utf8") !== text) throw new Error("hash-wasm.ts is not what hash.wat gives");
}
