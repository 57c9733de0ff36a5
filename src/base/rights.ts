/**
 * Who may use what: hosts with their credentials, and grants. This is the plain data of the protection table, as the
 * control plane keeps it (`DATA/rights.json`) and hands it to the lanes as snapshots. A snapshot is never changed in
 * place: an edit makes a new one with a higher generation.
 */
import type { Bytes } from "./units.ts";

export type Access = "read-only" | "read-write";

export interface RightsState {
  readonly format: 1;
  /** Goes up with every change. */
  readonly generation: number;
  readonly hosts: readonly HostRecord[];
  readonly grants: readonly GrantRecord[];
  readonly limits: RightsLimits;
  /** What a local NBD client without credentials may do with every volume that is not granted to anybody. */
  readonly localNbd: LocalNbdRule;
  readonly target: TargetRecord;
}

/** The iSCSI target, beyond where it listens. */
export interface TargetRecord {
  /** What was said about portals; of others, that they are in group 1 and for everybody. */
  readonly portals: readonly PortalRecord[];
  readonly redirects: readonly RedirectRecord[];
}
export interface PortalRecord {
  /** Where it listens: `10.0.0.5:3260`, `[fd00::5]:3260`. */
  readonly address: string;
  /** 1 to 65535. Portals of one group are ways to the same target port; a session stays in its group. */
  readonly groupTag: number;
  /** Initiators of these networks are told of it (CIDR); where none is given, all that can reach it. */
  readonly networks: readonly string[];
  /** What initiators are told instead of its address. */
  readonly advertise: string | undefined;
}
/** Where a host that logs in is sent instead. */
export interface RedirectRecord {
  readonly host: string;
  /** `ADDRESS[:PORT]`. */
  readonly address: string;
  readonly permanent: boolean;
}

/**
 * "all": on loopback and Unix sockets, NBD clients without credentials may read and write every volume. "ungranted":
 * only those without any grant. "none": nobody without credentials.
 */
export type LocalNbdRule = "all" | "ungranted" | "none";

export interface HostRecord {
  readonly name: string;
  /** Numeric IP addresses from which the host speaks SCP version 1, or NBD without TLS on a trusted network. */
  readonly addresses: readonly string[];
  /** Of SCP version 2: 32 bytes as 64 lower-case hex digits. */
  readonly secret: string | undefined;
  /** The host may not fall back to SCP version 1, which proves nothing but an address. */
  readonly requireSecret: boolean;
  /** SCP under TLS, or not at all. */
  readonly requireTls: boolean;
  /** Names that the host proves by TLS: a PSK identity or a certificate's common name. */
  readonly tlsNames: readonly string[];
  readonly iqns: readonly string[];
  /** What an iSCSI initiator proves to us, and what we prove to it. */
  readonly chap: ChapRecord | undefined;
  readonly mutualChap: ChapRecord | undefined;
  /** The unit number that each volume has or had on this host. A number is never given to another one unasked. */
  readonly units: Readonly<Record<string, number>>;
  /** SCP data sockets that the host may have at a time; the server's default when undefined. */
  readonly dataSocketsMax: number | undefined;
  /** Server addresses to which the host is told to open SCP data sockets; where the server listens when empty. */
  readonly dataPorts: readonly DataPortRecord[];
}

/** A host that has no credentials and no rights yet. */
export const newHostRecord = (name: string): HostRecord => ({
  name,
  addresses: [],
  secret: undefined,
  requireSecret: false,
  requireTls: false,
  tlsNames: [],
  iqns: [],
  chap: undefined,
  mutualChap: undefined,
  units: {},
  dataSocketsMax: undefined,
  dataPorts: [],
});

export interface ChapRecord {
  readonly user: string;
  readonly secret: string;
}

export interface DataPortRecord {
  readonly address: string;
  readonly port: number;
  readonly socketsMax: number;
}

export interface GrantRecord {
  readonly host: string;
  /** A volume, a snapshot `volume@snapshot`, or a partition. */
  readonly device: string;
  readonly unit: number;
  readonly access: Access;
  /** The part of the device that the host sees as its whole; all of it when undefined. */
  readonly range: RangeRecord | undefined;
}

export interface RangeRecord {
  readonly offset: Bytes;
  readonly length: Bytes;
}

/** WO 02/15018 III: "up to one hundred partitions … up to sixteen partitions can be assigned to any given host". */
export interface RightsLimits {
  readonly partitionsMax: number;
  readonly unitsPerHostMax: number;
}

export const RIGHTS_LIMITS_DEFAULT: RightsLimits = { partitionsMax: 100, unitsPerHostMax: 16 };

/** What a grant's unit number may be at most: the largest LUN of iSCSI's flat addressing. */
export const UNIT_MAX = 16383;

/** A server nobody has configured yet: no hosts, and NBD on loopback open to whoever is on this machine. */
export const RIGHTS_EMPTY: RightsState = {
  format: 1,
  generation: 0,
  hosts: [],
  grants: [],
  limits: RIGHTS_LIMITS_DEFAULT,
  localNbd: "all",
  target: { portals: [], redirects: [] },
};
