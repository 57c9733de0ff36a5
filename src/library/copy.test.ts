import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import { after, test } from "node:test";
import { Memory } from "#base/memory";
import { Refusal } from "#base/refusal";
import { KIB, MIB } from "#base/units";
import type { BlockDevice, BlockOp } from "#device/device";
import { MemoryDevice } from "#device/memory-device";
import { smallFileSystem } from "#test/support/temp";
import { exportFile, importFile } from "./copy.ts";
import { DeviceHandle } from "./handle.ts";
import { sizeOfFile } from "./runs.ts";

const folder = mkdtempSync(join(tmpdir(), "ashlar-copy-"));
after(() => rmSync(folder, { recursive: true, force: true }));
const path = (name: string): string => join(folder, name);
const memory = new Memory(32 * MIB);
const handleOf = (device: BlockDevice): DeviceHandle => new DeviceHandle(device, memory, async () => {});
const refusal = (code: string, words: RegExp) => (error: unknown) =>
  error instanceof Refusal && error.code === code && words.test(error.message + error.hint);

/** An image with data, zeroes that are written, and holes. */
async function sparseImage(name: string, size = 9 * MIB + 1000): Promise<Buffer> {
  const content = Buffer.alloc(size);
  randomBytes(300 * KIB).copy(content, 100 * KIB);
  randomBytes(2 * MIB).copy(content, 5 * MIB + 512);
  randomBytes(10).copy(content, size - 10);
  const file = await open(path(name), "w");
  await file.truncate(size);
  await file.write(content.subarray(64 * KIB, 512 * KIB), 0, 448 * KIB, 64 * KIB);
  await file.write(content.subarray(5 * MIB, 8 * MIB), 0, 3 * MIB, 5 * MIB);
  await file.write(content.subarray(size - 10), 0, 10, size - 10);
  await file.close();
  return content;
}

test("an image goes in and comes out, and holes stay holes on both sides", async () => {
  const content = await sparseImage("in");
  const device = new MemoryDevice(memory, 10 * MIB);
  const steps: number[] = [];
  const imported = await importFile(path("in"), handleOf(device), {
    targetIsZero: true,
    verify: true,
    onProgress: ({ phase, done, total }) => phase === "copy" && steps.push(done / total!),
  });
  assert.equal(imported.size, content.length);
  assert.ok(imported.written < 3 * MIB, "zeroes were written");
  assert.equal(steps.at(-1), 1);
  assert.deepEqual(Buffer.from(device.peek(0, content.length)), content);
  const exported = await exportFile(handleOf(device), path("out"), { verify: true });
  assert.equal(exported.size, 10 * MIB);
  const back = readFileSync(path("out"));
  assert.deepEqual(back.subarray(0, content.length), content);
  assert.ok(back.subarray(content.length).every((byte) => byte === 0));
  assert.ok(statSync(path("out")).blocks * 512 < 4 * MIB, "the file is not sparse");
  assert.ok(!existsSync(path("out.part")));
});

test("a device that held something else reads as the image, and as zeroes behind it", async () => {
  const content = await sparseImage("over");
  const device = new MemoryDevice(memory, 12 * MIB);
  device.poke(0, new Uint8Array(12 * MIB).fill(0xee));
  await importFile(path("over"), handleOf(device), { verify: true });
  assert.deepEqual(Buffer.from(device.peek(0, content.length)), content);
  assert.ok(device.peek(content.length, 12 * MIB - content.length).every((byte) => byte === 0));
});

test("resume writes what differs and nothing else, whatever was left behind", async () => {
  const content = await sparseImage("resume");
  const device = new MemoryDevice(memory, 10 * MIB);
  device.poke(0, content.subarray(0, 6 * MIB));
  device.poke(4 * MIB, new Uint8Array(4096).fill(1));
  const result = await importFile(path("resume"), handleOf(device), { resume: true, verify: true });
  assert.ok(result.written < 2 * MIB, `${result.written} bytes were written`);
  assert.deepEqual(Buffer.from(device.peek(0, content.length)), content);
  // The other way: a part that is half done, and wrong in a place.
  writeFileSync(path("back.part"), content.subarray(0, 5 * MIB + 100 * KIB));
  truncateSync(path("back.part"), 5 * MIB + 100 * KIB);
  const file = await open(path("back.part"), "r+");
  await file.write(Buffer.alloc(4096, 7), 0, 4096, 2 * MIB);
  await file.close();
  await assert.rejects(exportFile(handleOf(device), path("back")), refusal("exists", /broken off/));
  const out = await exportFile(handleOf(device), path("back"), { resume: true, verify: true });
  assert.ok(out.same > 300 * KIB);
  assert.deepEqual(readFileSync(path("back")).subarray(0, content.length), content);
});

test("pipes: in with a size nobody knows, out in order", async () => {
  const content = randomBytes(3 * MIB + 12345);
  const device = new MemoryDevice(memory, 4 * MIB);
  const stdin = Readable.from([content.subarray(0, 5), content.subarray(5, MIB + 1), content.subarray(MIB + 1)]);
  const result = await importFile("-", handleOf(device), { stdin, targetIsZero: true, verify: true });
  assert.equal(result.size, content.length);
  const stdout = new PassThrough();
  const chunks: Buffer[] = [];
  stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
  await exportFile(handleOf(device), "-", { stdout });
  const back = Buffer.concat(chunks);
  assert.equal(back.length, 4 * MIB);
  assert.deepEqual(back.subarray(0, content.length), content);
  const tooMuch = Readable.from([content, content]);
  await assert.rejects(importFile("-", handleOf(device), { stdin: tooMuch }), refusal("bad-request", /more input/));
});

test("broken off: the part stays for --resume, and the name does not appear", async () => {
  const device = new MemoryDevice(memory, 8 * MIB);
  device.poke(0, randomBytes(8 * MIB));
  const stop = new AbortController();
  const onProgress = (): void => stop.abort();
  await assert.rejects(
    exportFile(handleOf(device), path("stopped"), { signal: stop.signal, onProgress, requests: 2 }),
    refusal("interrupted", /--resume/),
  );
  assert.ok(existsSync(path("stopped.part")) && !existsSync(path("stopped")));
  const result = await exportFile(handleOf(device), path("stopped"), { resume: true });
  assert.ok(result.same > 0);
  assert.deepEqual(readFileSync(path("stopped")), Buffer.from(device.peek(0, 8 * MIB)));
  // A pipe that says nothing is no reason to wait for ever.
  const quiet = new PassThrough();
  const later = new AbortController();
  setTimeout(() => later.abort(), 20);
  const stopping = importFile("-", handleOf(device), { stdin: quiet, signal: later.signal });
  await assert.rejects(stopping, refusal("interrupted", /broken off/));
});

test("refusals say what is wrong, and nothing is written", async () => {
  const device = new MemoryDevice(memory, MIB);
  writeFileSync(path("large"), randomBytes(MIB + 1));
  await assert.rejects(importFile(path("large"), handleOf(device)), refusal("bad-request", /larger/));
  await assert.rejects(importFile(path("nothing"), handleOf(device)), refusal("not-found", /no .*nothing/));
  await assert.rejects(importFile(folder, handleOf(device)), refusal("bad-request", /directory/));
  assert.ok(device.peek(0, MIB).every((byte) => byte === 0));
  await assert.rejects(exportFile(handleOf(device), path("large")), refusal("exists", /remove it/));
  await assert.rejects(exportFile(handleOf(device), path("no/folder")), refusal("not-found", /no .*part/));
  await assert.rejects(exportFile(handleOf(device), folder), refusal("bad-request", /directory/));
  assert.equal(statSync(path("large")).size, MIB + 1);
  await exportFile(handleOf(device), path("large"), { overwrite: true });
  assert.equal(statSync(path("large")).size, MIB);
  assert.equal(await sizeOfFile(path("large")), MIB);
});

test("a device that fails ends the copy with its status, and no half image appears", async () => {
  const device = new MemoryDevice(memory, 4 * MIB);
  device.poke(0, randomBytes(4 * MIB));
  const failing = (status: BlockOp["status"], kind: BlockOp["kind"], times: number): DeviceHandle => {
    device.fault = (op) => (op.kind === kind && op.offset >= MIB && times-- > 0 ? status : undefined);
    return handleOf(device);
  };
  await assert.rejects(exportFile(failing("medium", "read", 9), path("bad")), refusal("damaged", /damaged/));
  assert.ok(!existsSync(path("bad")) && !existsSync(path("bad.part")));
  // "busy" is not a failure: it is tried again.
  await exportFile(failing("busy", "read", 2), path("good"));
  assert.deepEqual(readFileSync(path("good")), Buffer.from(device.peek(0, 4 * MIB)));
  await assert.rejects(importFile(path("good"), failing("full", "write", 9)), refusal("full", /no space/));
});

test("a file system without room is told before or while it fills up, and the part is removed", async (context) => {
  const mount = await smallFileSystem(context, 8 * MIB);
  const device = new MemoryDevice(memory, 16 * MIB);
  device.poke(0, randomBytes(12 * MIB));
  await assert.rejects(exportFile(handleOf(device), join(mount, "image")), refusal("full", /free/));
  // Somebody else takes the room while the export runs.
  const smaller = new MemoryDevice(memory, 16 * MIB);
  smaller.poke(0, randomBytes(5 * MIB));
  let filled = false;
  const onProgress = (): void => {
    if (!filled) writeFileSync(join(mount, "filler"), randomBytes(4 * MIB));
    filled = true;
  };
  const exporting = exportFile(handleOf(smaller), join(mount, "image"), { requests: 1, onProgress });
  await assert.rejects(exporting, refusal("full", /is full/));
  assert.ok(!existsSync(join(mount, "image.part")) && !existsSync(join(mount, "image")));
});
