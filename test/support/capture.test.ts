/** The one who looks over the tests' shoulders sees what is wrong: it is told apart from what is right by a target that lies. */
import assert from "node:assert/strict";
import { connect, createServer } from "node:net";
import test from "node:test";
import { Capture } from "./capture.ts";
import { header } from "./iscsi-client.ts";
import { cleanUp } from "./temp.ts";

const PING = header(0x40, 0x80, { 16: 1, 20: 0xffffffff });
const GOOD = header(0x20, 0x80, { 16: 1, 20: 0xffffffff });
/** INQUIRY, and a page that ends in the middle though there is room for more. */
const INQUIRY = header(0x01, 0xc1, { 16: 2, 20: 255, 32: 0x12018300, 36: 0xff000000 });
const CUT = Buffer.concat([
  header(0x25, 0x83, { 4: 12, 16: 2, 44: 243 }),
  Buffer.from("0083002001030010deadbeef", "hex"),
]);

for (const [what, asked, answer, fault] of [
  ["a ping that is answered", PING, GOOD, undefined],
  ["a page that says it is longer", INQUIRY, CUT, /finds fault[\s\S]*Inquiry/],
] as const)
  test(`of ${what}, tshark thinks as it should`, { timeout: 60_000 }, async (t) => {
    const server = createServer((socket) => socket.once("data", () => socket.write(answer)));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    cleanUp(t, () => void server.close());
    const { port } = server.address() as { port: number };
    const capture = await Capture.start(t, [port]);
    const client = connect(port, "127.0.0.1");
    client.write(asked);
    await new Promise((resolve) => client.once("data", resolve));
    client.destroy();
    const check = capture.check({ messages: 2, isHostile: true });
    if (fault === undefined) assert.equal(await check, 2);
    else await assert.rejects(check, fault);
  });
