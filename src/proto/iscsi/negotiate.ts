/**
 * Operational text keys, RFC 7143 §13: what each key means, how two offers become one result, and when it may be
 * negotiated. The target's own offers are `TARGET_LIMITS`.
 */
import { parseNumber } from "#wire/iscsi/text";

/** What the connections of a session share. Defaults of §13. */
export class SessionParameters {
  maxConnections = 1;
  initialR2t = true;
  immediateData = true;
  /** Bytes. */
  maxBurst = 262_144;
  firstBurst = 65_536;
  time2Wait = 2;
  time2Retain = 20;
  maxOutstandingR2t = 1;
  errorRecoveryLevel = 0;
  dataPduInOrder = true;
  dataSequenceInOrder = true;
  taskReporting = "RFC3720";
  initiatorAlias = "";
}

export class ConnectionParameters {
  headerDigest = false;
  dataDigest = false;
  /** Bytes that the other side takes in one PDU: its MaxRecvDataSegmentLength. */
  sendMax = 8192;
}

export interface TargetLimits {
  readonly maxConnections: number;
  /** Bytes that we take in one PDU. */
  readonly receiveMax: number;
  readonly maxBurst: number;
  readonly firstBurst: number;
  readonly maxOutstandingR2t: number;
  readonly errorRecoveryLevel: number;
  readonly time2Wait: number;
  readonly time2Retain: number;
  /** Digests in order of what we want; the initiator's order decides among those that we know. */
  readonly immediateData: boolean;
  readonly initialR2t: boolean;
}
export const TARGET_LIMITS: TargetLimits = {
  maxConnections: 8,
  receiveMax: 262_144,
  maxBurst: 1_048_576,
  firstBurst: 262_144,
  maxOutstandingR2t: 8,
  errorRecoveryLevel: 2,
  time2Wait: 2,
  time2Retain: 20,
  immediateData: true,
  initialR2t: false,
};

/** The answer to one key: a value to send back, or that nothing is sent. */
export type Answer = { readonly value: string } | "no-answer";
const answer = (value: string): Answer => ({ value });
const REJECT = answer("Reject");

/** Bounds of §13 that the grammar does not know. */
const SEGMENT_BYTES_MIN = 512;
const BYTES_MAX = 16_777_215;
const SECONDS_MAX = 3600;
const COUNT_MAX = 65_535;

export class Negotiation {
  readonly session: SessionParameters;
  readonly connection: ConnectionParameters;
  readonly #limits: TargetLimits;
  /** Only the first connection of a session negotiates what is the session's: §13. */
  readonly #isLeading: boolean;
  readonly #seen = new Set<string>();

  constructor(session: SessionParameters, connection: ConnectionParameters, limits: TargetLimits, isLeading: boolean) {
    this.session = session;
    this.connection = connection;
    this.#limits = limits;
    this.#isLeading = isLeading;
  }

  /** Whether a key was negotiated before: doing so twice is a protocol error (§6.3), except where §13 allows it. */
  isRepeated(key: string): boolean {
    return this.#seen.has(key);
  }

  /** Takes an offer. "Reject" answers a value that is not possible; the default or earlier value stays. */
  take(key: string, value: string): Answer {
    this.#seen.add(key);
    const { session, connection } = this;
    const limits = this.#limits;
    switch (key) {
      case "HeaderDigest":
      case "DataDigest": {
        const chosen = value.split(",").find((one) => one === "CRC32C" || one === "None");
        if (chosen === undefined) return REJECT;
        connection[key === "HeaderDigest" ? "headerDigest" : "dataDigest"] = chosen === "CRC32C";
        return answer(chosen);
      }
      case "MaxRecvDataSegmentLength": {
        const bytes = parseNumber(value);
        if (bytes === undefined || bytes < SEGMENT_BYTES_MIN || bytes > BYTES_MAX) return REJECT;
        connection.sendMax = bytes;
        return "no-answer";
      }
      case "InitiatorAlias":
        session.initiatorAlias = value.slice(0, 255);
        return "no-answer";
      case "OFMarker":
      case "IFMarker":
        // Obsolete since RFC 7143 §13.25; old initiators still ask, and "No" is what they understand.
        return answer("No");
      case "OFMarkInt":
      case "IFMarkInt":
        return answer("Irrelevant");
      case "TaskReporting":
        session.taskReporting = "RFC3720";
        return answer(value.split(",").includes("RFC3720") ? "RFC3720" : "Reject");
      case "iSCSIProtocolLevel": {
        const level = parseNumber(value);
        return level === undefined ? REJECT : answer(String(Math.min(level, 1)));
      }
      default:
        return this.#isLeading || !SESSION_KEYS.has(key) ? this.#takeOfSession(key, value, limits) : REJECT;
    }
  }

  /** Undoes what cannot be together: §13.14. */
  settle(): void {
    this.session.firstBurst = Math.min(this.session.firstBurst, this.session.maxBurst);
  }

  #takeOfSession(key: string, value: string, limits: TargetLimits): Answer {
    const { session } = this;
    switch (key) {
      case "MaxConnections":
        return this.#number(value, 1, COUNT_MAX, (n) => (session.maxConnections = Math.min(n, limits.maxConnections)));
      case "MaxBurstLength":
        return this.#number(
          value,
          SEGMENT_BYTES_MIN,
          BYTES_MAX,
          (n) => (session.maxBurst = Math.min(n, limits.maxBurst)),
        );
      case "FirstBurstLength":
        return this.#number(
          value,
          SEGMENT_BYTES_MIN,
          BYTES_MAX,
          (n) => (session.firstBurst = Math.min(n, limits.firstBurst)),
        );
      case "DefaultTime2Wait":
        return this.#number(value, 0, SECONDS_MAX, (n) => (session.time2Wait = Math.max(n, limits.time2Wait)));
      case "DefaultTime2Retain":
        return this.#number(value, 0, SECONDS_MAX, (n) => (session.time2Retain = Math.min(n, limits.time2Retain)));
      case "MaxOutstandingR2T":
        return this.#number(
          value,
          1,
          COUNT_MAX,
          (n) => (session.maxOutstandingR2t = Math.min(n, limits.maxOutstandingR2t)),
        );
      case "ErrorRecoveryLevel":
        return this.#number(value, 0, 2, (n) => (session.errorRecoveryLevel = Math.min(n, limits.errorRecoveryLevel)));
      case "InitialR2T":
        return this.#flag(value, (yes) => (session.initialR2t = yes || limits.initialR2t));
      case "ImmediateData":
        return this.#flag(value, (yes) => (session.immediateData = yes && limits.immediateData));
      case "DataPDUInOrder":
        // "Yes" wins (§13.18, §13.19), and it is what we say: whatever the initiator can do, it can do in order.
        return this.#flag(value, () => (session.dataPduInOrder = true));
      case "DataSequenceInOrder":
        return this.#flag(value, () => (session.dataSequenceInOrder = true));
      default:
        return answer("NotUnderstood");
    }
  }

  #number(value: string, min: number, max: number, decide: (offer: number) => number): Answer {
    const offer = parseNumber(value);
    return offer === undefined || offer < min || offer > max ? REJECT : answer(String(decide(offer)));
  }
  #flag(value: string, decide: (offer: boolean) => boolean): Answer {
    if (value !== "Yes" && value !== "No") return REJECT;
    return answer(decide(value === "Yes") ? "Yes" : "No");
  }
}

const SESSION_KEYS: ReadonlySet<string> = new Set([
  "MaxConnections",
  "MaxBurstLength",
  "FirstBurstLength",
  "DefaultTime2Wait",
  "DefaultTime2Retain",
  "MaxOutstandingR2T",
  "ErrorRecoveryLevel",
  "InitialR2T",
  "ImmediateData",
  "DataPDUInOrder",
  "DataSequenceInOrder",
]);
