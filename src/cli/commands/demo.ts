/** `ashlar demo`: a few seconds of real I/O on real data, every block verified, with figures. */
import type { Command } from "commander";
import { socketPath } from "#admin/socket-path";
import { Refusal } from "#base/refusal";
import { formatSize } from "#base/size";
import { promiseOf } from "#base/task";
import { MIB } from "#base/units";
import type { DemoFigures, DemoPhase } from "#initiator/demo";
import { Context } from "../context.ts";
import { table } from "../output.ts";

const MEMORY_BYTES = 128 * MIB;
const VOLUME_BYTES = 256 * MIB;
const PRIVATE_SOCKET = "nbd.sock";

export function addDemoCommand(program: Command): void {
  program
    .command("demo [volume]")
    .description("measure a new volume with real I/O on real data, check every block, and delete it again")
    .option("--seconds <seconds>", "how long", "4")
    .option("--depth <requests>", "requests in flight", "32")
    .action(async (volume: string | undefined, options: { seconds: string; depth: string }, command: Command) => {
      const context = new Context(command);
      const name = volume ?? `demo-${process.pid}`;
      await context.api.call("POST /v1/volumes", { body: { name, size: VOLUME_BYTES, blockSize: 4096 } });
      try {
        const figures = await measure(context, name, Number(options.seconds) * 1000, Number(options.depth));
        context.show(figures, formatFigures);
      } finally {
        await context.api.call("DELETE /v1/volumes/{name}", { params: { name }, query: { force: "true" } });
      }
    });
}

async function measure(context: Context, name: string, forMs: number, depth: number): Promise<DemoFigures> {
  if (!(forMs > 0) || !(depth > 0)) throw new Refusal("bad-request", "Seconds and depth are numbers above 0");
  const { makeEnv } = await import("#env/make-env");
  const { NbdClient } = await import("#initiator/nbd-client");
  const { demonstrate } = await import("#initiator/demo");
  const silent = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
  const env = makeEnv("node", { memoryBytes: MEMORY_BYTES, log: silent });
  const { path, close } = socketPath(context.data, PRIVATE_SOCKET);
  const device = await promiseOf(
    NbdClient.open(env, { address: { path }, exportName: name, tls: undefined }, { depth }),
  );
  try {
    return await promiseOf(demonstrate(env, device, { forMs, depth }));
  } finally {
    await new Promise<void>((resolve) => device.close()(() => resolve()));
    env.close();
    close();
  }
}

function formatFigures({ phases, flushMs, blocksVerified }: DemoFigures): string {
  const ms = (value: number) => (value < 1 ? `${Math.round(value * 1000)} µs` : `${value.toFixed(1)} ms`);
  const rows = table<DemoPhase>(phases, [
    { title: "", of: ({ name }) => name },
    { title: "block", right: true, of: ({ requestBytes }) => formatSize(requestBytes) },
    { title: "requests/s", right: true, of: ({ perSecond }) => Math.round(perSecond).toLocaleString("en") },
    { title: "throughput", right: true, of: ({ bytesPerSecond }) => `${formatSize(Math.round(bytesPerSecond))}/s` },
    { title: "median", right: true, of: ({ latencyMsMedian }) => ms(latencyMsMedian) },
    { title: "99 %", right: true, of: ({ latencyMs99 }) => ms(latencyMs99) },
  ]);
  return `${rows}\n${blocksVerified.toLocaleString("en")} blocks read back and compared: all as written. A flush took ${ms(flushMs)}.`;
}
