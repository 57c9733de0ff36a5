/**
 * The SCP server: it accepts configuration connections, admits hosts, opens data ports for them, and keeps the rule on
 * which everything rests: a configuration socket that closes takes the data sockets of its session with it, and a host
 * that comes back is not let in before everything that its old session had at the devices has ended.
 * Specified in docs/protocols/scp.md; WO 02/15018 appendices C and D.
 */
import { canary } from "#base/canary";
import { equalBytes } from "#base/sha256";
import { type Effect, perform, type Task } from "#base/task";
import type { Millis } from "#base/units";
import type { Meter } from "#device/meter";
import {
  type Address,
  type Alarm,
  type Datagrams,
  type Env,
  isNetError,
  type Line,
  type Listener,
  type NetError,
  type Tls,
} from "#env/env";
import { StoryLine } from "#env/story-line";
import { box, type ConfigEnd } from "#proto/scp/config-server";
import { helloAnswerMac, helloMac, parseSecret } from "#proto/scp/proofs";
import { hearTlsOrHello } from "#proto/scp/start-tls";
import { ByteBox } from "#wire/scp/byte-box";
import {
  ANSWER_MS_MAX,
  DATA_BYTES_MAX_V1,
  DATA_BYTES_MAX_V2,
  DEPTH_V1,
  DEPTH_V2,
  Event,
  Op,
  PRIVILEGED_PORT_END,
  Version,
} from "#wire/scp/codes";
import { type DataPort, decodeHello, encodeFound } from "#wire/scp/config";
import { decodeZnReq, ZNREQ, ZnReq } from "#wire/scp/znreq";
import { canonicalAddress, isLocalAddress, type ProtectionTable } from "./protection.ts";
import {
  type AdmitFacts,
  ConfigConnection,
  type DataPorts,
  type FrontSide,
  isWho,
  peerName,
  type SessionEnd,
} from "./scp-config.ts";
import { type DataEnd, ScpDataConnection } from "./scp-data.ts";
import { OwnListener, SharedListener, turnAway } from "./scp-listeners.ts";
import { ScpSession } from "./scp-session.ts";

export interface ScpFrontOptions {
  /** Accept hosts from ports at and above 1024, too. */
  readonly anySourcePort: boolean;
  /** 16 bytes that name this server for ever. */
  readonly serverId: Uint8Array;
  /**
   * A number that stays the same as long as nothing is lost that was acknowledged, even if the server restarts: as long
   * as the machine runs. 1 to 2^32 - 1.
   */
  readonly run: number;
  /** Bits of `Version` on offer. */
  readonly versions: number;
  /** Data sockets per host and data port, where the host's record does not say otherwise. */
  readonly socketsMax: number;
  /** A peer that owes the rest of a message, or does not take an answer, is closed after this. */
  readonly stallMs: Millis;
  /** Addresses of this machine that hosts are told of when it listens on all of them. */
  readonly networks: readonly string[];
  readonly sessionsMax: number;
  /** A certificate to show under TLS, and who may sign those of hosts. Secrets are keys of TLS with or without it. */
  readonly certificate: Omit<Tls, "role">;
  /** Without TLS, nobody gets in. */
  readonly tlsRequired: boolean;
  readonly meterOf: (device: string) => Meter | undefined;
}

export const SCP_FRONT_DEFAULTS: Omit<ScpFrontOptions, "serverId" | "run"> = {
  anySourcePort: false,
  versions: Version.ONE | Version.TWO,
  socketsMax: 16,
  stallMs: 30_000,
  networks: [],
  sessionsMax: 1024,
  certificate: {},
  tlsRequired: false,
  meterOf: () => undefined,
};

/** Configuration connections that have not proven anything yet. */
const STRANGERS_MAX = 256;
/** Of one host: more attachments than that are a mistake. */
const SESSIONS_PER_HOST_MAX = 64;

export interface ScpConnectionFacts {
  readonly host: string;
  readonly peer: string;
  readonly kind: "configuration" | "data";
  readonly version: number;
  readonly tls: boolean;
  readonly since: number;
  /** Commands that it has sent so far. */
  readonly requests: number;
}

export class ScpFront {
  readonly #env: Env;
  readonly #table: ProtectionTable;
  readonly #options: ScpFrontOptions;
  readonly #listeners: Listener[] = [];
  readonly #discovery: Datagrams[] = [];
  /** Our addresses, as they were given: data ports are opened on each of them. */
  readonly #hosts = new Set<string>();
  readonly #configs = new Set<ConfigConnection>();
  /** Sessions that are open, and those that have ended and are not quiet yet. */
  readonly #sessions = new Set<ScpSession>();
  readonly #ending = new Set<ScpSession>();
  readonly #shared = new Map<string, SharedListener>();
  readonly #alarm: Alarm;
  #nextSession: number;
  #draining = false;
  readonly #onEmpty: (() => void)[] = [];

  constructor(env: Env, table: ProtectionTable, options: ScpFrontOptions) {
    this.#env = env;
    this.#table = table;
    this.#options = options;
    this.#nextSession = 1 + env.random.below(0x7fff_ffff);
    this.#alarm = env.clock.alarm(() => this.#lookForStalls());
  }

  /** Accepts configuration connections at one more address; several are several networks. */
  *listen(address: { readonly host: string; readonly port: number }): Task<Address | NetError> {
    const listener = yield* perform(this.#env.net.listen(address, (line) => this.#acceptConfig(line)));
    if (isNetError(listener)) return listener;
    this.#listeners.push(listener);
    this.#hosts.add(address.host);
    yield* this.#answerDiscovery(listener.address);
    return listener.address;
  }

  /**
   * Answers who asks by broadcast which servers there are, without a session; with no more bytes than were asked with.
   * A socket that is bound to one address hears no broadcast, so this one hears all, except on loopback.
   */
  *#answerDiscovery(address: Address): Task<void> {
    const { datagrams } = this.#env.net;
    if (datagrams === undefined || !("port" in address)) return;
    const { port } = address;
    const loopback = isLocalAddress(address.host);
    const host = loopback || address.host.includes(":") ? address.host : "0.0.0.0";
    if (this.#discovery.some((one) => one.address.host === host && one.address.port === port)) return;
    const socket: Datagrams | NetError = yield* perform(
      datagrams({ host, port }, (bytes, from) => {
        if (bytes.length !== ZNREQ.byteLength) return;
        const message = new ZnReq();
        decodeZnReq(message, new ByteBox(bytes).view, 0);
        if (message.op !== Op.Z_DISCOVER || message.status !== 0 || message.hostId !== 0) return;
        message.version = this.#options.versions;
        message.hostId = port;
        const answer = box(message);
        encodeFound(this.#options.serverId, answer.view, 0);
        if (!isNetError(socket)) socket.send(answer.bytes, from);
      }),
    );
    if (isNetError(socket))
      this.#env.log.info({ front: "scp", detail: socket.detail }, "Hosts cannot find this server by broadcast");
    else this.#discovery.push(socket);
  }

  get addresses(): readonly Address[] {
    return this.#listeners.map((listener) => listener.address);
  }
  get options(): ScpFrontOptions {
    return this.#options;
  }

  closeListeners(): void {
    for (const socket of this.#discovery.splice(0)) socket.close();
    for (const listener of this.#listeners.splice(0)) listener.close();
  }

  /** Tells hosts that the server goes down, lets what is in flight end, and closes everything. */
  drain(): Effect<void> {
    return (resume) => {
      this.#draining = true;
      this.closeListeners();
      for (const config of this.#configs) config.tell(Event.DRAINING, 0);
      for (const config of [...this.#configs]) config.finish();
      if (this.#configs.size === 0 && this.#ending.size === 0) resume();
      else this.#onEmpty.push(resume);
    };
  }

  /** Closes everything at once. */
  abort(): void {
    this.closeListeners();
    for (const config of [...this.#configs]) config.end("stopped");
    for (const stranger of [...this.#strangers]) stranger.close("stopped");
  }

  connections(): ScpConnectionFacts[] {
    const facts: ScpConnectionFacts[] = [];
    for (const config of this.#configs) {
      const { line, session } = config;
      const version = session?.version ?? 0;
      const host = session?.host ?? "";
      const since = session?.facts.since ?? 0;
      facts.push({ host, peer: peerName(line), kind: "configuration", version, tls: config.tls, since, requests: 0 });
      for (const data of session?.connections ?? [])
        facts.push({
          host,
          peer: peerName(data.line),
          kind: "data",
          version,
          tls: config.tls,
          since,
          requests: data.commands,
        });
    }
    return facts;
  }

  /* ---- configuration connections */

  #acceptConfig(line: Line): void {
    const { peer } = line;
    const offer = this.#offer(line);
    const strangers = [...this.#configs].filter((config) => config.session === undefined).length;
    if (this.#draining || offer === 0 || strangers >= STRANGERS_MAX) {
      const why = this.#draining ? "draining" : offer === 0 ? this.#whyNoOffer(line) : "too many strangers";
      this.#env.log.info({ front: "scp", peer: peerName(line), port: peer.port }, `Configuration refused: ${why}`);
      turnAway(line);
      return;
    }
    this.#configs.add(new ConfigConnection(this.#env, line, this.#world(offer), false));
  }

  /** The versions that this peer may choose from; none means that it is not even greeted. */
  #offer(line: Line): number {
    const { peer } = line;
    if (!this.#options.anySourcePort && peer.port >= PRIVILEGED_PORT_END) return 0;
    const host = this.#table.identify({ address: peer.host });
    let offer = this.#options.versions;
    if (host === undefined || host.requireSecret || host.requireTls || this.#options.tlsRequired) offer &= ~Version.ONE;
    if (!this.#table.hosts.some((one) => one.secret !== undefined)) offer &= ~Version.TWO;
    return offer;
  }

  #whyNoOffer({ peer }: Line): string {
    return !this.#options.anySourcePort && peer.port >= PRIVILEGED_PORT_END
      ? "its source port is not below 1024 (see --scp-any-source-port)"
      : "no host has this address";
  }

  #world(offer: number): FrontSide {
    return {
      offer,
      options: this.#options,
      table: this.#table,
      tls: () => this.#tls(),
      admit: (config, facts) => this.#admit(config, facts),
      listenFor: (session, line) => this.#listenFor(session, line),
      ended: (config, end) => this.#configEnded(config, end),
      upgraded: (old, line) => {
        this.#configs.delete(old);
        this.#configs.add(new ConfigConnection(this.#env, line, this.#world(offer & ~Version.ONE), true));
      },
    };
  }

  #admit(config: ConfigConnection, facts: AdmitFacts): ScpSession | undefined {
    const { host, version, key, instance, capabilities } = facts;
    const same = (other: ScpSession) =>
      other.host === host && other.version === version && other.facts.instance === instance;
    const mine = [...this.#sessions].filter((other) => other.host === host);
    if (mine.length >= SESSIONS_PER_HOST_MAX || this.#sessions.size >= this.#options.sessionsMax) return undefined;
    const id = this.#nextSession;
    this.#nextSession = (this.#nextSession % 0xffff_fffe) + 1;
    const two = version === Version.TWO;
    const session = new ScpSession(
      {
        id,
        host,
        version,
        capabilities,
        random: config.random,
        key,
        instance,
        depth: two ? DEPTH_V2 : DEPTH_V1,
        dataMax: two ? DATA_BYTES_MAX_V2 : DATA_BYTES_MAX_V1,
        tls: config.tls,
        since: this.#env.clock.date(),
      },
      this.#table,
      this.#options.meterOf,
    );
    for (const other of [...this.#configs])
      if (other !== config && other.session !== undefined && same(other.session)) other.end("replaced");
    // Also those of other attachments: a host that has crashed and starts again is another instance, and what it had sent
    // before must not come after what it sends now.
    const fenced = canary.armed === "scp-welcome-early" ? [] : [...this.#ending].filter((other) => other.host === host);
    let waiting = fenced.length;
    const arrived = (): void => {
      if (--waiting <= 0) config.admitted();
    };
    if (waiting === 0) this.#later(() => config.admitted());
    for (const old of fenced) old.whenQuiet(arrived);
    this.#sessions.add(session);
    return session;
  }

  /** Not before the caller has returned. */
  #later(call: () => void): void {
    const alarm = this.#env.clock.alarm(() => {
      alarm.at = Number.POSITIVE_INFINITY;
      call();
    });
    alarm.at = this.#env.clock.now();
  }

  #configEnded(config: ConfigConnection, end: ConfigEnd | SessionEnd): void {
    this.#configs.delete(config);
    const { session } = config;
    const facts = { front: "scp", peer: peerName(config.line), host: session?.host, why: end };
    if (session === undefined) this.#env.log.info(facts, "A configuration connection ended before a host was admitted");
    else {
      this.#env.log.info(facts, "A host's session ended");
      this.#endSession(session, end === "replaced" ? "replaced" : "session-ended");
    }
    this.#tellEmpty();
  }

  #endSession(session: ScpSession, why: DataEnd): void {
    if (!this.#sessions.delete(session)) return;
    this.#ending.add(session);
    for (const listener of this.#shared.values()) listener.sessions.delete(session);
    session.end(why);
    session.whenQuiet(() => {
      this.#ending.delete(session);
      this.#tellEmpty();
    });
  }

  #tellEmpty(): void {
    if (this.#configs.size > 0 || this.#ending.size > 0) return;
    for (const [key, listener] of this.#shared) {
      if (listener.sessions.size > 0) continue;
      listener.close();
      this.#shared.delete(key);
    }
    for (const resume of this.#onEmpty.splice(0)) resume();
  }

  /* ---- data ports */

  /**
   * Opens what the host is told to connect to: ports of its own where the system may choose them (closed while the
   * allowed number of sockets is open, so that one more is really refused), or the fixed ports of its record.
   */
  *#listenFor(session: ScpSession, config: ConfigConnection): Task<DataPorts> {
    const host = this.#table.host(session.host);
    const ports: DataPort[] = [];
    const own: OwnListener[] = [];
    const socketsMax = host?.dataSocketsMax ?? this.#options.socketsMax;
    for (const fixed of host?.dataPorts ?? []) {
      const key = `${fixed.address} ${fixed.port}`;
      let shared = this.#shared.get(key);
      if (shared === undefined) {
        shared = new SharedListener((line, from) => this.#acceptData(line, [...from.sessions.keys()], from, () => {}));
        const fault = yield* shared.listen(this.#env, { host: fixed.address, port: fixed.port });
        if (fault !== undefined) {
          const { detail } = fault;
          this.#env.log.warn(
            { front: "scp", address: fixed.address, port: fixed.port, detail },
            "Cannot open a data port",
          );
          continue;
        }
        this.#shared.set(key, shared);
      }
      shared.sessions.set(session, fixed.socketsMax);
      ports.push(fixed);
    }
    if ((host?.dataPorts.length ?? 0) > 0) return { ports, close: () => {} };
    for (const address of this.#hosts) {
      const listener = new OwnListener(this.#env, address, socketsMax, (line, gone) =>
        this.#acceptData(line, [session], undefined, gone),
      );
      const port = yield* listener.open();
      if (port === undefined) continue;
      own.push(listener);
      for (const told of this.#addressesOf(address, config.line)) ports.push({ address: told, port, socketsMax });
    }
    return {
      ports,
      close: () => {
        for (const listener of own) listener.close();
      },
    };
  }

  /** A wildcard is no address to connect to: the one that the host came to, and the other networks', are. */
  #addressesOf(address: string, line: Line): readonly string[] {
    if (address !== "0.0.0.0" && address !== "::" && address !== "") return [address];
    const six = canonicalAddress(line.peer.localHost).includes(":");
    const all = [canonicalAddress(line.peer.localHost), ...this.#options.networks];
    return [...new Set(all)].filter((one) => one.includes(":") === six || address === "::");
  }

  #acceptData(
    line: Line,
    sessions: readonly ScpSession[],
    shared: SharedListener | undefined,
    gone: () => void,
  ): boolean {
    const address = canonicalAddress(line.peer.host);
    const plausible = sessions.filter((one) => !one.ended && (one.version === Version.TWO || this.#owns(one, address)));
    if (plausible.length === 0) {
      turnAway(line);
      return false;
    }
    const begin = (on: Line, tls: boolean, hello?: Uint8Array): void => {
      const door = {
        welcome: (from: ScpDataConnection, message: ZnReq, view: DataView, at: number) =>
          this.#welcome(from, tls, plausible, message, view, at, shared),
        gone: (from: ScpDataConnection, end: DataEnd) => {
          this.#dataGone(from, end);
          gone();
        },
      };
      const connection = new ScpDataConnection(this.#env, on, door, hello);
      // Until its hello it counts for the session whose port it is, so that silence is seen and bounded.
      this.#strangers.add(connection);
      this.#watchStalls();
    };
    if (plausible.some(({ facts }) => facts.tls)) this.#hearFirst(line, begin, gone);
    else begin(line, false);
    return true;
  }

  /** Where sessions speak TLS, the first message of a data socket says whether this one will. */
  #hearFirst(line: Line, begin: (on: Line, tls: boolean, hello?: Uint8Array) => void, gone: () => void): void {
    const alarm = this.#env.clock.alarm(() => {
      alarm.at = Number.POSITIVE_INFINITY;
      story.close();
    });
    alarm.at = this.#env.clock.now() + ANSWER_MS_MAX;
    const story = new StoryLine<"start-tls" | { readonly hello: Uint8Array }>(this.#env.memory, line, {
      onEnd: (end) => {
        alarm.at = Number.POSITIVE_INFINITY;
        if (end === "closed") gone();
        else if (end !== "start-tls") begin(line, false, end.hello);
        else
          this.#env.net.secure(
            line,
            this.#tls(),
          )((secured) => {
            if (!isNetError(secured)) return begin(secured, true);
            const { detail } = secured;
            this.#env.log.info({ front: "scp", peer: peerName(line), detail }, "TLS of a data socket failed");
            gone();
          });
      },
      keeps: () => true,
    });
    story.start(hearTlsOrHello((bytes) => story.send(bytes)));
  }

  /** Certificates, if there are any, and every host's secret as its key. */
  #tls(): Tls {
    const psk = new Map<string, Uint8Array>();
    for (const { name, secret } of this.#table.hosts) {
      const key = secret === undefined ? undefined : parseSecret(secret);
      if (key !== undefined) psk.set(name, key);
    }
    return { ...this.#options.certificate, role: "server", psk };
  }

  readonly #strangers = new Set<ScpDataConnection>();

  #owns(session: ScpSession, address: string): boolean {
    return this.#table.identify({ address })?.name === session.host;
  }

  #welcome(
    connection: ScpDataConnection,
    tls: boolean,
    sessions: readonly ScpSession[],
    message: ZnReq,
    view: DataView,
    at: number,
    shared: SharedListener | undefined,
  ): { session: ScpSession; serial: number; mac: Uint8Array | undefined } | undefined {
    this.#strangers.delete(connection);
    const hello = decodeHello(view, at);
    for (const session of sessions) {
      if (session.ended || message.reqszLo !== session.facts.random) continue;
      if (session.facts.tls !== tls || !isWho(this.#table, connection.line, session.host)) continue;
      const { key, id } = session.facts;
      if (shared !== undefined && session.connections.size >= (shared.sessions.get(session) ?? 0)) continue;
      if (key === undefined) {
        if (!this.#owns(session, canonicalAddress(connection.line.peer.host))) continue;
        session.connections.add(connection);
        return { session, serial: 0, mac: undefined };
      }
      if (hello.session !== id) continue;
      if (!equalBytes(hello.mac, helloMac(key, id, hello.serial, session.facts.random))) continue;
      if (!session.takeSerial(hello.serial)) continue;
      session.connections.add(connection);
      return { session, serial: hello.serial, mac: helloAnswerMac(key, id, hello.serial) };
    }
    this.#env.log.info(
      { front: "scp", peer: peerName(connection.line) },
      "A data socket's hello belongs to no session",
    );
    return undefined;
  }

  #dataGone(connection: ScpDataConnection, end: DataEnd): void {
    this.#strangers.delete(connection);
    const { session } = connection;
    if (session === undefined) return;
    if (end !== "stopped" && end !== "session-ended")
      this.#env.log.info(
        { front: "scp", peer: peerName(connection.line), host: session.host, why: end },
        "A data socket ended",
      );
  }

  /* ---- stalls */

  #watchStalls(): void {
    if (this.#alarm.at === Number.POSITIVE_INFINITY) this.#alarm.at = this.#env.clock.now() + this.#options.stallMs / 4;
  }

  #lookForStalls(): void {
    const now = this.#env.clock.now();
    let any = false;
    const look = (connection: ScpDataConnection): void => {
      any = true;
      if (now - connection.stalledSince >= this.#options.stallMs) connection.close("stalled");
    };
    for (const stranger of [...this.#strangers]) look(stranger);
    for (const session of this.#sessions) for (const connection of [...session.connections]) look(connection);
    this.#alarm.at = any ? now + this.#options.stallMs / 4 : Number.POSITIVE_INFINITY;
  }
}
