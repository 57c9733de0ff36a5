/**
 * What the control plane and a lane say to each other over their message port. Calls have a number and exactly one
 * answer, a reply or a refusal; notices have none. All of it is plain data (structured clone), nothing is on the data path.
 */

import type { DrivesState } from "#base/drives";
import type { Refusal, RefusalCode } from "#base/refusal";
import type { RightsState } from "#base/rights";
import type { Status } from "#base/status";
import type { Bytes, Millis } from "#base/units";
import type { Address, Peer, Tls } from "#env/env";
import type { SharedReservations } from "#scsi/reservations";
import type { BlockCacheFacts } from "#store/block-cache";
import type { DriveSetFacts } from "#store/drive-set";
import type { NbdFrontFigures } from "#target/nbd-front";

export type EnvName = "uring" | "node";

/** What a lane is. */
export interface LaneStart {
  readonly index: number;
  readonly env: EnvName;
  /** Data-plane memory of this lane. */
  readonly memoryBytes: Bytes;
  /** Beside it, for blocks that were read lately. */
  readonly cacheBytes: Bytes;
  /** The kinds of fronts that it will be told to start. */
  readonly fronts: readonly string[];
}

/** The first message to a lane's thread: `LaneStart`, with what each new thread gets anew. */
export interface LaneThreadStart extends LaneStart {
  /** The list of what it has open, for whoever survives it: see `Remains`. */
  readonly remains: SharedArrayBuffer;
}

/** A version set as the control plane knows it. */
export interface SetFacts {
  /** As in its log, and as its directory is called. */
  readonly uuid: string;
  readonly versions: readonly VersionFacts[];
  /** Why it takes no writes, in words; undefined when it does. */
  readonly trouble: string | undefined;
  /** What was found damaged, in words, newest last. */
  readonly damage: readonly string[];
  readonly checksumErrors: number;
  readonly space: SetSpaceFacts;
}
/** Bytes. `disk` is what `du` says of the set's directory. */
export interface SetSpaceFacts {
  readonly disk: Bytes;
  readonly live: Bytes;
  readonly reclaimable: Bytes;
  readonly spare: Bytes;
  /** Memory of the maps. */
  readonly map: Bytes;
}
export interface VersionFacts {
  /** "db" or "db@monday". */
  readonly name: string;
  readonly uuid: string;
  readonly kind: "volume" | "snapshot";
  readonly size: Bytes;
  readonly blockSize: number;
  readonly preferredBlockSize: number;
  readonly atomicWriteBytes: Bytes;
  /** Milliseconds since 1970. */
  readonly created: number;
  /** The version that it descends from directly. */
  readonly parent: string | undefined;
  readonly space: SpaceFacts;
  readonly connections: number;
}
export interface SpaceFacts {
  readonly provisioned: Bytes;
  readonly mapped: Bytes;
  readonly exclusive: Bytes;
  readonly shared: Bytes;
}
/** What other lanes are told of a version. */
export type PlacedVersion = Pick<
  VersionFacts,
  "name" | "uuid" | "kind" | "size" | "blockSize" | "preferredBlockSize" | "atomicWriteBytes"
>;

/** What a lane wants of another one, by way of the control plane. */
export interface LaneWishes {
  /** What stands reserved on a volume now. Answered when all other lanes go by it. */
  reservations: { given: { shared: SharedReservations; cleared: boolean }; answer: undefined };
  /** Compare-and-write, which NBD does not have, on a volume of lane `lane`. */
  "compare-write": { given: { lane: number } & CompareWrite; answer: { status: Status; result: number } };
  /** A copy within a version set of lane `lane`, which shares the data. */
  copy: { given: { lane: number } & CopyRange; answer: { status: Status; result: number } };
}
export type LaneWish = keyof LaneWishes;
/** `data`: what must be there, and as many bytes that are then written. */
export interface CompareWrite {
  readonly volume: string;
  readonly offset: Bytes;
  readonly fua: boolean;
  readonly data: Uint8Array;
}
export interface CopyRange {
  readonly volume: string;
  readonly offset: Bytes;
  readonly length: Bytes;
  readonly source: string;
  readonly from: Bytes;
  readonly fua: boolean;
}

/** A change of a version set; each is durable when it is answered. */
export type SetChange =
  | { readonly kind: "volume"; readonly name: string; readonly size: Bytes; readonly blockSize: number }
  | { readonly kind: "snapshot"; readonly name: string }
  | { readonly kind: "clone"; readonly from: string; readonly name: string }
  | { readonly kind: "rollback"; readonly to: string }
  | { readonly kind: "resize"; readonly name: string; readonly size: Bytes }
  | { readonly kind: "rename"; readonly name: string; readonly newName: string }
  | { readonly kind: "remove"; readonly name: string; readonly force: boolean };

export interface FrontStart {
  /** The kind of front: "nbd". */
  readonly front: string;
  /** What this one is called: the kind, or for private listeners something of their own. */
  readonly name: string;
  readonly tls: Tls | undefined;
  readonly tlsRequired: boolean;
  /** Peers from beyond this machine are treated like local ones. */
  readonly trusted: boolean;
  /** It shows only what its own lane has. */
  readonly ownOnly: boolean;
  /** Settings of the front's own, as plain data. */
  readonly options: Readonly<Record<string, unknown>>;
}

/** What the NBD front answers to "front.facts". */
export type NbdFigures = NbdFrontFigures;

export interface MeterFacts {
  readonly volume: string;
  readonly front: string;
  readonly connections: number;
  readonly operations: Readonly<Record<string, { count: number; bytes: Bytes; sum: Millis; counts: Float64Array }>>;
  readonly errors: Readonly<Record<string, number>>;
}
export interface ConnectionFacts {
  readonly peer: string;
  /** Volume or snapshot. A session with several is told once for each. */
  readonly export: string;
  /** Milliseconds since 1970. */
  readonly since: number;
  readonly requests: number;
}
/** The space that all thin volumes share. */
export interface PoolFacts {
  readonly available: Bytes;
  readonly used: Bytes;
  /** What is available when the soft threshold is reached. */
  readonly soft: Bytes;
  /** Of a capacity that was set. */
  readonly limit?: { readonly total: Bytes; readonly available: Bytes };
}
/** What stands reserved on a volume. */
export interface ReservationFacts {
  /** Of the volume, and of a part of it when there is more after the first word. */
  readonly uuid: string;
  readonly persists: boolean;
  readonly generation: number;
  /** In the words of SPC-4; undefined when there are only registrations. */
  readonly type: string | undefined;
  readonly holders: readonly string[];
  readonly registrants: readonly { readonly initiator: string; readonly target: string; readonly key: string }[];
}
/** What the iSCSI front tells of itself. */
export interface IscsiFacts {
  readonly iqn: string;
  readonly portals: readonly { readonly address: string; readonly groupTag: number }[];
  readonly sessions: readonly IscsiSessionFacts[];
  readonly refusals: readonly {
    readonly at: number;
    readonly peer: string;
    readonly initiator: string;
    readonly host: string | undefined;
    readonly status: number;
    readonly why: string;
  }[];
}
export interface IscsiSessionFacts {
  readonly session: number;
  readonly host: string;
  readonly initiator: string;
  readonly isid: string;
  readonly kind: "normal" | "discovery";
  /** Milliseconds since 1970. */
  readonly since: number;
  readonly connections: readonly string[];
  readonly units: readonly number[];
  readonly commands: number;
  readonly headerDigest: boolean;
  readonly dataDigest: boolean;
  readonly errorRecoveryLevel: number;
}
export interface LaneFacts {
  readonly memory: { readonly used: Bytes; readonly peak: Bytes; readonly size: Bytes };
  readonly cache: BlockCacheFacts;
  readonly sets: number;
  readonly connections: number;
}
export interface ScrubFacts {
  readonly doneBytes: Bytes;
  readonly totalBytes: Bytes;
  readonly damage: readonly { version: string; offset: Bytes; length: Bytes; reason: string }[];
}

/** Every call: what is given, what is answered. */
export interface LaneCalls {
  /** Makes a set with one volume in it, and closes it again. Answers its uuid. */
  "set.create": { given: { path: string; volume: SetChange & { kind: "volume" } }; reply: string };
  "set.open": { given: { uuid: string; path: string }; reply: SetFacts };
  "set.change": { given: { uuid: string; change: SetChange }; reply: SetFacts };
  /** With fresh figures of space. */
  "set.facts": { given: { uuid: string }; reply: SetFacts };
  /** Flushes, writes a checkpoint, and forgets the set; its hosts are disconnected. */
  "set.close": { given: { uuid: string }; reply: undefined };
  "set.scrub": { given: { uuid: string; versions: readonly string[] | undefined; job: string }; reply: ScrubFacts };
  "set.scrub-stop": { given: { job: string }; reply: undefined };
  /** Bytes that all sets of the lane take on the disk. What is told next is to count from here. */
  "space.used": { given: undefined; reply: number };
  /** What another lane has of a set now, and where its private listener is. No versions: nothing any more. */
  placed: {
    given: { set: string; lane: number; address: Address; versions: readonly PlacedVersion[] };
    reply: undefined;
  };
  /** Opens drives and partitions as they now are; what was deleted has ended when it is answered. */
  "drives.load": { given: { state: DrivesState; mapsPath: string }; reply: DriveSetFacts };
  "drives.facts": { given: undefined; reply: DriveSetFacts };
  "rights.load": { given: { rights: RightsState }; reply: undefined };
  "front.start": { given: FrontStart; reply: undefined };
  "front.listen": { given: { name: string; address: Address }; reply: Address };
  /** Goes on with a connection that another lane has negotiated. */
  "front.resume": { given: { name: string; fd: number; peer: Peer; state: unknown }; reply: undefined };
  "space.now": { given: PoolFacts; reply: undefined };
  /** What a front tells of itself, in its own shape; null when it has nothing to tell. */
  "front.facts": { given: { name: string }; reply: unknown };
  "front.end-session": { given: { name: string; session: number }; reply: boolean };
  /** Where reservations are kept. To be called before anything is served. */
  "reservations.open": { given: { path: string }; reply: undefined };
  reservations: { given: undefined; reply: readonly ReservationFacts[] };
  /** Drops everything that is reserved or registered on a volume. Answers who held it. */
  "reservations.clear": { given: { uuid: string }; reply: readonly string[] };
  /** What another lane has changed. */
  "reservations.take": { given: LaneWishes["reservations"]["given"]; reply: undefined };
  /** Done for a lane that cannot do it over NBD. */
  "device.compare-write": { given: CompareWrite; reply: LaneWishes["compare-write"]["answer"] };
  "device.copy": { given: CopyRange; reply: LaneWishes["copy"]["answer"] };
  /** The answer to a wish of this lane, by its number. */
  answer: { given: { wish: number; answer: unknown }; reply: undefined };
  meters: { given: undefined; reply: readonly MeterFacts[] };
  connections: { given: undefined; reply: readonly (ConnectionFacts & { readonly front: string })[] };
  facts: { given: undefined; reply: LaneFacts };
  /** Accepts no more, lets what is in flight finish, closes connections, closes all sets. */
  drain: { given: undefined; reply: undefined };
  /** Ends the lane as a mistake in it would. It is replaced. */
  fail: { given: undefined; reply: undefined };
}
export type LaneCall = keyof LaneCalls;

export type ToLane = { [Call in LaneCall]: { id: number; call: Call; given: LaneCalls[Call]["given"] } }[LaneCall];

export type FromLane =
  | { readonly type: "ready" }
  | { readonly type: "reply"; readonly id: number; readonly reply: unknown }
  | { readonly type: "refused"; readonly id: number; readonly refusal: RefusalFacts }
  | { readonly type: "log"; readonly level: LogLevel; readonly fields: object; readonly message: string }
  /** Something that an operator wants to know at once, and that `status` goes on showing. */
  | { readonly type: "set-trouble"; readonly uuid: string; readonly reason: string }
  /** A connection for another lane: `lane` goes on with it. */
  | {
      readonly type: "hand-over";
      readonly name: string;
      readonly lane: number;
      readonly fd: number;
      readonly peer: Peer;
      readonly state: unknown;
    }
  | { readonly type: "wish"; readonly id: number; readonly wish: LaneWish; readonly given: unknown }
  | { readonly type: "scrub-progress"; readonly job: string; readonly facts: ScrubFacts }
  /** The last word of a lane that found itself broken. */
  | { readonly type: "dying"; readonly reason: string };
export type LogLevel = "debug" | "info" | "warn" | "error";

export interface RefusalFacts {
  readonly code: RefusalCode;
  readonly message: string;
  readonly hint: string | undefined;
}
export const refusalFacts = ({ code, message, hint }: Refusal): RefusalFacts => ({ code, message, hint });
