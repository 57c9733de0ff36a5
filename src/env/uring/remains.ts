/**
 * What a thread leaves behind when it is ended from outside, or runs out of heap: sockets that stay open and silent,
 * ports that stay taken, rings in which the kernel goes on waiting. They are listed in memory that outlives the thread,
 * and whoever survives it clears them away.
 */
import { loadNative } from "./native.ts";

/** Linux allows a process no more (fs.nr_open); pages of the list are touched only where a descriptor has been. */
const DESCRIPTORS_MAX = 1 << 20;
/** Two rings, of two mappings each. */
const MAPPINGS_MAX = 4;
const BITMAP_BYTES = DESCRIPTORS_MAX / 8;

/**
 * One bit per descriptor, and the places of mappings. Two threads may put a descriptor on the list: the owner, and
 * whoever is about to give it one. It is taken off before it is closed: a forgotten descriptor leaks, but one that is
 * closed twice may by then be somebody else's.
 */
export class Remains {
  readonly shared: SharedArrayBuffer;
  readonly #descriptors: Uint32Array;
  /** Address and length of each; a length of 0 is a free entry. */
  readonly #mappings: Float64Array;

  /** @param shared the list of another thread, which that one has been given. */
  constructor(shared = new SharedArrayBuffer(BITMAP_BYTES + MAPPINGS_MAX * 16)) {
    this.shared = shared;
    this.#descriptors = new Uint32Array(shared, 0, BITMAP_BYTES / 4);
    this.#mappings = new Float64Array(shared, BITMAP_BYTES);
  }

  add(fd: number): void {
    if (fd >= 0 && fd < DESCRIPTORS_MAX) Atomics.or(this.#descriptors, fd >>> 5, 1 << (fd & 31));
  }

  /** Whether it was on the list. */
  remove(fd: number): boolean {
    if (fd < 0 || fd >= DESCRIPTORS_MAX) return false;
    const bit = 1 << (fd & 31);
    return (Atomics.and(this.#descriptors, fd >>> 5, ~bit) & bit) !== 0;
  }

  addMapping(at: number, length: number): void {
    for (let entry = 0; entry < this.#mappings.length; entry += 2)
      if (this.#mappings[entry + 1] === 0) {
        this.#mappings[entry] = at;
        this.#mappings[entry + 1] = length;
        return;
      }
  }

  removeMapping(at: number): void {
    for (let entry = 0; entry < this.#mappings.length; entry += 2)
      if (this.#mappings[entry] === at) this.#mappings[entry + 1] = 0;
  }

  /** Ends every descriptor of the list. */
  endAll(end: (fd: number) => void): void {
    for (let word = 0; word < this.#descriptors.length; word++)
      if (this.#descriptors[word] !== 0)
        for (let fd = word * 32; fd < word * 32 + 32; fd++) if (this.remove(fd)) end(fd);
  }

  /** For when the thread is no more: lets go of its rings, then of what it had open. */
  clear(): void {
    const native = loadNative();
    if ("missing" in native) return;
    for (let entry = 0; entry < this.#mappings.length; entry += 2) {
      const length = this.#mappings[entry + 1]!;
      this.#mappings[entry + 1] = 0;
      // A mapping keeps its ring alive, and with it what the ring waits for.
      if (length > 0) native.unmap(this.#mappings[entry]!, length);
    }
    this.endAll(closeSocket);
  }
}

/** Ends a connection or a listener now, also while a ring still refers to it. */
export function closeSocket(fd: number): void {
  const native = loadNative();
  if ("missing" in native) return;
  native.shutdown(fd);
  native.close(fd);
}
