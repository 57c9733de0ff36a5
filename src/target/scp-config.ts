/**
 * One configuration connection of the SCP server: it tells the story of `serveConfig` over its line, knows the host's
 * units and data ports, and listens to the protection table for what changes for this host, and for no other.
 */
import { canary } from "#base/canary";
import { crc32c } from "#base/crc32c";
import { start as startTask, type Task } from "#base/task";
import { type Alarm, type Env, isNetError, type Line, type Tls } from "#env/env";
import { StoryLine } from "#env/story-line";
import { type ConfigEnd, type ConfigServerWorld, eventBytes, serveConfig } from "#proto/scp/config-server";
import { parseSecret } from "#proto/scp/proofs";
import { ANSWER_MS_MAX, Capability, DATA_BYTES_MAX_V2, DEPTH_V2, Event, Version } from "#wire/scp/codes";
import { type Challenge, type DataPort, NONCE_BYTES, type UnitRecord } from "#wire/scp/config";
import type { HostChange, ProtectionTable } from "./protection.ts";
import type { ScpFrontOptions } from "./scp-front.ts";
import type { ScpSession } from "./scp-session.ts";

/** While the server drains: how long commands in flight may take, and how often they are looked at. */
const DRAIN_MS_MAX = 5_000;
const DRAIN_LOOK_MS = 10;

export type SessionEnd = "replaced" | "stopped" | "silent" | "units-changed";

export interface AdmitFacts {
  readonly version: number;
  readonly host: string;
  readonly capabilities: number;
  readonly key: Uint8Array | undefined;
  readonly instance: string;
}

export interface DataPorts {
  readonly ports: readonly DataPort[];
  close(): void;
}

export interface FrontSide {
  readonly offer: number;
  readonly options: ScpFrontOptions;
  readonly table: ProtectionTable;
  /** What is shown and asked for under TLS. */
  tls(): Tls;
  admit(config: ConfigConnection, facts: AdmitFacts): ScpSession | undefined;
  listenFor(session: ScpSession, config: ConfigConnection): Task<DataPorts>;
  ended(config: ConfigConnection, end: ConfigEnd | SessionEnd): void;
  upgraded(config: ConfigConnection, line: Line): void;
}

export class ConfigConnection {
  readonly line: Line;
  readonly tls: boolean;
  readonly random: number;
  session: ScpSession | undefined;
  readonly #env: Env;
  readonly #front: FrontSide;
  readonly #story: StoryLine<ConfigEnd>;
  readonly #alarm: Alarm;
  #ports: DataPorts | undefined;
  #unwatch: (() => void) | undefined;
  #why: SessionEnd | undefined;
  /** Numbers of units that the session has had, and that were taken away; or that had no device when it was told of them. */
  readonly #removed = new Set<number>();
  #over = false;

  constructor(env: Env, line: Line, front: FrontSide, tls: boolean) {
    this.#env = env;
    this.line = line;
    this.#front = front;
    this.tls = tls;
    const nonce = new Uint8Array(4 + NONCE_BYTES);
    env.random.fill(nonce);
    this.random = new DataView(nonce.buffer).getUint32(0);
    this.#alarm = env.clock.alarm(() => this.#ring());
    this.#alarm.at = env.clock.now() + ANSWER_MS_MAX;
    this.#story = new StoryLine(env.memory, line, {
      onEnd: (end) => this.#onEnd(end),
      keeps: (end) => end === "start-tls",
    });
    this.#story.start(serveConfig(this.#world(nonce.subarray(4))));
  }

  /** The fence has been passed; the data ports come next, and then the verdict. */
  admitted(): void {
    const { session } = this;
    if (session === undefined || this.#over) return;
    const ready = (ports: DataPorts): void => {
      if (this.#over || session.ended) {
        ports.close();
        return;
      }
      this.#ports = ports;
      this.#alarm.at = Number.POSITIVE_INFINITY;
      this.#story.resume();
    };
    startTask(this.#front.listenFor(session, this), ready, (error) => {
      this.#env.log.error({ front: "scp", error: String(error) }, "Data ports cannot be opened");
      this.#close("stopped");
    });
  }

  end(why: "replaced" | "stopped" | "units-changed"): void {
    this.#close(why);
    // The fence does not wait for the line to say that it is closed.
    this.#onEnd("closed");
  }

  /** Lets the commands in flight end, then closes. */
  finish(): void {
    const busy = [...(this.session?.connections ?? [])].filter((connection) => connection.inFlight > 0);
    const now = this.#env.clock.now();
    this.#finishBy = Math.min(this.#finishBy, now + DRAIN_MS_MAX);
    if (busy.length === 0 || now >= this.#finishBy) {
      this.end("stopped");
      return;
    }
    this.#alarm.at = now + DRAIN_LOOK_MS;
  }
  /** Set once the server drains: until then, commands in flight may end. */
  #finishBy = Number.POSITIVE_INFINITY;

  tell(event: number, unit: number): void {
    const { session } = this;
    if (session === undefined || session.version !== Version.TWO || this.#ports === undefined) return;
    if ((session.capabilities & Capability.EVENTS) !== 0) this.#story.send(eventBytes(session.id, event, unit));
  }

  #ring(): void {
    this.#alarm.at = Number.POSITIVE_INFINITY;
    if (this.#finishBy === Number.POSITIVE_INFINITY) this.#close("silent");
    else this.finish();
  }

  #close(why: SessionEnd): void {
    this.#why ??= why;
    this.#story.close();
  }

  #onEnd(end: ConfigEnd | "closed"): void {
    if (this.#over) return;
    if (end === "start-tls") {
      this.#upgrade();
      return;
    }
    this.#over = true;
    this.#alarm.at = Number.POSITIVE_INFINITY;
    this.#unwatch?.();
    this.#ports?.close();
    this.#front.ended(this, end === "closed" ? (this.#why ?? end) : end);
  }

  #upgrade(): void {
    this.#over = true;
    this.#alarm.at = Number.POSITIVE_INFINITY;
    this.#env.net.secure(
      this.line,
      this.#front.tls(),
    )((line) => {
      if (!isNetError(line)) return this.#front.upgraded(this, line);
      this.#env.log.info({ front: "scp", peer: peerName(this.line), detail: line.detail }, "TLS failed");
      this.#front.ended(this, "closed");
    });
  }

  #world(serverNonce: Uint8Array): ConfigServerWorld {
    const { offer, options, table } = this.#front;
    const { line } = this;
    const challenge: Challenge = {
      capabilities: Capability.DATA_CRC | Capability.EVENTS | Capability.FENCE | (this.tls ? 0 : Capability.TLS),
      depth: DEPTH_V2,
      dataMax: DATA_BYTES_MAX_V2,
      serverId: options.serverId,
      serverNonce,
    };
    return {
      versions: offer,
      random: this.random,
      challenge,
      tlsRequired: (name) => !this.tls && (options.tlsRequired || table.host(name)?.requireTls === true),
      send: (bytes) => this.#story.send(bytes),
      hostByAddress: () => {
        const host = table.identify({ address: line.peer.host });
        return host?.requireSecret === true ? "secret-required" : host?.name;
      },
      secretOf: (name) => {
        if (!isWho(table, line, name)) return undefined;
        const secret = table.host(name)?.secret;
        return secret === undefined ? undefined : parseSecret(secret);
      },
      admit: ({ version, host, capabilities, key, instance }) => {
        this.session = this.#front.admit(this, { version, host, capabilities, key, instance: hex(instance) });
        if (this.session !== undefined) this.#unwatch = table.watch(host, (change) => this.#onChange(change));
        return this.session?.id;
      },
      cookie: () => this.#cookie(),
      run: options.run,
      units: () => this.#units(),
      dataPorts: () => this.#ports?.ports ?? [],
      fence: (serial, ended) => {
        if (this.session?.fence(serial, ended) !== true) ended();
      },
    };
  }

  #units(): UnitRecord[] {
    const listed = this.#front.table.list(this.session?.host ?? "");
    // The host goes on asking the one that it knew: whether the next one is that, it finds out with a session of its own.
    for (const { unit, shape } of listed) if (shape === undefined) this.#removed.add(unit);
    return listed.map(({ unit, device, shape }) => ({
      unit,
      name: device,
      size: shape?.size ?? 0,
      blockSize: shape?.blockSize ?? 512,
      preferredBlockSize: shape?.preferredBlockSize ?? 4096,
      readOnly: shape?.readOnly ?? true,
      away: shape === undefined,
      uuid: shape?.uuid ?? "0".repeat(32),
    }));
  }

  /** Of what the host would be told: it is the same after a restart, and another host's changes do not change it. */
  #cookie(): number {
    const text = JSON.stringify(this.#units());
    return crc32c(Uint8Array.from(text, (letter) => letter.charCodeAt(0) & 0xff));
  }

  #onChange(change: HostChange): void {
    const { session } = this;
    if (session === undefined || this.#over) return;
    const hears = session.version === Version.TWO && (session.capabilities & Capability.EVENTS) !== 0;
    if (change.kind === "unit-removed") this.#removed.add(change.unit);
    // What was sent to the device that had this number must not reach the one that has it now: the session is the fence.
    const isReused =
      change.kind === "unit-added" && this.#removed.has(change.unit) && canary.armed !== "scp-number-reused";
    if (change.kind === "credentials" || change.kind === "removed" || isReused || !hears) {
      this.end("units-changed");
      return;
    }
    const event = {
      "unit-added": Event.UNIT_ADDED,
      "unit-removed": Event.UNIT_REMOVED,
      "unit-resized": Event.UNIT_RESIZED,
      "unit-access": Event.UNIT_ACCESS,
    }[change.kind];
    this.tell(event, change.unit);
  }
}

/** Whoever proved by TLS who it is (a host's key, or a certificate with a name of the host) is not to be another one. */
export function isWho(table: ProtectionTable, { peer }: Line, host: string): boolean {
  const { tlsName } = peer;
  return tlsName === "" || tlsName === host || table.identify({ tlsName })?.name === host;
}

export const peerName = ({ peer }: Line): string => (peer.host === "" ? "unix" : `${peer.host}:${peer.port}`);
const hex = (bytes: Uint8Array | undefined): string =>
  [...(bytes ?? [])].map((byte) => byte.toString(16).padStart(2, "0")).join("");
