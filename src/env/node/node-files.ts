/** The control operations on files, by node:fs. Both real Envs use them. */
import * as fs from "node:fs";
import type { Effect } from "#base/task";
import type { Bytes } from "#base/units";
import type { Disk, DiskFault, File, FileFacts } from "../env.ts";
import { codeOf, diskFault } from "../faults.ts";
import { FallocateMode, fallocate } from "../libc.ts";

/** Readable by nobody but the owner: they hold hosts' data. */
const FILE_MODE = 0o600;
const DIRECTORY_MODE = 0o700;
/** What `stat` and sysfs count in. */
const SECTOR_BYTES = 512;

const FLAGS = {
  read: fs.constants.O_RDONLY,
  write: fs.constants.O_RDWR,
  create: fs.constants.O_RDWR | fs.constants.O_CREAT | fs.constants.O_EXCL,
} as const;

export class NodeFile implements File {
  readonly path: string;
  readonly fd: number;
  constructor(path: string, fd: number) {
    this.path = path;
    this.fd = fd;
  }
}

type Callback = (error: NodeJS.ErrnoException | null) => void;

/** An operation of which only the success matters. */
function plain(run: (callback: Callback) => void): Effect<DiskFault | undefined> {
  return (resume) => run((error) => resume(error ? diskFault(codeOf(error)) : undefined));
}

/** Everything of `Disk` but `submit`. */
export abstract class NodeFiles implements Omit<Disk, "submit"> {
  open(path: string, how: "read" | "write" | "create"): Effect<File | DiskFault> {
    return (resume) =>
      fs.open(path, FLAGS[how], FILE_MODE, (error, fd) =>
        resume(error ? diskFault(codeOf(error)) : new NodeFile(path, fd)),
      );
  }

  close(file: File): Effect<DiskFault | undefined> {
    return plain((callback) => fs.close(fdOf(file), callback));
  }

  truncate(file: File, size: Bytes): Effect<DiskFault | undefined> {
    return plain((callback) => fs.ftruncate(fdOf(file), size, callback));
  }

  allocate(file: File, position: Bytes, length: Bytes): Effect<DiskFault | undefined> {
    return (resume) => resume(fallocate(fdOf(file), FallocateMode.ALLOCATE, position, length));
  }

  punch(file: File, position: Bytes, length: Bytes): Effect<DiskFault | undefined> {
    return (resume) => resume(fallocate(fdOf(file), FallocateMode.PUNCH, position, length));
  }

  facts(path: string): Effect<FileFacts | DiskFault> {
    return (resume) =>
      fs.stat(path, (error, found) => {
        if (error) return resume(diskFault(codeOf(error)));
        const allocated = found.blocks * SECTOR_BYTES;
        if (found.isBlockDevice()) return deviceFacts(found.rdev, resume);
        const kind = found.isFile() ? "file" : found.isDirectory() ? "directory" : "other";
        resume({ kind, size: found.size, allocated });
      });
  }

  list(directory: string): Effect<string[] | DiskFault> {
    return (resume) => fs.readdir(directory, (error, names) => resume(error ? diskFault(codeOf(error)) : names));
  }

  makeDirectory(path: string): Effect<DiskFault | undefined> {
    return plain((callback) => fs.mkdir(path, { mode: DIRECTORY_MODE }, callback));
  }

  removeDirectory(path: string): Effect<DiskFault | undefined> {
    return plain((callback) => fs.rmdir(path, callback));
  }

  link(from: string, to: string): Effect<DiskFault | undefined> {
    return plain((callback) => fs.link(from, to, callback));
  }

  rename(from: string, to: string): Effect<DiskFault | undefined> {
    return plain((callback) => fs.rename(from, to, callback));
  }

  unlink(path: string): Effect<DiskFault | undefined> {
    return plain((callback) => fs.unlink(path, callback));
  }

  syncDirectory(path: string): Effect<DiskFault | undefined> {
    return plain((callback) =>
      fs.open(path, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY, (error, fd) => {
        if (error) return callback(error);
        fs.fsync(fd, (failed) => fs.close(fd, () => callback(failed)));
      }),
    );
  }

  space(path: string): Effect<{ readonly total: Bytes; readonly available: Bytes } | DiskFault> {
    return (resume) =>
      fs.statfs(path, (error, found) => {
        if (error) return resume(diskFault(codeOf(error)));
        resume({ total: found.blocks * found.bsize, available: found.bavail * found.bsize });
      });
  }
}

export function fdOf(file: File): number {
  return (file as NodeFile).fd;
}

/** `stat` says nothing about the size of a block device; sysfs does. */
function deviceFacts(device: number, resume: (facts: FileFacts | DiskFault) => void): void {
  // As glibc's gnu_dev_major and gnu_dev_minor.
  const major = ((device >>> 8) & 0xfff) | (Math.floor(device / 2 ** 32) & 0xfffff000);
  const minor = (device & 0xff) | ((device >>> 12) & 0xfff00);
  fs.readFile(`/sys/dev/block/${major}:${minor}/size`, "utf8", (error, text) => {
    if (error) return resume(diskFault(codeOf(error)));
    const size = Number(text) * SECTOR_BYTES;
    resume({ kind: "device", size, allocated: size });
  });
}
