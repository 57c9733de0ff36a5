/**
 * An NBD export as a device. It keeps one or several connections (several only if the server promises that a flush on
 * one covers all, CAN_MULTI_CONN), cuts operations to what the server takes, and survives the loss of connections:
 *
 * - What was in flight is sent again on another connection, or on a new one. Each request stands for itself, so doing
 *   it twice does no harm; writes that overlap are never in flight together, so that their order is kept.
 * - What was acknowledged but not flushed is kept (`unflushed: "replay"`) and written again if the server may have been
 *   restarted; or, with `unflushed: "fail"`, the client takes no more writes and every flush fails, since it would lie.
 * - A server has not been restarted as long as a connection that was there before answers a flush. Until one has, or the
 *   writes have been repeated, no new connection is used, whether one was lost before or not.
 * - A flush that the server fails is final: what it covered may be lost, so writes and flushes fail from then on, until
 *   the device is opened again. Reads go on.
 * - Without a connection, operations wait for `giveUpMs`, then they are answered "away"; dialling goes on.
 *
 * docs/design/nbd-client.md has the reasons.
 */
import type { Status } from "#base/status";
import { type Effect, perform, type Task } from "#base/task";
import { type Bytes, KIB } from "#base/units";
import { type BlockDevice, type BlockOp, checkRange, type DeviceChange, type DeviceWatcher } from "#device/device";
import type { Alarm, Env } from "#env/env";
import { joinExport, type NbdExport } from "#proto/nbd/client-handshake";
import type { NbdSlot } from "#proto/nbd/client-replies";
import { Flag, statusOf } from "#wire/nbd/codes";
import { NbdChannels } from "./nbd-channels.ts";
import { type ConnectionEnd, NbdConnection } from "./nbd-connection.ts";
import { type DialFailure, dialNbd, isDialFailure, type Joined, type NbdTarget } from "./nbd-dial.ts";
import { type NbdClientFigures, type NbdClientOptions, type NbdSettings, settled } from "./nbd-options.ts";
import { Fifo, NbdJob, NbdPart, Pool } from "./nbd-parts.ts";
import { mayPass, refusalOf } from "./nbd-refusals.ts";
import { changes, fillRequest, lacks, limitOf, uuidOf } from "./nbd-requests.ts";
import { mergeContexts } from "./nbd-status.ts";
import { Unflushed } from "./unflushed.ts";

/** Zeroes to send where the server has no WRITE_ZEROES. */
const ZERO_BYTES = 256 * KIB;
const SECTOR_BYTES = 512;
const RETRY_MS = 250;
/** Repeated writes are made durable after so much: if the connection is lost again and again, each brings them further. */
const REPLAY_FLUSH_BYTES = 256 * KIB;
/** Before a request is given up, it may be lost with so many connections, however long that takes. */
const ATTEMPTS_MIN = 5;

/** "down": no connection. "proving": a connection was lost, and the others have to show that the server lives. */
type Phase = "down" | "replaying" | "proving" | "serving";

export class NbdClient implements BlockDevice {
  readonly #env: Env;
  readonly #target: NbdTarget;
  readonly #options: NbdSettings;
  readonly #channels: NbdChannels;
  readonly #channelOf = new Map<NbdConnection, number>();
  /** In service, and joined but not to be used yet. */
  #serving: NbdConnection[] = [];
  #room: NbdConnection[] = [];
  #phase: Phase = "down";
  #export: NbdExport;

  readonly #jobs = new Fifo<NbdJob>();
  readonly #redo = new Fifo<NbdPart>();
  readonly #jobPool = new Pool(() => new NbdJob());
  readonly #partPool = new Pool(() => new NbdPart());
  /** Which part each slot of a connection carries, by the slot's index. */
  readonly #carried = new Map<NbdConnection, (NbdPart | undefined)[]>();
  /** Parts that change data, sent or to be sent again: none of them overlap. */
  readonly #changing: NbdPart[] = [];
  #isPumping = false;

  readonly #unflushed: Unflushed;
  /** Writes acknowledged, and how many of them a flush has covered: what "fail" needs to know. */
  #acknowledged = 0;
  #flushed = 0;
  #isFlushing = false;
  /** Goes up when a connection comes or goes: a flush that was sent before that proves nothing about it. */
  #epoch = 0;
  /** The next kept write to repeat, by number; and how many repeats are in flight. */
  #replayNext = 0;
  #replaysOpen = 0;
  /** Bytes repeated that no flush has covered yet. */
  #replayedBytes: Bytes = 0;
  /** Acknowledged writes may be lost: no more writes, and no flush that would lie. */
  #isPoisoned = false;
  #hasGivenUp = false;
  #downStatus: Status = "away";
  readonly #giveUpAlarm: Alarm;
  readonly #retryAlarm: Alarm;
  #zeroes = 0;
  #closing: (() => void) | undefined = undefined;
  #isClosed = false;
  readonly #watchers = new Set<DeviceWatcher>();
  #lostCount = 0;
  #repeatedCount = 0;
  #replayedCount = 0;
  readonly uuid: string;

  /** Connects, and joins the export. Throws a `Refusal`. */
  static *open(env: Env, target: NbdTarget, options: NbdClientOptions = {}): Task<NbdClient> {
    const settings = settled(options);
    const { dialMs, waitMs } = settings;
    const until = env.clock.now() + waitMs;
    for (;;) {
      const joined: Joined<NbdExport> | DialFailure = yield* dialNbd<NbdExport>(env, target, dialMs, (send) =>
        joinExport({ exportName: target.exportName, tls: target.tls !== undefined }, send),
      );
      if (!isDialFailure(joined)) return new NbdClient(env, target, settings, joined);
      if (!mayPass(joined) || env.clock.now() + RETRY_MS > until) throw refusalOf(target, joined);
      yield* perform<void>((resume) => {
        env.clock.alarm(() => resume()).at = env.clock.now() + RETRY_MS;
      });
    }
  }

  private constructor(env: Env, target: NbdTarget, options: NbdSettings, joined: Joined<NbdExport>) {
    this.#env = env;
    this.#target = target;
    this.#options = options;
    this.#export = joined.result;
    this.#unflushed = new Unflushed(env.memory, this.#options.replayBytes);
    this.uuid = uuidOf(env, JSON.stringify([target.address, target.exportName]));
    this.#giveUpAlarm = env.clock.alarm(() => this.#giveUp());
    this.#retryAlarm = env.clock.alarm(() => {
      this.#isFlushing = false;
      this.#pump();
    });
    this.#channels = new NbdChannels(env, target, this.#options.connections, this.#options.dialMs, {
      onJoined: (channel, joined) => this.#onJoined(channel, joined),
      onFailed: (_channel, failure) => this.#onFailed(failure),
    });
    this.#channels.adopt(0);
    this.#onJoined(0, joined);
  }

  get size(): Bytes {
    return this.#export.size;
  }
  get blockSize(): number {
    return Math.max(this.#export.blockSizes.minimum, SECTOR_BYTES);
  }
  /** Requests may be as fine as this, where that is finer than `blockSize`. */
  get grainBytes(): number {
    return this.#export.blockSizes.minimum;
  }
  get preferredBlockSize(): number {
    return this.#export.blockSizes.preferred;
  }
  get readOnly(): boolean {
    return this.#options.readOnly || this.#has(Flag.READ_ONLY);
  }
  /** What the server said about the export when it was joined last. */
  get export(): NbdExport {
    return this.#export;
  }
  get figures(): NbdClientFigures {
    return {
      connections: this.#serving.length + this.#room.length,
      connectionsLost: this.#lostCount,
      requestsRepeated: this.#repeatedCount,
      writesReplayed: this.#replayedCount,
      keptBytes: this.#unflushed.bytes,
    };
  }

  watch(watcher: DeviceWatcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  submit(op: BlockOp): void {
    const status = this.#refuses(op);
    op.result = 0;
    if (status !== undefined) {
      op.status = status;
      op.done(op);
      return;
    }
    const job = this.#jobPool.take();
    job.op = op;
    job.kind = op.kind;
    job.taken = job.open = job.result = 0;
    job.isWhole = job.needsFlush = false;
    job.status = "ok";
    this.#jobs.push(job);
    this.#pump();
  }

  /** Lets what was submitted end, says goodbye and closes. It does not flush. */
  close(): Effect<void> {
    return (resume) => {
      if (this.#isClosed) return resume();
      const others = this.#closing;
      this.#closing = () => {
        others?.();
        resume();
      };
      this.#channels.stop();
      // Nothing will be dialled any more: without a connection, nothing that waits can be done.
      if (this.#phase === "down") this.#giveUp();
      this.#tryClose();
    };
  }

  /* -------------------------------------------------------------- operations */

  #has(flag: number): boolean {
    return (this.#export.flags & flag) !== 0;
  }

  /** Why an operation is not even tried. */
  #refuses(op: BlockOp): Status | undefined {
    if (this.#closing !== undefined || this.#isClosed) return "aborted";
    const fault = checkRange({ size: this.size, blockSize: this.grainBytes }, op);
    if (fault !== undefined) return fault;
    const isChange = changes(op.kind);
    if (isChange && this.readOnly) return "denied";
    const lacking = lacks(this.#export, op);
    if (lacking !== undefined) return lacking;
    if (this.#isPoisoned && (isChange || op.kind === "flush")) return "failed";
    return this.#hasGivenUp ? this.#downStatus : undefined;
  }

  /** Sends as much as can be sent. Callbacks from within come back here, and find the loop running. */
  #pump(): void {
    if (this.#isPumping) return;
    this.#isPumping = true;
    while (this.#pumpOne());
    this.#isPumping = false;
    this.#tryClose();
  }

  #pumpOne(): boolean {
    if (this.#phase === "down") return false;
    if (this.#phase === "replaying") return this.#replayOne();
    if (this.#phase === "proving" && !this.#isFlushing) this.#flushSoon();
    const part = this.#redo.first;
    if (part !== undefined) {
      if (this.#isPoisoned && part.kind !== "read" && part.kind !== "status" && part.kind !== "cache") {
        this.#redo.shift();
        this.#failPart(part, "failed");
        return true;
      }
      const connection = this.#pick(changes(part.kind));
      if (connection === undefined) return false;
      this.#redo.shift();
      this.#sendPart(connection, part);
      return true;
    }
    const job = this.#jobs.first;
    return job !== undefined && this.#advance(job);
  }

  /** The connection in service with the fewest requests in flight, if there is one with room. */
  #pick(isChange = false): NbdConnection | undefined {
    let best: NbdConnection | undefined;
    for (const connection of this.#serving)
      if (
        connection.freeCount > 0 &&
        (best === undefined || connection.outstanding < best.outstanding) &&
        !(isChange && connection.isDoubtful)
      )
        best = connection;
    return best;
  }

  /** Makes the next part of the job, and sends it. False if that has to wait. */
  #advance(job: NbdJob): boolean {
    const { op } = job;
    const isChange = changes(job.kind);
    if (this.#isPoisoned && (isChange || job.kind === "flush")) {
      job.status = "failed";
      return this.#allTaken(job);
    }
    const connection = this.#pick(isChange);
    if (connection === undefined) return false;
    if (job.kind === "flush") {
      // "If the server did not offer SEND_FLUSH": nothing that it acknowledges is volatile, as far as anyone can know.
      if (!this.#has(Flag.SEND_FLUSH)) return this.#allTaken(job);
      this.#open(job, "flush", 0, 0, 0);
      this.#allTaken(job);
      this.#sendPart(connection, this.#made!);
      return true;
    }
    let kind = job.kind;
    const offset = op.offset + job.taken;
    let length = Math.min(op.length - job.taken, limitOf(kind, this.#export, this.#options));
    let at = op.at + job.taken;
    if (kind === "zero" && !this.#has(Flag.SEND_WRITE_ZEROES)) {
      if (!this.#haveZeroes()) {
        job.status = "busy";
        return this.#allTaken(job);
      }
      kind = "write";
      length = Math.min(length, ZERO_BYTES);
      at = this.#zeroes;
    }
    let fua = op.fua && isChange;
    let kept: NbdPart["kept"];
    if (isChange) {
      if (this.#overlaps(offset, length)) return false;
      if (fua && !this.#has(Flag.SEND_FUA)) {
        fua = false;
        job.needsFlush = true;
      }
      if (this.#options.unflushed === "replay" && this.#has(Flag.SEND_FLUSH)) {
        kept = this.#unflushed.reserve(kind as "write" | "zero" | "trim", offset, length, at, op.noHole);
        if (kept === undefined && !this.#unflushed.isEmpty) {
          this.#flushSoon();
          return false;
        }
        if (kept === undefined) {
          // There is no memory for a copy, and none is needed if the server makes the write durable by itself.
          if (!this.#has(Flag.SEND_FUA)) {
            job.status = "busy";
            return this.#allTaken(job);
          }
          fua = true;
        }
      }
    }
    this.#open(job, kind, offset, length, at);
    const part = this.#made!;
    part.fua = fua;
    part.noHole = op.noHole;
    part.kept = kept;
    job.taken += length;
    if (isChange) this.#changing.push(part);
    if (job.taken === op.length || kind === "status") this.#allTaken(job);
    this.#sendPart(connection, part);
    if (kept !== undefined && this.#unflushed.isHalfFull) this.#flushSoon();
    return true;
  }

  /** The part that `#open` has made: a field, so that making one costs no object. */
  #made: NbdPart | undefined = undefined;
  #open(job: NbdJob, kind: BlockOp["kind"], offset: Bytes, length: Bytes, at: number): void {
    const part = this.#partPool.take();
    part.job = job;
    part.purpose = "host";
    part.kind = kind;
    part.offset = offset;
    part.length = length;
    part.at = at;
    part.fua = part.noHole = false;
    part.kept = undefined;
    part.attempts = 0;
    job.open++;
    this.#made = part;
  }

  /** All of the first job has been made into parts. */
  #allTaken(job: NbdJob): true {
    this.#jobs.shift();
    job.isWhole = true;
    if (job.open === 0) this.#finish(job);
    return true;
  }

  #overlaps(offset: Bytes, length: Bytes): boolean {
    for (const other of this.#changing)
      if (other.offset < offset + length && offset < other.offset + other.length) return true;
    return false;
  }

  #haveZeroes(): boolean {
    if (this.#zeroes === 0) {
      this.#zeroes = this.#env.memory.allocate(ZERO_BYTES);
      if (this.#zeroes !== 0) this.#env.memory.bytes.fill(0, this.#zeroes, this.#zeroes + ZERO_BYTES);
    }
    return this.#zeroes !== 0;
  }

  #sendPart(connection: NbdConnection, part: NbdPart): void {
    const slot = connection.take();
    fillRequest(slot, part, connection.export, this.#options);
    if (part.kind === "flush") {
      part.mark = this.#mark;
      part.epoch = this.#epoch;
    }
    this.#carried.get(connection)![slot.index] = part;
    connection.send(slot);
  }

  #onReply(connection: NbdConnection, slot: NbdSlot): void {
    const carried = this.#carried.get(connection)!;
    const part = carried[slot.index]!;
    carried[slot.index] = undefined;
    this.#channels.proven(this.#channelOf.get(connection)!);
    let status = statusOf(slot.error, slot.request.type);
    // Another flush has failed in the meantime: what this one says may not be about what was written before.
    if (part.kind === "flush" && this.#isPoisoned) status = "failed";
    if (part.purpose === "replay") this.#onReplayed(status);
    else {
      if (part.kind === "flush") this.#onFlushed(part, status);
      else if (changes(part.kind)) this.#onChanged(part, status);
      const { job } = part;
      if (job !== undefined) {
        if (status === "ok" && part.kind === "status") mergeContexts(slot.allocation, slot.depth, job.op.extents!);
        if (status !== "ok" && job.status === "ok") {
          job.status = status;
          const where = slot.errorOffset < 0 ? part.offset : slot.errorOffset;
          if (status === "medium") job.result = where - job.op.offset;
        }
        job.open--;
        if (job.isWhole && job.open === 0) this.#finish(job);
      }
    }
    this.#release(part);
    this.#pump();
  }

  #release(part: NbdPart): void {
    part.job = part.kept = undefined;
    this.#partPool.give(part);
  }

  #onChanged(part: NbdPart, status: Status): void {
    const index = this.#changing.indexOf(part);
    const last = this.#changing.pop()!;
    if (last !== part) this.#changing[index] = last;
    if (status === "ok" && !part.fua) this.#acknowledged++;
    if (part.kept === undefined) return;
    if (status === "ok" && !this.#isPoisoned) this.#unflushed.keep(part.kept);
    else this.#unflushed.release(part.kept);
  }

  #finish(job: NbdJob): void {
    if (job.needsFlush && job.status === "ok" && this.#has(Flag.SEND_FLUSH)) {
      job.needsFlush = false;
      this.#open(job, "flush", 0, 0, 0);
      this.#redo.push(this.#made!);
      return;
    }
    const { op } = job;
    op.status = job.status;
    op.result = job.result;
    this.#jobPool.give(job);
    op.done(op);
  }

  /* ------------------------------------------------------------------ flushes */

  /** Makes room among the kept writes, without anyone having asked for it. */
  #flushSoon(): void {
    const connection = this.#pick();
    if (this.#isFlushing || connection === undefined) return;
    this.#isFlushing = true;
    const part = this.#partPool.take();
    part.purpose = "flush";
    part.kind = "flush";
    part.offset = part.length = part.at = 0;
    part.fua = part.noHole = false;
    this.#sendPart(connection, part);
  }

  #onFlushed(part: NbdPart, status: Status): void {
    if (part.purpose === "flush") this.#isFlushing = false;
    if (status === "ok") {
      this.#replayedBytes = 0;
      if (this.#options.unflushed === "replay") this.#unflushed.drop(part.mark);
      else this.#flushed = Math.max(this.#flushed, part.mark);
      if (this.#phase === "proving" && part.epoch === this.#epoch) this.#serve();
    } else if (status === "busy") {
      // It did not try. Whoever asked may ask again; and so do we, a little later.
      if (part.purpose === "flush") {
        this.#isFlushing = true;
        this.#retryAlarm.at = this.#env.clock.now() + RETRY_MS;
      }
    } else this.#poison(`the server failed a flush (${status})`);
  }

  /** What a flush that is sent now covers. */
  get #mark(): number {
    // The server may be another one since: it has what was repeated, and no more.
    if (this.#phase === "replaying") return this.#replayNext;
    return this.#options.unflushed === "replay" ? this.#unflushed.mark : this.#acknowledged;
  }

  get #hasUnflushed(): boolean {
    // Once writes were lost, nothing is owed any more: nothing is promised again.
    if (this.#isPoisoned || this.#options.unflushed === "trust" || !this.#has(Flag.SEND_FLUSH)) return false;
    return this.#options.unflushed === "replay" ? this.#unflushed.count > 0 : this.#acknowledged > this.#flushed;
  }

  /** Something is unflushed, or may turn out to be: an answer that is under way may have been given long ago. */
  get #hasDebts(): boolean {
    if (this.#options.unflushed === "trust") return false;
    return this.#hasUnflushed || (this.#changing.length > 0 && !this.#isPoisoned && this.#has(Flag.SEND_FLUSH));
  }

  /**
   * A connection in service has to answer a flush that is sent from now on. When it has, what was acknowledged is
   * durable; and the server that it leads to lived after the newest connection was made, so it is the same one.
   */
  #prove(): void {
    if (this.#phase !== "serving" && this.#phase !== "proving") return;
    this.#phase = "proving";
    this.#epoch++;
  }

  #poison(why: string): void {
    if (this.#isPoisoned) return;
    this.#isPoisoned = true;
    this.#unflushed.drop(Infinity);
    this.#env.log.error(
      { export: this.#target.exportName, why },
      "Writes that were not flushed may be lost: this device takes no more writes until it is opened again",
    );
    if (this.#phase === "replaying" || this.#phase === "proving") this.#serve();
  }

  /* -------------------------------------------------------------- connections */

  #onJoined(channel: number, joined: Joined<NbdExport>): void {
    const { depth, silenceMs } = this.#options;
    const connection = NbdConnection.open(this.#env, joined, depth, silenceMs, {
      onReply: (connection, slot) => this.#onReply(connection, slot),
      onLost: (connection, end, unanswered) => this.#onLost(connection, end, unanswered),
    });
    if (connection === undefined) {
      // No memory for its headers: it is closed, and dialled again later.
      this.#discard(joined, () => this.#channels.reopen(channel));
      if (this.#phase === "down") this.#goDown();
      return;
    }
    this.#channelOf.set(connection, channel);
    this.#carried.set(connection, []);
    this.#adopt(joined.result);
    if (this.#closing !== undefined) {
      this.#room.push(connection);
      connection.disconnect();
      return;
    }
    if (this.#phase === "down") {
      this.#serving.push(connection);
      this.#recover();
    } else if (!this.#has(Flag.CAN_MULTI_CONN)) {
      // One connection is in use already, and the server does not promise that a flush on one covers both.
      this.#room.push(connection);
      connection.disconnect();
    } else {
      this.#room.push(connection);
      if (this.#phase === "proving" || this.#hasDebts) this.#prove();
      else if (this.#phase === "serving") this.#serve();
      this.#pump();
    }
    if (this.#has(Flag.CAN_MULTI_CONN)) this.#channels.open(this.#channels.count);
  }

  #discard(joined: Joined<NbdExport>, then: () => void): void {
    joined.line.ear = {
      onReceived: () => {},
      onSent: () => {},
      onClosed: () => {
        this.#env.memory.free(joined.window);
        then();
      },
    };
    joined.line.close();
  }

  #onFailed(failure: DialFailure): void {
    if (this.#phase === "down") {
      this.#downStatus = failure.fault === "unknown-export" ? "gone" : "away";
      this.#env.log.debug({ export: this.#target.exportName, ...failure }, "The server cannot be reached");
    }
    if (this.#closing !== undefined) this.#tryClose();
  }

  #onLost(connection: NbdConnection, end: ConnectionEnd, unanswered: readonly NbdSlot[]): void {
    const carried = this.#carried.get(connection)!;
    const channel = this.#channelOf.get(connection)!;
    this.#carried.delete(connection);
    this.#channelOf.delete(connection);
    const wasServing = this.#serving.includes(connection);
    this.#serving = this.#serving.filter((other) => other !== connection);
    this.#room = this.#room.filter((other) => other !== connection);
    for (const slot of unanswered) {
      const part = carried[slot.index];
      if (part === undefined) continue;
      if (part.purpose === "host") {
        this.#repeatedCount++;
        // A request that the server does not survive, or whose answer it cannot get right, must not go on for ever.
        const now = this.#env.clock.now();
        if (part.attempts++ === 0) part.lostAt = now;
        if (part.attempts < ATTEMPTS_MIN || now - part.lostAt < this.#options.giveUpMs) this.#redo.push(part);
        else this.#failPart(part, "away");
      } else {
        if (part.purpose === "flush") this.#isFlushing = false;
        this.#release(part);
      }
    }
    if (end !== "stopped") {
      this.#lostCount++;
      const others = this.#serving.length;
      this.#env.log.warn({ export: this.#target.exportName, end, others }, "A connection to the NBD server is lost");
      this.#channels.reopen(channel);
    } else this.#channels.rest(channel);
    if (!wasServing) {
      this.#tryClose();
      return;
    }
    if (this.#serving.length > 0) {
      if (this.#hasDebts) {
        this.#prove();
      }
      this.#pump();
    } else if (this.#room.length > 0) {
      this.#serving.push(this.#room.shift()!);
      this.#recover();
    } else this.#goDown();
  }

  #goDown(): void {
    this.#phase = "down";
    this.#downStatus = "away";
    if (this.#closing !== undefined) this.#giveUp();
    // Counted from the first loss: a server that is back for a moment again and again is not back.
    else if (this.#giveUpAlarm.at === Infinity && !this.#hasGivenUp)
      this.#giveUpAlarm.at = this.#env.clock.now() + this.#options.giveUpMs;
    this.#tryClose();
  }

  #giveUp(): void {
    if (this.#phase === "serving" || this.#phase === "proving") return;
    this.#hasGivenUp = true;
    this.#giveUpAlarm.at = Infinity;
    const status = this.#downStatus;
    for (let part = this.#redo.shift(); part !== undefined; part = this.#redo.shift()) this.#failPart(part, status);
    for (let job = this.#jobs.first; job !== undefined; job = this.#jobs.first) {
      if (job.status === "ok") job.status = status;
      this.#allTaken(job);
    }
  }

  /** A part that is not going to be sent again. */
  #failPart(part: NbdPart, status: Status): void {
    const { job } = part;
    if (changes(part.kind)) this.#onChanged(part, status);
    this.#release(part);
    if (job === undefined) return;
    if (job.status === "ok") job.status = status;
    job.open--;
    if (job.isWhole && job.open === 0) this.#finish(job);
  }

  /** The first connection after there was none: the server may be another process, that has forgotten writes. */
  #recover(): void {
    if (!this.#hasUnflushed) {
      this.#serve();
      return;
    }
    if (this.#options.unflushed === "fail") {
      this.#poison("the server may have been restarted");
      this.#serve();
      return;
    }
    this.#phase = "replaying";
    this.#replayNext = this.#unflushed.firstNumber;
    this.#replaysOpen = 0;
    this.#replayedBytes = 0;
    this.#env.log.info(
      { export: this.#target.exportName, writes: this.#unflushed.count },
      "Repeating unflushed writes",
    );
    this.#pump();
  }

  #serve(): void {
    this.#phase = "serving";
    this.#giveUpAlarm.at = Infinity;
    this.#hasGivenUp = false;
    this.#serving.push(...this.#room.filter((connection) => connection.freeCount > 0));
    this.#room = this.#room.filter((connection) => !this.#serving.includes(connection));
    this.#pump();
  }

  /** The server has all again. Whether the connections that were made meanwhile lead to the same one has to be shown. */
  #endReplay(): void {
    const room = this.#room.splice(0);
    this.#serve();
    this.#room = room;
    if (room.length > 0) this.#prove();
  }

  #replayOne(): boolean {
    const kept = this.#unflushed.at(this.#replayNext);
    const isDue = this.#replayedBytes >= REPLAY_FLUSH_BYTES;
    if (this.#replaysOpen > 0 && (kept === undefined || isDue)) return false;
    if (kept === undefined) {
      this.#endReplay();
      return true;
    }
    if (isDue) {
      if (this.#isFlushing) return false;
      this.#flushSoon();
      return this.#isFlushing;
    }
    // One after another where they overlap; `#changing` holds only what waits to be sent again, later than these.
    const connection = this.#pick(true);
    if (connection === undefined || (this.#replaysOpen > 0 && this.#overlapsReplay(kept.offset, kept.length)))
      return false;
    const part = this.#partPool.take();
    part.job = part.kept = undefined;
    part.purpose = "replay";
    part.kind = kept.kind;
    part.offset = kept.offset;
    part.length = kept.length;
    part.at = kept.at;
    part.fua = false;
    part.noHole = kept.noHole;
    this.#replayNext++;
    this.#replaysOpen++;
    this.#replayedBytes += kept.length;
    this.#replayedCount++;
    this.#sendPart(connection, part);
    return true;
  }

  #overlapsReplay(offset: Bytes, length: Bytes): boolean {
    for (const part of this.#carried.get(this.#serving[0]!) ?? [])
      if (part !== undefined && part.offset < offset + length && offset < part.offset + part.length) return true;
    return false;
  }

  #onReplayed(status: Status): void {
    this.#replaysOpen--;
    if (status !== "ok") this.#poison(`a write could not be repeated (${status})`);
  }

  /** What the server says of the export now, which after a restart may be something else than before. */
  #adopt(found: NbdExport): void {
    const before = this.#export;
    this.#export = found;
    if (found.size !== before.size) this.#tell("resized");
    if (((found.flags ^ before.flags) & Flag.READ_ONLY) !== 0) this.#tell("read-only");
  }

  #tell(change: DeviceChange): void {
    for (const watcher of [...this.#watchers]) watcher(change);
  }

  #tryClose(): void {
    if (this.#closing === undefined || this.#isClosed) return;
    if (this.#jobs.length > 0 || this.#redo.length > 0) return;
    for (const connection of this.#serving) if (connection.outstanding > 0) return;
    for (const connection of [...this.#serving, ...this.#room]) connection.disconnect();
    if (this.#channelOf.size > 0 || !this.#channels.isQuiet) return;
    this.#isClosed = true;
    this.#retryAlarm.at = this.#giveUpAlarm.at = Infinity;
    this.#unflushed.drop(Infinity);
    if (this.#zeroes !== 0) this.#env.memory.free(this.#zeroes);
    this.#closing();
  }
}
