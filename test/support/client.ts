/** Our NBD client with a log that a test can read. */

import { join } from "node:path";
import type { Log } from "#env/env";
import { type ConnectOptions, connect, type RemoteHandle } from "#library/connect";
import { NbdPeer, type PeerOptions } from "./nbd-peer.ts";
import { type Scope, tempFolder } from "./temp.ts";

export interface Told {
  readonly level: string;
  readonly fields: Record<string, unknown>;
  readonly message: string;
}

export function logOf(told: Told[]): Log {
  const at = (level: string) => (fields: object, message: string) =>
    void told.push({ level, fields: fields as Record<string, unknown>, message });
  return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}

/** A peer that does as the test says, and a client connected to it. Both are gone after the test. */
export async function together(
  scope: Scope,
  peerOptions: PeerOptions = {},
  clientOptions: ConnectOptions = {},
): Promise<{ peer: NbdPeer; client: RemoteHandle; told: Told[]; ends: () => unknown[] }> {
  const peer = await new NbdPeer(join(tempFolder(scope), "nbd"), peerOptions).start();
  const told: Told[] = [];
  const client = await connect(peer.uri, {
    connections: 1,
    giveUpMs: 5_000,
    memoryBytes: 64 << 20,
    log: logOf(told),
    ...clientOptions,
  });
  scope.after(async () => {
    // With a server it flushes; without, it would wait for one.
    await client.close().catch(() => {});
    peer.stop();
  });
  const ends = (): unknown[] => told.filter(({ fields }) => "end" in fields).map(({ fields }) => fields["end"]);
  return { peer, client, told, ends };
}
