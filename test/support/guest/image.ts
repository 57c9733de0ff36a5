/**
 * What the guest boots from, made once from Debian's packages and kept in `.guest/` of the checkout: the kernel of
 * bookworm-backports with all its modules, a small initramfs, and the programs for kernel initiators that the machine
 * itself need not have. Needs apt and dpkg, but no root. Delete `.guest/` to make it anew.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { gzipSync } from "node:zlib";
import { run } from "../program.ts";
import { type Entry, packCpio } from "./cpio.ts";

/** Goes up whenever something below changes what is made. */
const IMAGE_VERSION = 3;
const SUITE = "bookworm-backports";
const PACKAGES = [
  ..."busybox-static kmod libkmod2 udev libudev1 libdevmapper1.02.1".split(" "),
  ..."open-iscsi libopeniscsiusr libisns0 multipath-tools kpartx liburcu8 libaio1 libjson-c5".split(" "),
  ..."sg3-utils libsgutils2-1.46-2 nbd-client libnl-genl-3-200 libnl-3-200 nvme-cli libnvme1".split(" "),
  ..."fence-agents python3-pexpect python3-ptyprocess".split(" "),
];
/** What the initramfs must load before it sees the machine's root; all others come from there. */
const EARLY_MODULES = ["virtio_pci", "virtio_net", "9pnet_virtio", "9p", "overlay"];

export interface Image {
  /** Where the packages are unpacked. */
  readonly root: string;
  readonly kernel: string;
  readonly initrd: string;
  /** As `uname -r` says. */
  readonly version: string;
}

/** The image, made if it is not there yet (half a minute and 500 MB). */
export async function makeImage(): Promise<Image> {
  const home = resolve(process.env["ASHLAR_GUEST_DIR"] ?? ".guest", `v${IMAGE_VERSION}`);
  if (!existsSync(join(home, "version"))) await build(home);
  const version = readFileSync(join(home, "version"), "utf8");
  const root = join(home, "root");
  return { root, version, kernel: join(root, "boot", `vmlinuz-${version}`), initrd: join(home, "initrd.gz") };
}

async function build(home: string): Promise<void> {
  const work = `${home}.${process.pid}`;
  rmSync(work, { recursive: true, force: true });
  try {
    for (const folder of ["debs", "root", "apt/lists/partial", "apt/cache/archives/partial"])
      mkdirSync(join(work, folder), { recursive: true });
    const version = await download(work);
    for (const deb of readdirSync(join(work, "debs")))
      await run("dpkg", ["-x", join("debs", deb), "root"], { cwd: work });
    const modules = join(work, "root/lib/modules", version);
    await run("find", [modules, "-name", "*.ko.xz", "-exec", "unxz", "{}", "+"], { limitMs: 300_000 });
    const lib = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map((path) => join(work, "root", path)).join(":");
    // kmod is many programs in one, told apart by the name it is called with.
    await run("ln", ["-sf", "kmod", join(work, "root/bin/depmod")]);
    await run(join(work, "root/bin/depmod"), ["-b", join(work, "root"), version], { env: { LD_LIBRARY_PATH: lib } });
    writeFileSync(join(work, "initrd.gz"), gzipSync(packCpio(initramfs(work, version)), { level: 1 }));
    for (const folder of ["debs", "apt"]) rmSync(join(work, folder), { recursive: true });
    writeFileSync(join(work, "version"), version);
    rmSync(home, { recursive: true, force: true });
    renameSync(work, home);
  } catch (error) {
    rmSync(work, { recursive: true, force: true });
    throw new Error("the guest could not be made: it needs apt, dpkg, unxz and Debian's package servers", {
      cause: error,
    });
  }
}

/** Fetches the packages into `debs/`; returns the kernel's version. The machine's own package lists are not touched. */
async function download(work: string): Promise<string> {
  const list = join(work, "apt/sources.list");
  writeFileSync(list, [SUITE, "bookworm"].map((suite) => `deb http://deb.debian.org/debian ${suite} main\n`).join(""));
  writeFileSync(join(work, "apt/status"), "");
  const apt = (program: string, ...args: string[]) =>
    run(
      program,
      [
        ...[`Dir::Etc::sourcelist=${list}`, "Dir::Etc::sourceparts=/dev/null", `Dir::State::lists=${work}/apt/lists`],
        // As if nothing were installed: what is chosen must not depend on the machine.
        ...[`Dir::State::status=${work}/apt/status`, `Dir::Cache=${work}/apt/cache`],
        ...["APT::Sandbox::User=root", "Acquire::Retries=3"],
      ]
        .flatMap((option) => ["-o", option])
        .concat(args),
      { cwd: join(work, "debs"), limitMs: 600_000 },
    );
  await apt("apt-get", "-qq", "update");
  const shown = await apt("apt-cache", "show", "linux-image-amd64");
  const kernel = shown
    .split("\n\n")
    .filter((facts) => /^Version: .*bpo/m.test(facts))
    .map((facts) => /^Depends: linux-image-(\S+)/m.exec(facts)?.[1])[0];
  if (kernel === undefined) throw new Error(`no kernel in ${SUITE}:\n${shown}`);
  await apt("apt-get", "-qq", "download", `linux-image-${kernel}`, ...PACKAGES);
  return kernel;
}

function initramfs(work: string, version: string): Entry[] {
  const entries: Entry[] = ["proc", "sys", "dev", "mnt/host", "mnt/control", "newroot", "run"].map((path) => ({
    path,
    folder: true,
  }));
  entries.push({ path: "bin/busybox", bytes: readFileSync(join(work, "root/bin/busybox")), executable: true });
  for (const name of ["sh", "mount", "modprobe", "ip", "mkdir", "chroot", "poweroff", "echo"])
    entries.push({ path: `bin/${name}`, link: "busybox" });
  const folder = `lib/modules/${version}`;
  const read = (path: string) => readFileSync(join(work, "root", folder, path));
  const needs = new Map(
    read("modules.dep")
      .toString()
      .split("\n")
      .map((line) => line.split(":"))
      .map(([path, rest]) => [path!, (rest ?? "").trim().split(" ").filter(Boolean)]),
  );
  const wanted = new Set<string>();
  for (const name of EARLY_MODULES)
    for (const [path, others] of needs)
      if (path.endsWith(`/${name}.ko`)) for (const each of [path, ...others]) wanted.add(each);
  for (const path of [...wanted].sort()) entries.push({ path: `${folder}/${path}`, bytes: read(path) });
  for (const name of ["dep", "alias", "order", "symbols", "builtin"])
    entries.push({ path: `${folder}/modules.${name}`, bytes: read(`modules.${name}`) });
  entries.push({ path: "init", bytes: Buffer.from(INIT), executable: true });
  return entries;
}

/**
 * The first process: the machine's root read-only over 9p, a layer in memory on top of it, and in there the agent.
 * Which folder is whose is told by the mount tags that qemu is given.
 */
const INIT = `#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for m in ${EARLY_MODULES.join(" ")}; do modprobe $m; done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144 host /mnt/host
mount -t tmpfs tmpfs /run; mkdir -p /run/upper /run/work
mount -t overlay -o lowerdir=/mnt/host,upperdir=/run/upper,workdir=/run/work overlay /newroot
for k in proc sysfs devtmpfs; do t=\${k%fs}; t=\${t%tmp}; mount -t $k $k /newroot/$t; done
mount -t tmpfs tmpfs /newroot/run; mkdir -p /newroot/run/control
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none control /newroot/run/control
ip link set lo up
for i in eth0 ens3 enp0s3 enp0s4; do
  ip addr add 10.0.2.15/24 dev $i 2>/dev/null && ip link set $i up && ip route add default via 10.0.2.2
done
chroot /newroot /bin/bash /run/control/agent.sh
poweroff -f
`;
