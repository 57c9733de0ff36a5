/**
 * An iSCSI initiator's persistent reservation stands before hosts that cannot register: SCP in both versions, and NBD.
 * Each is refused with its protocol's own word, and goes on when the reservation is released, or cleared by an operator.
 */
import assert from "node:assert/strict";
import { before, describe, it } from "node:test";
import { connect, connectScp, DeviceError } from "../../src/index.ts";
import { Capture } from "../support/capture.ts";
import { RawInitiator } from "../support/iscsi-client.ts";
import { Server } from "../support/server.ts";
import { cleanUp, fileScope, freePort } from "../support/temp.ts";

const BLOCK = 4096;
const KEY = [0, 0, 0, 0, 0, 0, 0xab, 0xcd];
const NONE = [0, 0, 0, 0, 0, 0, 0, 0];
const WRITE_EXCLUSIVE = 1;
const EXCLUSIVE_ACCESS = 3;
/** PERSISTENT RESERVE OUT (SPC-4 §6.16): register, reserve, release. */
const prOut = (action: number, type: number): number[] => [0x5f, action, type, 0, 0, 0, 0, 0, 24, 0];
const prList = (key: number[], newKey: number[]): Buffer => Buffer.from([...key, ...newKey, 0, 0, 0, 0, 0, 0, 0, 0]);

interface User {
  readonly read: () => Promise<unknown>;
  readonly write: () => Promise<unknown>;
  readonly flush: () => Promise<unknown>;
}

const scope = fileScope();

describe("a persistent reservation", () => {
  let server: Server;
  let one: RawInitiator;
  let capture: Capture;
  const users = new Map<string, User>();

  before(async () => {
    const [iscsi, scp] = [await freePort(), await freePort()];
    server = await Server.start(scope, {
      args: ["--iscsi", `127.0.0.1:${iscsi}`, "--scp", `127.0.0.1:${scp}`, "--scp-any-source-port"],
    });
    capture = await Capture.start(scope, [iscsi]);
    await server.ashlar("volume", "create", "db", "--size", "16M");
    await server.ashlar("host", "add", "one", "--iqn", "iqn.2024-01.test:one");
    await server.ashlar("host", "add", "two", "--address", "127.0.0.1");
    const secret = (await server.ashlar("host", "secret", "two")).trim();
    for (const host of ["one", "two"]) await server.ashlar("grant", "db", host, "--unit", "0");
    const servers = [`127.0.0.1:${scp}`];
    for (const [name, more] of [
      ["SCP version 2", { secret }],
      ["SCP version 1", {}],
    ] as const) {
      const connection = await connectScp({ servers, host: "two", ...more });
      cleanUp(scope, () => connection.close());
      users.set(name, of(connection.open(0)));
    }
    const nbd = await connect(server.uri("db"));
    cleanUp(scope, () => nbd.close());
    users.set("NBD", of(nbd));
    one = await RawInitiator.connect(iscsi);
    cleanUp(scope, () => one.close());
    assert.equal(
      await one.login({ initiator: "iqn.2024-01.test:one", target: (await server.json("target", "show")).iqn }),
      0,
    );
    await one.settle();
    assert.equal((await one.run(prOut(0, 0), { write: prList(NONE, KEY) })).status, 0);
  });

  const of = (device: {
    read(at: number, length: number): Promise<unknown>;
    write(at: number, data: Uint8Array): Promise<unknown>;
    flush(): Promise<unknown>;
  }): User => ({
    read: () => device.read(0, BLOCK),
    write: () => device.write(0, new Uint8Array(BLOCK).fill(7)),
    flush: () => device.flush(),
  });
  const allMayDoAll = async (): Promise<void> => {
    for (const user of users.values()) {
      await user.write();
      await user.read();
    }
  };
  /** SCP says "conflict" (8) in both versions; NBD has EPERM, which is "denied". */
  const isRefused = async (name: string, operation: Promise<unknown>): Promise<void> => {
    const status = name === "NBD" ? "denied" : "conflict";
    await assert.rejects(operation, (error) => error instanceof DeviceError && error.status === status, name);
  };

  it("of writing keeps all others from writing, and from nothing else", async () => {
    await allMayDoAll();
    assert.equal((await one.run(prOut(1, WRITE_EXCLUSIVE), { write: prList(KEY, NONE) })).status, 0);
    for (const [name, user] of users) {
      await isRefused(name, user.write());
      await user.read();
      await user.flush();
    }
    assert.equal((await one.run(prOut(2, WRITE_EXCLUSIVE), { write: prList(KEY, NONE) })).status, 0);
    await allMayDoAll();
  });

  it("of access keeps them from reading, too, until an operator clears it", async () => {
    assert.equal((await one.run(prOut(1, EXCLUSIVE_ACCESS), { write: prList(KEY, NONE) })).status, 0);
    for (const [name, user] of users) {
      await isRefused(name, user.write());
      await isRefused(name, user.read());
    }
    assert.match(await server.ashlar("reservations", "clear", "db"), /iqn\.2024-01\.test:one/);
    await allMayDoAll();
  });

  it("tshark finds nothing malformed in what was said over iSCSI", async () => {
    await capture.check({ messages: 20 });
  });
});
