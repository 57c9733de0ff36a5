#!/usr/bin/env node
/**
 * `npm start`: from a fresh checkout to a running server with a demonstration volume, shown at work with real figures.
 * It installs and builds what is missing, says what to type next, and stays until Ctrl-C.
 *
 *   npm start -- [--data DIR] [--port PORT] [--once]        --once: show it, stop in order, and exit
 */
import { spawn, spawnSync } from "node:child_process";
import { existsSync, readdirSync, statSync } from "node:fs";
import { createServer } from "node:net";
import { delimiter, join, relative, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs, styleText } from "node:util";
import { installDependencies } from "./test/ground.mjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const ASHLAR = join(ROOT, "bin/ashlar");
const NODE_VERSION_MIN = [20, 19];
const NBD_PORT = 10809;
/** Ports tried from there on when others listen. */
const PORTS_TRIED = 20;
const VOLUME = "demo";
const VOLUME_SIZE = "1G";
const READY_SECONDS = 60;

const { values: options } = parseArgs({
  options: {
    data: { type: "string", default: join(process.cwd(), "data") },
    port: { type: "string" },
    once: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});
if (options.help) {
  console.log("npm start -- [--data DIR] [--port PORT] [--once]");
  process.exit(0);
}
const data = resolve(options.data);
const paint = (format, text) => (process.stdout.isTTY && !process.env.NO_COLOR ? styleText(format, text) : text);
const title = (text) => console.log(`\n${paint("bold", text)}`);
const fail = (text) => {
  console.error(`${paint("red", "npm start:")} ${text}`);
  process.exit(1);
};

/* ------------------------------------------------------------------ set-up */

const [major, minor] = process.versions.node.split(".").map(Number);
if (major < NODE_VERSION_MIN[0] || (major === NODE_VERSION_MIN[0] && minor < NODE_VERSION_MIN[1]))
  fail(`Node ${process.version} is too old. Ashlar needs ${NODE_VERSION_MIN.join(".")} or newer.`);

const fault = await installDependencies();
if (fault !== undefined) fail(fault);
if (newestSource(join(ROOT, "src")) > builtAt()) step("Building", "npm", ["run", "build", "--silent"]);

function step(what, program, args) {
  const began = Date.now();
  process.stdout.write(`${what} … `);
  const { status, stdout, stderr } = spawnSync(program, args, { cwd: ROOT, encoding: "utf8" });
  if (status !== 0) fail(`\`${program} ${args.join(" ")}\` failed:\n${stdout}${stderr}`);
  console.log(`${((Date.now() - began) / 1000).toFixed(1)} s`);
}

function newestSource(folder) {
  const times = readdirSync(folder, { withFileTypes: true }).map((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? newestSource(path) : statSync(path).mtimeMs;
  });
  return Math.max(...times);
}

function builtAt() {
  const programs = ["ashlar", "serve", "lane"].map((name) => join(ROOT, `dist/app/bin/${name}.js`));
  return programs.every((path) => existsSync(path)) ? newestSource(join(ROOT, "dist/src")) : 0;
}

/* ------------------------------------------------------------------ server */

let server;
let stopping = false;
for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, () => stop(signal));

const running = ashlarJson(["status"]);
if (running === undefined) {
  const port = options.port === undefined ? await freePort() : Number(options.port);
  const args = [
    ASHLAR,
    "serve",
    "--data",
    data,
    "--nbd",
    `127.0.0.1:${port}`,
    "--log-level",
    "warn",
    "--log-format",
    "text",
  ];
  server = spawn(process.execPath, args, { stdio: ["ignore", "inherit", "inherit"] });
  server.on("exit", (code, signal) => {
    if (!stopping) fail(`the server ended (${signal ?? `status ${code}`})`);
  });
}
const status = ashlarJson(["status", "--wait", String(READY_SECONDS)]);
if (status === undefined) fail("the server did not become ready");
const started =
  running === undefined ? `started in ${Math.round(status.uptimeSeconds * 1000)} ms` : "was running already";
console.log(
  `Ashlar ${status.version} ${started}: data in ${relative(process.cwd(), data) || "."}, ${status.env.name} Env, ${status.lanes.length} lanes, pid ${status.pid}`,
);

/** The usual port, or the first one after it on which nobody listens. */
async function freePort() {
  for (let port = NBD_PORT; port < NBD_PORT + PORTS_TRIED; port++)
    if (
      await new Promise((resolve) => {
        const probe = createServer();
        probe.once("error", () => resolve(false));
        probe.listen(port, "127.0.0.1", () => probe.close(() => resolve(true)));
      })
    )
      return port;
  return fail(
    `ports ${NBD_PORT} to ${NBD_PORT + PORTS_TRIED - 1} are taken; give another one with \`npm start -- --port PORT\``,
  );
}

/** Runs a command with --json; undefined when it is refused. */
function ashlarJson(args) {
  const { status: code, stdout } = spawnSync(process.execPath, [ASHLAR, "--data", data, ...args, "--json"], {
    encoding: "utf8",
  });
  return code === 0 ? JSON.parse(stdout) : undefined;
}

/** Runs a command of ours that must succeed, and shows it as one would type it. */
function show(args) {
  console.log(paint("cyan", `$ ashlar ${args.join(" ")}`));
  const began = performance.now();
  const {
    status: code,
    stdout,
    stderr,
  } = spawnSync(process.execPath, [ASHLAR, "--data", data, ...args], { encoding: "utf8" });
  if (code !== 0) fail(`\`ashlar ${args.join(" ")}\` failed: ${stderr}`);
  process.stdout.write(stdout);
  return performance.now() - began;
}

/* ----------------------------------------------------------- demonstration */

const volumes = ashlarJson(["volume", "ls"]) ?? [];
title("A volume: thin, and on disk as far as it is written");
if (!volumes.some(({ name }) => name === VOLUME)) show(["volume", "create", VOLUME, "--size", VOLUME_SIZE]);
const snapshot = `${VOLUME}@${new Date().toISOString().replace(/[-:]/g, "").slice(0, 15)}`;
show(["snapshot", "create", snapshot]);
show(["clone", snapshot, `${VOLUME}-clone`]);
show(["volume", "ls"]);
show(["volume", "rm", `${VOLUME}-clone`]);
show(["snapshot", "rm", snapshot]);

title("Real I/O on real data, through NBD, every block read back and compared");
show(["demo", "--seconds", "4"]);
const { uris: [uri] = [] } = ashlarJson(["volume", "show", VOLUME]) ?? {};
if (uri !== undefined) showDebianClients(uri);

/** The same with the clients that Debian has, where they are installed. */
function showDebianClients(uri) {
  if (has("nbdinfo")) {
    title("What a client of Debian's libnbd sees");
    console.log(paint("cyan", `$ nbdinfo ${uri}`));
    const { stdout } = spawnSync("nbdinfo", [uri], { encoding: "utf8" });
    console.log(
      stdout
        .split("\n")
        .filter((line) => /protocol|export-size|can_(flush|fua|trim|zero|multi_conn)/.test(line))
        .join("\n"),
    );
  }
  if (has("fio")) {
    title("The same with fio: 4 KiB at random, 32 in flight");
    const scratch = `${VOLUME}-fio`;
    ashlarJson(["volume", "create", scratch, "--size", "256M"]);
    const target = uri.replace(`/${VOLUME}`, `/${scratch}`);
    for (const rw of ["randwrite", "randread"]) {
      const args = [
        `--name=${rw}`,
        "--ioengine=nbd",
        `--uri=${target}`,
        `--rw=${rw}`,
        "--bs=4k",
        "--iodepth=32",
        "--size=128M",
        "--runtime=3",
        "--time_based",
        "--output-format=json",
      ];
      const { status: code, stdout } = spawnSync("fio", args, { encoding: "utf8" });
      if (code !== 0) continue;
      const [job] = JSON.parse(stdout.slice(stdout.indexOf("{"))).jobs;
      const { iops, bw_bytes: rate, clat_ns: latency } = job[rw === "randread" ? "read" : "write"];
      const p99 = latency.percentile?.["99.000000"] ?? 0;
      console.log(
        `${rw.padEnd(10)} ${Math.round(iops).toLocaleString("en").padStart(8)} requests/s  ${(rate / 2 ** 20).toFixed(0).padStart(5)} MiB/s  99 % within ${(p99 / 1e6).toFixed(2)} ms`,
      );
    }
    ashlarJson(["volume", "rm", scratch, "--force"]);
  }
}

function has(program) {
  return (process.env.PATH ?? "").split(delimiter).some((folder) => existsSync(join(folder, program)));
}

/* -------------------------------------------------------------------- next */

title("What next (in another terminal)");
const here = relative(process.cwd(), ASHLAR).startsWith("..") ? ASHLAR : relative(process.cwd(), ASHLAR);
const ashlar = data === join(process.cwd(), "data") ? here : `${here} --data ${data}`;
const next = [
  [`${ashlar} volume create work --size 10G`, "make a volume"],
  [`nbd-client 127.0.0.1 ${portOf(uri)} /dev/nbd0 -N ${VOLUME}`, "a disk of this machine (root; modprobe nbd)"],
  [`nbdfuse mnt ${uri ?? "URI"}`, "or a file, without root"],
  [`qemu-img convert disk.qcow2 -n -O raw ${uri ?? "URI"}`, "a virtual machine's image goes in"],
  [`${ashlar} snapshot create ${VOLUME}@before`, "freeze a state, at once"],
  [`${ashlar} clone ${VOLUME}@before copy`, "a volume of its own from it, at once"],
  [`${ashlar} top`, "what goes on"],
];
const width = Math.max(...next.map(([command]) => command.length));
for (const [command, what] of next) console.log(`  ${paint("cyan", command.padEnd(width))}  ${paint("dim", what)}`);

function portOf(address) {
  return address === undefined ? NBD_PORT : new URL(address).port || NBD_PORT;
}

if (options.once) await stop("once");
else if (server === undefined) console.log("\nThe server was running already; it goes on.");
else console.log(`\nThe server runs here. Ctrl-C stops it: what is in flight finishes, everything is flushed.`);

/** Lets the server finish in order, and ends with its status. */
async function stop(why) {
  if (stopping) return;
  stopping = true;
  if (server === undefined || server.exitCode !== null) process.exit(0);
  if (why !== "once") console.log("\nStopping …");
  const code = await new Promise((resolve) => {
    server.removeAllListeners("exit");
    server.on("exit", (status, signal) => resolve(status ?? (signal === null ? 0 : 1)));
    server.kill("SIGTERM");
  });
  console.log(code === 0 ? "Stopped in order; nothing is lost." : `The server ended with status ${code}.`);
  process.exit(code);
}
