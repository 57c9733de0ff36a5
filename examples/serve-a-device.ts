// node dist/examples/serve-a-device.js 127.0.0.1:10809     then: nbdinfo nbd://127.0.0.1:10809
// A device of one's own in thirty lines: a sparse disk in memory, served over NBD to any client.
import { serve } from "ashlar";

const PAGE = 4096;
const pages = new Map<number, Uint8Array>();

const disk = {
  size: 64 * 1024 ** 2,
  blockSize: PAGE,
  read(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length; at += PAGE) {
      const page = pages.get((offset + at) / PAGE);
      if (page !== undefined) bytes.set(page, at);
    }
    return bytes;
  },
  write(offset: number, data: Uint8Array): void {
    for (let at = 0; at < data.length; at += PAGE) pages.set((offset + at) / PAGE, data.slice(at, at + PAGE));
  },
  trim(offset: number, length: number): void {
    for (let at = 0; at < length; at += PAGE) pages.delete((offset + at) / PAGE);
  },
  zero(offset: number, length: number): void {
    this.trim(offset, length);
  },
} as const;

const server = await serve(disk, { nbd: process.argv[2] ?? "127.0.0.1:10809" });
console.log(`Serving ${disk.size / 1024 ** 2} MiB at ${server.uri}`);
process.once("SIGTERM", () => server.close());
process.once("SIGINT", () => server.close());
