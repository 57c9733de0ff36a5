/**
 * The host's side of `bench/scp.ts`, in a process (and a network namespace) of its own. A line of JSON on its standard
 * input is a command, a line of JSON on its standard output the answer.
 */
import { createInterface } from "node:readline";
import { promiseOf } from "#base/task";
import { type BlockDevice, BlockOp } from "#device/device";
import { chooseEnv } from "#env/choose";
import type { Env } from "#env/env";
import { makeEnv } from "#env/make-env";
import { NbdClient } from "#initiator/nbd-client";
import { KIB, MIB } from "#test/support/temp";
import { connectScp, type ScpConnection } from "../src/library/connect-scp.ts";

export interface Work {
  readonly kind: "read" | "write";
  readonly length: number;
  readonly depth: number;
  readonly random: boolean;
}
export type Target =
  | { readonly protocol: "nbd"; readonly host: string; readonly port: number }
  | {
      readonly protocol: "scp";
      readonly servers: readonly string[];
      readonly secret: string;
      readonly sockets: number;
      readonly splitBytes: number;
      readonly dataCrc: boolean;
    };
/** Operations for `seconds` in the first `size` bytes of the unit "db"; */
export interface Measure {
  readonly command: "measure";
  readonly target: Target;
  readonly work: Work;
  readonly size: number;
  readonly seconds: number;
}
/** or 16 loops of 4 KiB reads and writes that go on until the process ends; the answer is `null`; */
export interface Load {
  readonly command: "load";
  readonly target: Target;
}
/** or the longest operation of those loops since it was asked last, in milliseconds. */
export interface Longest {
  readonly command: "longest";
}
export interface Measured {
  readonly rate: number;
}

const env: Env = makeEnv(chooseEnv("auto").kind, {
  memoryBytes: 256 * MIB,
  log: { debug() {}, info() {}, warn() {}, error() {} },
});
let longestMs = 0;

for await (const line of createInterface({ input: process.stdin })) {
  const command = JSON.parse(line) as Measure | Load | Longest;
  let answer: unknown = null;
  if (command.command === "measure") answer = await measure(command);
  else if (command.command === "load") await load(command.target);
  else {
    answer = longestMs;
    longestMs = 0;
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
process.exit(0);

async function open(target: Target): Promise<{ device: BlockDevice; close: () => Promise<void> }> {
  if (target.protocol === "scp") {
    const connection = await openScp(target);
    return { device: connection.find("db"), close: () => connection.close() };
  }
  const address = { host: target.host, port: target.port };
  const nbd = await promiseOf(NbdClient.open(env, { address, exportName: "db", tls: undefined }, { connections: 1 }));
  return { device: nbd, close: () => new Promise<void>((resolve) => nbd.close()(resolve)) };
}

async function openScp(target: Target & { protocol: "scp" }): Promise<ScpConnection> {
  const { servers, secret, sockets, splitBytes, dataCrc } = target;
  const connection = await connectScp({
    ...{ servers, secret, env, dataCrc, host: "bench" },
    settings: { socketsMin: sockets, socketsMax: sockets, splitBytes },
  });
  for (let waited = 0; connection.paths.agents.filter(({ state }) => state === "ready").length < sockets; waited++) {
    if (waited > 5000) throw new Error(`${sockets} sockets do not open`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return connection;
}

async function measure({ target, work, size, seconds }: Measure): Promise<Measured> {
  const { device, close } = await open(target);
  // The first turns of code and of TCP's window are not what is asked for.
  await drive(device, work, size, seconds / 5);
  const rate = await drive(device, work, size, seconds);
  await close();
  return { rate };
}

/** Keeps `work.depth` operations in flight for `seconds`; operations per second. */
async function drive(device: BlockDevice, work: Work, size: number, seconds: number): Promise<number> {
  const { kind, length, depth, random } = work;
  const slots = size / length;
  const began = performance.now();
  const end = began + seconds * 1000;
  let place = 0;
  let done = 0;
  let running = depth;
  await new Promise<void>((resolve, reject) => {
    for (let slot = 0; slot < depth; slot++) {
      const at = env.memory.allocate(length);
      const op = new BlockOp(() => {
        if (op.status !== "ok") reject(new Error(`a ${kind} ended with ${op.status}`));
        done++;
        if (performance.now() < end) next();
        else {
          env.memory.free(at);
          if (--running === 0) resolve();
        }
      });
      const next = (): void => {
        op.kind = kind;
        op.length = length;
        op.offset = (random ? Math.floor(Math.random() * slots) : place++ % slots) * length;
        op.at = at;
        device.submit(op);
      };
      next();
    }
  });
  return done / ((performance.now() - began) / 1000);
}

async function load(target: Target): Promise<void> {
  const { device } = await open(target);
  for (let region = 0; region < 16; region++) {
    let since = performance.now();
    const op = new BlockOp(() => {
      if (op.status !== "ok") throw new Error(`an operation ended with ${op.status}`);
      const now = performance.now();
      longestMs = Math.max(longestMs, now - since);
      since = now;
      device.submit(op);
    });
    op.kind = region % 2 === 0 ? "write" : "read";
    op.length = 4 * KIB;
    op.offset = region * 4 * KIB;
    op.at = env.memory.allocate(op.length);
    device.submit(op);
  }
}
