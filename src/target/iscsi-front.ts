/**
 * The iSCSI front: listens, lets initiators log in, keeps the sessions, and watches that nobody stays who is not there
 * any more. One target; what it shows to a host is that host's grants. RFC 7143.
 */
import { type Effect, perform, type Task } from "#base/task";
import type { Bytes, Millis } from "#base/units";
import type { Meter } from "#device/meter";
import { type Address, type Alarm, type Env, isNetError, type Line, type Listener, type NetError } from "#env/env";
import type { Hash } from "#proto/iscsi/chap";
import type { KnownInitiator, Login, LoginAuthority } from "#proto/iscsi/login";
import { type SessionParameters, TARGET_LIMITS, type TargetLimits } from "#proto/iscsi/negotiate";
import { Nexus, PortGroup, type TargetPort } from "#scsi/nexus";
import type { ReservationBook } from "#scsi/reservation-store";
import { DeviceServer } from "#scsi/server";
import type { UnitOptions } from "#scsi/unit";
import { AsyncEvent, LoginStatus } from "#wire/iscsi/codes";
import { Asc } from "#wire/scsi/codes";
import { CONNECTION_BYTES, type ConnectionHome, IscsiConnection } from "./iscsi-connection.ts";
import { type Portal, portalSettings, portalsFor } from "./iscsi-portals.ts";
import { IscsiSession, type SessionHome } from "./iscsi-session.ts";
import { IscsiTask } from "./iscsi-task.ts";
import { UnitRegistry } from "./iscsi-units.ts";
import type { DeviceDirectory, ProtectionTable } from "./protection.ts";
import { Rounds } from "./rounds.ts";

/** How often it is looked who is silent. */
const TICK_MS: Millis = 1000;
/** A login must be over within this. */
const LOGIN_MS: Millis = 15_000;
/** An initiator that says nothing for so long is asked; and how long it has to answer: there are some that sleep. */
const SILENCE_MS: Millis = 30_000;
const PING_MS: Millis = 60_000;
const CONNECTIONS_MAX = 4096;
/** Logins that have not ended, and discovery sessions of nobody's: how many, and what of the memory; then the oldest goes. */
const LOGINS_MAX = 1024;
const LOGINS_MEMORY_SHARE = 1 / 8;
/** Refused logins that `explain` can tell of. */
const REFUSALS_MAX = 64;
/** When the server stops: how long initiators have to log out by themselves. */
const STOP_WAIT_SECONDS = 2;

export interface IscsiFrontOptions {
  /** `iqn.…`, in lower case. */
  readonly targetName: string;
  readonly targetAlias?: string;
  readonly hash: Hash;
  readonly limits?: Partial<TargetLimits>;
  readonly unitOptions?: (device: string) => UnitOptions;
  readonly silenceMs?: Millis;
  readonly meterOf?: (device: string) => Meter | undefined;
}

export interface Refused {
  /** Milliseconds since 1970. */
  readonly at: number;
  readonly peer: string;
  readonly initiator: string;
  readonly host: string | undefined;
  readonly status: number;
  readonly why: string;
}

export class IscsiFront implements ConnectionHome, SessionHome {
  readonly env: Env;
  readonly memory: Env["memory"];
  readonly turn: Env["turn"];
  readonly rounds: Rounds;
  readonly server: DeviceServer;
  readonly units: UnitRegistry;
  readonly targetName: string;
  readonly portals: Portal[] = [];
  readonly refusals: Refused[] = [];
  readonly #options: IscsiFrontOptions;
  readonly #limits: TargetLimits;
  readonly #loginsMax: number;
  readonly #groups: PortGroup[] = [];
  readonly #ports = new Map<number, TargetPort>();
  readonly #listeners: Listener[] = [];
  readonly #connections = new Set<IscsiConnection>();
  readonly #portalOf = new Map<IscsiConnection, Portal>();
  readonly #sessions = new Map<number, IscsiSession>();
  readonly #byKey = new Map<string, IscsiSession>();
  readonly #tasks: IscsiTask[] = [];
  readonly #alarm: Alarm;
  readonly #stopAlarm: Alarm;
  readonly #clearing: () => void;
  #tsih = 0;
  #draining = false;
  #drained: (() => void) | undefined;
  accepted = 0;

  constructor(
    env: Env,
    table: ProtectionTable,
    directory: DeviceDirectory,
    book: ReservationBook,
    options: IscsiFrontOptions,
  ) {
    this.env = env;
    this.memory = env.memory;
    this.turn = env.turn;
    this.rounds = new Rounds(env.turn);
    this.server = new DeviceServer(env, book);
    this.units = new UnitRegistry(table, directory, book, options.unitOptions, options.meterOf);
    this.targetName = options.targetName;
    this.#options = options;
    this.#limits = { ...TARGET_LIMITS, ...options.limits };
    const fitting = Math.floor((env.memory.bytes.length * LOGINS_MEMORY_SHARE) / CONNECTION_BYTES);
    this.#loginsMax = Math.min(LOGINS_MAX, fitting);
    this.#alarm = env.clock.alarm(() => this.#tick());
    this.#stopAlarm = env.clock.alarm(() => this.#stopNow());
    // What an operator has cleared, its holders are to hear of.
    this.#clearing = book.watch((uuid) => {
      for (const unit of this.units.units) if (unit.reservations.uuid === uuid) unit.tell(Asc.RESERVATIONS_PREEMPTED);
    });
  }

  /** Accepts connections at an address too. The value is where it listens, or why it cannot. */
  *listen(address: Address): Task<Address | NetError> {
    const pending: Portal[] = [];
    const listener = yield* perform(
      this.env.net.listen(address, (line) => this.accept(line, pending[0] ?? { address })),
    );
    if (isNetError(listener)) return listener;
    const portal = { address: listener.address };
    pending.push(portal);
    this.portals.push(portal);
    this.#listeners.push(listener);
    this.#alarm.at = this.env.clock.now() + TICK_MS;
    return listener.address;
  }

  accept(line: Line, portal: Portal): void {
    this.accepted++;
    const connection = new IscsiConnection(this, line);
    this.#connections.add(connection);
    this.#portalOf.set(connection, portal);
    if (this.#draining || this.#connections.size > CONNECTIONS_MAX) return connection.close("stopped");
    const strangers = [...this.#strangers()];
    // Strangers that dawdle must not keep everyone else out.
    if (strangers.length > this.#loginsMax) strangers[0]!.close("silent", "too many strangers at a time");
    connection.start();
  }
  /** Connections of initiators that no host has, or that have not said who they are. */
  *#strangers(): Iterable<IscsiConnection> {
    for (const connection of this.#connections)
      if (!connection.isClosing && (!connection.isFullFeature || connection.session?.host === "")) yield connection;
  }

  get sessions(): readonly IscsiSession[] {
    return [...this.#sessions.values()];
  }
  get groups(): readonly PortGroup[] {
    return this.#groups;
  }
  get limits(): TargetLimits {
    return this.#limits;
  }

  /** Ends a session by its TSIH. False when there is none. */
  endSession(tsih: number): boolean {
    const session = this.#sessions.get(tsih);
    if (session === undefined) return false;
    for (const connection of session.connections.values()) connection.control.announce(AsyncEvent.SESSION_DROPPED);
    session.end();
    return true;
  }

  /** Accepts nothing more, ends every session after what it has in flight, resumes when the last one is gone. */
  drain(): Effect<void> {
    return (resume) => {
      this.#draining = true;
      this.#drained = resume;
      for (const listener of this.#listeners.splice(0)) listener.close();
      for (const connection of [...this.#connections])
        if (connection.isFullFeature) connection.control.announce(AsyncEvent.LOGOUT_REQUESTED, STOP_WAIT_SECONDS);
        else connection.close("stopped");
      this.#clearing();
      this.#checkDrained();
      if (this.#drained !== undefined) this.#stopAlarm.at = this.now() + STOP_WAIT_SECONDS * 1000;
    };
  }

  /** Whoever has been asked to log out and has not is cut off. */
  #stopNow(): void {
    for (const session of this.sessions) session.end();
    for (const connection of [...this.#connections]) connection.close("stopped");
    this.#checkDrained();
  }

  /* ------------------------------------------------------------------ for connections */

  now(): Millis {
    return this.env.clock.now();
  }

  authority(connection: IscsiConnection): LoginAuthority {
    const portal = this.#portalOf.get(connection)!;
    return {
      targetName: this.targetName,
      targetAlias: this.#options.targetAlias ?? "",
      portalGroupTag: this.groupOf(portal),
      limits: this.#limits,
      hash: this.#options.hash,
      random: (to) => this.env.random.fill(to),
      identify: (name) => this.#identify(name),
      redirect: (name) => {
        const host = this.#identify(name)?.host;
        return this.units.table.target.redirects.find((one) => one.host === host);
      },
      admit: (login) => this.#admit(connection, login),
      joining: (name, isid, tsih) => this.#joining(name, isid, tsih),
    };
  }

  connectionClosed(connection: IscsiConnection): void {
    this.#connections.delete(connection);
    this.#portalOf.delete(connection);
    const { session } = connection;
    const fields = { peer: connection.peer, initiator: session?.initiatorName, reason: connection.reason };
    if (connection.reason === "violated" || connection.reason === "digest" || connection.reason === "no-memory")
      this.env.log.warn({ ...fields, why: connection.why }, "iscsi connection ended");
    else this.env.log.debug({ ...fields, why: connection.why }, "iscsi connection ended");
    if (session !== undefined) {
      const forGood = connection.loggedOut !== undefined || connection.reason === "logout";
      session.connectionLost(connection, this.now(), forGood);
      if (connection.loggedOut === "session") session.end();
    }
    this.#checkDrained();
  }

  loginRefused(connection: IscsiConnection, login: Login, status: number): void {
    const refused = {
      at: this.env.clock.date(),
      peer: connection.peer,
      initiator: login.initiatorName,
      host: login.known?.host,
      status,
      why: login.why,
    };
    this.refusals.push(refused);
    if (this.refusals.length > REFUSALS_MAX) this.refusals.shift();
    this.env.log.warn({ ...refused }, "iscsi login refused");
  }

  /** §13.8: "All" for discovery, a name, or nothing for the target of the session. */
  sendTargets(connection: IscsiConnection, what: string): readonly (readonly [string, string])[] {
    const isOurs = what === this.targetName || (what === "" && connection.session?.isDiscovery === false);
    if (what !== "All" && !isOurs) return [];
    if (what === "All" && connection.session?.isDiscovery === false) return [["SendTargets", "Reject"]];
    const name = connection.session!.initiatorName;
    // Who may see nothing is told of nothing.
    if (this.#identify(name) === undefined) return [];
    const answers: [string, string][] = [["TargetName", this.targetName]];
    const { host, localHost } = connection.line.peer;
    const arrival = { portal: this.#portalOf.get(connection)!, host, localHost };
    for (const address of portalsFor(arrival, this.portals, this.units.table.target.portals))
      answers.push(["TargetAddress", address]);
    return answers;
  }

  /** The group of a portal, as it is now: new sessions go by it. */
  groupOf(portal: Portal): number {
    return portalSettings(portal, this.units.table.target.portals).groupTag;
  }

  /* --------------------------------------------------------------------- for sessions */

  takeTask(): IscsiTask {
    return this.#tasks.pop() ?? new IscsiTask(this.server);
  }
  giveTask(task: IscsiTask): void {
    this.#tasks.push(task);
  }

  leaveUnits(session: IscsiSession, nexus: Nexus): void {
    this.units.leave(session.host, nexus);
  }

  sessionEnded(session: IscsiSession): void {
    if (this.#sessions.get(session.tsih) === session) this.#sessions.delete(session.tsih);
    if (this.#byKey.get(session.key) === session) this.#byKey.delete(session.key);
    this.env.log.info(
      { initiator: session.initiatorName, host: session.host, tsih: session.tsih },
      "iscsi session ended",
    );
    this.#checkDrained();
  }

  /** The space that thin units share has changed: their hosts are told when it gets short. */
  spaceChanged(before: Bytes, now: Bytes): void {
    for (const unit of this.units.units) unit.spaceChanged(before, now);
  }

  /* ---------------------------------------------------------------------------- logins */

  #identify(initiatorName: string): KnownInitiator | undefined {
    const host = this.units.table.identify({ iqn: initiatorName });
    return host === undefined ? undefined : { host: host.name, chap: host.chap, mutual: host.mutualChap };
  }

  #joining(name: string, isid: string, tsih: number): SessionParameters | undefined {
    const session = this.#sessions.get(tsih);
    if (session === undefined || session.ending || session.initiatorName !== name || session.isid !== isid)
      return undefined;
    return session.parameters;
  }

  #admit(connection: IscsiConnection, login: Login): { readonly tsih: number } | number {
    if (this.#draining) return LoginStatus.SERVICE_UNAVAILABLE;
    connection.parameters = login.connection;
    return login.tsih === 0 ? this.#openSession(connection, login) : this.#joinSession(connection, login);
  }

  #joinSession(connection: IscsiConnection, login: Login): { readonly tsih: number } | number {
    const session = this.#sessions.get(login.tsih);
    if (session === undefined || session.ending) return LoginStatus.SESSION_DOES_NOT_EXIST;
    if (session.isDiscovery) return LoginStatus.CANNOT_INCLUDE_IN_SESSION;
    if (this.groupOf(this.#portalOf.get(connection)!) !== session.nexus?.port.group)
      return LoginStatus.CANNOT_INCLUDE_IN_SESSION;
    const before = session.connections.get(login.cid);
    if (before === undefined && session.connections.size >= session.parameters.maxConnections)
      return LoginStatus.TOO_MANY_CONNECTIONS;
    if (before !== undefined) {
      // §6.3.4: the same CID again is the same connection again; what the old one had goes the way of its level.
      before.close("replaced");
      session.connectionReplaced(before, this.now());
    }
    session.connections.set(login.cid, connection);
    connection.enter(session);
    return { tsih: session.tsih };
  }

  #openSession(connection: IscsiConnection, login: Login): { readonly tsih: number } | number {
    const tsih = this.#freeTsih();
    if (tsih === 0) return LoginStatus.OUT_OF_RESOURCES;
    const groupTag = this.groupOf(this.#portalOf.get(connection)!);
    const key = `${login.initiatorName} ${login.isid} ${login.isDiscovery ? "discovery" : groupTag}`;
    const before = this.#byKey.get(key);
    if (before !== undefined) {
      // §6.3.5: session reinstatement.
      connection.predecessor = before;
      before.end();
    }
    const session = new IscsiSession(
      this,
      {
        key,
        tsih,
        initiatorName: login.initiatorName,
        isid: login.isid,
        parameters: login.session,
        isDiscovery: login.isDiscovery,
        host: login.known?.host ?? "",
      },
      connection.loginCmdSn,
      this.env.clock.date(),
    );
    if (before !== undefined) session.follow(before);
    this.#sessions.set(tsih, session);
    this.#byKey.set(key, session);
    session.connections.set(login.cid, connection);
    connection.enter(session);
    if (!login.isDiscovery) connection.whenReady(() => this.#startSession(session, groupTag, before !== undefined));
    return { tsih };
  }

  #startSession(session: IscsiSession, groupTag: number, isAgain: boolean): void {
    if (session.ending) return;
    // All groups are there for those who ask for them, also those that nobody has come by.
    for (const portal of this.portals) this.#portOf(this.groupOf(portal));
    const port = this.#portOf(groupTag);
    const name = `${session.initiatorName},i,0x${session.isid}`;
    const greeting = isAgain ? Asc.NEXUS_LOSS : Asc.POWER_ON_OR_RESET;
    const units = this.units.of(session.host);
    units.onRightsChanged = () => this.#rightsChanged(session.host);
    session.units = units;
    session.nexus = new Nexus(name, port, session.host, units, greeting);
    units.add(session.nexus);
    const fields = { initiator: session.initiatorName, host: session.host, tsih: session.tsih, isid: session.isid };
    this.env.log.info(fields, "iscsi session started");
  }

  /** A host was removed, or has other credentials: its sessions must log in again. */
  #rightsChanged(host: string): void {
    for (const session of this.sessions) if (session.host === host) session.end();
  }

  #portOf(groupTag: number): TargetPort {
    let port = this.#ports.get(groupTag);
    if (port === undefined) {
      const portal = new PortGroup(groupTag, this.#groups);
      const tag = groupTag.toString(16).padStart(4, "0");
      port = { name: `${this.targetName},t,0x${tag}`, relativeId: groupTag, group: groupTag, portal };
      portal.ports.push(port);
      this.#ports.set(groupTag, port);
    }
    return port;
  }

  #freeTsih(): number {
    const TSIH_MAX = 0xffff;
    for (let tries = 0; tries < TSIH_MAX; tries++) {
      this.#tsih = this.#tsih === TSIH_MAX ? 1 : this.#tsih + 1;
      if (!this.#sessions.has(this.#tsih)) return this.#tsih;
    }
    return 0;
  }

  #tick(): void {
    const now = this.now();
    const silence = this.#options.silenceMs ?? SILENCE_MS;
    for (const connection of [...this.#connections]) {
      if (!connection.isFullFeature) {
        if (now - connection.openedAt > LOGIN_MS) connection.close("silent", "the login took too long");
      } else if (connection.pingedAt !== 0) {
        if (now - connection.pingedAt > PING_MS) connection.close("silent", "a ping was not answered");
      } else if (now - connection.heardAt > silence) {
        connection.pingedAt = now;
        connection.control.ping();
      }
    }
    for (const session of this.#sessions.values()) session.expire(now);
    if (!this.#draining) this.#alarm.at = now + TICK_MS;
  }

  #checkDrained(): void {
    if (this.#drained === undefined || this.#connections.size > 0 || this.#sessions.size > 0) return;
    const drained = this.#drained;
    this.#drained = undefined;
    this.#alarm.at = Number.POSITIVE_INFINITY;
    this.#stopAlarm.at = Number.POSITIVE_INFINITY;
    drained();
  }
}
