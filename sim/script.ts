/**
 * What happens in a world, drawn before it begins: a list of plain actions. So a failing world can be cut down by leaving
 * actions out, and what is left still means the same.
 */

import type { PowerCut } from "./env/file-system.ts";
import type { PrType } from "./oracle/pr-model.ts";
import type { Io } from "./worlds/host.ts";
import type { ManageKind } from "./worlds/iscsi-initiator.ts";
import type { Right } from "./worlds/scp-shared-server.ts";

export type ReserveKind =
  | "register"
  | "unregister"
  | "register-ignore"
  | "reserve"
  | "release"
  | "clear"
  | "preempt"
  | "preempt-abort"
  | "move";

export type Action = { readonly waitMs?: number } & (
  | { readonly do: "io"; readonly on: number; readonly io: DrawnIo }
  /** A command of an iSCSI host. */
  | {
      readonly do: "scsi";
      readonly host: number;
      readonly unit: number;
      readonly attribute: "simple" | "ordered" | "head-of-queue";
      readonly io: DrawnIo;
    }
  /** An operation of an SCP host on a unit that it may share. */
  | { readonly do: "unit-io"; readonly host: number; readonly unit: number; readonly io: DrawnIo }
  /** What a host may do with a unit from now on. */
  | { readonly do: "grant"; readonly host: number; readonly unit: number; readonly right: Right }
  /** A unit is made larger, or deleted and made anew. */
  | { readonly do: "grow"; readonly unit: number; readonly blocks: number }
  | { readonly do: "replace"; readonly unit: number }
  /** A host is told of a way to the server, or that there is none any more. */
  | { readonly do: "way"; readonly host: number; readonly net: number; readonly isThere: boolean }
  /** A host's process is killed, and started again. */
  | { readonly do: "kill-host"; readonly host: number; readonly downMs: number }
  /** Somebody comes by over NBD. */
  | { readonly do: "nbd-io"; readonly unit: number; readonly io: DrawnIo }
  /** PERSISTENT RESERVE OUT; `pick` chooses key, victim or target, `wrong` a key that is not right. */
  | {
      readonly do: "reserve";
      readonly host: number;
      readonly unit: number;
      readonly what: ReserveKind;
      readonly type: PrType;
      readonly pick: number;
      readonly aptpl: boolean;
      readonly wrong: boolean;
    }
  /** PERSISTENT RESERVE IN: is the state what it should be? */
  | { readonly do: "look"; readonly host: number; readonly unit: number }
  | {
      readonly do: "manage";
      readonly host: number;
      readonly unit: number;
      readonly function: ManageKind;
      readonly immediate: boolean;
    }
  /** A command that is in flight is sent again, as it was. */
  | { readonly do: "resend"; readonly host: number }
  | { readonly do: "log-in-again"; readonly host: number; readonly politely?: boolean }
  /** Reads everything of every version. */
  | { readonly do: "audit" }
  | { readonly do: "create-volume"; readonly size: number; readonly blockSize: number }
  | { readonly do: "snapshot"; readonly on: number }
  | { readonly do: "clone"; readonly on: number }
  | { readonly do: "rollback"; readonly on: number }
  | { readonly do: "resize"; readonly on: number; readonly blocks: number }
  | { readonly do: "remove"; readonly on: number; readonly what: "volume" | "snapshot"; readonly force: boolean }
  | { readonly do: "scrub" }
  | { readonly do: "settle" }
  /** The set is closed in order, and opened again. */
  | { readonly do: "reopen" }
  | { readonly do: "kill"; readonly afterEvents: number; readonly downMs: number }
  | { readonly do: "cut-power"; readonly afterEvents: number; readonly downMs: number; readonly cut: PowerCut }
  /** The server's process stands still, or the host's: then it reads nothing of what is sent to it. */
  | { readonly do: "pause"; readonly ms: number; readonly host?: boolean }
  /** Something goes wrong with the disk from now on; see `applyTrouble`. */
  | { readonly do: "trouble"; readonly trouble: Trouble }
  /** Something goes wrong with the network. */
  | { readonly do: "net"; readonly trouble: NetTrouble }
  /** All troubles end. */
  | { readonly do: "calm" }
);

/** An operation on whatever volume is there: places are drawn as parts of it. */
export type DrawnIo = Omit<Io, "block"> & {
  /** One of the areas that the world writes to, and where in it; both taken modulo what there is. */
  readonly area: number;
  readonly offset: number;
};

export type Trouble =
  | { readonly kind: "read-errors"; readonly often: number }
  | { readonly kind: "write-errors"; readonly often: number }
  | { readonly kind: "sync-errors"; readonly often: number; readonly evicts: boolean }
  | { readonly kind: "control-errors"; readonly often: number }
  | { readonly kind: "stalls"; readonly often: number }
  | { readonly kind: "dropped-writes"; readonly often: number }
  | { readonly kind: "misdirected-writes"; readonly often: number }
  /** Flips bits of files whose name has `of` in it. */
  | { readonly kind: "rot"; readonly bits: number; readonly of: string; readonly seed: number }
  /** Sectors that cannot be read until they are written. */
  | { readonly kind: "bad-sectors"; readonly count: number; readonly of: string; readonly seed: number }
  /** A file is gone, or has lost its end. */
  | { readonly kind: "missing-file"; readonly of: string; readonly seed: number }
  | { readonly kind: "short-file"; readonly of: string; readonly seed: number }
  /** One of the checkpoints is damaged, in one way or another, while the other one is good: that must cost nothing. */
  | { readonly kind: "bad-checkpoint"; readonly seed: number }
  /** The disk has room for `bytes` more than is used now. */
  | { readonly kind: "full"; readonly bytes: number };

export type NetTrouble =
  | { readonly kind: "faults"; readonly reset: number; readonly vanish: number; readonly clog: number }
  | {
      readonly kind: "partition";
      readonly fromServer: boolean;
      readonly bothWays: boolean;
      readonly ms: number;
      /** One of the networks only. */
      readonly net?: number;
    }
  | { readonly kind: "reset-all" };

export function describeAction(action: Action): string {
  const { do: what, ...rest } = action;
  return `${what} ${JSON.stringify(rest)}`;
}
