/** A small NBD server for tests of misbehaving clients, with a well-behaved client beside them who must not notice. */
import assert from "node:assert/strict";
import { MIB } from "#base/units";
import { MemoryDevice } from "#device/memory-device";
import { OpenExportTable } from "#target/exports";
import { NbdFront, type NbdFrontOptions } from "#target/nbd-front";
import { Cmd } from "#wire/nbd/codes";
import { NbdGuest } from "./nbd-guest.ts";
import { StillEnv } from "./still-env.ts";

export class NbdStage {
  readonly env: StillEnv;
  readonly device: MemoryDevice;
  readonly front: NbdFront;
  readonly neighbour: NbdGuest;
  readonly #usedAtRest: number;

  constructor(options: NbdFrontOptions = {}, memoryBytes = 24 * MIB) {
    this.env = new StillEnv(memoryBytes);
    this.device = new MemoryDevice(this.env.memory, 4 * MIB);
    this.device.poke(0, new Uint8Array(MIB).fill(0x5a));
    this.front = new NbdFront(this.env, new OpenExportTable().add("db", this.device), options);
    this.neighbour = NbdGuest.open(this.env, this.front, "db");
    this.#usedAtRest = this.env.memory.used;
  }

  /** The neighbour is still served, and what it wrote is what it reads. */
  assertServing(): void {
    const data = new Uint8Array(512).fill(0xc3);
    assert.equal(this.neighbour.write(2 * MIB, data), 0);
    assert.deepEqual(this.neighbour.read(2 * MIB, 512), data);
    assert.equal(this.neighbour.ask(Cmd.FLUSH, 0, 0).error, 0);
  }

  /** Nobody but the neighbour is left, and nothing of the others is. */
  assertAlone(): void {
    assert.equal(this.front.connections.size, 1);
    assert.equal(this.front.figures.handshaking, 0);
    assert.equal(this.env.memory.used, this.#usedAtRest);
  }

  /** Why the last connection that ended did. */
  get lastEnd(): { why: unknown; detail: unknown } {
    const line = this.env.logged.findLast((each) => each.message === "NBD connection ended");
    return { why: line?.fields["why"], detail: line?.fields["detail"] };
  }
}
