/**
 * What a front may show and give to a peer. Fronts reach devices through this interface and by no other way; the
 * protection table stands behind it. All of it is synchronous: tables are handed to a lane as snapshots.
 */
import type { BlockDevice } from "#device/device";

/** Who asks: what a front knows about the other side of a connection. */
export interface ExportPeer {
  readonly front: "nbd" | "scp" | "iscsi";
  /** Numeric IP address, or "" on a Unix socket. */
  readonly host: string;
  readonly port: number;
  readonly localHost: string;
  readonly localPort: number;
  /** The identity proven by TLS, "" without. */
  readonly tlsName: string;
  /** The line is under TLS. */
  readonly secure: boolean;
}

/** Why a peer does not get an export. "not-found" is also said of what the peer may not know to exist. */
export type ExportRefusal =
  | "not-found"
  /** The peer must prove who it is first (with TLS). */
  | "tls-required"
  /** It exists, and this peer has no right to it. */
  | "denied"
  /** Not now: another owner, a takeover, opening. */
  | "away"
  | "shutting-down";

export const isExportRefusal = (value: unknown): value is ExportRefusal => typeof value === "string";

/** What a negotiation tells of a device; every BlockDevice has it. */
export type DeviceShape = Pick<BlockDevice, "size" | "blockSize" | "preferredBlockSize" | "uuid">;

export interface ExportListing {
  /** The name to ask for; "volume" or "volume@snapshot". */
  readonly name: string;
  /** For a person; may be "". */
  readonly description: string;
}

/** An export that a peer may have, with the rights that this peer has. */
export interface Export extends ExportListing {
  /** Because of the device, or of the peer's grant: writes are refused by the front. */
  readonly readOnly: boolean;
  readonly shape: DeviceShape;
  /** The lane that owns the device, if it is another one: the front then gives the connection away to it. */
  readonly lane: number | undefined;
  /** Opens the device for one connection. It may have gone since `find`. Not for an export of another lane. */
  open(): OpenExport | ExportRefusal;
}

/** A device as one connection has it: guarded by what its peer may do. */
export interface OpenExport {
  readonly device: BlockDevice;
  /** The connection has ended, and nothing of it is in flight any more. */
  close(): void;
}

export interface ExportTable {
  /** All that this peer may see, in the order to show it. */
  list(peer: ExportPeer): readonly ExportListing[];
  /** The export called `name` ("" is the default export, if there is one), or why this peer does not get it. */
  find(name: string, peer: ExportPeer): Export | ExportRefusal;
}

/** A table of a few devices that everyone may have: for tests, and for serving a device of one's own. */
export class OpenExportTable implements ExportTable {
  readonly #exports = new Map<string, Export>();
  readonly #users = new Map<string, number>();

  /** Adds a device, or replaces the one of this name. */
  add(name: string, device: BlockDevice, options: { description?: string; readOnly?: boolean } = {}): this {
    const open = (): OpenExport => {
      this.#users.set(name, this.users(name) + 1);
      return { device, close: () => this.#users.set(name, this.users(name) - 1) };
    };
    const readOnly = device.readOnly || options.readOnly === true;
    const description = options.description ?? "";
    this.#exports.set(name, { name, description, readOnly, shape: device, lane: undefined, open });
    return this;
  }

  remove(name: string): void {
    this.#exports.delete(name);
  }

  /** How many connections use the export now. */
  users(name: string): number {
    return this.#users.get(name) ?? 0;
  }

  list(): readonly ExportListing[] {
    return [...this.#exports.values()];
  }

  find(name: string): Export | ExportRefusal {
    const only = name === "" && this.#exports.size === 1 ? [...this.#exports.values()][0] : undefined;
    return this.#exports.get(name) ?? only ?? "not-found";
  }
}
