/**
 * SANITIZE, SBC-3 §4.11: the whole unit is erased or overwritten, in the background of its other duties, and nothing
 * that aborts commands or resets units stops it. It is not continued after the process was restarted; snapshots are
 * volumes of their own, and keep their data.
 */

import type { Memory } from "#base/memory";
import type { Bytes, Millis } from "#base/units";
import { type BlockDevice, BlockOp } from "#device/device";
import type { Alarm, Clock } from "#env/env";

const CHUNK_BYTES: Bytes = 1024 * 1024;
const ERASE_CHUNK_BYTES: Bytes = 1024 * 1024 * 1024;
/** How long the next chunk waits when there was no memory for its pattern. */
const RETRY_MS: Millis = 10;

export class Sanitize {
  readonly #device: BlockDevice;
  readonly #clock: Clock;
  readonly #memory: Memory;
  readonly #pattern: Uint8Array | undefined;
  readonly #passes: number;
  readonly #invert: boolean;
  readonly #rate: Bytes;
  readonly #ended: (ok: boolean) => void;
  readonly #op: BlockOp;
  readonly #alarm: Alarm;
  readonly #startedAt: Millis;
  #pass = 0;
  #position: Bytes = 0;
  #moved: Bytes = 0;
  #at = 0;
  #stopped = false;

  /** @param pattern what each block is filled with; undefined to erase. @param ended told once, false if a write failed. */
  constructor(
    device: BlockDevice,
    clock: Clock,
    memory: Memory,
    how: {
      readonly pattern: Uint8Array | undefined;
      readonly passes: number;
      readonly invert: boolean;
      readonly rate: Bytes;
    },
    ended: (ok: boolean) => void,
  ) {
    this.#device = device;
    this.#clock = clock;
    this.#memory = memory;
    this.#pattern = how.pattern;
    this.#passes = how.pattern === undefined ? 1 : how.passes;
    this.#invert = how.invert;
    this.#rate = how.rate;
    this.#ended = ended;
    this.#startedAt = clock.now();
    this.#op = new BlockOp(() => this.#moveOn());
    this.#alarm = clock.alarm(() => this.#next());
    this.#alarm.at = this.#startedAt;
  }

  /** How far it is: 0 to 65535. */
  get progress(): number {
    const whole = this.#device.size * this.#passes;
    return whole === 0 ? 0xffff : Math.min(0xffff, Math.floor((this.#moved / whole) * 0x1_0000));
  }

  stop(): void {
    this.#stopped = true;
    this.#alarm.at = Number.POSITIVE_INFINITY;
  }

  #next(): void {
    this.#alarm.at = Number.POSITIVE_INFINITY;
    if (this.#stopped) return;
    const op = this.#op;
    const chunk = this.#pattern === undefined ? ERASE_CHUNK_BYTES : CHUNK_BYTES;
    op.offset = this.#position;
    op.length = Math.min(chunk, this.#device.size - this.#position);
    op.fua = false;
    op.noHole = false;
    op.fastOnly = false;
    if (this.#pattern === undefined) {
      op.kind = "zero";
    } else {
      if (this.#at === 0 && !this.#fill(this.#pattern)) {
        this.#alarm.at = this.#clock.now() + RETRY_MS;
        return;
      }
      op.kind = "write";
      op.at = this.#at;
    }
    this.#device.submit(op);
  }

  #fill(pattern: Uint8Array): boolean {
    this.#at = this.#memory.allocate(CHUNK_BYTES);
    if (this.#at === 0) return false;
    const { blockSize } = this.#device;
    const inverted = this.#invert && this.#pass % 2 === 1 ? 0xff : 0;
    const { bytes } = this.#memory;
    for (let index = 0; index < blockSize; index++)
      bytes[this.#at + index] = pattern[index % pattern.length]! ^ inverted;
    for (let done = blockSize; done < CHUNK_BYTES; done += blockSize)
      bytes.copyWithin(this.#at + done, this.#at, this.#at + blockSize);
    return true;
  }

  #moveOn(): void {
    if (this.#op.kind === "flush") return this.#end(this.#op.status === "ok");
    if (this.#op.status !== "ok") return this.#end(false);
    this.#position += this.#op.length;
    this.#moved += this.#op.length;
    if (this.#position >= this.#device.size) {
      this.#position = 0;
      this.#pass++;
      if (this.#invert) this.#dropPattern();
      if (this.#pass === this.#passes) {
        this.#op.kind = "flush";
        this.#device.submit(this.#op);
        return;
      }
    }
    const due = this.#pattern === undefined ? 0 : this.#startedAt + (this.#moved * 1000) / this.#rate;
    this.#alarm.at = Math.max(this.#clock.now(), due);
  }

  #end(ok: boolean): void {
    this.#dropPattern();
    this.stop();
    this.#ended(ok);
  }

  #dropPattern(): void {
    if (this.#at !== 0) this.#memory.free(this.#at);
    this.#at = 0;
  }
}
