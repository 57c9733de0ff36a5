/** Bytes of the configuration protocol, outside the lane's memory. */
import { crc32c } from "#base/crc32c";
import type { Checked } from "./frame.ts";

export class ByteBox implements Checked {
  readonly bytes: Uint8Array;
  readonly view: DataView;

  constructor(bytes: Uint8Array | number) {
    this.bytes = typeof bytes === "number" ? new Uint8Array(bytes) : bytes;
    this.view = new DataView(this.bytes.buffer, this.bytes.byteOffset, this.bytes.byteLength);
  }

  crc32c(at: number, length: number): number {
    return crc32c(this.bytes.subarray(at, at + length));
  }
}
