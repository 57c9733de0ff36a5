/**
 * The login of one connection, RFC 7143 §6 and §11.12 f.: from the first login request to full feature phase or to a
 * refusal. Pure: requests go in, replies come out; who may log in, and whether a session can take the connection, is
 * asked of `LoginAuthority`.
 */
import { LoginFlag, LoginStatus, Stage } from "#wire/iscsi/codes";
import { encodeText, normalizeName, parseText } from "#wire/iscsi/text";
import { Chap, type ChapSecret, type Hash } from "./chap.ts";
import { ConnectionParameters, Negotiation, SessionParameters, type TargetLimits } from "./negotiate.ts";

/** The fields of a login request that count here. */
export interface LoginRequest {
  readonly flags: number;
  readonly versionMin: number;
  /** 12 hex digits. */
  readonly isid: string;
  readonly tsih: number;
  readonly cid: number;
  readonly text: Uint8Array;
}
export interface LoginReply {
  /** Of `LoginStatus`. */
  readonly status: number;
  readonly flags: number;
  readonly text: Uint8Array;
  /** Full feature phase is reached, with this reply. */
  readonly done: boolean;
}

/** Who an initiator is. */
export interface KnownInitiator {
  readonly host: string;
  readonly chap: ChapSecret | undefined;
  readonly mutual: ChapSecret | undefined;
}
export interface LoginAuthority {
  readonly targetName: string;
  readonly targetAlias: string;
  readonly portalGroupTag: number;
  readonly limits: TargetLimits;
  readonly hash: Hash;
  random(to: Uint8Array): void;
  identify(initiatorName: string): KnownInitiator | undefined;
  /** Where this initiator is to go instead: `address:port`, and whether for ever. */
  redirect(initiatorName: string): { readonly address: string; readonly permanent: boolean } | undefined;
  /**
   * The last question before full feature phase: joins or makes the session. Returns its TSIH, or a login status.
   * Parameters of the session are those of the session joined, or new ones.
   */
  admit(login: Login): { readonly tsih: number } | number;
  /** The parameters of the session that the connection wants to join: undefined when there is no such session. */
  joining(initiatorName: string, isid: string, tsih: number): SessionParameters | undefined;
}

/** The most text of one negotiation, over all its PDUs. */
const TEXT_BYTES_MAX = 65_536;
/** The most login requests of one connection. */
const REQUESTS_MAX = 32;
const VERSION = 0;
const EMPTY = new Uint8Array(0);
/** §6.3.1: what names the session comes in the first request. */
const NAMING_KEYS: ReadonlySet<string> = new Set(["InitiatorName", "TargetName", "SessionType"]);

export class Login {
  readonly connection = new ConnectionParameters();
  session = new SessionParameters();
  initiatorName = "";
  targetName = "";
  isDiscovery = false;
  known: KnownInitiator | undefined;
  isid = "";
  tsih = 0;
  cid = 0;
  /** Why it was refused: for the log and for `explain`. */
  why = "";
  /** Whether the initiator has proven itself by CHAP. */
  authenticated = false;
  readonly #authority: LoginAuthority;
  #negotiation!: Negotiation;
  #stage: number = -1;
  #requests = 0;
  #pieces: Uint8Array[] = [];
  #piecesBytes = 0;
  #chap: Chap | undefined;
  #methodChosen = false;
  #declared = false;

  constructor(authority: LoginAuthority) {
    this.#authority = authority;
  }

  /** Takes one request. After a status other than success, or `done`, it takes no more. */
  take(request: LoginRequest): LoginReply {
    if (++this.#requests > REQUESTS_MAX) return this.#refuse(LoginStatus.INITIATOR_ERROR, "too many login requests");
    const isFirst = this.#stage < 0;
    if (isFirst) {
      if (request.versionMin > VERSION) return this.#refuse(LoginStatus.UNSUPPORTED_VERSION, "no version in common");
      this.isid = request.isid;
      this.tsih = request.tsih;
      this.cid = request.cid;
      this.#stage = (request.flags >> 2) & 3;
    } else if (request.isid !== this.isid || request.cid !== this.cid || request.tsih !== this.tsih) {
      return this.#refuse(LoginStatus.INITIATOR_ERROR, "ISID, TSIH or CID changed during the login");
    }
    const current = (request.flags >> 2) & 3;
    const next = request.flags & 3;
    const transits = (request.flags & LoginFlag.TRANSIT) !== 0;
    const continues = (request.flags & LoginFlag.CONTINUE) !== 0;
    if (current !== this.#stage || current > Stage.OPERATIONAL)
      return this.#refuse(LoginStatus.INITIATOR_ERROR, `stage ${current} is out of turn`);
    if (transits && (continues || next <= current || next === 2))
      return this.#refuse(LoginStatus.INITIATOR_ERROR, `cannot go from stage ${current} to ${next}`);

    this.#piecesBytes += request.text.length;
    if (this.#piecesBytes > TEXT_BYTES_MAX) return this.#refuse(LoginStatus.INITIATOR_ERROR, "too much text");
    this.#pieces.push(request.text);
    if (continues) return this.#reply([], false, next);
    const keys = parseText(join(this.#pieces));
    this.#pieces = [];
    if (typeof keys === "string") return this.#refuse(LoginStatus.INITIATOR_ERROR, `bad text (${keys})`);
    if (isFirst || this.initiatorName === "") {
      const refusal = this.#introduce(keys);
      if (refusal !== undefined) return refusal;
    }
    return current === Stage.SECURITY ? this.#security(keys, transits, next) : this.#operational(keys, transits, next);
  }

  /** §6.3.1: who is it, what does it want. */
  #introduce(keys: ReadonlyMap<string, string>): LoginReply | undefined {
    const authority = this.#authority;
    const given = keys.get("InitiatorName");
    if (given === undefined) return this.#refuse(LoginStatus.MISSING_PARAMETER, "no InitiatorName");
    const name = normalizeName(given);
    if (name === undefined) return this.#refuse(LoginStatus.INITIATOR_ERROR, `InitiatorName ${given} is no iSCSI name`);
    this.initiatorName = name;
    const type = keys.get("SessionType") ?? "Normal";
    if (type !== "Normal" && type !== "Discovery")
      return this.#refuse(LoginStatus.SESSION_TYPE_NOT_SUPPORTED, `SessionType ${type}`);
    this.isDiscovery = type === "Discovery";
    this.known = authority.identify(name);
    if (!this.isDiscovery) {
      const target = keys.get("TargetName");
      if (target === undefined) return this.#refuse(LoginStatus.MISSING_PARAMETER, "no TargetName");
      this.targetName = normalizeName(target) ?? "";
      if (this.targetName !== authority.targetName)
        return this.#refuse(LoginStatus.NOT_FOUND, `there is no target ${target}`);
      if (this.known === undefined)
        return this.#refuse(LoginStatus.AUTHORIZATION_FAILURE, `no host has the initiator name ${name}`);
      const elsewhere = authority.redirect(name);
      if (elsewhere !== undefined) {
        this.why = `sent to ${elsewhere.address}`;
        const status = elsewhere.permanent
          ? LoginStatus.TARGET_MOVED_PERMANENTLY
          : LoginStatus.TARGET_MOVED_TEMPORARILY;
        return { status, flags: 0, text: encodeText([["TargetAddress", elsewhere.address]]), done: false };
      }
    }
    if (this.tsih !== 0) {
      const joined = authority.joining(name, this.isid, this.tsih);
      if (joined === undefined)
        return this.#refuse(LoginStatus.SESSION_DOES_NOT_EXIST, `there is no session with TSIH ${this.tsih}`);
      this.session = joined;
    }
    this.#negotiation = new Negotiation(this.session, this.connection, authority.limits, this.tsih === 0);
    return undefined;
  }

  #security(keys: ReadonlyMap<string, string>, transits: boolean, next: number): LoginReply {
    const answers: (readonly [string, string])[] = [];
    const isMethodOffer = keys.has("AuthMethod");
    if (isMethodOffer) {
      if (this.#methodChosen) return this.#refuse(LoginStatus.INITIATOR_ERROR, "AuthMethod twice");
      const chosen = this.#chooseMethod(keys.get("AuthMethod")!.split(","));
      if (chosen === undefined)
        return this.#refuse(
          LoginStatus.AUTHENTICATION_FAILURE,
          `no authentication method in common (offered ${keys.get("AuthMethod")}, ${this.#needsChap ? "CHAP is required" : "the host has no CHAP secret"})`,
        );
      this.#methodChosen = true;
      answers.push(["AuthMethod", chosen]);
    }
    let mayTransit = transits;
    if (this.#chap !== undefined && !this.authenticated) {
      mayTransit = false;
      if (!isMethodOffer || keys.has("CHAP_A")) {
        const result = this.#chap.take(keys);
        if (result.kind === "refused") return this.#refuse(LoginStatus.AUTHENTICATION_FAILURE, result.why);
        answers.push(...result.keys);
        if (result.kind === "proven") {
          this.authenticated = true;
          mayTransit = transits;
        }
      }
    }
    const refusal = this.#answerRest(keys, answers, SECURITY_KEYS);
    if (refusal !== undefined) return refusal;
    return this.#transit(answers, mayTransit, next);
  }

  #operational(keys: ReadonlyMap<string, string>, transits: boolean, next: number): LoginReply {
    if (this.#needsChap && !this.authenticated)
      return this.#refuse(LoginStatus.AUTHENTICATION_FAILURE, "the initiator skipped CHAP, which its host requires");
    const answers: (readonly [string, string])[] = [];
    const refusal = this.#answerRest(keys, answers, NO_KEYS);
    if (refusal !== undefined) return refusal;
    if (!this.#declared) {
      this.#declared = true;
      answers.push(["MaxRecvDataSegmentLength", String(this.#authority.limits.receiveMax)]);
    }
    return this.#transit(answers, transits, next);
  }

  /** Discovery tells nobody's secrets, and most initiators have no credentials for it; a full session needs them. */
  get #needsChap(): boolean {
    return !this.isDiscovery && this.known?.chap !== undefined;
  }

  #chooseMethod(offered: readonly string[]): string | undefined {
    const secret = this.known?.chap;
    const canChap = secret !== undefined && offered.includes("CHAP");
    if (canChap && (this.#needsChap || !offered.includes("None"))) {
      this.#chap = new Chap(this.#authority.hash, (to) => this.#authority.random(to), secret, this.known?.mutual);
      return "CHAP";
    }
    return !this.#needsChap && offered.includes("None") ? "None" : undefined;
  }

  /** The keys that are neither naming nor authentication. They are allowed in both stages: §6.3.2 forbids few. */
  #answerRest(
    keys: ReadonlyMap<string, string>,
    answers: (readonly [string, string])[],
    handled: ReadonlySet<string>,
  ): LoginReply | undefined {
    for (const [key, value] of keys) {
      if (NAMING_KEYS.has(key) || handled.has(key)) continue;
      // What the initiator answers to our own declarations.
      if (value === "NotUnderstood" || value === "Irrelevant" || value === "Reject") continue;
      if (this.#negotiation.isRepeated(key))
        return this.#refuse(LoginStatus.INITIATOR_ERROR, `${key} was negotiated twice`);
      const answer = this.#negotiation.take(key, value);
      if (answer !== "no-answer") answers.push([key, answer.value]);
    }
    return undefined;
  }

  #transit(answers: (readonly [string, string])[], transits: boolean, next: number): LoginReply {
    // §13.9: the first reply of a normal session says to which portal group this portal belongs.
    if (!this.#told) {
      this.#told = true;
      if (!this.isDiscovery) answers.unshift(["TargetPortalGroupTag", String(this.#authority.portalGroupTag)]);
      if (!this.isDiscovery && this.#authority.targetAlias !== "")
        answers.push(["TargetAlias", this.#authority.targetAlias]);
    }
    if (!transits) return this.#reply(answers, false, next);
    if (next === Stage.FULL_FEATURE) {
      if (this.#needsChap && !this.authenticated)
        return this.#refuse(LoginStatus.AUTHENTICATION_FAILURE, "the initiator skipped CHAP, which its host requires");
      this.#negotiation.settle();
      const admitted = this.#authority.admit(this);
      if (typeof admitted === "number") return this.#refuse(admitted, this.why || "the session cannot be joined");
      this.tsih = admitted.tsih;
    } else {
      this.#stage = next;
    }
    return this.#reply(answers, true, next);
  }
  #told = false;

  #reply(answers: readonly (readonly [string, string])[], transits: boolean, next: number): LoginReply {
    const current = transits && next !== Stage.FULL_FEATURE ? this.#stageBefore(next) : this.#stage;
    return {
      status: LoginStatus.SUCCESS,
      flags: (transits ? LoginFlag.TRANSIT | next : 0) | (current << 2),
      text: answers.length === 0 ? EMPTY : encodeText(answers),
      done: transits && next === Stage.FULL_FEATURE,
    };
  }
  #stageBefore(next: number): number {
    return next === Stage.OPERATIONAL ? Stage.SECURITY : this.#stage;
  }

  #refuse(status: number, why: string): LoginReply {
    this.why = why;
    return { status, flags: 0, text: EMPTY, done: false };
  }
}

const SECURITY_KEYS: ReadonlySet<string> = new Set(["AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R"]);
const NO_KEYS: ReadonlySet<string> = new Set();

function join(pieces: readonly Uint8Array[]): Uint8Array {
  if (pieces.length === 1) return pieces[0]!;
  const bytes = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}
