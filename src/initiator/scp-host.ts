/**
 * The host side of SCP: one server, its units as BlockDevices, and everything between an application's operation and
 * the sockets. It promises that an operation is completed exactly once; that a socket, a network or the server may go
 * at any moment and the application sees a pause and no error (until `giveUpMs`); and that a change whose fate is
 * unknown is not repeated before the server has said that nothing is left of the first attempt.
 */
import { canary } from "#base/canary";
import type { Status } from "#base/status";
import { REMEDY } from "#base/status";
import { type Bytes, MIB, type Millis } from "#base/units";
import { BlockOp } from "#device/device";
import { type Alarm, type Env, isNetError, Soon } from "#env/env";
import { type Configured, WORLD_TAG_MIN } from "#proto/scp/config-host";
import { Capability, Event, Flag, Op, SPLIT_BYTES, Version } from "#wire/scp/codes";
import type { DataPort } from "#wire/scp/config";
import { type AgentEnd, type Orphan, ScpAgent } from "./scp-agent.ts";
import { dialData } from "./scp-dial.ts";
import { clientTls, hangUp, type LinkAddress, type LinkDown, type LinkIdentity, ScpLink } from "./scp-link.ts";
import { Pace } from "./scp-pace.ts";
import { PieceQueue } from "./scp-queue.ts";
import { Replay } from "./scp-replay.ts";
import { ScpUnit } from "./scp-unit.ts";
import { changes, ScpPiece, ScpWork } from "./scp-work.ts";

/** Waiting, retries and give-up times. All in milliseconds, unless the name says otherwise. */
export interface ScpSettings {
  /** Data sockets opened at once, over all networks; and at most (the server may allow fewer). */
  readonly socketsMin: number;
  readonly socketsMax: number;
  /** Requests above this are cut up. */
  readonly splitBytes: number;
  /** Version 2: a socket with commands in flight that says nothing for so long is asked for a sign of life. */
  readonly quietMs: Millis;
  /** It has so long to give one, if another socket is heard meanwhile; */
  readonly silentMs: Millis;
  /** and so long if none is: then perhaps the server, or this host, only pauses. */
  readonly deadMs: Millis;
  /** Version 1: a command may take so long while other sockets get on, and so long in any case. */
  readonly stallMsV1: Millis;
  readonly deadMsV1: Millis;
  /** Between attempts to reach the server or a data port: the first wait, and the longest. */
  readonly retryMsMin: Millis;
  readonly retryMsMax: Millis;
  /** An operation that could not be done for so long fails with "away". Infinity: never. */
  readonly giveUpMs: Millis;
  readonly dialMs: Millis;
  /** Per unit, of changes since its last flush, to be repeated if the server forgets them. With more, the flush would fail. */
  readonly keptBytesMax: Bytes;
}

export const SCP_SETTINGS_DEFAULT: ScpSettings = {
  socketsMin: 2,
  socketsMax: 8,
  splitBytes: SPLIT_BYTES,
  quietMs: 15,
  silentMs: 35,
  deadMs: 3_000,
  stallMsV1: 1_000,
  deadMsV1: 20_000,
  retryMsMin: 50,
  retryMsMax: 2_000,
  giveUpMs: 120_000,
  dialMs: 2_000,
  keptBytesMax: 16 * MIB,
};

export interface ScpHostOptions extends LinkIdentity {
  /** The server's configuration addresses: one per network. */
  readonly addresses: readonly LinkAddress[];
  readonly settings: ScpSettings;
}

/** What `ashlar paths` shows of one agent: a socket of a network, from one time that it is opened to the next. */
export interface AgentFacts {
  readonly id: number;
  readonly network: string;
  readonly port: number;
  readonly state: "connecting" | "ready" | "suspect" | "closed";
  readonly inFlight: number;
  readonly done: number;
  /** Averaged, of commands that succeeded over the socket that it has now. */
  readonly latencyMs: Millis;
  /** Pieces that had to go to another socket because this one ended. */
  readonly retries: number;
  /** Why its socket, or the attempt to open one, ended last, and when; "" and 0 if none has. */
  readonly lastEnd: string;
  readonly lastEndAt: number;
}
export interface NetworkFacts {
  readonly network: string;
  readonly port: number;
  readonly sockets: number;
  readonly socketsMax: number;
  readonly failures: number;
  /** Pieces that had to go to another socket because one of this network ended. */
  readonly retries: number;
  readonly lastEnd: string;
  readonly lastEndAt: number;
}
export interface HostFacts {
  readonly state: "connecting" | "up" | "stopped";
  readonly server: string;
  readonly version: number;
  readonly tls: boolean;
  /** Why the last session ended, and why the last attempt to begin another failed, if none has begun since. */
  readonly lastDown: string;
  readonly reconfigurations: number;
  readonly fences: number;
  readonly queued: number;
  readonly agents: readonly AgentFacts[];
  readonly networks: readonly NetworkFacts[];
}

export type HostWatcher = (change: "configured" | "down") => void;

/** An agent's place: what is remembered of it while its socket is closed and opened again. */
class Seat {
  readonly id: number;
  agent: ScpAgent | undefined;
  /** The attempt to open a socket that is under way; 0: none. */
  dial = 0;
  done = 0;
  retries = 0;
  lastEnd = "";
  lastEndAt = 0;
  constructor(id: number) {
    this.id = id;
  }

  /** For the next session, whatever of this one has not ended yet. */
  vacate(): void {
    this.agent = undefined;
    this.dial = 0;
  }
}

class Network {
  readonly port: DataPort;
  readonly pace: Pace;
  /** Of the address: they outlive sessions. */
  readonly seats: Seat[];
  readonly agents = new Set<ScpAgent>();
  connecting = 0;
  failures = 0;
  retryAt: Millis = 0;
  constructor(port: DataPort, pace: Pace, seats: Seat[]) {
    this.port = port;
    this.pace = pace;
    this.seats = seats;
  }

  /** A place where there is no socket, and nobody tries to open one. */
  freeSeat(id: () => number): Seat {
    let seat = this.seats.find(({ agent, dial }) => agent === undefined && dial === 0);
    if (seat === undefined) this.seats.push((seat = new Seat(id())));
    return seat;
  }
}

const TICK_MS = 5;
/** Commands in flight per socket at which another socket is opened. */
const GROW_AT = 24;
/** Between attempts of a command that the server told to come back later. */
const LATER_MS = 10;
const IDLE_PING_MS = 5_000;
/** A tick that is so late may find unread what it waited for: it leaves the judging to the next one. */
const LATE_MS = 2 * TICK_MS;
/** Operations longer than this are sent as several commands, whatever they are. */
const RANGE_BYTES_MAX = 1024 * 1024 * 1024;

const REPLAY_CODE = { write: Op.WRITE, zero: Op.ZERO, trim: Op.TRIM } as const;

export class ScpHost {
  readonly options: ScpHostOptions;
  readonly #env: Env;
  readonly #settings: ScpSettings;
  readonly #units = new Map<number, ScpUnit>();
  readonly #watchers = new Set<HostWatcher>();
  readonly #alarm: Alarm;
  readonly #pump = new Soon(() => this.#dispatch());
  readonly #queue = new PieceQueue();
  /** While there is something to repeat, nothing else leaves. */
  readonly #replayQueue = new PieceQueue();
  #replay: Replay | undefined;
  /** Which run of the server the last session was with. */
  #run = 0;
  readonly #later = new Set<ScpPiece>();
  /** Pieces that wait for a socket of theirs to be fenced, by the tag of the request. */
  readonly #fencing = new Map<number, Orphan[]>();
  readonly #freePieces: ScpPiece[] = [];
  readonly #freeWorks: ScpWork[] = [];
  #networks: Network[] = [];
  /** Those of the session that ended, to be shown while there is none. */
  #pastNetworks: readonly Network[] = [];
  #addresses: LinkAddress[];
  #link: ScpLink | undefined;
  #configured: Configured | undefined;
  /** Goes up with every session. */
  #epoch = 0;
  #redialAt: Millis = 0;
  #redials = 0;
  #nextAgent = 1;
  #nextDial = 1;
  #nextSerial = 1;
  #nextTag = WORLD_TAG_MIN;
  #inFlight = 0;
  /** When there was a ready agent last. */
  #agentAt: Millis = 0;
  #tickDue: Millis = 0;
  #tickSkipped = false;
  /** By address. */
  readonly #paces = new Map<string, Pace>();
  /** By address and the port's place among those of it. */
  readonly #seats = new Map<string, Seat[]>();
  #stopped = false;
  #lastEnd = "";
  #lastFailure = "";
  /** The server has said that it is going down. */
  #draining = false;
  #reconfigurations = 0;
  #fences = 0;
  /** Which address to try first: that of the network heard last. */
  readonly #badAt = new Map<string, Millis>();

  constructor(env: Env, options: ScpHostOptions) {
    this.#env = env;
    this.options = options;
    this.#settings = options.settings;
    this.#addresses = [...options.addresses];
    this.#alarm = env.clock.alarm(() => this.#tick());
  }

  start(): void {
    this.#connect();
  }

  /** Gives everything up; operations in flight end with "away". */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    this.#alarm.at = Number.POSITIVE_INFINITY;
    this.#link?.close("stopped");
    for (const network of this.#networks) for (const agent of [...network.agents]) agent.close("stopped");
    this.#failAll("away");
    for (const unit of this.#units.values()) this.#retire(unit);
  }

  /** It gives a restarted server back what that has forgotten. */
  get isReplaying(): boolean {
    return this.#replay !== undefined;
  }
  get up(): boolean {
    return this.#configured !== undefined;
  }
  get configured(): Configured | undefined {
    return this.#configured;
  }
  get settings(): ScpSettings {
    return this.#settings;
  }

  /** A unit that the server has assigned to this host; undefined until the first configuration, or without it. */
  unit(number: number): ScpUnit | undefined {
    return this.#units.get(number);
  }
  units(): ScpUnit[] {
    return [...this.#units.values()].sort((a, b) => a.number - b.number);
  }

  watch(watcher: HostWatcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  /** Another way to the server, from now on. */
  addNetwork(address: LinkAddress): void {
    if (this.#addresses.some((one) => one.host === address.host && one.port === address.port)) return;
    this.#addresses.push(address);
    if (this.#configured !== undefined) this.#setPorts(this.#configured);
  }

  /** No new socket goes there; those that are there are closed, and what is in flight on them goes elsewhere. */
  removeNetwork(host: string): void {
    this.#addresses = this.#addresses.filter((one) => one.host !== host);
    for (const network of this.#networks.filter((one) => one.port.address === host)) {
      this.#networks = this.#networks.filter((one) => one !== network);
      for (const agent of [...network.agents]) agent.close("network-removed");
    }
    if (this.#link?.address?.host === host) this.#link.close("stopped");
  }

  facts(): HostFacts {
    const now = this.#env.clock.now();
    const agents: AgentFacts[] = [];
    const networks = this.up ? this.#networks : this.#pastNetworks;
    for (const { port, seats } of networks)
      for (const { id, agent, dial, done, retries, lastEnd, lastEndAt } of seats) {
        const isSuspect = agent !== undefined && now - agent.pingAt > this.#settings.silentMs;
        agents.push({
          id,
          network: port.address,
          port: port.port,
          state: agent?.ready ? (isSuspect ? "suspect" : "ready") : agent || dial > 0 ? "connecting" : "closed",
          inFlight: agent?.inFlight ?? 0,
          done: done + (agent?.done ?? 0),
          latencyMs: agent?.latencyMs ?? 0,
          retries,
          lastEnd,
          lastEndAt,
        });
      }
    const address = this.#link?.address;
    return {
      state: this.#stopped ? "stopped" : this.up ? "up" : "connecting",
      server: address === undefined ? "" : `${address.host}:${address.port}`,
      version: this.#configured?.version ?? 0,
      tls: this.#configured !== undefined && this.#link?.tls === true,
      lastDown: [this.#lastEnd, this.#lastFailure].filter((why) => why !== "").join(", then "),
      reconfigurations: this.#reconfigurations,
      fences: this.#fences,
      queued: this.#waiting,
      agents,
      networks: networks.map(({ port, agents: set, failures, seats }) => {
        const last = seats.reduce<Seat | undefined>(
          (latest, seat) => (seat.lastEndAt > (latest?.lastEndAt ?? 0) ? seat : latest),
          undefined,
        );
        return {
          network: port.address,
          port: port.port,
          sockets: set.size,
          socketsMax: port.socketsMax,
          failures,
          retries: seats.reduce((sum, seat) => sum + seat.retries, 0),
          lastEnd: last?.lastEnd ?? "",
          lastEndAt: last?.lastEndAt ?? 0,
        };
      }),
    };
  }

  /* ---- operations, from ScpUnit, which has checked them */

  /** Cuts an operation up and queues the pieces. `code` is what is sent; data lies at `at`, `room` bytes for a status. */
  enqueue(op: BlockOp, unit: ScpUnit, code: number, flags: number, at: number, room = 0, replay?: Replay): void {
    const work = this.#freeWorks.pop() ?? new ScpWork();
    work.op = op;
    work.device = unit;
    work.status = "ok";
    work.result = 0;
    const hasData = code === Op.READ || code === Op.WRITE;
    const most =
      code === Op.COMPARE_WRITE || code === Op.BLOCK_STATUS
        ? Math.max(op.length, 1)
        : hasData
          ? this.#pieceBytes()
          : RANGE_BYTES_MAX;
    const count = code === Op.FLUSH ? 1 : Math.max(1, Math.ceil(op.length / most));
    work.left = count;
    const now = this.#env.clock.now();
    for (let i = 0; i < count; i++) {
      const piece = this.#freePieces.pop() ?? new ScpPiece();
      const length = code === Op.FLUSH ? 0 : Math.min(most, op.length - i * most);
      piece.turn++;
      piece.work = canary.armed === "scp-wrong-parent" && i > 0 ? (this.#freeWorks.at(-1) ?? work) : work;
      piece.code = code;
      piece.flags = flags;
      piece.unit = unit.number;
      piece.replay = replay;
      piece.isDoomed = false;
      piece.offset = code === Op.FLUSH ? 0 : op.offset + i * most;
      piece.length = length;
      // Writes of zeroes to a version 1 server all send the same zeroes.
      piece.at = at === 0 ? 0 : op.kind === "zero" ? at : at + i * most;
      piece.outBytes = code === Op.WRITE ? length : code === Op.COMPARE_WRITE ? 2 * length : 0;
      piece.inBytes = code === Op.READ ? length : room;
      piece.attempts = 0;
      piece.since = now;
      piece.notBefore = 0;
      if (this.#stopped) this.#settle(piece, "away", 0);
      else this.#queueOf(piece).push(piece);
    }
    this.#env.turn.soon(this.#pump);
  }

  #queueOf(piece: ScpPiece): PieceQueue {
    return piece.replay === undefined ? this.#queue : this.#replayQueue;
  }
  get #waiting(): number {
    return this.#queue.length + this.#replayQueue.length;
  }

  #pieceBytes(): number {
    const most = this.#configured?.dataMax ?? this.#settings.splitBytes;
    return Math.min(this.#settings.splitBytes, most);
  }

  #dispatch(): void {
    if (this.#stopped) return;
    for (;;) {
      const queue = this.#replay === undefined ? this.#queue : this.#replayQueue;
      if (queue.length === 0) break;
      const agent = this.#choose();
      if (agent === undefined) break;
      const piece = queue.shift()!;
      if (piece.code === Op.FLUSH) piece.mark = piece.work.device.kept.mark;
      this.#inFlight++;
      agent.take(piece);
    }
    if (this.#waiting > 0 || this.#inFlight > 0) {
      this.#wake();
      this.#grow();
    }
  }

  /** The ready agent with the least in flight; one that is suspected only when there is no other. */
  #choose(): ScpAgent | undefined {
    let best: ScpAgent | undefined;
    let bestCost = Number.POSITIVE_INFINITY;
    const now = this.#env.clock.now();
    for (const network of this.#networks)
      for (const agent of network.agents) {
        if (!agent.room) continue;
        const suspect = now - agent.pingAt > this.#settings.quietMs;
        const cost = agent.inFlight + (suspect ? 1_000 : 0) + Math.min(agent.latencyMs, 900) / 1_000;
        if (cost < bestCost) {
          best = agent;
          bestCost = cost;
        }
      }
    return best;
  }

  /* ---- pieces come back */

  #onPiece(piece: ScpPiece, status: Status, result: number): void {
    this.#inFlight--;
    const remedy = REMEDY[status];
    if (remedy === "retry-later" || remedy === "other-path") {
      piece.notBefore = this.#env.clock.now() + LATER_MS;
      this.#later.add(piece);
      this.#wake();
    } else if (piece.isDoomed) {
      if (status === "ok") this.#fateIsSealed(piece);
      this.#settle(piece, "failed", 0);
    } else this.#settle(piece, status === "ok" ? this.#acknowledged(piece) : status, result);
    if (this.#waiting > 0) this.#env.turn.soon(this.#pump);
  }

  /** Takes the answer for one to a like piece that went over another socket. */
  #mistake(from: ScpAgent, piece: ScpPiece): ScpPiece {
    for (const { agents } of this.#networks)
      for (const agent of agents) {
        const other = agent === from ? undefined : agent.like(piece);
        if (other !== undefined) return other;
      }
    return piece;
  }

  /** The server has done it. What it may forget is kept; a flush that cannot keep its promise fails. */
  #acknowledged(piece: ScpPiece): Status {
    if (this.#configured?.version !== Version.TWO || piece.replay !== undefined) return "ok";
    const { kept, isGone } = piece.work.device;
    if (isGone) return "ok";
    const noHole = (piece.flags & Flag.NO_HOLE) !== 0;
    switch (piece.code) {
      case Op.WRITE:
        kept.acknowledge("write", piece.offset, piece.length, piece.at, noHole);
        return "ok";
      case Op.COMPARE_WRITE:
        kept.acknowledge("write", piece.offset, piece.length, piece.at + piece.length, noHole);
        return "ok";
      case Op.ZERO:
        kept.acknowledge("zero", piece.offset, piece.length, 0, noHole);
        return "ok";
      case Op.TRIM:
        kept.acknowledge("trim", piece.offset, piece.length, 0, noHole);
        return "ok";
      case Op.FLUSH:
        return kept.flushed(piece.mark) ? "ok" : "failed";
      default:
        return "ok";
    }
  }

  /** Whatever became of it is on stable storage: no older change may be repeated over it. */
  #fateIsSealed({ work, mark }: ScpPiece): void {
    const { kept, isGone } = work.device;
    // That something was lost is for a flush of the application's to say.
    if (!isGone && !kept.flushed(mark)) kept.lose();
  }

  #settle(piece: ScpPiece, status: Status, result: number): void {
    const { work } = piece;
    if (status !== "ok" && work.status === "ok") {
      work.status = status;
      work.result = status === "miscompare" || status === "medium" ? piece.offset - work.op.offset + result : 0;
    } else if (status === "ok" && piece.code === Op.BLOCK_STATUS) work.result = result;
    this.#freePieces.push(piece);
    if (canary.armed === "scp-counted-twice" && work.left > 1) work.left--;
    if (--work.left > 0 && canary.armed !== "scp-half-done") return;
    const { op } = work;
    op.status = work.status;
    op.result = work.result;
    this.#freeWorks.push(work);
    op.done(op);
  }

  #requeue(piece: ScpPiece): void {
    if (this.#stopped) {
      this.#settle(piece, "away", 0);
      return;
    }
    // The server that it was for is gone: another one gets all of it anew, and in order.
    if (piece.replay !== undefined && piece.replay !== this.#replay) {
      this.#settle(piece, "away", 0);
      return;
    }
    // Its number may be another device's by now.
    if (piece.work.device.isGone) {
      this.#settle(piece, "gone", 0);
      return;
    }
    this.#queueOf(piece).unshift(piece);
    this.#env.turn.soon(this.#pump);
  }

  /** Nothing of its first attempt can happen any more, or cannot before the next one. */
  #repeat(piece: ScpPiece): void {
    if (piece.code === Op.COMPARE_WRITE) doom(piece);
    this.#requeue(piece);
  }

  #onAgentEnd(
    network: Network,
    seat: Seat,
    agent: ScpAgent,
    end: AgentEnd,
    epoch: number,
    orphans: readonly Orphan[],
  ): void {
    const wasReady = agent.since !== agent.heardAt || orphans.length > 0;
    network.agents.delete(agent);
    this.#inFlight -= orphans.length;
    if (seat.agent === agent) seat.agent = undefined;
    seat.done += agent.done;
    seat.retries += orphans.length;
    this.#noteEnd(seat, end);
    if (end !== "session-ended" && end !== "stopped") this.#penalise(network, wasReady);
    const unknown: Orphan[] = [];
    for (const orphan of orphans) {
      const { piece, sent } = orphan;
      const mayHaveBeenDone = sent && changes(piece);
      if (!mayHaveBeenDone) {
        this.#requeue(piece);
        if (canary.armed === "scp-piece-twice") this.#requeue(piece);
      } else unknown.push(orphan);
    }
    if (unknown.length > 0) this.#fence(agent, epoch, unknown);
    this.#wake();
  }

  /** See to it that nothing of these changes can happen any more, then repeat them. */
  #fence(agent: ScpAgent, epoch: number, orphans: readonly Orphan[]): void {
    const session = this.#configured;
    // A session that has ended is fenced by the next one: the server admits that when the old one is quiet.
    const already = session === undefined || this.#epoch !== epoch || this.#stopped;
    if (already || canary.armed === "scp-no-fence") {
      for (const { piece } of orphans) this.#repeat(piece);
      return;
    }
    this.#fences++;
    if (session.version === Version.TWO && (session.capabilities & Capability.FENCE) !== 0) {
      const tag = this.#nextTag;
      this.#nextTag = this.#nextTag >= 0xffff_fff0 ? WORLD_TAG_MIN : this.#nextTag + 1;
      this.#fencing.set(tag, [...orphans]);
      this.#link?.request(Op.Z_FENCE, tag, agent.serial);
      return;
    }
    for (const { piece } of orphans) this.#repeat(piece);
    this.#link?.close("stopped");
  }

  /* ---- the configuration connection */

  #connect(): void {
    if (this.#stopped || this.#link !== undefined) return;
    const bad = (address: LinkAddress) => this.#badAt.get(address.host) ?? Number.NEGATIVE_INFINITY;
    const addresses = [...this.#addresses].sort((a, b) => bad(a) - bad(b));
    if (addresses.length === 0) {
      this.#redialAt = this.#env.clock.now() + this.#settings.retryMsMax;
      this.#wake();
      return;
    }
    this.#redialAt = Number.POSITIVE_INFINITY;
    const link: ScpLink = new ScpLink(this.#env, this.options, addresses, {
      onConfigured: (configured) => this.#onConfigured(configured),
      onAnswer: (op, tag) => this.#onAnswer(op, tag),
      onPing: (took) => this.#pace(link.address?.host ?? "").answered(took),
      onEvent: (event) => {
        if (event === Event.DRAINING) this.#draining = true;
      },
      onDown: (why, address, detail) => this.#onDown(link, why, address, detail),
    });
    this.#link = link;
  }

  #onConfigured(configured: Configured): void {
    const again = this.#configured?.random === configured.random && this.#configured?.session === configured.session;
    const mayHaveForgotten = !again && this.#epoch > 0 && (configured.run === 0 || configured.run !== this.#run);
    this.#run = configured.run;
    this.#configured = configured;
    if (!again) {
      this.#epoch++;
      this.#agentAt = this.#env.clock.now();
      this.#redials = 0;
      this.#lastFailure = "";
      this.#reconfigurations++;
      this.#nextSerial = 1;
      this.#networks = [];
    }
    this.#setPorts(configured);
    const listed = new Set<number>();
    for (const record of configured.units) {
      listed.add(record.unit);
      const unit = this.#units.get(record.unit);
      if (unit?.isSame(record, configured)) unit.update(record, configured);
      else {
        this.#units.set(record.unit, new ScpUnit(this, this.#env.memory, record, configured));
        if (unit !== undefined) this.#retire(unit);
      }
    }
    for (const [number, unit] of [...this.#units]) {
      if (listed.has(number)) continue;
      this.#units.delete(number);
      this.#retire(unit);
    }
    if (mayHaveForgotten) this.#startReplay();
    for (const watcher of [...this.#watchers]) watcher("configured");
    this.#env.turn.soon(this.#pump);
    this.#wake();
  }

  /** The host does not have this unit any more: whatever waits for it is over. */
  #retire(unit: ScpUnit): void {
    unit.gone();
    for (const queue of [this.#queue, this.#replayQueue])
      for (const piece of queue.take(({ work }) => work.device === unit)) this.#settle(piece, "gone", 0);
    if (this.#replay?.retire(unit) !== true) unit.kept.unflushed.drop(Number.POSITIVE_INFINITY);
  }

  /** The server may have lost what it had acknowledged: it gets all of it again before anything else. */
  #startReplay(): void {
    // An earlier attempt was for the server that is gone.
    this.#replay = undefined;
    for (const piece of this.#replayQueue.take(() => true)) this.#settle(piece, "away", 0);
    for (const piece of this.#later)
      if (piece.replay !== undefined) {
        this.#later.delete(piece);
        this.#settle(piece, "away", 0);
      }
    const replay = new Replay(this.units());
    if (replay.isDone) return;
    this.#env.log.info({ front: "scp", writes: replay.length }, "The server was restarted: repeating unflushed writes");
    this.#replay = replay;
    this.#goOnReplaying(replay);
  }

  #goOnReplaying(replay: Replay): void {
    for (let item = replay.next(); item !== undefined; item = replay.next()) {
      const { unit, kept } = item;
      const current = item;
      const op = new BlockOp(({ status }) => {
        replay.done(current, status);
        if (this.#replay !== replay) return;
        if (replay.isDone) this.#replay = undefined;
        else this.#goOnReplaying(replay);
        this.#env.turn.soon(this.#pump);
      });
      op.kind = kept.kind;
      op.offset = kept.offset;
      op.length = kept.length;
      op.at = kept.at;
      this.enqueue(op, unit, REPLAY_CODE[kept.kind], kept.noHole ? Flag.NO_HOLE : 0, kept.at, 0, replay);
    }
  }

  /** The ports that the server told of, and the same ports on addresses that only we know. */
  #setPorts(configured: Configured): void {
    const ports = [...configured.ports];
    const first = ports[0];
    if (first !== undefined)
      for (const { host } of this.#addresses) {
        const sameFamily = host.includes(":") === first.address.includes(":");
        const numeric = /^[\d.]+$|:/.test(host);
        if (numeric && sameFamily && !ports.some((port) => port.address === host))
          ports.push({ ...first, address: host });
      }
    const seats = (port: DataPort): Seat[] => {
      const nth = ports.filter(({ address }) => address === port.address).indexOf(port);
      const place = `${port.address} ${nth}`;
      let found = this.#seats.get(place);
      if (found === undefined) this.#seats.set(place, (found = []));
      return found;
    };
    const wanted = (port: DataPort) => ports.some((one) => one.address === port.address && one.port === port.port);
    for (const network of this.#networks)
      if (!wanted(network.port)) for (const agent of [...network.agents]) agent.close("network-removed");
    this.#networks = [
      ...this.#networks.filter((network) => wanted(network.port)),
      ...ports
        .filter(
          (port) => !this.#networks.some((one) => one.port.address === port.address && one.port.port === port.port),
        )
        .map((port) => new Network(port, this.#pace(port.address), seats(port))),
    ];
    this.#openMin();
  }

  #pace(address: string): Pace {
    let pace = this.#paces.get(address);
    if (pace === undefined) {
      pace = new Pace();
      this.#paces.set(address, pace);
    }
    return pace;
  }

  #onAnswer(op: number, tag: number): void {
    if (op !== Op.Z_FENCE) return;
    const orphans = this.#fencing.get(tag);
    this.#fencing.delete(tag);
    for (const { piece } of orphans ?? []) this.#repeat(piece);
  }

  #onDown(link: ScpLink, why: LinkDown, address: LinkAddress | undefined, detail: string): void {
    if (this.#link !== link) return;
    const wasUp = this.#configured !== undefined;
    this.#link = undefined;
    this.#configured = undefined;
    const words = detail === "" ? why : `${why}: ${detail}`;
    if (wasUp) this.#lastEnd = this.#draining ? "draining" : words;
    else this.#lastFailure = words;
    this.#draining = false;
    if (address !== undefined && why !== "stopped") this.#badAt.set(address.host, this.#env.clock.now());
    // The next session fences all of this one.
    const waiting = [...this.#fencing.values()].flat();
    this.#fencing.clear();
    const networks = this.#networks;
    this.#networks = [];
    if (networks.length > 0) this.#pastNetworks = networks;
    for (const network of networks) {
      for (const agent of [...network.agents]) agent.close("session-ended");
      for (const seat of network.seats) seat.vacate();
    }
    for (const { piece } of waiting) this.#repeat(piece);
    if (this.#stopped) return;
    this.#env.log.info({ front: "scp", why, server: address?.host, detail }, "The configuration connection is down");
    const wait = wasUp
      ? 0
      : Math.min(this.#settings.retryMsMin * 2 ** Math.min(this.#redials, 16), this.#settings.retryMsMax);
    this.#redials++;
    this.#redialAt = this.#env.clock.now() + wait;
    if (wasUp) for (const watcher of [...this.#watchers]) watcher("down");
    this.#wake();
  }

  /* ---- agents */

  #openMin(): void {
    let open = 0;
    for (const network of this.#networks) open += network.agents.size + network.connecting;
    // One on every network at least, so that another one is there when a network goes.
    for (const network of this.#networks)
      if (network.agents.size + network.connecting === 0) {
        this.#open(network);
        open++;
      }
    for (let before = -1; open < this.#settings.socketsMin && before !== open; ) {
      before = open;
      for (const network of this.#byLoad()) if (open < this.#settings.socketsMin && this.#open(network)) open++;
    }
  }

  #byLoad(): Network[] {
    return [...this.#networks].sort((a, b) => a.agents.size + a.connecting - (b.agents.size + b.connecting));
  }

  /** Opens one more socket when all that are there are busy. */
  #grow(): void {
    let open = 0;
    let busy = 0;
    for (const network of this.#networks) {
      if (network.connecting > 0) return;
      open += network.agents.size;
      for (const agent of network.agents) busy += agent.inFlight;
    }
    if (open >= this.#settings.socketsMax || open === 0) return;
    if (this.#waiting === 0 && busy < GROW_AT * open) return;
    for (const network of this.#byLoad()) if (this.#open(network)) return;
  }

  #open(network: Network): boolean {
    const session = this.#configured;
    const epoch = this.#epoch;
    const now = this.#env.clock.now();
    const { port } = network;
    if (session === undefined || this.#stopped || now < network.retryAt) return false;
    if (network.agents.size + network.connecting >= port.socketsMax) return false;
    network.connecting++;
    const seat = network.freeSeat(() => this.#nextAgent++);
    const dial = this.#nextDial++;
    seat.dial = dial;
    const { tls } = this.options;
    dialData(
      this.#env,
      { host: port.address, port: port.port },
      tls === undefined ? undefined : clientTls(tls, port.address),
      this.#settings.dialMs,
      (took) => network.pace.opened(this.#env.clock.now(), took),
    )((line) => {
      network.connecting--;
      if (seat.dial === dial) seat.dial = 0;
      if (isNetError(line)) {
        this.#noteEnd(seat, line.fault);
        this.#penalise(network, false);
        return this.#wake();
      }
      if (
        this.#configured === undefined ||
        this.#epoch !== epoch ||
        this.#stopped ||
        !this.#networks.includes(network)
      ) {
        hangUp(line);
        return;
      }
      const agent = new ScpAgent(this.#env, line, port, this.#nextSerial++, session, {
        onReady: () => {
          network.failures = 0;
          network.retryAt = 0;
          this.#env.turn.soon(this.#pump);
        },
        onPiece: (from, piece, status, result) =>
          this.#onPiece(canary.armed === "scp-wrong-socket" ? this.#mistake(from, piece) : piece, status, result),
        onPing: (took) => network.pace.answered(took),
        onEnd: (ended, end, orphans) => this.#onAgentEnd(network, seat, ended, end, epoch, orphans),
      });
      network.agents.add(agent);
      seat.agent = agent;
      this.#wake();
    });
    return true;
  }

  #noteEnd(seat: Seat, end: string): void {
    seat.lastEnd = end;
    seat.lastEndAt = this.#env.clock.date();
  }

  #penalise(network: Network, wasReady: boolean): void {
    const wait = Math.min(this.#settings.retryMsMin * 2 ** Math.min(network.failures, 16), this.#settings.retryMsMax);
    network.failures++;
    network.retryAt = this.#env.clock.now() + (wasReady && network.failures === 1 ? 0 : wait);
  }

  /* ---- time */

  #wake(): void {
    const soon = this.#env.clock.now() + TICK_MS;
    if (!this.#stopped && this.#alarm.at > soon) this.#alarm.at = this.#tickDue = soon;
  }

  #tick(): void {
    this.#alarm.at = Number.POSITIVE_INFINITY;
    if (this.#stopped) return;
    const now = this.#env.clock.now();
    if (this.#link === undefined && now >= this.#redialAt) this.#connect();
    for (const piece of this.#later) {
      if (piece.notBefore > now) continue;
      this.#later.delete(piece);
      if (now - piece.since >= this.#settings.giveUpMs) this.#settle(piece, "away", 0);
      else this.#requeue(piece);
    }
    if (this.#queue.length > 0 && now - (this.#queue.peek()?.since ?? now) >= this.#settings.giveUpMs)
      for (const piece of this.#queue.take((one) => now - one.since >= this.#settings.giveUpMs))
        this.#settle(piece, "away", 0);
    this.#tickSkipped = now - this.#tickDue >= LATE_MS && !this.#tickSkipped;
    if (!this.#tickSkipped) this.#lookForSilence(now);
    if (this.#configured !== undefined) this.#openMin();
    if (this.#waiting > 0) this.#env.turn.soon(this.#pump);
    this.#alarm.at = this.#tickDue = this.#nextTick(now);
  }

  /** Soon while anything is under way; while all is idle, only to see that the server is still there. */
  #nextTick(now: Millis): Millis {
    if (this.#inFlight > 0 || this.#waiting > 0 || this.#later.size > 0 || this.#fencing.size > 0) return now + TICK_MS;
    if (this.#link === undefined) return Math.max(this.#redialAt, now + TICK_MS);
    if (this.#configured === undefined) return Number.POSITIVE_INFINITY;
    if (this.#link.pingAt !== Number.POSITIVE_INFINITY) return now + this.#settings.silentMs;
    let next = now + IDLE_PING_MS;
    let open = 0;
    for (const { agents, connecting } of this.#networks) open += agents.size + connecting;
    for (const { agents, connecting, port, retryAt } of this.#networks) {
      const mine = agents.size + connecting;
      if (mine === 0 || (open < this.#settings.socketsMin && mine < port.socketsMax))
        next = Math.min(next, Math.max(retryAt, now + TICK_MS));
    }
    return next;
  }

  /**
   * A socket is dead when it owes an answer to a ping and another one was heard since it was asked: then it is not we
   * who were asleep, nor the server. When nobody at all is heard, the wait is longer.
   */
  #lookForSilence(now: Millis): void {
    const link = this.#link;
    const configured = this.#configured;
    if (link === undefined || configured === undefined) return;
    const { deadMs, deadMsV1 } = this.#settings;
    if (this.#networks.some(({ agents }) => [...agents].some(({ ready }) => ready))) this.#agentAt = now;
    // A server that is gone may have had no way to tell us: its configuration socket looks as if it were there, and
    // version 1 has nothing to ask it. That no data port takes us is how it shows.
    else if (now - this.#agentAt > deadMs && configured.ports.length > 0) {
      link.close("silent");
      return;
    }
    const { quietMs, silentMs, stallMsV1 } = this.#settings;
    const two = configured.version === Version.TWO;
    const linkPace = this.#pace(link.address?.host ?? "");
    let heardAt = link.heardAt;
    for (const network of this.#networks)
      for (const agent of network.agents) heardAt = Math.max(heardAt, agent.heardAt);
    let suspicion = this.#fencing.size > 0 || (this.#inFlight === 0 && now - link.heardAt > IDLE_PING_MS);
    for (const { pace, agents } of this.#networks)
      for (const agent of [...agents]) {
        if (!agent.ready) continue;
        const asked = two ? agent.pingAt : agent.oldestSentAt();
        const elsewhere = heardAt > agent.heardAt && heardAt > asked;
        const wait = two
          ? elsewhere
            ? pace.stretch(silentMs, deadMs, now)
            : deadMs
          : elsewhere
            ? pace.stretch(stallMsV1, deadMsV1, now)
            : deadMsV1;
        if (now - asked > wait) {
          pace.givenUp(now);
          agent.close("silent");
        } else if (two && agent.inFlight > 0) {
          const quietSince = Math.max(agent.heardAt, agent.oldestSentAt());
          if (now - quietSince <= pace.stretch(quietMs, deadMs, now)) continue;
          agent.ping();
          suspicion = true;
        }
      }
    if (!two) return;
    if (suspicion) {
      // Witnesses: whoever answers shows that the silence is another's.
      link.ping(WORLD_TAG_MIN - 1);
      for (const network of this.#networks)
        for (const agent of network.agents)
          if (agent.ready) {
            agent.ping();
            break;
          }
    }
    const elsewhere = heardAt > link.heardAt && heardAt > link.pingAt;
    if (now - link.pingAt > (elsewhere ? linkPace.stretch(silentMs, deadMs, now) : deadMs)) {
      linkPace.givenUp(now);
      link.close("silent");
    }
  }

  #failAll(status: Status): void {
    for (const queue of [this.#queue, this.#replayQueue])
      for (const piece of queue.take(() => true)) this.#settle(piece, status, 0);
    for (const piece of [...this.#later]) {
      this.#later.delete(piece);
      this.#settle(piece, status, 0);
    }
    const waiting = [...this.#fencing.values()].flat();
    this.#fencing.clear();
    for (const { piece } of waiting) this.#settle(piece, status, 0);
  }
}

/**
 * A compare-and-write that is done twice could find its own work and call it a difference: its fate cannot be told any
 * more, and it fails. What is read then must be what it is: a flush goes in its place, so that a server that loses its
 * power cannot take back what it may have done, and what somebody may have read.
 */
function doom(piece: ScpPiece): void {
  piece.isDoomed = true;
  piece.code = Op.FLUSH;
  piece.flags = 0;
  piece.offset = piece.length = 0;
  piece.outBytes = piece.inBytes = 0;
}
