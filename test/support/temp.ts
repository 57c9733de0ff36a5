/** Folders and file systems that are gone when a test is. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after } from "node:test";
import { run, runAny } from "./program.ts";

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;

/** What a test or a suite of node:test offers for cleaning up. */
export interface Scope {
  after(clean: () => void | Promise<void>): void;
}

const cleanups = new WeakMap<Scope, (() => void | Promise<void>)[]>();

/** A scope that lasts as long as the test file: make it at the top, and use it in `before`. */
export function fileScope(): Scope {
  const scope = { after };
  // Registered here and now: a hook that is given within another hook would belong to that one, and run at its end.
  cleanUp(scope, () => {});
  return scope;
}

/**
 * Runs `clean` when the scope ends: what was made last goes first, and one that fails does not keep the others. (The
 * hooks of node:test run in the order in which they were given, and stop at the first that throws.)
 */
export function cleanUp(scope: Scope, clean: () => void | Promise<void>): void {
  const known = cleanups.get(scope);
  if (known !== undefined) {
    known.push(clean);
    return;
  }
  const list = [clean];
  cleanups.set(scope, list);
  scope.after(async () => {
    const errors: unknown[] = [];
    for (const each of list.reverse())
      try {
        await each();
      } catch (error) {
        errors.push(error);
      }
    if (errors.length > 0) throw new AggregateError(errors, `could not clean up: ${errors.join("; ")}`);
  });
}

/** An empty folder, removed after the test (unless `ASHLAR_KEEP` is set, to look at what a failure left). */
export function tempFolder(scope: Scope): string {
  const folder = mkdtempSync(join(tmpdir(), "ashlar-test-"));
  cleanUp(scope, () => {
    if (process.env["ASHLAR_KEEP"] === undefined) rmSync(folder, { recursive: true, force: true, maxRetries: 5 });
  });
  return folder;
}

/** A TCP port of 127.0.0.1 that is free now. */
export function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once("error", reject);
    probe.listen(0, "127.0.0.1", () => {
      const { port } = probe.address() as { port: number };
      probe.close(() => resolve(port));
    });
  });
}

/** An ext4 of `bytes` on a loop device, mounted on a folder; unmounted after the test. Needs root. */
export async function smallFileSystem(scope: Scope, bytes: number): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "ashlar-disk-"));
  const [image, mount] = [join(folder, "image"), join(folder, "mount")];
  cleanUp(scope, async () => {
    await runAny("umount", ["-l", mount]);
    rmSync(folder, { recursive: true, force: true });
  });
  mkdirSync(mount);
  writeFileSync(image, "");
  await run("truncate", ["-s", String(bytes), image]);
  await run("mkfs.ext4", ["-q", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=0", image]);
  await run("mount", ["-o", "loop", image, mount]);
  return mount;
}
