/** fio's own verification: a checksum in every block, written and read back by two clients at once. */
import assert from "node:assert/strict";
import test from "node:test";
import { run } from "../support/program.ts";
import { Server } from "../support/server.ts";
import { tempFolder } from "../support/temp.ts";

interface Job {
  readonly error: number;
  readonly write: { readonly total_ios: number };
  readonly read: { readonly total_ios: number };
}

/** Two clients, each on its half of the volume; the verification reads follow the writes. */
async function verify(folder: string, uri: string, ...options: string[]): Promise<Job[]> {
  const output = await run(
    "fio",
    [
      ...["--output-format=json", "--ioengine=nbd", `--uri=${uri}`, "--numjobs=2", "--offset_increment=32M"],
      ...["--size=32M", "--rw=randwrite", "--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--name=verify"],
      ...options,
    ],
    { cwd: folder, limitMs: 120_000 },
  );
  return JSON.parse(output.slice(output.indexOf("{"))).jobs;
}

test("4 KiB blocks over two connections verify", async (t) => {
  const server = await Server.start(t, { tcp: true });
  await server.ashlar("volume", "create", "db", "--size", "64M");
  const jobs = await verify(tempFolder(t), server.uri("db"), "--bs=4k", "--iodepth=32", "--norandommap=0");
  for (const job of jobs) {
    assert.equal(job.error, 0);
    assert.equal(job.write.total_ios, 8192);
    assert.equal(job.read.total_ios, 8192);
  }
});

test("blocks of 512 bytes to 64 KiB, with flushes in between, verify", async (t) => {
  const server = await Server.start(t);
  await server.ashlar("volume", "create", "db", "--size", "64M", "--block-size", "512");
  const folder = tempFolder(t);
  const jobs = await verify(folder, server.uri("db"), "--bsrange=512-64k", "--iodepth=16", "--fsync=32");
  for (const job of jobs) assert.equal(job.error, 0);
});

test("what was verified before kill -9 verifies after it", async (t) => {
  const server = await Server.start(t);
  await server.ashlar("volume", "create", "db", "--size", "64M");
  const folder = tempFolder(t);
  await verify(folder, server.uri("db"), "--bs=8k", "--iodepth=16", "--randseed=42", "--end_fsync=1");
  await server.kill();
  await server.restart();
  const jobs = await verify(folder, server.uri("db"), "--bs=8k", "--iodepth=16", "--randseed=42", "--verify_only");
  for (const job of jobs) assert.equal(job.error, 0);
});
