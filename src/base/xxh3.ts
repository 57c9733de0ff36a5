/**
 * The checksums of the data plane, in WebAssembly over the lane's memory in place: XXH3-64 (seed 0, default secret, low
 * 32 bits) for what the engine stores, and CRC32C for the protocols that ask for it. The code is `hash.wat`. No call
 * allocates. The first MiB of the memory holds their tables.
 *
 * Measured on Node 20 (AMD EPYC): see docs/design/env.md.
 */
import { CRC32C_TABLES } from "./crc32c.ts";
import { HASH_WASM } from "./hash-wasm.ts";

/** What we need of WebAssembly; the `es2023` library does not describe it. */
declare const WebAssembly: {
  Memory: new (shape: { initial: number; maximum: number }) => { readonly buffer: ArrayBuffer };
  Module: new (bytes: Uint8Array) => object;
  Instance: new (module: object, imports: object) => { readonly exports: object };
};

interface HashExports {
  hash(at: number, length: number): number;
  hash64(at: number, length: number): bigint;
  crc32c(at: number, length: number, crc: number): number;
}

const PAGE_BYTES = 65536;
/** Where `hash.wat` expects the CRC32C tables. */
const CRC32C_TABLES_AT = 4096;

let module: object | undefined;

export class Hasher {
  readonly buffer: ArrayBuffer;
  readonly #exports: HashExports;

  /** @param size bytes of the memory, a multiple of 64 KiB; the first MiB is the hasher's. */
  constructor(size: number) {
    const memory = new WebAssembly.Memory({ initial: size / PAGE_BYTES, maximum: size / PAGE_BYTES });
    module ??= new WebAssembly.Module(decodeBase64(HASH_WASM));
    this.#exports = new WebAssembly.Instance(module, { lane: { memory } }).exports as HashExports;
    this.buffer = memory.buffer;
    new Uint32Array(this.buffer, CRC32C_TABLES_AT, CRC32C_TABLES.length).set(CRC32C_TABLES);
  }

  /** The low 32 bits of XXH3-64 over `length` bytes at `at`. */
  hash(at: number, length: number): number {
    return this.#exports.hash(at, length) >>> 0;
  }

  /** All of XXH3-64, for tests and tools: a BigInt is an allocation. */
  hash64(at: number, length: number): bigint {
    return BigInt.asUintN(64, this.#exports.hash64(at, length));
  }

  /** CRC32C over `length` bytes at `at`; `crc` is that of the bytes before them. */
  crc32c(at: number, length: number, crc = 0): number {
    return this.#exports.crc32c(at, length, crc) >>> 0;
  }
}

function decodeBase64(text: string): Uint8Array {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = binary.charCodeAt(at);
  return bytes;
}
