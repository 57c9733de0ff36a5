/**
 * A disk that remembers the order of what reached it: an ext4 on a loop device, over a file that `qemu-storage-daemon`
 * offers by FUSE and whose writes and flushes it logs (`blklogwrites`, in the format of the kernel's dm-log-writes,
 * Documentation/admin-guide/device-mapper/log-writes.rst). From the log comes the disk as any power cut could leave it.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { run, runAny } from "./program.ts";

const SECTOR_BYTES = 512;
const LOG_MAGIC = 0x6a736677736872n;
const Flag = { FLUSH: 1, FUA: 2, DISCARD: 4 } as const;
/** Sparse: as long as it is read, what was not written is zeroes, and no entry. */
const LOG_BYTES_MAX = 8 * 1024 ** 3;
const START_MS_MAX = 10_000;

export interface LoggedWrite {
  /** Bytes from the start of the disk. */
  readonly position: number;
  readonly length: number;
  /** Where its data lies in the log. */
  readonly dataAt: number;
  readonly isFlush: boolean;
  /** On the disk by itself, whether a flush follows or not. */
  readonly isFua: boolean;
}

/** What the log has so far; grows with each `read`. */
export class WriteLog {
  readonly entries: LoggedWrite[] = [];
  readonly #file: number;
  #next = SECTOR_BYTES;

  constructor(path: string) {
    this.#file = openSync(path, "r");
    const head = Buffer.alloc(16);
    readSync(this.#file, head, 0, 16, 0);
    if (head.readBigUInt64LE(0) !== LOG_MAGIC) throw new Error(`${path} is not a log of writes`);
  }

  /** Reads on, and tells how many entries there are now. */
  read(): number {
    const head = Buffer.alloc(32);
    for (;;) {
      readSync(this.#file, head, 0, 32, this.#next);
      const sector = Number(head.readBigUInt64LE(0));
      const sectors = Number(head.readBigUInt64LE(8));
      const flags = Number(head.readBigUInt64LE(16));
      if (sectors === 0 && flags === 0) return this.entries.length;
      const isDiscard = (flags & Flag.DISCARD) !== 0;
      this.entries.push({
        position: sector * SECTOR_BYTES,
        length: isDiscard ? 0 : sectors * SECTOR_BYTES,
        dataAt: this.#next + SECTOR_BYTES,
        isFlush: (flags & Flag.FLUSH) !== 0,
        isFua: (flags & Flag.FUA) !== 0,
      });
      this.#next += SECTOR_BYTES + (isDiscard ? 0 : sectors * SECTOR_BYTES);
    }
  }

  /** Puts an entry's data into an image of the disk. */
  apply(entry: LoggedWrite, image: Buffer): void {
    if (entry.length > 0) readSync(this.#file, image, entry.position, entry.length, entry.dataAt);
  }

  close(): void {
    closeSync(this.#file);
  }
}

/** The logged disk, mounted at `mount`. Needs root, /dev/fuse and a loop device. */
export class LoggedDisk {
  readonly mount: string;
  readonly log: WriteLog;
  readonly bytes: number;
  readonly #folder: string;
  readonly #daemon: ChildProcess;
  readonly #loop: string;

  private constructor(folder: string, bytes: number, daemon: ChildProcess, loop: string) {
    this.#folder = folder;
    this.bytes = bytes;
    this.#daemon = daemon;
    this.#loop = loop;
    this.mount = join(folder, "mount");
    this.log = new WriteLog(join(folder, "log"));
  }

  static async make(folder: string, bytes: number): Promise<LoggedDisk> {
    const [back, log, disk] = [join(folder, "back"), join(folder, "log"), join(folder, "disk")];
    for (const path of [back, log, disk]) writeFileSync(path, "");
    truncateSync(back, bytes);
    truncateSync(log, LOG_BYTES_MAX);
    mkdirSync(join(folder, "mount"));
    const daemon = spawn("qemu-storage-daemon", [
      ...["--blockdev", `driver=file,node-name=back,filename=${back}`],
      ...["--blockdev", `driver=file,node-name=log,filename=${log}`],
      ...["--blockdev", "driver=blklogwrites,node-name=logged,file=back,log=log"],
      ...["--export", `type=fuse,id=disk,node-name=logged,mountpoint=${disk},writable=on`],
    ]);
    for (const started = Date.now(); statSync(disk).size !== bytes; await sleep(20))
      if (Date.now() - started > START_MS_MAX) throw new Error("qemu-storage-daemon does not offer its disk");
    await run("mkfs.ext4", ["-q", "-F", disk]);
    const loop = (await run("losetup", ["--find", "--show", disk])).trim();
    await run("mount", [loop, join(folder, "mount")]);
    return new LoggedDisk(folder, bytes, daemon, loop);
  }

  /** Ends all writing; the log stays. */
  async stop(): Promise<void> {
    await runAny("umount", [this.mount]);
    await runAny("losetup", ["-d", this.#loop]);
    this.log.read();
    const ended = new Promise((resolve) => this.#daemon.once("exit", resolve));
    this.#daemon.kill("SIGTERM");
    await ended;
  }

  /** Mounts an image of the disk, as a machine does that has its power back, while `look` runs. */
  async withImage(image: Buffer, look: (mount: string) => Promise<void>): Promise<void> {
    const [path, mount] = [join(this.#folder, "image"), join(this.#folder, "again")];
    writeFileSync(path, image);
    if (!existsSync(mount)) mkdirSync(mount);
    const loop = (await run("losetup", ["--find", "--show", path])).trim();
    try {
      await run("mount", [loop, mount]);
      await look(mount);
    } finally {
      await runAny("umount", [mount]);
      await runAny("losetup", ["-d", loop]);
    }
  }
}
