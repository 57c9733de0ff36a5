/** The server as a process: how fast it is there, what it takes when nobody asks for anything. */
import { spawnSync } from "node:child_process";
import { rmSync } from "node:fs";
import { call } from "#test/support/admin";
import { Program, sleep, until } from "#test/support/program";
import { ASHLAR } from "#test/support/server";
import { freePort, MIB } from "#test/support/temp";
import { cpuMs, residentBytes } from "./cpu.ts";
import type { Context } from "./main.ts";
import { formatCount, median } from "./statistics.ts";
import type { Table } from "./table.ts";

/** Variables that are Node's own change what it does before it starts us: a file of certificates is read at once. */
const PLAIN = Object.fromEntries(
  Object.keys(process.env)
    .filter((name) => name.startsWith("NODE_"))
    .map((name) => [name, undefined]),
);

/** After a start V8 still compiles for some seconds, and collects what the start has left up to twenty seconds later. */
const SETTLED_MS = 30_000;

export async function benchProcess(context: Context): Promise<Table[]> {
  const starts = context.quick ? 3 : 11;
  const idleSeconds = context.quick ? 3 : 20;
  const ready: number[] = [];
  const resident: number[] = [];
  const readyCpu: number[] = [];
  const bare: number[] = [];
  let idlePercent = 0;
  for (let round = 0; round < starts; round++) {
    const data = `${context.folder}/process`;
    rmSync(data, { recursive: true, force: true });
    const port = await freePort();
    const beganMs = performance.now();
    spawnSync(process.execPath, ["-e", "0"], { env: { ...process.env, ...PLAIN } });
    bare.push(performance.now() - beganMs);
    const startedMs = performance.now();
    const args = [ASHLAR, "serve", "--data", data, "--nbd", `127.0.0.1:${port}`, "--http", "off"];
    const program = new Program(process.execPath, [...args, ...context.serveArgs], { env: PLAIN });
    try {
      await until(
        "ready",
        () =>
          call<{ state: string }>(data, "GET", "/health").then(
            (health) => health.state === "ready",
            () => false,
          ),
        60_000,
      );
      ready.push(performance.now() - startedMs);
      readyCpu.push(cpuMs(program.pid));
      await sleep(round === 0 ? SETTLED_MS : 1500);
      resident.push(residentBytes(program.pid) / MIB);
      if (round === 0) {
        const before = cpuMs(program.pid);
        await sleep(idleSeconds * 1000);
        idlePercent = (cpuMs(program.pid) - before) / (idleSeconds * 10);
      }
    } finally {
      await program.stop("SIGKILL");
    }
  }
  return [
    {
      title: "The process",
      method: `An empty data directory, ${starts} starts, medians; ready is the first "ready" of GET /health, asked every 10 ms. No variable of Node's own is set. Idle is from ${SETTLED_MS / 1000} s after a start.`,
      columns: ["", "measured", "goal"],
      rows: [
        ["from `ashlar serve` to ready", `${formatCount(median(ready))} ms`, "< 300 ms"],
        ["… of which Node alone, `node -e 0`", `${formatCount(median(bare))} ms`, ""],
        ["processor time until ready", `${formatCount(median(readyCpu))} ms`, ""],
        ["resident memory, idle", `${formatCount(median(resident))} MiB`, "< 90 MiB"],
        [`processor, idle for ${idleSeconds} s`, `${idlePercent.toFixed(2)} %`, "0 %"],
      ],
      data: { ready, bare, readyCpu, resident, idlePercent },
    },
  ];
}
