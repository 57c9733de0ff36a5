/** Random load on a volume under the eyes of the oracle, until it is told to stop or the server is gone. */
import { Lost, NbdError, NbdFlag, TestClient } from "../support/nbd.ts";
import { BLOCK_BYTES, type Oracle } from "../support/oracle.ts";
import type { Chance } from "../support/random.ts";

const RANGE_BLOCKS_MAX = 24;
const CHECK_BLOCKS = 256;

export interface LoadResult {
  readonly writes: number;
  readonly flushes: number;
  /** Writes that were refused with "no space" (ENOSPC), and changed nothing. */
  readonly full: number;
}
const ENOSPC = 28;

/**
 * `workers` requests in flight on each of `clients` connections. A lost connection ends it without an error; a wrong
 * answer or a read of something else than was written rejects.
 */
export async function load(
  nbd: string | number,
  name: string,
  oracle: Oracle,
  random: Chance,
  { clients = 2, workers = 8, operations = Number.POSITIVE_INFINITY, until = (): boolean => false } = {},
): Promise<LoadResult> {
  const result = { writes: 0, flushes: 0, full: 0 };
  let left = operations;
  const work = async (client: TestClient) => {
    while (left-- > 0 && !until()) {
      const range = oracle.freeRange(random, RANGE_BLOCKS_MAX);
      if (range === undefined) continue;
      const { first, count } = range;
      const [offset, length] = [first * BLOCK_BYTES, count * BLOCK_BYTES];
      const flags = random.oneIn(20) ? NbdFlag.FUA : 0;
      try {
        switch (random.below(12)) {
          case 0:
            await client.flush();
            result.flushes++;
            continue;
          case 1:
            oracle.beginZero(first, count);
            await client.zero(offset, length, flags | (random.oneIn(4) ? NbdFlag.NO_HOLE : 0));
            break;
          case 2:
            oracle.beginZero(first, count);
            await client.trim(offset, length, flags);
            break;
          default:
            await client.write(offset, oracle.beginWrite(first, count), flags);
        }
      } catch (error) {
        if (!(error instanceof NbdError) || error.code !== ENOSPC) throw error;
        oracle.refuse(first, count);
        result.full++;
        continue;
      }
      oracle.acknowledge(first, count);
      result.writes++;
    }
  };
  const opening = Array.from({ length: clients }, () => TestClient.open(nbd, name));
  const opened = await Promise.allSettled(opening);
  for (const each of opened) if (each.status === "rejected" && !(each.reason instanceof Lost)) throw each.reason;
  const connections = opened.flatMap((each) => (each.status === "fulfilled" ? [each.value] : []));
  const ends = await Promise.allSettled(
    connections.flatMap((client) => Array.from({ length: workers }, () => work(client))),
  );
  for (const end of ends) if (end.status === "rejected" && !(end.reason instanceof Lost)) throw end.reason;
  await Promise.all(connections.map((client) => client.close()));
  return result;
}

/** Reads a whole volume or snapshot and checks each block. Throws with the first one that is wrong. */
export async function checkAll(nbd: string | number, name: string, oracle: Oracle): Promise<void> {
  const client = await TestClient.open(nbd, name);
  try {
    const pieces = Array.from(
      { length: Math.ceil(oracle.blockCount / CHECK_BLOCKS) },
      (_, index) => index * CHECK_BLOCKS,
    );
    const check = async () => {
      for (let first = pieces.pop(); first !== undefined; first = pieces.pop()) {
        const count = Math.min(CHECK_BLOCKS, oracle.blockCount - first);
        const wrong = oracle.check(first, await client.read(first * BLOCK_BYTES, count * BLOCK_BYTES));
        if (wrong !== undefined) throw new Error(`${name}: ${wrong}`);
      }
    };
    await Promise.all([check(), check(), check(), check()]);
  } finally {
    await client.close();
  }
}
