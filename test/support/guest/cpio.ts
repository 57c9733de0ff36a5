/** An archive in cpio's "newc" format, as the kernel unpacks an initramfs from (Documentation/driver-api/early-userspace/buffer-format.rst). */

export type Entry =
  | { readonly path: string; readonly folder: true }
  | { readonly path: string; readonly link: string }
  | { readonly path: string; readonly bytes: Uint8Array; readonly executable?: boolean };

/** Packs the entries in their order, and before each the folders above it. */
export function packCpio(entries: readonly Entry[]): Buffer {
  const parts: Buffer[] = [];
  const seen = new Set<string>();
  let inode = 1;
  const add = (path: string, mode: number, bytes: Uint8Array) => {
    const name = Buffer.from(`${path}\0`);
    const fields = [inode++, mode, 0, 0, 1, 0, bytes.length, 0, 0, 0, 0, name.length, 0];
    const header = `070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}`;
    parts.push(padded(Buffer.concat([Buffer.from(header), name])), padded(Buffer.from(bytes)));
  };
  const addFolder = (path: string) => {
    if (path === "" || seen.has(path)) return;
    addFolder(path.slice(0, Math.max(0, path.lastIndexOf("/"))));
    seen.add(path);
    add(path, 0o040755, new Uint8Array());
  };
  for (const entry of entries) {
    if ("folder" in entry) {
      addFolder(entry.path);
      continue;
    }
    addFolder(entry.path.slice(0, Math.max(0, entry.path.lastIndexOf("/"))));
    if ("link" in entry) add(entry.path, 0o120777, Buffer.from(entry.link));
    else add(entry.path, entry.executable === true ? 0o100755 : 0o100644, entry.bytes);
  }
  add("TRAILER!!!", 0, new Uint8Array());
  return Buffer.concat(parts);
}

const padded = (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc((4 - (bytes.length % 4)) % 4)]);
