/** Wireshark looks over our shoulder: nothing of what we send is malformed. */
import assert from "node:assert/strict";
import { statSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Program, run, runAny } from "../support/program.ts";
import { Server } from "../support/server.ts";
import { cleanUp, tempFolder } from "../support/temp.ts";

test("tshark finds nothing malformed in the conversations of five clients", async (t) => {
  const server = await Server.start(t, { tcp: true });
  await server.ashlar("volume", "create", "db", "--size", "16M");
  const folder = tempFolder(t);
  const [file, image] = [join(folder, "capture.pcapng"), join(folder, "image")];
  const capture = new Program("tshark", ["-q", "-i", "lo", "-f", `tcp port ${server.nbd}`, "-w", file]);
  cleanUp(t, () => capture.stop("SIGKILL").then(() => {}));
  await capture.until("capturing", () => capture.output.includes("Capturing on"));
  // The line above is printed shortly before the first packet is taken: knock until one is in the file.
  const before = statSync(file, { throwIfNoEntry: false })?.size ?? 0;
  await capture.until("a first packet", async () => {
    await runAny("nbdinfo", ["--size", server.uri("nobody")]);
    return (statSync(file, { throwIfNoEntry: false })?.size ?? 0) > before;
  });

  await run("nbdinfo", ["--list", server.uri("")]);
  await run("qemu-img", ["create", "-q", "-f", "raw", image, "16M"]);
  await run("qemu-io", ["-f", "raw", "-c", "write -P 1 1M 3M", image]);
  await run("nbdcopy", ["--connections=2", "--flush", image, server.uri("db")]);
  await run("nbdinfo", ["--map", server.uri("db")]);
  await run("qemu-io", ["-f", "raw", "-c", "write -z 2M 64k", "-c", "discard 3M 1M", "-c", "flush", server.uri("db")]);
  const fio = ["--ioengine=nbd", "--rw=randrw", "--size=4M", "--iodepth=8", "--name=x", "--bs=4k"];
  await run("fio", [...fio, `--uri=${server.uri("db")}`], { cwd: folder });
  await run("nbdkit", ["-U", "-", "nbd", `uri=${server.uri("db")}`, "--run", "nbdinfo --json $uri"]);
  await capture.stop("SIGINT");

  const read = (filter: string) => run("tshark", ["-r", file, "-Y", filter], { limitMs: 120_000 });
  const messages = (await read("nbd")).trim().split("\n").length;
  assert.ok(messages > 500, `${messages} packets with NBD messages`);
  assert.equal((await read("_ws.malformed or _ws.expert.group == 0x07000000")).trim(), "");
});
