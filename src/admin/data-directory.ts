/**
 * The data directory: `ashlar.json` says that it is ours and in which format, `lock` that one server has it,
 * `sets/<uuid>/` hold the version sets, `rights.json` the hosts and grants, `ashlar.sock` is the admin API and
 * `nbd.sock` a private way to the volumes for the command line. Everything about it that can be wrong is refused in words.
 */
import { randomUUID } from "node:crypto";
import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { dirname, join, resolve } from "node:path";
import { Refusal } from "#base/refusal";
import { tryLock } from "#env/flock";
import { setsIn } from "./data-place.ts";
import { syncDirectory, writeDurably } from "./durable-file.ts";
import { isEnding } from "./ending-process.ts";

/** Of the directory's layout and of what lies in it. Goes up when an older server could not use it any more. */
export const FORMAT = 1;

const MARKER = "ashlar.json";
/** A server that was killed holds the lock until what its disk has of it is done: it is waited for so long. */
const ENDING_MS_MAX = 30_000;
const ENDING_LOOK_MS = 10;
/** File systems put these into every fresh directory. */
const NOT_SOMEBODYS = new Set(["lost+found", ".DS_Store"]);

interface Marker {
  readonly product: "ashlar";
  readonly format: number;
  readonly uuid: string;
  readonly created: string;
}

export class DataDirectory {
  readonly path: string;
  readonly uuid: string;
  /** True when the server that had it last did not come to say goodbye. */
  readonly wasUnclean: boolean;
  readonly #lock: number;

  private constructor(path: string, uuid: string, lock: number, wasUnclean: boolean) {
    this.path = path;
    this.uuid = uuid;
    this.#lock = lock;
    this.wasUnclean = wasUnclean;
  }

  /**
   * Takes the directory for this process; makes it when it is new or empty. A server that was killed and is not yet gone
   * is waited for, which `onWait` is told once.
   * @throws Refusal
   */
  static open(given: string, onWait: (pid: number) => void = () => {}): DataDirectory {
    const path = resolve(given);
    const fresh = inspect(path);
    const { lock, wasUnclean } = takeLock(path, onWait);
    try {
      const uuid = fresh && !existsSync(join(path, MARKER)) ? initialise(path) : readMarker(path).uuid;
      mkdirSync(join(path, "sets"), { recursive: true, mode: 0o700 });
      removeLeftovers(path);
      return new DataDirectory(path, uuid, lock, wasUnclean);
    } catch (error) {
      closeSync(lock);
      throw inWords(error, path);
    }
  }

  file(name: string): string {
    return join(this.path, name);
  }

  /** Version sets that are there, in order of their names. */
  sets(): string[] {
    return setsIn(this.path);
  }

  setPath(uuid: string): string {
    return join(this.path, "sets", uuid);
  }
  /** Where a set is made, before `publishSet` gives it its place. What is there after a crash was never answered. */
  draftPath(): string {
    return join(this.path, "sets", `.new-${randomUUID()}`);
  }
  publishSet(draft: string, uuid: string): void {
    renameSync(draft, this.setPath(uuid));
    syncDirectory(this.file("sets"));
  }
  /** Removes a closed set: first its name, durably, then its content. */
  removeSet(uuid: string): void {
    const gone = join(this.path, "sets", `.gone-${uuid}`);
    renameSync(this.setPath(uuid), gone);
    syncDirectory(this.file("sets"));
    rmSync(gone, { recursive: true, force: true });
  }
  removeDraft(draft: string): void {
    try {
      rmSync(draft, { recursive: true, force: true });
    } catch {
      // The next start does it: what matters now is why the set could not be made.
    }
  }

  /** Gives the directory back. The kernel does the same when the process dies. */
  close(): void {
    ftruncateSync(this.#lock);
    closeSync(this.#lock);
  }
}

/** Like `mkdir -p`. (Node's own goes round for ever where the kernel says ENOENT though the parent is there, as in /proc.) */
function makeDirectories(path: string): void {
  if (existsSync(path)) return;
  makeDirectories(dirname(path));
  mkdirSync(path, { mode: 0o700 });
}

/** Whether there is nothing yet. @throws Refusal when it cannot be a data directory of ours */
function inspect(path: string): boolean {
  try {
    makeDirectories(path);
    if (!statSync(path).isDirectory())
      throw new Refusal("bad-request", `${path} is not a directory`, "Give the data directory with --data DIR.");
    const names = readdirSync(path).filter((name) => !NOT_SOMEBODYS.has(name));
    if (names.includes(MARKER)) {
      readMarker(path);
      return false;
    }
    // A server that died while it made the directory leaves the lock and the temporary marker.
    const foreign = names.filter((name) => ![`${MARKER}.new`, "lock", "sets"].includes(name));
    if (foreign.length > 0)
      throw new Refusal(
        "not-allowed",
        `${path} is not empty, and not a data directory of Ashlar: it holds "${foreign[0]}"`,
        "Give an empty or a new directory with --data DIR.",
      );
    return true;
  } catch (error) {
    throw inWords(error, path);
  }
}

function readMarker(path: string): Marker {
  let marker: Partial<Marker>;
  try {
    marker = JSON.parse(readFileSync(join(path, MARKER), "utf8")) as Partial<Marker>;
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw inWords(error, path);
    throw new Refusal("damaged", `${join(path, MARKER)} is damaged: it is not JSON`, "Restore it from a backup.");
  }
  if (marker.product !== "ashlar" || typeof marker.format !== "number" || typeof marker.uuid !== "string")
    throw new Refusal(
      "not-allowed",
      `${join(path, MARKER)} is not of Ashlar`,
      "Give another directory with --data DIR.",
    );
  if (marker.format > FORMAT)
    throw new Refusal(
      "too-new",
      `${path} has format ${marker.format}, and this version of Ashlar knows formats up to ${FORMAT}`,
      "Start the newer version of Ashlar that wrote it. Nothing was changed.",
    );
  return marker as Marker;
}

function initialise(path: string): string {
  const marker: Marker = {
    product: "ashlar",
    format: FORMAT,
    uuid: randomUUID().replaceAll("-", ""),
    created: new Date().toISOString(),
  };
  mkdirSync(join(path, "sets"), { recursive: true, mode: 0o700 });
  writeDurably(join(path, MARKER), `${JSON.stringify(marker, undefined, 2)}\n`);
  return marker.uuid;
}

function takeLock(path: string, onWait: (pid: number) => void): { lock: number; wasUnclean: boolean } {
  const name = join(path, "lock");
  let file: number;
  try {
    file = openSync(name, existsSync(name) ? "r+" : "wx+", 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "EEXIST") return takeLock(path, onWait);
    throw inWords(error, path);
  }
  // On its way out, a thread is for some microseconds neither killed nor exiting to look at: two looks must agree.
  let lived = false;
  let told = false;
  for (let waitedMs = 0; ; waitedMs += ENDING_LOOK_MS) {
    const pidBefore = Number.parseInt(readFileSync(name, "utf8"), 10);
    const ending = isEnding(pidBefore);
    if (tryLock(file) ?? !isServer(pidBefore)) {
      ftruncateSync(file);
      writeSync(file, `${process.pid}\n`, 0);
      return { lock: file, wasUnclean: !Number.isNaN(pidBefore) };
    }
    if ((!ending && lived) || waitedMs >= ENDING_MS_MAX) {
      closeSync(file);
      throw lockedBy(pidBefore, path, ending);
    }
    if (ending && !told) onWait(pidBefore);
    told ||= ending;
    lived = !ending;
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ENDING_LOOK_MS);
  }
}

function lockedBy(pid: number, path: string, ending: boolean): Refusal {
  const who = `Another server (pid ${Number.isNaN(pid) ? "unknown" : pid}) has ${path}`;
  return ending
    ? new Refusal(
        "locked",
        `${who}: it was killed, and does not come to its end`,
        "Look whether its disk answers (`dmesg`): the kernel lets a sync that is under way end first.",
      )
    : new Refusal("locked", who, "Use that one, stop it first, or give another directory with --data DIR.");
}

/** Without `flock`: whether a process of this id runs our program. A pid that was reused by another one does not count. */
function isServer(pid: number): boolean {
  if (Number.isNaN(pid) || pid === process.pid) return false;
  try {
    return readlinkSync(`/proc/${pid}/exe`) === readlinkSync("/proc/self/exe");
  } catch {
    return false;
  }
}

/** Drafts of sets that were never answered, and sets whose deletion was cut short. */
function removeLeftovers(path: string): void {
  for (const name of readdirSync(join(path, "sets")))
    if (name.startsWith(".new-") || name.startsWith(".gone-"))
      rmSync(join(path, "sets", name), { recursive: true, force: true });
}

/** What the file system says, as a refusal that an operator can act on. */
export function inWords(error: unknown, path: string): unknown {
  const { code, message } = error as NodeJS.ErrnoException;
  switch (code) {
    case "EROFS":
      return new Refusal(
        "storage-failed",
        `${path} is on a read-only file system`,
        "Mount it read-write (`mount -o remount,rw …`).",
      );
    case "EACCES":
    case "EPERM":
      return new Refusal(
        "not-allowed",
        `No permission for ${path} (as user ${process.getuid?.() ?? "?"})`,
        "Start the server as the directory's owner, or change its owner.",
      );
    case "ENOENT":
    case "ENOTDIR":
      return new Refusal(
        "not-found",
        `${path} is not there, and cannot be made`,
        "Check the path, and that its disk is mounted.",
      );
    case "EEXIST":
      return new Refusal("bad-request", `${path} is not a directory`, "Give the data directory with --data DIR.");
    case "ENOSPC":
    case "EDQUOT":
      return new Refusal("full", `No space left for ${path}`, "Make room on its file system.");
    case "EIO":
      return new Refusal(
        "storage-failed",
        `The disk under ${path} fails: ${message}`,
        "Look at the kernel's log (`dmesg`).",
      );
    default:
      return error;
  }
}
