/**
 * The self-check: everything that keeps a server from working well, said in words. Run by `ashlar doctor`, also without
 * a server, and by the server when it starts (then only what is wrong is logged).
 */
import { accessSync, constants, existsSync, readFileSync, statfsSync, statSync } from "node:fs";
import { availableParallelism, freemem, release, totalmem } from "node:os";
import { delimiter, join } from "node:path";
import { formatSize } from "#base/size";
import { GIB, MIB } from "#base/units";
import { formatAddress, isPrivate } from "./address.ts";
import { openFilesMax } from "./open-files.ts";
import type { Server } from "./server.ts";

export interface Check {
  readonly name: string;
  readonly result: "ok" | "note" | "warning" | "error";
  readonly message: string;
  readonly hint?: string;
}

/** Clients and peers that people use with Ashlar, and what for. */
const PROGRAMS: Readonly<Record<string, string>> = {
  nbdinfo: "libnbd-bin",
  nbdcopy: "libnbd-bin",
  nbdfuse: "libnbd-bin",
  "qemu-img": "qemu-utils",
  "nbd-client": "nbd-client",
  fio: "fio",
};
const NODE_MAJOR_MIN = 20;
/** statfs(2) magic numbers of file systems on which a log with fdatasync is not what it should be. */
const FILE_SYSTEMS: Readonly<Record<number, { name: string; result: Check["result"]; message: string }>> = {
  16914836: { name: "tmpfs", result: "warning", message: "lies in memory: a reboot loses everything" },
  26985: { name: "NFS", result: "note", message: "is on NFS: durability is what its server makes of a commit" },
  1702057286: { name: "FUSE", result: "note", message: "is on FUSE: durability is what its program makes of fsync" },
  4283649346: { name: "CIFS", result: "warning", message: "is on SMB: crash safety is not known" },
};
const OPEN_FILES_MIN = 4096;

/** What can be said of the machine without a server. */
export function machineChecks(): Check[] {
  return [nodeCheck(), kernelCheck(), memoryCheck(), openFilesCheck(), clientsCheck(), nbdDriverCheck()];
}

/** What can be said of a data directory without taking it. */
export function directoryChecks(path: string): Check[] {
  if (!existsSync(path))
    return [
      { name: "data", result: "note", message: `${path} does not exist yet; the first \`ashlar serve\` makes it` },
    ];
  const checks: Check[] = [];
  try {
    accessSync(path, constants.R_OK | constants.W_OK | constants.X_OK);
    checks.push({ name: "data", result: "ok", message: `${path} can be read and written` });
  } catch (error) {
    const message = `${path} cannot be written by user ${process.getuid?.() ?? "?"}: ${(error as Error).message}`;
    return [{ name: "data", result: "error", message, hint: "Change its owner, or mount it read-write." }];
  }
  const mode = statSync(path).mode & 0o777;
  if ((mode & 0o007) !== 0)
    checks.push({
      name: "permissions",
      result: "warning",
      message: `${path} is open to every user of this machine (mode ${mode.toString(8)})`,
      hint: `Run: chmod 700 ${path}`,
    });
  const { type, bsize, blocks, bavail } = statfsSync(path);
  const known = FILE_SYSTEMS[type];
  if (known !== undefined)
    checks.push({ name: "file system", result: known.result, message: `${path} ${known.message}` });
  const space = `${formatSize(bavail * bsize)} of ${formatSize(blocks * bsize)} free`;
  checks.push({ name: "space", result: bavail * bsize < GIB ? "warning" : "ok", message: space });
  return checks;
}

/** All of it, with what only a running server knows. */
export async function checksOf(server: Server): Promise<Check[]> {
  const { env, settings, problems } = server;
  const lanes = await server.laneStatus();
  const running = lanes.filter(({ state }) => state === "running").length;
  const checks: Check[] = [
    { name: "server", result: "ok", message: `version ${server.version}, pid ${process.pid}, ${server.state}` },
    { name: "env", result: env.name === "uring" ? "ok" : "note", message: `${env.name}: ${env.reason}` },
    {
      name: "lanes",
      result: running === lanes.length ? "ok" : "error",
      message: `${running} of ${lanes.length} run, ${formatSize(settings.memory)} of memory for requests`,
    },
    ...server.fronts.map(({ name, address, tls }) => ({
      name: `front ${name}`,
      result: isPrivate(address) || tls === "required" ? ("ok" as const) : ("warning" as const),
      message: `${formatAddress(address)}, TLS ${tls}`,
    })),
    ...directoryChecks(server.directory.path),
    ...machineChecks(),
  ];
  for (const { code, severity, message, hint } of problems.list())
    checks.push({ name: code, result: severity, message, ...(hint === undefined ? {} : { hint }) });
  return checks;
}

function nodeCheck(): Check {
  const major = Number(process.versions.node.split(".")[0]);
  return major >= NODE_MAJOR_MIN
    ? { name: "node", result: "ok", message: process.version }
    : {
        name: "node",
        result: "error",
        message: `${process.version} is too old`,
        hint: `Install Node ${NODE_MAJOR_MIN} or newer.`,
      };
}

function kernelCheck(): Check {
  const disabled = readNumber("/proc/sys/kernel/io_uring_disabled");
  const message = `Linux ${release()}, ${availableParallelism()} cores`;
  if (process.platform !== "linux")
    return { name: "kernel", result: "note", message: `${process.platform} ${release()}: without io_uring` };
  if (disabled !== undefined && disabled > 0)
    return {
      name: "kernel",
      result: "note",
      message: `${message}; io_uring is switched off (kernel.io_uring_disabled = ${disabled})`,
      hint: "sysctl kernel.io_uring_disabled=0 allows it; the node Env works without.",
    };
  return { name: "kernel", result: "ok", message };
}

function memoryCheck(): Check {
  const message = `${formatSize(freemem())} of ${formatSize(totalmem())} free`;
  if (freemem() > 256 * MIB) return { name: "memory", result: "ok", message };
  return {
    name: "memory",
    result: "warning",
    message,
    hint: "Give --memory and --cache smaller values, or the machine more.",
  };
}

function openFilesCheck(): Check {
  const limit = openFilesMax();
  if (limit === undefined) return { name: "open files", result: "note", message: "the limit is not known here" };
  const message = `up to ${limit === Number.POSITIVE_INFINITY ? "any number" : limit}`;
  if (limit >= OPEN_FILES_MIN) return { name: "open files", result: "ok", message };
  return {
    name: "open files",
    result: "warning",
    message: `${message}: each connection and segment takes one`,
    hint: "ulimit -n 65536, or LimitNOFILE= in the unit file.",
  };
}

function clientsCheck(): Check {
  const folders = (process.env["PATH"] ?? "").split(delimiter);
  const missing = Object.keys(PROGRAMS).filter((name) => !folders.some((folder) => existsSync(join(folder, name))));
  const found = Object.keys(PROGRAMS).filter((name) => !missing.includes(name));
  const message = `${found.length > 0 ? `found ${found.join(", ")}` : "none found"}`;
  if (missing.length === 0) return { name: "clients", result: "ok", message };
  const packages = [...new Set(missing.map((name) => PROGRAMS[name]!))];
  return { name: "clients", result: "note", message, hint: `For the others: apt install ${packages.join(" ")}` };
}

function nbdDriverCheck(): Check {
  if (existsSync("/sys/module/nbd") || existsSync("/dev/nbd0"))
    return { name: "nbd driver", result: "ok", message: "the kernel's nbd driver is loaded" };
  return {
    name: "nbd driver",
    result: "note",
    message: "the kernel's nbd driver is not loaded; it is only needed to attach volumes on this machine",
    hint: "modprobe nbd",
  };
}

function readNumber(path: string): number | undefined {
  try {
    return Number.parseInt(readFileSync(path, "utf8"), 10);
  } catch {
    return undefined;
  }
}
