/**
 * A Linux 6.12 guest whose kernel is the client: nbd, iscsi_tcp, nvme-tcp, device-mapper, ext4. QEMU's software
 * emulation, so it needs no KVM and no root of its own; boots in 10 to 20 s, so tests of one file share a guest.
 *
 *   const guest = await Guest.boot({ modules: ["nbd", "ext4"] });      // in before(); `after(() => guest.stop())`
 *   const output = await guest.run(`
 *     nbd-client $HOST ${port} /dev/nbd0 -N db -C 4
 *     mkfs.ext4 -q /dev/nbd0 && mount /dev/nbd0 /mnt && echo mounted`);  // throws unless the last command succeeds
 *   const { status, output } = await guest.runAny("e2fsck -fn /dev/nbd0");
 *
 * In the guest, $HOST (10.0.2.2) is this machine's 127.0.0.1, and the root is this machine's, with changes kept in
 * memory until the guest stops: its programs are there, and those of the image (open-iscsi, multipath-tools, udev,
 * sg3-utils, nbd-client, nvme-cli). udevd runs; `iscsid -f & multipathd -d &` must be started where they are needed.
 * A script is run by bash; background processes stay for the next script. Test files that boot a guest are named
 * `*.guest.test.ts` (anywhere) or lie in test/guest/: then nothing else runs beside them.
 */
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Image, makeImage } from "./guest/image.ts";
import { Program, until } from "./program.ts";

const BOOT_MS_MAX = 120_000;
const RUN_MS_DEFAULT = 120_000;
const MEMORY_MIB = 2048;
const CONSOLE_BYTES_SHOWN = 4_000;

export interface GuestOptions {
  /** Kernel modules to load at the start. One that is not there is an error. */
  readonly modules?: readonly string[];
  /** More of qemu's own arguments, for example a second network card. */
  readonly qemu?: readonly string[];
}

export class Guest {
  readonly #qemu: Program;
  readonly #folder: string;
  #scripts = 0;
  #last: Promise<unknown> = Promise.resolve();

  private constructor(qemu: Program, folder: string) {
    this.#qemu = qemu;
    this.#folder = folder;
  }

  /** Boots a guest; the first time, its kernel is fetched. Rejects with the guest's console when it does not come up. */
  static async boot(options: GuestOptions = {}): Promise<Guest> {
    const image = await makeImage();
    const folder = mkdtempSync(join(tmpdir(), "ashlar-guest-"));
    writeFileSync(join(folder, "agent.sh"), agent(image));
    mkdirSync(join(folder, "out"));
    const qemu = new Program("qemu-system-x86_64", [
      // One processor: with two, a kernel that patches its own code (jump labels) now and then runs into the int3 of a patch
      // that the other one's translated code still has, and panics while it boots.
      ...["-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", String(MEMORY_MIB)],
      ...["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio", "-monitor", "none"],
      ...["-kernel", image.kernel, "-initrd", image.initrd],
      ...["-append", "console=ttyS0 quiet panic=-1 loglevel=4"],
      ...["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"],
      ...["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"],
      ...["-fsdev", `local,id=control,path=${folder},security_model=none`],
      ...["-device", "virtio-9p-pci,fsdev=control,mount_tag=control"],
      ...["-nic", "user,model=virtio-net-pci"],
      ...(options.qemu ?? []),
    ]);
    const guest = new Guest(qemu, folder);
    try {
      await qemu.until("a running agent", () => existsSync(join(folder, "out/up")), BOOT_MS_MAX);
      if (options.modules !== undefined) await guest.run(`modprobe -a ${options.modules.join(" ")}`);
      return guest;
    } catch (error) {
      await guest.stop();
      throw error;
    }
  }

  /** What the guest's kernel has printed. */
  get console(): string {
    return this.#qemu.output;
  }

  /** Runs a script that must succeed (`set -e` is not on: the last command decides). Returns all that it printed. */
  async run(script: string, limitMs = RUN_MS_DEFAULT): Promise<string> {
    const { status, output } = await this.runAny(script, limitMs);
    if (status !== 0) throw new Error(`the guest's script ended with ${status}\n${script}\n---- printed:\n${output}`);
    return output;
  }

  /** Runs a script after those before it have ended. Rejects, and the guest is gone, when it takes longer than the limit. */
  runAny(script: string, limitMs = RUN_MS_DEFAULT): Promise<{ status: number; output: string }> {
    const result = this.#last.then(() => this.#run(script, limitMs));
    this.#last = result.catch(() => {});
    return result;
  }

  async #run(script: string, limitMs: number): Promise<{ status: number; output: string }> {
    const name = join(this.#folder, String(this.#scripts));
    const out = join(this.#folder, "out", String(this.#scripts++));
    writeFileSync(`${name}.tmp`, `${script}\n`);
    renameSync(`${name}.tmp`, `${name}.sh`);
    const output = () => (existsSync(out) ? readFileSync(out, "utf8") : "");
    try {
      await this.#qemu.until("the end of the script", () => existsSync(`${out}.status`), limitMs);
    } catch (error) {
      const shown = this.console.slice(-CONSOLE_BYTES_SHOWN);
      await this.stop();
      throw new Error(`in the guest:\n${script}\n---- printed:\n${output()}\n---- console:\n${shown}`, {
        cause: error,
      });
    }
    return { status: Number(readFileSync(`${out}.status`, "utf8")), output: output() };
  }

  /** Switches it off like a light; what it had not written is lost, as with any machine. */
  async stop(): Promise<void> {
    await this.#qemu.stop("SIGKILL");
    rmSync(this.#folder, { recursive: true, force: true });
  }

  /** Waits until a script succeeds, for what takes its time in a kernel. */
  async until(what: string, script: string, limitMs = 60_000): Promise<void> {
    await until(what, async () => (await this.runAny(script)).status === 0, limitMs);
  }
}

/** What runs in the guest: prepares it, says that it is up, and then runs one script after the other. */
function agent({ root, version }: Image): string {
  const bins = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
  return `
export PATH=${[...bins, ...bins.map((path) => `${root}${path}`)].join(":")}
export LD_LIBRARY_PATH=${root}/usr/lib/x86_64-linux-gnu:${root}/lib/x86_64-linux-gnu:${root}/lib
export HOST=10.0.2.2 SYSTEMD_IGNORE_CHROOT=1 HOME=/root LANG=C.UTF-8
mkdir -p /lib/modules /etc/iscsi /run/lock/iscsi /run/multipath /usr/lib/udev /mnt
ln -sfn ${root}/lib/modules/${version} /lib/modules/${version}
ln -sfn /proc/self/fd /dev/fd; mkdir -p /dev/shm /dev/pts; mount -t devpts devpts /dev/pts
[ -e /lib/multipath ] || ln -s ${root}/lib/multipath /lib/multipath
for name in modprobe lsmod modinfo; do ln -sf ${root}/bin/kmod /sbin/$name; done
ln -sf ${root}/bin/udevadm /usr/bin/udevadm
cp -rn ${root}/etc/iscsi/* /etc/iscsi/ 2>/dev/null
cp -rn ${root}/lib/udev/* ${root}/usr/lib/udev/* /usr/lib/udev/ 2>/dev/null
echo "InitiatorName=iqn.2026-01.test.ashlar:guest" > /etc/iscsi/initiatorname.iscsi
modprobe crc32c_generic 2>/dev/null
mount -t configfs configfs /sys/kernel/config 2>/dev/null; mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
for daemon in ${root}/lib/systemd/systemd-udevd /lib/systemd/systemd-udevd; do
  if [ -x $daemon ]; then $daemon --daemon 2>/dev/null; break; fi
done
hostname guest
mkfifo /run/never; exec 9<>/run/never
cd /run
touch /run/control/out/up
for ((n = 0; ; n++)); do
  until [ -e /run/control/$n.sh ]; do read -t 0.05 -u 9; done
  bash /run/control/$n.sh > /run/control/out/$n 2>&1 < /dev/null 9<&-
  echo $? > /run/control/out/$n.tmp
  mv /run/control/out/$n.tmp /run/control/out/$n.status
done
`;
}
