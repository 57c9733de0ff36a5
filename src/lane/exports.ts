/**
 * What the NBD front may show to whom: the protection table's answer, for peers that have grants, and for those whom
 * this machine, a proven key, or the operator's word makes as good as local.
 */
import type { Export, ExportListing, ExportPeer, ExportRefusal, ExportTable, OpenExport } from "#target/exports";
import { isLocalAddress, isNotOpened, type Listed, LOCAL, type ProtectionTable } from "#target/protection";
import type { LaneDirectory } from "./directory.ts";

export interface LaneExportsOptions {
  /** Peers beyond this machine are treated like local ones. */
  readonly trusted: boolean;
  /** Only what this lane has itself: for the other lanes, which would otherwise be sent in circles. */
  readonly ownOnly: boolean;
  /** A peer without a right here may get one by proving who it is. */
  readonly tlsOffered: boolean;
  /** Connections can be given away to other lanes. */
  readonly handsOver: boolean;
}

export class LaneExports implements ExportTable {
  readonly #table: ProtectionTable;
  readonly #directory: LaneDirectory;
  readonly #options: LaneExportsOptions;

  constructor(table: ProtectionTable, directory: LaneDirectory, options: LaneExportsOptions) {
    this.#table = table;
    this.#directory = directory;
    this.#options = options;
  }

  list(peer: ExportPeer): readonly ExportListing[] {
    const names = new Set<string>();
    for (const who of this.#rolesOf(peer)) for (const { device } of this.#listed(who)) names.add(device);
    return [...names].sort().map((name) => ({ name, description: "" }));
  }

  find(wanted: string, peer: ExportPeer): Export | ExportRefusal {
    const roles = this.#rolesOf(peer);
    const name = wanted === "" ? this.#onlyOne(peer) : wanted;
    for (const who of roles) {
      const listed = this.#listed(who).find(({ device }) => device === name);
      if (listed !== undefined) return this.#export(who, listed, peer);
    }
    if (!peer.secure && this.#options.tlsOffered) return "tls-required";
    return roles.length === 0 ? "denied" : "not-found";
  }

  /** As what the peer may come: the host that it is, and one of this machine. */
  #rolesOf(peer: ExportPeer): string[] {
    if (this.#options.ownOnly) return [LOCAL];
    const host = this.#table.identify({ address: peer.host, tlsName: peer.tlsName });
    const asLocal = this.#options.trusted || isLocalAddress(peer.host) || (peer.tlsName !== "" && host === undefined);
    return [...(host === undefined ? [] : [host.name]), ...(asLocal ? [LOCAL] : [])];
  }

  #listed(who: string): Listed[] {
    const listed = this.#table.list(who);
    return this.#options.ownOnly ? listed.filter(({ device }) => this.#directory.isOwn(device)) : listed;
  }

  /** The default export: the only volume there is. */
  #onlyOne(peer: ExportPeer): string | undefined {
    const volumes = this.list(peer).filter(({ name }) => !name.includes("@"));
    return volumes.length === 1 ? volumes[0]!.name : undefined;
  }

  #export(who: string, { device: name, access, shape }: Listed, peer: ExportPeer): Export | ExportRefusal {
    if (shape === undefined) return "away";
    const elsewhere = this.#directory.laneOf(name);
    return {
      name,
      description: "",
      readOnly: shape.readOnly || access === "read-only",
      shape,
      lane: this.#options.handsOver && !peer.secure ? elsewhere : undefined,
      open: () => this.#open(who, name),
    };
  }

  #open(who: string, name: string): OpenExport | ExportRefusal {
    const guard = this.#table.open(who, name);
    if (isNotOpened(guard)) return guard === "unknown" ? "not-found" : guard;
    // Another lane has judged already, with what it knows of the host.
    if (this.#options.ownOnly) guard.gate = undefined;
    return { device: guard, close: () => this.#table.close(who, guard) };
  }
}
