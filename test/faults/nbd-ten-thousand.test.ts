/** Ten thousand real connections to a real server: it serves who works, answers who asks, and gives everything back. */
import assert from "node:assert/strict";
import { connect, type Socket } from "node:net";
import test from "node:test";
import { TestClient } from "../support/nbd.ts";
import { runAny, until } from "../support/program.ts";
import { Server } from "../support/server.ts";
import { MIB } from "../support/temp.ts";

const CROWD = 10_000;
/** Opened at a time: more than this, and the kernel's queue of those that were not accepted yet is full. */
const STEP = 250;
/** Client flags, and half of the header of an option. */
const HALF_A_HEADER = Buffer.from("00000003494841564f505400", "hex");

test("ten thousand connections at once harm nobody, and leave nothing behind", async (t) => {
  // Of the files that a process may have open, a server gives half to connections: some of the crowd find no place.
  const server = await Server.start(t);
  await server.ashlar("volume", "create", "db", "--size", "64M");
  const first = await TestClient.open(server.nbd, "db");
  await first.write(0, Buffer.alloc(MIB, 1));
  const crowd: Socket[] = [];
  const disperse = () => {
    for (const socket of crowd) socket.destroy();
  };
  t.after(disperse);
  let refused = 0;
  let greeted = 0;
  while (crowd.length < CROWD) {
    const settled = Array.from(
      { length: STEP },
      (_, index) =>
        new Promise<void>((resolve) => {
          const socket = connect(String(server.nbd));
          crowd.push(socket);
          socket.once("data", () => {
            greeted++;
            // One in two says half of something, and then nothing.
            if (index % 2 === 0) socket.write(HALF_A_HEADER);
            resolve();
          });
          socket.on("error", () => resolve());
          socket.once("close", () => {
            refused++;
            resolve();
          });
        }),
    );
    await Promise.all(settled);
  }
  t.diagnostic(`${greeted} were greeted, ${refused} were turned away or had to make room`);
  assert.ok(greeted >= CROWD / 4, `only ${greeted} were greeted`);

  // Who was there goes on; who comes is served; the operator is answered.
  await first.write(MIB, Buffer.alloc(MIB, 2));
  await first.flush();
  const late = await TestClient.open(server.nbd, "db");
  assert.ok((await late.read(MIB, MIB)).every((byte) => byte === 2));
  await late.close();
  assert.equal((await server.json("status")).state, "ready");
  const info = await runAny("nbdinfo", ["--size", server.uri("db")]);
  assert.equal(info.stdout.trim(), String(64 * MIB), info.stderr);

  disperse();
  const families = async () => (await server.json("metrics")) as { name: string; samples: { value: number }[] }[];
  await until("alone again", async () => {
    const handshakes = (await families()).find(({ name }) => name === "ashlar_nbd_handshakes")!.samples;
    return handshakes.every(({ value }) => value === 0);
  });
  assert.ok((await first.read(0, MIB)).every((byte) => byte === 1));
  await first.close();
  await server.stop();
});
