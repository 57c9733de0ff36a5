/**
 * Version 1 of SCP between Ashlar and programs that know nothing else: `test/golden/scp_v1.py`, a host and a server that
 * were written from the published text alone.
 */
import assert from "node:assert/strict";
import { existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { Program, run, runAny } from "../support/program.ts";
import { ASHLAR, Server } from "../support/server.ts";
import { cleanUp, fileScope, freePort, MIB, tempFolder } from "../support/temp.ts";

const PEER = "test/golden/scp_v1.py";
const SIZE = 16 * MIB;

const scope = fileScope();

describe("a host that knows version 1 only, and our server", () => {
  let made: Promise<{ server: Server; port: number }> | undefined;
  /** A volume as unit 0 and a partition of a drive as unit 1 of a host with two addresses, and a secret as well. */
  const stage = () =>
    (made ??= (async () => {
      const port = await freePort();
      // Nothing is said of source ports: the host has to come from a privileged one.
      const server = await Server.start(scope, { args: ["--scp", `127.0.0.1:${port},[::1]:${port}`] });
      const drive = join(tempFolder(scope), "drive.img");
      await run("truncate", ["-s", String(2 * SIZE), drive]);
      await server.ashlar("volume", "create", "db", "--size", String(SIZE));
      await server.ashlar("drive", "add", "disk0", drive);
      await server.ashlar("partition", "create", "logs", "--size", String(SIZE), "--zero");
      await server.ashlar("host", "add", "web", "--address", "127.0.0.1", "--address", "::1");
      await server.ashlar("host", "secret", "web");
      for (const device of ["db", "logs"]) await server.ashlar("grant", device, "web");
      return { server, port };
    })());

  for (const address of ["127.0.0.1", "::1"])
    for (const unit of [0, 1])
      it(`agree on every step at ${address}, unit ${unit}`, async () => {
        const { port } = await stage();
        const found = JSON.parse(
          await run("python3", [PEER, "host", address, String(port), String(unit), "privileged"]),
        );
        assert.deepEqual(found.sizes, [SIZE, SIZE]);
        // One per network, all with the same number of sockets; the host uses all of both.
        assert.deepEqual(
          found.ports.map(([family, address]: [number, string]) => [family, address]),
          [
            [4, "127.0.0.1"],
            [6, "::1"],
          ],
        );
        // What the host found out about its sockets and its data, and about requests that must fail.
        assert.deepEqual(
          [found.beyond, found.same, found.far, found.nobody, found["in step"], found.closed],
          [["refused"], true, [0xffff_ffff, true], [0xffff_ffff, true], true, true],
        );
      });

  it("do not get together from a source port that is not privileged", async () => {
    const { port } = await stage();
    const { status, stderr } = await runAny("python3", [PEER, "host", "127.0.0.1", String(port), "0"]);
    assert.notEqual(status, 0);
    assert.match(stderr, /EOFError|ConnectionResetError/);
  });
});

describe("a server that knows version 1 only, and our host", () => {
  for (const address of ["127.0.0.1", "::1"])
    it(`carries a disk at ${address}, also for a host that has a secret and may do without`, async () => {
      const peer = new Program("python3", [PEER, "server", address, String(SIZE)]);
      cleanUp(scope, async () => void (await peer.stop("SIGKILL")));
      await peer.until("listening", () => peer.output.includes("\n"));
      const at = `${address.includes(":") ? `[${address}]` : address}:${peer.output.trim()}`;
      const folder = tempFolder(scope);
      const secretFile = join(folder, "secret");
      writeFileSync(secretFile, "5ec7e7".padEnd(64, "0"));
      const environment = { ASHLAR_RUN: join(folder, "run") };
      const ashlar = (...args: string[]) => runAny(process.execPath, [ASHLAR, ...args], { env: environment });
      const secret = ["--host", "web", "--secret-file", secretFile];
      const socket = join(folder, "disk.sock");

      const refused = await ashlar("attach", at, ...secret, "--socket", socket);
      assert.notEqual(refused.status, 0, "a host with a secret went on with version 1");
      assert.match(refused.stderr, /version/);

      for (const identity of [
        ["--host", "web"],
        [...secret, "--allow-version-1"],
      ]) {
        const attached = await ashlar("attach", at, ...identity, "--socket", socket, "--json");
        assert.equal(attached.status, 0, attached.stderr);
        const image = join(folder, "image");
        await run("dd", ["if=/dev/urandom", `of=${image}`, "bs=1M", "count=16", "status=none"]);
        await run("nbdcopy", ["--flush", image, `nbd+unix:///?socket=${socket}`]);
        const paths = JSON.parse((await ashlar("paths", "--json")).stdout);
        assert.equal(paths[0].paths.version, 1);
        // The peer allows four.
        assert.ok(paths[0].paths.agents.length <= 4);
        const back = join(folder, "back");
        await run("nbdcopy", [`nbd+unix:///?socket=${socket}`, back]);
        await run("cmp", [image, back]);
        const detached = await ashlar("detach", socket);
        assert.equal(detached.status, 0, detached.stderr);
        assert.equal(existsSync(socket), false);
      }
    });
});
