/**
 * Our NBD client and our NBD front in simulated worlds: a network that resets, vanishes and clogs, a server that is
 * paused, killed and forgets what was not flushed. Two promises, from many seeds: whoever uses the client never reads
 * anything but what was written last; and a flush that is answered "ok" has not lied, whatever `unflushed` says.
 *
 * ASHLAR_SEED=… plays one world again.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Status } from "#base/status";
import { BLOCK_BYTES, KIB, MIB } from "#base/units";
import { type BlockDevice, BlockOp, type OpKind } from "#device/device";
import { isNetError } from "#env/env";
import { NbdClient } from "#initiator/nbd-client";
import type { Chance } from "#sim/env/chance";
import type { SimProcess } from "#sim/env/sim-process";
import { Resources, World } from "#sim/env/world";
import { OpenExportTable } from "#target/exports";
import { NbdFront } from "#target/nbd-front";

const BLOCKS = 48;
const WORLDS = 30;
const OPERATIONS = 250;
const FLYING_MAX = 12;
const TROUBLE_MS = 60_000;
/** Once nothing goes wrong any more, all is answered within this. Virtual milliseconds. */
const ANSWER_MS_MAX = 300_000;
const resources = new Resources(24 * MIB);

/** What a server's machine keeps: what is in its cache, and what is on its disk. */
class Disk {
  cache = new Uint8Array(BLOCKS * BLOCK_BYTES);
  stable = new Uint8Array(BLOCKS * BLOCK_BYTES);

  /** The machine loses its power: of each block either what was flushed, or what was in the cache. */
  losePower(chance: Chance): void {
    for (let block = 0; block < BLOCKS; block++)
      if (chance.below(3) === 0) this.stable.set(slice(this.cache, block), block * BLOCK_BYTES);
    this.cache = this.stable.slice();
  }
}
const slice = (bytes: Uint8Array, block: number): Uint8Array =>
  bytes.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);

/** Operations take effect in the order in which they come, and are answered in any order, a little later. */
class CachedDevice implements BlockDevice {
  readonly size = BLOCKS * BLOCK_BYTES;
  readonly blockSize = 512;
  readonly preferredBlockSize = BLOCK_BYTES;
  readonly readOnly = false;
  readonly uuid = "0".repeat(32);
  readonly #disk: Disk;
  readonly #process: SimProcess;
  constructor(process: SimProcess, disk: Disk) {
    this.#process = process;
    this.#disk = disk;
  }
  watch(): () => void {
    return () => {};
  }
  submit(op: BlockOp): void {
    const { cache } = this.#disk;
    const { memory, random } = this.#process;
    const end = op.offset + op.length;
    op.status = "ok";
    if (op.kind === "read") memory.bytes.set(cache.subarray(op.offset, end), op.at);
    else if (op.kind === "write") cache.set(memory.bytes.subarray(op.at, op.at + op.length), op.offset);
    else if (op.kind === "zero" || op.kind === "trim") cache.fill(0, op.offset, end);
    const flushed = op.kind === "flush" ? cache.slice() : undefined;
    if (op.fua) this.#disk.stable.set(cache.subarray(op.offset, end), op.offset);
    this.#process.plan(random.below(100) / 20, () => {
      // What was written since, and made durable by FUA, must not be undone: durable is what is newer.
      if (flushed !== undefined) this.#disk.stable.set(this.#disk.cache);
      op.done(op);
    });
  }
}

/** One world: a server, a host, a seed. */
class NbdWorld {
  readonly world: World;
  readonly #chance: Chance;
  readonly #disk = new Disk();
  readonly #policy: "replay" | "fail";
  #server!: SimProcess;
  #host!: SimProcess;
  #client!: NbdClient;
  /** Per block, everything that was ever asked to be its content; the last one is, or is to be, what it reads as. */
  readonly #history: number[][] = Array.from({ length: BLOCKS }, () => [0]);
  readonly #busy = new Uint8Array(BLOCKS);
  #stamp = 0;
  #flying = 0;
  #left = OPERATIONS;
  #isCalm = false;
  /** With "fail": acknowledged writes were lost, and the client has said so. */
  hasFailed = false;
  crashes = 0;

  constructor(seed: number) {
    this.world = new World(seed, resources);
    this.#chance = this.world.chance.fork();
    this.#policy = this.#chance.below(3) === 0 ? "fail" : "replay";
  }

  play(): NbdClient["figures"] {
    const { world } = this;
    const chance = this.#chance;
    this.#start();
    this.#host = world.node("host").start();
    world.network.faults.chunkMax = chance.below(2) === 0 ? 65536 : 200 + chance.below(3000);
    const target = { address: { host: "server", port: 10809 }, exportName: "d", tls: undefined };
    this.#client = world.finish(
      NbdClient.open(this.#host, target, {
        connections: 1 + chance.below(4),
        giveUpMs: Number.POSITIVE_INFINITY,
        silenceMs: 3_000,
        dialMs: 2_000,
        unflushed: this.#policy,
        replayBytes: MIB,
      }),
    );
    const { faults } = world.network;
    // Per piece of data: where pieces are small, no handshake would ever come to its end.
    if (chance.below(2) === 0) faults.reset = (0.01 * Math.min(faults.chunkMax, 4096)) / 4096;
    if (chance.below(3) === 0) faults.vanish = 0.001;
    if (chance.below(3) === 0) faults.clog = 0.005;
    this.#trouble();
    this.#ask();
    assert.ok(
      world.runUntil(() => this.#left === 0),
      "the world has come to a stop",
    );
    this.#calm();
    const until = world.now + ANSWER_MS_MAX;
    world.runUntil(() => this.#flying === 0 || world.now > until);
    assert.equal(this.#flying, 0, "not everything was answered");
    this.#flush();
    for (let block = 0; block < BLOCKS; block++) this.#submit("read", block, 1, false);
    world.runUntil(() => this.#flying === 0 || world.now > until + ANSWER_MS_MAX);
    assert.equal(this.#flying, 0, "the last reads were not answered");
    const { figures } = this.#client;
    let closed = false;
    this.#client.close()(() => {
      closed = true;
    });
    world.runUntil(() => closed);
    assert.ok(closed, "the client does not close");
    assert.equal(this.#host.memory.used, 0, "the client has kept memory");
    return figures;
  }

  #calm(): void {
    this.#isCalm = true;
    this.world.network.faults.stop();
    this.world.network.healAll();
    if (this.#server.paused) this.#server.resume();
  }

  #start(): void {
    this.#server = this.world.node("server").start();
    const table = new OpenExportTable().add("d", new CachedDevice(this.#server, this.#disk));
    const front = new NbdFront(this.#server, table);
    const address = this.world.finish(front.listen({ host: "0.0.0.0", port: 10809 }));
    if (isNetError(address)) throw new Error(address.detail);
  }

  /** Something goes wrong, again and again, until the host has asked for all that it will. */
  #trouble(): void {
    const chance = this.#chance;
    this.world.plan(20 + chance.below(800), () => {
      if (this.#isCalm) return;
      if (this.world.now > TROUBLE_MS) {
        this.#calm();
        return;
      }
      const { network } = this.world;
      const [server, host] = [this.world.node("server"), this.world.node("host")];
      const kind = chance.below(6);
      if (kind < 2) {
        this.crashes++;
        this.#server.crash();
        // A process that is killed leaves the cache as it is; a machine without power does not.
        if (kind === 0) this.#disk.losePower(chance);
        this.world.plan(chance.below(2_000), () => this.#restart());
      } else if (kind === 2) {
        network.cut(server, host, chance.below(2) === 0);
        this.world.plan(chance.below(6_000), () => network.healAll());
      } else if (kind === 3 && !this.#server.dead) {
        const process = this.#server;
        process.pause();
        this.world.plan(chance.below(5_000), () => !process.dead && process.resume());
      }
      this.#trouble();
    });
  }

  /** Starting takes events of the world, and this is called from one: so the task is started and not waited for. */
  #restart(): void {
    if (!this.#server.dead) return;
    this.#server = this.world.node("server").start();
    const table = new OpenExportTable().add("d", new CachedDevice(this.#server, this.#disk));
    const listening = new NbdFront(this.#server, table).listen({ host: "0.0.0.0", port: 10809 });
    for (let step = listening.next(); step.done !== true; ) {
      let answer: unknown;
      step.value((value: unknown) => {
        answer = value;
      });
      if (answer === undefined) break;
      step = listening.next(answer);
    }
  }

  #ask(): void {
    const chance = this.#chance;
    this.world.plan(chance.below(40), () => {
      if (this.#left > 0 && this.#flying < FLYING_MAX) {
        this.#left--;
        const kind = chance.below(10);
        const block = chance.below(BLOCKS);
        const count = Math.min(1 + chance.below(4), BLOCKS - block);
        if (kind < 4) this.#submit("write", block, count, chance.below(6) === 0);
        else if (kind < 5) this.#submit(chance.below(2) === 0 ? "zero" : "trim", block, count, chance.below(6) === 0);
        else if (kind < 6) this.#flush();
        else this.#submit("read", block, count, false);
      }
      if (this.#left > 0) this.#ask();
    });
  }

  #submit(kind: OpKind, block: number, count: number, fua: boolean): void {
    for (let index = 0; index < count; index++) if (this.#busy[block + index] === 1) return;
    const { memory } = this.#host;
    const at = memory.allocate(4 * BLOCK_BYTES);
    assert.notEqual(at, 0);
    this.#busy.fill(1, block, block + count);
    const isChange = kind !== "read";
    const content = kind === "write" ? ++this.#stamp : 0;
    if (isChange) for (let index = 0; index < count; index++) this.#history[block + index]!.push(content);
    if (kind === "write") for (let word = 0; word < count * KIB; word++) memory.view.setUint32(at + word * 4, content);
    const op = new BlockOp(({ status }) => {
      this.#flying--;
      this.#busy.fill(0, block, block + count);
      this.#judge(kind, status);
      if (kind === "read" && status === "ok" && !this.hasFailed && this.#policy === "replay")
        for (let index = 0; index < count; index++)
          for (const word of [0, 511, 1023])
            assert.equal(
              memory.view.getUint32(at + index * BLOCK_BYTES + word * 4),
              this.#history[block + index]!.at(-1),
              `block ${block + index}, word ${word}`,
            );
      memory.free(at);
    });
    Object.assign(op, { kind, offset: block * BLOCK_BYTES, length: count * BLOCK_BYTES, at, fua });
    this.#flying++;
    this.#client.submit(op);
  }

  #flush(): void {
    // What is acknowledged now: of each block, this much of its history; what is in flight may be there or not.
    const covered = this.#history.map((contents, block) => contents.length - (this.#busy[block] === 1 ? 2 : 1));
    const op = new BlockOp(({ status }) => {
      this.#flying--;
      this.#judge("flush", status);
      if (status !== "ok") return;
      const view = new DataView(this.#disk.stable.buffer);
      for (let block = 0; block < BLOCKS; block++) {
        const allowed = this.#history[block]!.slice(Math.max(covered[block]!, 0));
        const found = view.getUint32(block * BLOCK_BYTES);
        assert.ok(allowed.includes(found), `the flush has lied: block ${block} is ${found}, and not one of ${allowed}`);
      }
    });
    op.kind = "flush";
    this.#flying++;
    this.#client.submit(op);
  }

  #judge(kind: OpKind, status: Status): void {
    if (status === "ok") return;
    assert.equal(status, "failed", `a ${kind} was answered "${status}"`);
    assert.ok(this.#policy === "fail" && kind !== "read", `a ${kind} has failed`);
    this.hasFailed = true;
  }
}

test("whatever happens to the network and the server: reads see the last write, and no flush lies", (context) => {
  const given = process.env["ASHLAR_SEED"];
  const first = given === undefined ? Math.floor(Math.random() * 2 ** 31) : Number(given);
  const seen = { lost: 0, replayed: 0, repeated: 0, failed: 0, crashes: 0 };
  for (let index = 0; index < (given === undefined ? WORLDS : 1); index++) {
    const world = new NbdWorld(first + index);
    if (given !== undefined) world.world.onLine = (line) => context.diagnostic(line);
    try {
      const figures = world.play();
      seen.lost += figures.connectionsLost;
      seen.replayed += figures.writesReplayed;
      seen.repeated += figures.requestsRepeated;
      seen.failed += world.hasFailed ? 1 : 0;
      seen.crashes += world.crashes;
    } catch (error) {
      throw new Error(`ASHLAR_SEED=${first + index} plays this world again: ${(error as Error).message}`, {
        cause: error,
      });
    } finally {
      world.world.end();
    }
  }
  context.diagnostic(JSON.stringify(seen));
  if (given === undefined)
    for (const [what, count] of Object.entries(seen))
      assert.ok(count > 0, `"${what}" has never happened: nothing was shown`);
});
