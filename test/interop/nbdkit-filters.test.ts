/** nbdkit's filters between a client and us: slow lines, errors that make the client come again, and checked content. */
import assert from "node:assert/strict";
import { randomFillSync } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Program, run, runAny } from "../support/program.ts";
import { Server } from "../support/server.ts";
import { cleanUp, MIB, type Scope, tempFolder } from "../support/temp.ts";

/** nbdkit as a client of the volume, with these filters in front; returns where its own clients find it. */
async function between(scope: Scope, server: Server, filters: string[], settings: string[]): Promise<string> {
  const socket = join(tempFolder(scope), "between.sock");
  const nbdkit = new Program("nbdkit", [
    ...["-f", "-U", socket, ...filters.map((filter) => `--filter=${filter}`)],
    ...["nbd", `uri=${server.uri("db")}`, ...settings],
  ]);
  cleanUp(scope, () => void nbdkit.stop("SIGKILL"));
  await nbdkit.until("listening", async () => (await runAny("test", ["-S", socket])).status === 0);
  return `nbd+unix:///?socket=${socket}`;
}

async function serverWithImage(scope: Scope): Promise<{ server: Server; image: string }> {
  const server = await Server.start(scope);
  await server.ashlar("volume", "create", "db", "--size", "32M");
  const image = join(tempFolder(scope), "image");
  const bytes = Buffer.alloc(32 * MIB);
  randomFillSync(bytes, 5 * MIB, 9 * MIB);
  writeFileSync(image, bytes);
  return { server, image };
}

const compare = (image: string, uri: string) => run("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, uri]);

test("a slow line with many requests on it delivers the image", async (t) => {
  const { server, image } = await serverWithImage(t);
  const uri = await between(t, server, ["delay"], ["wdelay=20ms", "rdelay=10ms"]);
  await run("nbdcopy", ["--connections=4", "--requests=64", "--flush", image, uri]);
  await compare(image, server.uri("db"));
});

test("errors on the way, answered by reconnecting, lose nothing", async (t) => {
  const { server, image } = await serverWithImage(t);
  const faults = ["error-rate=3%", "error=EIO", "retries=50", "retry-delay=1", "retry-exponential=no"];
  const uri = await between(t, server, ["retry", "error"], [...faults, "error-pwrite-rate=3%"]);
  await run("qemu-img", ["convert", "-n", "-W", "-m", "16", "-f", "raw", "-O", "raw", image, uri], {
    limitMs: 120_000,
  });
  await compare(image, server.uri("db"));
});

test("nbdkit's checkwrite filter finds the volume to hold exactly what is written through it", async (t) => {
  const { server, image } = await serverWithImage(t);
  await run("nbdcopy", ["--flush", image, server.uri("db")]);
  const uri = await between(t, server, ["checkwrite"], []);
  await run("nbdcopy", ["--connections=2", image, uri]);
  writeFileSync(image, Buffer.alloc(MIB, 1));
  const { status } = await runAny("nbdcopy", [image, uri]);
  assert.notEqual(status, 0, "the filter sees a difference");
});
