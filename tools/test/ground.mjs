/** What must be there before tests can run: npm's packages, and the peers from Debian. */
import { spawn } from "node:child_process";
import { accessSync, constants, existsSync, readFileSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

export const ROOT = fileURLToPath(new URL("../..", import.meta.url)).replace(/\/$/, "");

/** Each program (or file, by its path) that some test needs, and the Debian package it comes from. */
const PEERS = {
  nbdkit: "nbdkit",
  nbdinfo: "libnbd-bin",
  nbdcopy: "libnbd-bin",
  nbdfuse: "libnbd-bin",
  "qemu-img": "qemu-utils",
  "qemu-io": "qemu-utils",
  "qemu-nbd": "qemu-utils",
  [`/usr/lib/${process.arch === "arm64" ? "aarch64" : "x86_64"}-linux-gnu/qemu/block-iscsi.so`]: "qemu-block-extra",
  "qemu-storage-daemon": "qemu-system-common",
  "qemu-system-x86_64": "qemu-system-x86",
  fio: "fio",
  "nbd-server": "nbd-server",
  "nbd-client": "nbd-client",
  "iscsi-test-cu": "libiscsi-bin",
  tgtd: "tgt",
  iscsiadm: "open-iscsi",
  sg_inq: "sg3-utils",
  busybox: "busybox-static",
  "/usr/bin/python3": "python3",
  tshark: "tshark",
  dumpcap: "wireshark-common",
  strace: "strace",
  openssl: "openssl",
  "mkfs.ext4": "e2fsprogs",
  losetup: "mount",
  fusermount3: "fuse3",
  ip: "iproute2",
  xz: "xz-utils",
};

/** Runs a program to its end. Undefined if that was good, else what it printed. */
export async function runStep(program, args, limitMs, env = process.env) {
  const child = spawn(program, args, { cwd: ROOT, env, stdio: ["ignore", "pipe", "pipe"], detached: true });
  let output = "";
  child.stdout.on("data", (chunk) => (output += chunk));
  child.stderr.on("data", (chunk) => (output += chunk));
  const timer = setTimeout(() => {
    output += `\nstill running after ${limitMs / 1000} s; killed`;
    process.kill(-child.pid, "SIGKILL");
  }, limitMs);
  const status = await new Promise((resolve) => {
    child.once("error", (error) => resolve(error.message));
    child.once("close", resolve);
  });
  clearTimeout(timer);
  return status === 0 ? undefined : `${program} ${args.join(" ")} ended with ${status}\n${output}`;
}

/** `npm ci`, unless what is installed is what package-lock.json names. */
export async function installDependencies() {
  if (isInstalled()) return undefined;
  console.log("installing npm packages …");
  return runStep("npm", ["ci", "--no-audit", "--no-fund", "--loglevel=error"], 600_000);
}

function isInstalled() {
  const read = (path) => JSON.parse(readFileSync(join(ROOT, path), "utf8")).packages;
  try {
    const installed = read("node_modules/.package-lock.json");
    return Object.entries(read("package-lock.json")).every(
      ([path, { version, optional }]) => path === "" || optional === true || installed[path]?.version === version,
    );
  } catch {
    return false;
  }
}

/** Installs missing peers where it may. Says what is missing still: the tests that need them fail by name. */
export async function installPeers() {
  let missing = missingPeers();
  if (missing.length === 0) return [];
  const packages = [...new Set(missing.map((program) => PEERS[program]))].sort();
  const command = `apt-get install -y --no-install-recommends ${packages.join(" ")}`;
  const may = process.getuid?.() === 0 && isProgram("apt-get");
  if (may) {
    console.log(`installing from Debian: ${packages.join(" ")} …`);
    const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
    const fault =
      (await runStep("apt-get", ["update", "-qq"], 300_000, env)) ??
      (await runStep("apt-get", command.split(" ").slice(1), 900_000, env));
    missing = missingPeers();
    if (missing.length === 0) return [];
    if (fault !== undefined) console.log(fault);
  }
  return [`not installed: ${missing.join(", ")}; tests that need them fail. As root: ${command}`];
}

function missingPeers() {
  return Object.keys(PEERS).filter((program) => !isProgram(program));
}

function isProgram(name) {
  if (name.startsWith("/")) return existsSync(name);
  const folders = [...(process.env["PATH"] ?? "").split(delimiter), "/usr/sbin", "/sbin"];
  return folders.some((folder) => {
    const path = join(folder, name);
    if (!existsSync(path)) return false;
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
