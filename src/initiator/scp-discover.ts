/** Finds SCP servers on the subnet by broadcast: docs/protocols/scp.md, "Discovery". */
import { perform, type Task } from "#base/task";
import type { Millis } from "#base/units";
import { type DatagramAddress, type Env, isNetError } from "#env/env";
import { box } from "#proto/scp/config-server";
import { ByteBox } from "#wire/scp/byte-box";
import { Op } from "#wire/scp/codes";
import { decodeFound } from "#wire/scp/config";
import { decodeZnReq, ZNREQ, ZnReq } from "#wire/scp/znreq";

export interface FoundServer {
  /** 32 hex digits: one server may answer from several addresses. */
  readonly id: string;
  readonly host: string;
  readonly port: number;
  readonly versions: number;
}

/** A datagram may be lost: it is asked so often within the wait. */
const ASKS = 3;
const FOUND_MAX = 1024;

/**
 * @param to where to ask: broadcast addresses, or single ones, of one family. Looked up each time: a network may come up
 *   meanwhile.
 * @returns undefined where this Env has no datagrams
 */
export function* discoverScp(
  env: Env,
  to: () => readonly DatagramAddress[],
  waitMs: Millis,
): Task<readonly FoundServer[] | undefined> {
  const { datagrams } = env.net;
  if (datagrams === undefined) return undefined;
  const found = new Map<string, FoundServer>();
  const nonce = env.random.below(0x1_0000_0000);
  const hear = (bytes: Uint8Array, from: DatagramAddress): void => {
    if (bytes.length !== ZNREQ.byteLength || found.size >= FOUND_MAX) return;
    const answer = new ByteBox(bytes.slice());
    const message = new ZnReq();
    decodeZnReq(message, answer.view, 0);
    if (message.op !== Op.Z_DISCOVER || message.reqszLo !== nonce) return;
    if (message.hostId === 0 || message.hostId > 0xffff) return;
    const id = [...decodeFound(answer.view, 0)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    const server = { id, host: from.host, port: message.hostId, versions: message.version };
    found.set(`${server.host} ${server.port}`, server);
  };
  const six = to().every(({ host }) => host.includes(":"));
  const socket = yield* perform(datagrams({ host: six ? "::" : "0.0.0.0", port: 0 }, hear));
  if (isNetError(socket)) return undefined;
  const message = new ZnReq();
  message.op = Op.Z_DISCOVER;
  message.version = 0;
  message.reqszLo = nonce;
  const question = box(message).bytes;
  for (let ask = 0; ask < ASKS; ask++) {
    for (const address of to()) socket.send(question, address);
    yield* perform<void>((resume) => {
      const alarm = env.clock.alarm(() => {
        alarm.at = Number.POSITIVE_INFINITY;
        resume();
      });
      alarm.at = env.clock.now() + waitMs / ASKS;
    });
  }
  socket.close();
  return [...found.values()].sort((a, b) => (a.host < b.host ? -1 : 1));
}
