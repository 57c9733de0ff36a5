/** What all parts of the io_uring Env share. */
import type { Memory, Pieces } from "#base/memory";
import { MIB } from "#base/units";
import { Promptness, READ_SLOW_MS, WRITE_SLOW_MS } from "../promptness.ts";
import { CacheProvider } from "./cache-provider.ts";
import { Gate } from "./gate.ts";
import { loadNative, type Native } from "./native.ts";
import type { Remains } from "./remains.ts";
import { Ring } from "./ring.ts";
import { SoleSync } from "./sole-sync.ts";
import { UringTurn } from "./uring-turn.ts";

/** Entries of the lane's ring. The completions are what the kernel holds without allocating, not a limit. */
const SUBMISSIONS = 1024;
const COMPLETIONS = 8192;
/**
 * The memory comes in huge pages: the kernel copies to and from it, and has fewer of them to look up (5 to 10 % of the
 * time per operation on a virtual machine). But for its first bytes, which a server that does nothing has touched: it
 * stays as small as it was.
 */
const SMALL_PAGES_BYTES = 4 * MIB;

export class UringCore {
  readonly native: Native;
  readonly ring: Ring;
  readonly turn: UringTurn;
  readonly gate: Gate;
  readonly memory: Memory;
  readonly remains: Remains;
  /** The address of position 0 of the memory, which is fixed and never moves; pinned by `memory`. */
  readonly base: number;
  readonly reads = new Promptness(READ_SLOW_MS);
  readonly soleSync = new SoleSync();
  readonly writes = new Promptness(WRITE_SLOW_MS);

  constructor(memory: Memory, remains: Remains) {
    const native = loadNative();
    if ("missing" in native) throw new Error(native.missing);
    this.native = native;
    this.memory = memory;
    this.remains = remains;
    this.base = native.address(memory.bytes);
    const bytes = memory.size + memory.cacheBytes;
    native.preferHugePages(this.base + SMALL_PAGES_BYTES, Math.max(0, bytes - SMALL_PAGES_BYTES));
    this.ring = new Ring({ entries: SUBMISSIONS, completions: COMPLETIONS, defer: true }, remains);
    this.gate = new Gate(this.ring);
    this.turn = new UringTurn(this.ring, this.gate, remains, native.preemptions);
    if (memory.cacheBytes > 0) new CacheProvider(this);
  }

  /** Writes iovecs from `first` on for what follows the first `skip` bytes of `pieces`; returns how many. */
  fillIovecs(first: number, pieces: Pieces, skip: number): number {
    let index = first;
    for (let piece = 0; piece < pieces.count; piece++) {
      const length = pieces.length[piece]!;
      if (skip >= length) {
        skip -= length;
        continue;
      }
      this.ring.setIovec(index++, this.base + pieces.at[piece]! + skip, length - skip);
      skip = 0;
    }
    return index - first;
  }

  /** Closes a descriptor of the list. */
  closeFd(fd: number): void {
    this.remains.remove(fd);
    this.native.close(fd);
  }

  close(): void {
    this.ring.close();
    this.turn.close();
    // Lines and listeners that are still open are no use to anybody.
    this.remains.endAll((fd) => this.native.close(fd));
  }
}
