/**
 * The lane's loop. A turn tells what has completed, runs what was asked for "soon", and gives everything new to the
 * kernel in one call; what completes at once (cached data, sockets with room) is told in the next round without
 * leaving. Turns alternate with Node's loop (`setImmediate`), so that promises, message ports and timers live.
 *
 * A turn that finds nothing to do waits in the kernel, since the next request mostly comes at once: a completion wakes it
 * without a detour, and so does anything that Node's loop would be woken by. After a while it arms the bell and sleeps in
 * Node's loop, at no cost. Where requests come quickly and one by one it may stay awake instead and look for the next one:
 * see `Lookout`.
 */

import type { Millis } from "#base/units";
import type { Soon, Turn } from "../env.ts";
import { OP, POLLIN } from "./abi.ts";
import { Bell } from "./bell.ts";
import type { Gate } from "./gate.ts";
import { LOOK_MS, Lookout } from "./lookout.ts";
import type { Remains } from "./remains.ts";
import type { Request, Ring } from "./ring.ts";

/** How long before Node's loop is let in: the lane's messages, timers and promises wait so long at most. */
const ROUNDS_MS = 2;
/**
 * Completions of a round. A receive may bring 32 requests, and what they read should still be in the processor's cache
 * when it is sent: with 100 connections' in one round it is not.
 */
const ROUND_COMPLETIONS = 16;
/** So often in a round runs what was asked for "soon", and what that has asked for. */
const SOON_PASSES = 3;
/** How long the lane waits in the kernel. A timer of Node's may be late by so much, once after the lane was busy. */
const WAIT_MICROS = 2000;
/** The same where Node's loop cannot be watched meanwhile. */
const WAIT_BLIND_MICROS = 200;

export interface HeldSync {
  /** @param alone it is the only one, and the lane may wait for it. */
  release(alone: boolean): void;
}

export class UringTurn implements Turn {
  readonly #ring: Ring;
  readonly #gate: Gate;
  readonly #bell: Bell;
  #queue: Soon[] = [];
  #running: Soon[] = [];
  #inTurn = false;
  #scheduled = false;
  #closed = false;
  /** Lines that live in Node's loop (TLS): while there are any, the lane does not wait elsewhere. */
  guests = 0;
  /** Syncs in flight: what comes next is mostly their end, and that is too far away to look for it. */
  syncs = 0;
  /** A sync that the lane makes itself when it has nothing more to do; see `SoleSync`. */
  #held: HeldSync | undefined;
  /** Whether the ring watches Node's loop. */
  #watching = false;
  readonly #lookout: Lookout;
  readonly #watch: Request = {
    index: 0,
    complete: () => {
      this.#watching = false;
    },
  };

  /** @param preemptions how often the processor has been taken from this thread so far. */
  constructor(ring: Ring, gate: Gate, remains: Remains, preemptions: () => number) {
    this.#ring = ring;
    this.#gate = gate;
    this.#lookout = new Lookout(preemptions);
    this.#bell = new Bell(ring, remains, () => {
      if (!this.#scheduled) this.#turn();
    });
    ring.register(this.#watch);
    ring.notify = false;
  }

  soon(soon: Soon): void {
    if (soon.queued) return;
    soon.queued = true;
    this.#queue.push(soon);
    this.kick();
  }

  /** Puts a sync off until there is nothing else to do. False: there is one already. */
  hold(sync: HeldSync): boolean {
    if (this.#held !== undefined) return false;
    this.#held = sync;
    this.kick();
    return true;
  }

  /** Something has been prepared for the kernel, or is to be done soon. */
  kick(): void {
    if (this.#inTurn || this.#scheduled || this.#closed) return;
    this.#scheduled = true;
    setImmediate(this.#onImmediate);
  }

  close(): void {
    this.#closed = true;
    this.#bell.close();
  }

  readonly #onImmediate = (): void => {
    this.#scheduled = false;
    this.#turn();
  };

  #turn(): void {
    if (this.#inTurn || this.#closed) return;
    this.#inTurn = true;
    const ring = this.#ring;
    ring.notify = false;
    const rest = !this.#work() && !this.#closed && !(this.#wait() && this.#work());
    this.#inTurn = false;
    if (this.#closed) return;
    if (rest) this.#sleep();
    else this.kick();
  }

  /** Goes round until there is nothing more to do. Whether there was anything. */
  #work(): boolean {
    const ring = this.#ring;
    let told = 0;
    const until = performance.now() + ROUNDS_MS;
    for (let round = 0; round === 0 || performance.now() < until; round++) {
      told += ring.reap(ROUND_COMPLETIONS);
      // A write is appended in the first, told in the second, and its answer leaves in the third: with this call, not the next.
      for (let pass = 0; pass < SOON_PASSES && this.#queue.length > 0; pass++) this.#runSoons();
      // Whoever was told may have closed the Env.
      if (this.#closed) return true;
      this.#gate.goOn();
      if (!ring.pending && ring.ready === 0 && this.#queue.length === 0) {
        if (this.#releaseSync()) continue;
        this.#lookout.noteCompletions(told);
        return told > 0 || round > 0;
      }
      // Work that goes on and on without the ring, such as direct calls to files, must not keep lines waiting.
      if (ring.pending || ring.called) ring.enter(0, 0);
    }
    return true;
  }

  /** Whether there was a sync that had been put off. It is done, or on its way with others. */
  #releaseSync(): boolean {
    const held = this.#held;
    if (held === undefined) return false;
    this.#held = undefined;
    held.release(this.syncs === 1);
    return true;
  }

  /** Waits in the kernel. Whether something came. */
  #wait(): boolean {
    const ring = this.#ring;
    if (ring.inFlight === 0 || this.guests > 0) return false;
    const { loopFd } = this.#bell;
    if (!this.#watching && loopFd >= 0) {
      this.#watching = true;
      ring.prepare(this.#watch, OP.POLL_ADD, loopFd, 0, 0, 0, POLLIN);
    }
    const micros = loopFd >= 0 ? WAIT_MICROS : WAIT_BLIND_MICROS;
    if (this.syncs > 0 || this.#gate.isShut) {
      ring.enter(1, micros);
    } else {
      const began = performance.now();
      if (!this.#lookout.choose(began) || !this.#look(began)) ring.enter(1, micros);
      this.#lookout.noteWait(performance.now() - began);
    }
    return ring.ready > 0;
  }

  /** Looks for a completion without leaving the processor and without a system call. Whether there is one. */
  #look(began: Millis): boolean {
    const ring = this.#ring;
    if (ring.pending) ring.enter(0, 0);
    while (!ring.signalled) if (performance.now() > began + LOOK_MS) return false;
    ring.enter(0, 0);
    return ring.ready > 0;
  }

  #runSoons(): void {
    const running = this.#queue;
    if (running.length === 0) return;
    this.#queue = this.#running;
    this.#running = running;
    for (let at = 0; at < running.length; at++) {
      const soon = running[at]!;
      soon.queued = false;
      soon.run();
    }
    running.length = 0;
  }

  #sleep(): void {
    const ring = this.#ring;
    if (this.#watching) {
      // The bell would wake the watch, and the watch the bell. Whatever comes with the answer is told in the next turn.
      ring.cancel(this.#watch);
      ring.enter(0, 0);
      if (ring.ready > 2) {
        this.kick();
        return;
      }
      ring.reap();
      if (this.#scheduled || this.#closed) return;
    }
    ring.notify = true;
    this.#bell.arm(ring.inFlight > 0);
    // What completed before the bell was armed would not ring it.
    if (ring.inFlight > 0) ring.enter(0, 0);
    if (ring.ready > 0 || ring.pending || this.#queue.length > 0) this.kick();
  }
}
