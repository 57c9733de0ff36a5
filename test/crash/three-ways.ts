/** One volume over iSCSI, NBD and SCP at once, under one oracle: the ways to it, and a load on all of them. */
import assert from "node:assert/strict";
import { connectScp } from "../../src/library/connect-scp.ts";
import { RawInitiator, read10, write10 } from "../support/iscsi-client.ts";
import { NbdFlag, TestClient } from "../support/nbd.ts";
import { BLOCK_BYTES, type Oracle } from "../support/oracle.ts";
import { sleep } from "../support/program.ts";
import type { Chance } from "../support/random.ts";

const RANGE_BLOCKS_MAX = 24;
const CHECK_BLOCKS = 128;
const SECTOR = 512;
export const LUN = 5;
export const INITIATOR = "iqn.2024-01.test:three";

/** One way to the volume, with byte offsets. What it begins is done by it, or rejects. */
export interface Way {
  readonly front: "iscsi" | "nbd" | "scp";
  /** Goes on by itself after the server was gone, so that what is in flight is done in the end. */
  readonly goesOn: boolean;
  read(offset: number, length: number): Promise<Uint8Array>;
  write(offset: number, data: Uint8Array, fua: boolean): Promise<void>;
  zero(offset: number, length: number): Promise<void>;
  trim(offset: number, length: number): Promise<void>;
  flush(): Promise<void>;
  close(): void | Promise<void>;
}

/* ----------------------------------------------------------------------------------- ways */

export async function openIscsi(port: number, iqn: string, isid: number, keys: Record<string, string>): Promise<Way> {
  const initiator = await RawInitiator.connect(port);
  assert.equal(await initiator.login({ initiator: INITIATOR, target: iqn, isid, keys }), 0);
  initiator.lun = LUN;
  await initiator.settle();
  const good = async (cdb: number[], options: Parameters<RawInitiator["run"]>[1]): Promise<Buffer> => {
    const { status, data, sense } = await initiator.run(cdb, options);
    assert.equal(status, 0, `command ${cdb[0]!.toString(16)}: ${sense.toString("hex")}`);
    return data;
  };
  const [lba, blocks] = [(offset: number) => offset / SECTOR, (length: number) => length / SECTOR];
  const FUA = 0x08;
  return {
    front: "iscsi",
    goesOn: false,
    read: (offset, length) => good(read10(lba(offset), blocks(length)), { read: length }),
    async write(offset, data, fua) {
      const cdb = write10(lba(offset), blocks(data.length));
      if (fua) cdb[1] = FUA;
      await good(cdb, { write: data, immediate: Math.min(data.length, isid % 2 === 0 ? 8192 : 0) });
    },
    async zero(offset, length) {
      const cdb = write10(lba(offset), blocks(length));
      cdb[0] = 0x41;
      await good(cdb, { write: Buffer.alloc(SECTOR) });
    },
    async trim(offset, length) {
      const list = Buffer.alloc(24);
      list.writeUInt16BE(22, 0);
      list.writeUInt16BE(16, 2);
      list.writeBigUInt64BE(BigInt(lba(offset)), 8);
      list.writeUInt32BE(blocks(length), 16);
      await good([0x42, 0, 0, 0, 0, 0, 0, 0, list.length, 0], { write: list });
    },
    flush: () => good([0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], {}).then(() => undefined),
    close: () => initiator.close(),
  };
}

export async function openNbd(at: string | number): Promise<Way> {
  const client = await TestClient.open(at, "db");
  return {
    front: "nbd",
    goesOn: false,
    read: (offset, length) => client.read(offset, length),
    write: (offset, data, fua) => client.write(offset, data, fua ? NbdFlag.FUA : 0),
    zero: (offset, length) => client.zero(offset, length),
    trim: (offset, length) => client.trim(offset, length),
    flush: () => client.flush(),
    close: () => client.close(),
  };
}

export async function openScp(port: number, secret: string): Promise<Way> {
  const connection = await connectScp({ servers: [`127.0.0.1:${port}`], host: "web", secret });
  const unit = connection.open("db");
  return {
    front: "scp",
    goesOn: true,
    read: (offset, length) => unit.read(offset, length),
    write: (offset, data, fua) => unit.write(offset, data, { fua }),
    zero: (offset, length) => unit.zero(offset, length),
    trim: (offset, length) => unit.trim(offset, length),
    flush: () => unit.flush(),
    close: () => connection.close(),
  };
}

/* ----------------------------------------------------------------------------------- load */

/** Blocks that somebody reads or writes now: two operations never meet, so that the oracle can say what is right. */
class Claims {
  readonly #taken: Uint8Array;
  constructor(blocks: number) {
    this.#taken = new Uint8Array(blocks);
  }
  take(oracle: Oracle, random: Chance): { first: number; count: number } | undefined {
    const range = oracle.freeRange(random, RANGE_BLOCKS_MAX);
    if (range === undefined) return undefined;
    const { first, count } = range;
    if (this.#taken.subarray(first, first + count).includes(1)) return undefined;
    this.#taken.fill(1, first, first + count);
    return range;
  }
  give({ first, count }: { first: number; count: number }): void {
    this.#taken.fill(0, first, first + count);
  }
}

export interface Tally {
  readonly iscsi: number;
  readonly nbd: number;
  readonly scp: number;
}

/** Random operations on all ways until `until` says so, or the server is gone: then only those go on that can. */
export async function load(
  ways: readonly Way[],
  oracle: Oracle,
  random: Chance,
  until: () => boolean,
  isGone: () => boolean,
): Promise<Tally> {
  const claims = new Claims(oracle.blockCount);
  const tally = { iscsi: 0, nbd: 0, scp: 0 };
  const work = async (way: Way) => {
    while (!until()) {
      const range = claims.take(oracle, random);
      if (range === undefined) {
        await sleep(1);
        continue;
      }
      const { first, count } = range;
      const [offset, length] = [first * BLOCK_BYTES, count * BLOCK_BYTES];
      const kind = random.below(12);
      try {
        if (kind < 5) {
          const wrong = oracle.check(first, await way.read(offset, length));
          if (wrong !== undefined) throw new Error(`over ${way.front}: ${wrong}`);
        } else if (kind === 5) await way.flush();
        else {
          if (kind > 7) await way.write(offset, oracle.beginWrite(first, count), random.oneIn(10));
          else {
            oracle.beginZero(first, count);
            await (kind === 6 ? way.zero(offset, length) : way.trim(offset, length));
          }
          oracle.acknowledge(first, count);
        }
      } catch (error) {
        // Its blocks stay claimed: nobody knows what became of the operation until all is read after the restart.
        if (isGone() && !(error as Error).message.startsWith("over ")) return;
        throw error;
      }
      tally[way.front]++;
      claims.give(range);
    }
  };
  await Promise.all(ways.map(work));
  return tally;
}

export async function checkAll(way: Way, oracle: Oracle): Promise<void> {
  for (let first = 0; first < oracle.blockCount; first += CHECK_BLOCKS) {
    const count = Math.min(CHECK_BLOCKS, oracle.blockCount - first);
    const wrong = oracle.check(first, await way.read(first * BLOCK_BYTES, count * BLOCK_BYTES));
    assert.equal(wrong, undefined, `over ${way.front}`);
  }
}
