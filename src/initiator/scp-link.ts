/**
 * A host's configuration connection: it dials the server's addresses (the best first, the others soon after it, and
 * the first that answers is taken), runs the configuration protocol, and tells when it is over. It does not come back
 * by itself: its owner says when.
 */
import type { Status } from "#base/status";
import type { Millis } from "#base/units";
import { type Alarm, type Env, isNetError, type Line, type NetError, type Tls } from "#env/env";
import { StoryLine } from "#env/story-line";
import { type Configured, configureHost, type HostEnd, requestBytes } from "#proto/scp/config-host";
import { Capability, DATA_BYTES_MAX_V1, DEPTH_V1, Op, PRIVILEGED_PORT_END, Version } from "#wire/scp/codes";
import { NONCE_BYTES } from "#wire/scp/config";

export interface LinkIdentity {
  readonly hostName: string;
  readonly secret: Uint8Array | undefined;
  readonly requireSecret: boolean;
  /** Speak TLS, or nothing: with the secret as pre-shared key, or with certificates. */
  readonly tls: Omit<Tls, "role"> | undefined;
  /** Tells two attachments of one host apart; 16 bytes. */
  readonly instance: Uint8Array;
  readonly versions: number;
  readonly dataCrc: boolean;
  /** Come from a port below 1024, where the system lets us. */
  readonly privilegedPort: boolean;
}

export interface LinkAddress {
  readonly host: string;
  readonly port: number;
}

export interface LinkOwner {
  onConfigured(configured: Configured): void;
  onAnswer(op: number, tag: number, status: Status): void;
  /** A ping was answered after `took`. */
  onPing(took: Millis): void;
  onEvent(event: number, unit: number): void;
  /** The last word. `address` is where it was, if it got that far. */
  onDown(why: LinkDown, address: LinkAddress | undefined, detail: string): void;
}
export type LinkDown = HostEnd | "unreachable" | "silent" | "stopped" | "tls-failed";

/** Between the dials of one race. */
const STAGGER_MS = 60;
const DIAL_MS = 3_000;
/** From the connection to the first configuration: the server may first have to fence what we left there. */
const ANSWER_MS = 5_000;
/** A connection of version 1 that has been silent for so long is asked whether it still exists. */
const KEEP_ALIVE_MS = 10_000;
/** Local ports below 1024 that we try, from the top. */
const LOCAL_PORT_MIN = 512;
const LOCAL_PORT_TRIES = 64;

export class ScpLink {
  address: LinkAddress | undefined;
  /** When bytes came last. */
  heardAt: Millis;
  pingAt: Millis = Number.POSITIVE_INFINITY;
  configured: Configured | undefined;
  tls = false;
  readonly #env: Env;
  readonly #identity: LinkIdentity;
  readonly #owner: LinkOwner;
  readonly #addresses: readonly LinkAddress[];
  readonly #alarm: Alarm;
  #story: StoryLine<HostEnd> | undefined;
  #next = 0;
  #dialing = 0;
  #over = false;
  #why: LinkDown | undefined;
  #detail = "";

  constructor(env: Env, identity: LinkIdentity, addresses: readonly LinkAddress[], owner: LinkOwner) {
    this.#env = env;
    this.#identity = identity;
    this.#addresses = addresses;
    this.#owner = owner;
    this.heardAt = env.clock.now();
    this.#alarm = env.clock.alarm(() => this.#ring());
    this.#alarm.at = env.clock.now();
  }

  request(op: number, tag: number, unit: number): void {
    if (this.configured !== undefined && this.configured.version === Version.TWO)
      this.#story?.send(requestBytes(this.configured.session, op, tag, unit));
  }

  ping(tag: number): void {
    if (this.configured?.version !== Version.TWO || this.pingAt !== Number.POSITIVE_INFINITY) return;
    this.pingAt = this.#env.clock.now();
    this.request(Op.PING, tag, 0);
  }

  close(why: LinkDown): void {
    if (this.#over) return;
    this.#why = why;
    if (this.#story === undefined) this.#finish(why);
    else {
      const story = this.#story;
      this.#finish(why);
      story.close();
    }
  }

  #ring(): void {
    this.#alarm.at = Number.POSITIVE_INFINITY;
    if (this.#over) return;
    if (this.#story !== undefined) {
      this.close("silent");
      return;
    }
    if (this.#next < this.#addresses.length) {
      this.#dial(this.#addresses[this.#next++]!, LOCAL_PORT_TRIES);
      this.#alarm.at = this.#env.clock.now() + STAGGER_MS;
    }
  }

  #dial(address: LinkAddress, tries: number): void {
    this.#dialing++;
    const span = PRIVILEGED_PORT_END - LOCAL_PORT_MIN;
    const localPort = PRIVILEGED_PORT_END - 1 - this.#env.random.below(span);
    const options =
      this.#identity.privilegedPort && tries > 0 ? { timeoutMs: DIAL_MS, localPort } : { timeoutMs: DIAL_MS };
    this.#env.net.dial(
      address,
      options,
    )((line) => {
      this.#dialing--;
      if (!isNetError(line)) return this.#connected(line, address);
      if (this.#over || this.#story !== undefined) return;
      // A taken port is somebody else's; a port that we may not have is a matter for the server to decide.
      if (line.fault === "in-use" && tries > 1) return this.#dial(address, tries - 1);
      if (line.fault === "denied" && tries > 0) return this.#dial(address, 0);
      this.#failed(line);
    });
  }

  #failed(error: NetError): void {
    this.#detail = error.detail;
    if (this.#dialing > 0) return;
    if (this.#next >= this.#addresses.length) this.#finish("unreachable");
    else this.#alarm.at = this.#env.clock.now();
  }

  #connected(line: Line, address: LinkAddress): void {
    if (this.#over || this.#story !== undefined) {
      hangUp(line);
      return;
    }
    this.address = address;
    this.#alarm.at = this.#env.clock.now() + ANSWER_MS;
    this.#tell(line, this.#identity.tls === undefined ? "off" : "wanted");
  }

  #tell(line: Line, tls: "off" | "wanted" | "on"): void {
    const env = this.#env;
    const identity = this.#identity;
    const hostNonce = new Uint8Array(NONCE_BYTES);
    env.random.fill(hostNonce);
    const story = new StoryLine<HostEnd>(env.memory, line, {
      onEnd: (end) => {
        if (end === "start-tls") this.#upgrade(line);
        else this.#finish(this.#why ?? end);
      },
      keeps: (end) => end === "start-tls",
    });
    this.#story = story;
    this.tls = tls === "on";
    story.start(
      configureHost({
        versions: identity.versions,
        requireSecret: identity.requireSecret,
        hostName: identity.hostName,
        secret: identity.secret,
        instance: identity.instance,
        hostNonce,
        capabilities: Capability.EVENTS | Capability.FENCE | (identity.dataCrc ? Capability.DATA_CRC : 0),
        tls,
        depthV1: DEPTH_V1,
        dataMaxV1: DATA_BYTES_MAX_V1,
        send: (bytes) => story.send(bytes),
        onConfigured: (configured) => {
          this.#alarm.at = Number.POSITIVE_INFINITY;
          this.heardAt = env.clock.now();
          // Version 1 has no question to ask of a server that may be gone without having been able to say so.
          if (this.configured === undefined && configured.version === Version.ONE) line.keepAlive(KEEP_ALIVE_MS);
          this.configured = configured;
          if (!this.#over) this.#owner.onConfigured(configured);
        },
        onAnswer: (op, tag, status) => {
          this.heardAt = env.clock.now();
          if (op === Op.PING) {
            if (this.pingAt !== Number.POSITIVE_INFINITY) this.#owner.onPing(this.heardAt - this.pingAt);
            this.pingAt = Number.POSITIVE_INFINITY;
          }
          if (!this.#over) this.#owner.onAnswer(op, tag, status);
        },
        onEvent: (event, unit) => {
          this.heardAt = env.clock.now();
          if (!this.#over) this.#owner.onEvent(event, unit);
        },
      }),
    );
  }

  #upgrade(line: Line): void {
    const tls = clientTls(this.#identity.tls!, this.address!.host);
    this.#env.net.secure(
      line,
      tls,
    )((secured) => {
      if (this.#over) {
        if (!isNetError(secured)) hangUp(secured);
      } else if (isNetError(secured)) {
        this.#detail = secured.detail;
        this.#finish("tls-failed");
      } else this.#tell(secured, "on");
    });
  }

  #finish(why: LinkDown): void {
    if (this.#over) return;
    this.#over = true;
    this.#alarm.at = Number.POSITIVE_INFINITY;
    this.#owner.onDown(why, this.address, this.#detail);
  }
}

/** What a host shows under TLS, and whom it expects at an address. */
export const clientTls = (tls: Omit<Tls, "role">, host: string): Tls => ({ serverName: host, ...tls, role: "client" });

/** Closes a line that nobody wants any more. */
export function hangUp(line: Line): void {
  line.ear = { onReceived() {}, onSent() {}, onClosed() {} };
  line.close();
}
