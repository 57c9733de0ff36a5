/**
 * A device of another lane. Connections that ask for it are given away to that lane where that is possible; where it is
 * not (under TLS, or in a session with devices of several lanes), its operations go there as NBD over a Unix socket.
 * Compare-and-write and copies that share data, which NBD does not have, go by way of the control plane.
 */
import type { Status } from "#base/status";
import { start } from "#base/task";
import { type Bytes, MIB, type Millis } from "#base/units";
import type { BlockDevice, BlockOp, DeviceWatcher } from "#device/device";
import type { Address, Env } from "#env/env";
import type { NbdClient } from "#initiator/nbd-client";
import type { PlacedVersion } from "./messages.ts";
import type { Wishes } from "./wishes.ts";

const CONNECTIONS = 2;
const ATOMIC_BYTES_MAX = MIB;
/** While a lane is replaced, operations wait so long for it. */
const GIVE_UP_MS: Millis = 30_000;

export class RemoteDevice implements BlockDevice {
  readonly lane: number;
  readonly uuid: string;
  readonly blockSize: number;
  readonly preferredBlockSize: number;
  readonly readOnly: boolean;
  /** What one NBD request carries whole. */
  readonly atomicWriteBytes: Bytes;
  readonly #env: Env;
  readonly #name: string;
  readonly #address: Address;
  readonly #wishes: Wishes;
  readonly #watchers = new Set<DeviceWatcher>();
  readonly #waiting: BlockOp[] = [];
  #size: Bytes;
  #client: NbdClient | undefined;
  #isOpening = false;
  #isGone = false;

  constructor(env: Env, facts: PlacedVersion, lane: number, address: Address, wishes: Wishes) {
    this.#env = env;
    this.#name = facts.name;
    this.#address = address;
    this.#wishes = wishes;
    this.lane = lane;
    this.uuid = facts.uuid;
    this.blockSize = facts.blockSize;
    this.preferredBlockSize = facts.preferredBlockSize;
    this.readOnly = facts.kind === "snapshot";
    this.atomicWriteBytes = Math.min(facts.atomicWriteBytes, ATOMIC_BYTES_MAX);
    this.#size = facts.size;
  }

  get size(): Bytes {
    return this.#size;
  }

  submit(op: BlockOp): void {
    if (this.#isGone) {
      finish(op, "gone");
    } else if (op.kind === "compare-write") {
      this.#compareWrite(op);
    } else if (this.#client !== undefined) {
      this.#client.submit(op);
    } else {
      this.#waiting.push(op);
      if (!this.#isOpening) this.#open();
    }
  }

  /** What lies in one lane may be of one version set. */
  copyFrom(op: BlockOp, source: BlockDevice, from: Bytes): void {
    if (!(source instanceof RemoteDevice) || source.lane !== this.lane) return finish(op, "unsupported");
    const { offset, length, fua } = op;
    const given = { lane: this.lane, volume: this.#name, offset, length, source: source.#name, from, fua };
    this.#wishes.ask("copy", given)(({ status }) => finish(op, status));
  }

  watch(watcher: DeviceWatcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  resize(size: Bytes): void {
    if (size === this.#size) return;
    this.#size = size;
    // The size is agreed on in the handshake: a new client knows the new one, and the old one ends what it has.
    this.#client?.close()(() => {});
    this.#client = undefined;
    for (const watcher of [...this.#watchers]) watcher("resized");
  }

  /** Its volume was deleted, or has moved. */
  end(): void {
    this.#isGone = true;
    for (const op of this.#waiting.splice(0)) finish(op, "gone");
    for (const watcher of [...this.#watchers]) watcher("gone");
    this.#client?.close()(() => {});
  }

  #compareWrite(op: BlockOp): void {
    const { offset, fua, at, length } = op;
    const data = this.#env.memory.bytes.slice(at, at + 2 * length);
    this.#wishes.ask("compare-write", { lane: this.lane, volume: this.#name, offset, fua, data })((answer) => {
      op.result = answer.result;
      finish(op, answer.status);
    });
  }

  #open(): void {
    this.#isOpening = true;
    // Most lanes never need the client, so it is not loaded with them.
    import("#initiator/nbd-client").then(
      (module) => this.#openWith(module.NbdClient),
      (error: unknown) => this.#onNotOpened(error),
    );
  }

  #openWith(client: typeof NbdClient): void {
    const target = { address: this.#address, exportName: this.#name, tls: undefined };
    // A lane that dies leaves what it has acknowledged in the page cache. To write it again would be wrong: other hosts
    // may have written something newer there, past this lane.
    const options = { unflushed: "trust", connections: CONNECTIONS, giveUpMs: GIVE_UP_MS, waitMs: GIVE_UP_MS } as const;
    start(
      client.open(this.#env, target, options),
      (opened) => this.#onOpened(opened),
      (error) => this.#onNotOpened(error),
    );
  }

  #onOpened(client: NbdClient): void {
    this.#isOpening = false;
    if (this.#isGone) {
      client.close()(() => {});
      return;
    }
    this.#client = client;
    for (const op of this.#waiting.splice(0)) client.submit(op);
  }

  #onNotOpened(error: unknown): void {
    this.#isOpening = false;
    const fields = { volume: this.#name, lane: this.lane, error: String(error) };
    this.#env.log.warn(fields, "Another lane does not answer");
    for (const op of this.#waiting.splice(0)) finish(op, "away");
  }
}

function finish(op: BlockOp, status: Status): void {
  op.status = status;
  op.done(op);
}
