/**
 * `Net` of a simulated process. A connection is two lines; each holds what has arrived for it and what it has sent that is
 * still under way. Receives end at random boundaries, sends are copied as the receiver makes room (so that a buffer that
 * is changed before `onSent` is noticed), and either side may be gone without the other knowing.
 *
 * TLS is modelled as far as protocols see it: both sides must ask for it, keys must match, the name is told. Certificates
 * are texts: a client that has a `ca` accepts the server whose `cert` is that text.
 */
import type { Pieces } from "#base/memory";
import type { Effect } from "#base/task";
import type { Millis } from "#base/units";
import type { Address, DialOptions, Ear, Line, LineEnd, Listener, Net, NetError, NetFault, Peer, Tls } from "#env/env";
import type { SimNode } from "./sim-node.ts";
import type { SimProcess } from "./sim-process.ts";

const DIAL_TIMEOUT_MS = 120_000;
const TLS_TIMEOUT_MS = 10_000;
/** How long probes of a silent connection go unanswered until it is given up. */
const PROBING_MS = 10_000;
const NUMERIC = /^[\d.]+$|:/;
const WELL_KNOWN_LOCAL = ["0.0.0.0", "::", "localhost", "127.0.0.1", "::1"];

export class SimNet implements Net {
  readonly #process: SimProcess;
  readonly #listeners = new Set<SimListener>();
  readonly #lines = new Set<SimLine>();

  constructor(process: SimProcess) {
    this.#process = process;
  }

  listen(at: Address, accept: (line: Line) => void): Effect<Listener | NetError> {
    return (resume) => {
      const { world, node } = this.#process;
      this.#process.plan(world.toTurn(world.chance.span(0.02)), () => {
        if ("fd" in at) return resume(failure("unsupported", "no sockets are handed over here"));
        if ("host" in at && !WELL_KNOWN_LOCAL.includes(at.host) && world.network.resolve(at.host, node) !== node)
          return resume(failure("bad-address", `${at.host} is not an address of ${node.name}`));
        const address = "path" in at ? at : { host: at.host, port: at.port === 0 ? world.network.port() : at.port };
        const key = "path" in address ? `${node.name}!${address.path}` : `${node.name}:${address.port}`;
        const listener = new SimListener(this.#process, address, key, accept, () => this.#listeners.delete(listener));
        if (!world.network.listen(key, listener)) return resume(failure("in-use", key));
        this.#listeners.add(listener);
        resume(listener);
      });
    };
  }

  dial(to: Address, options: DialOptions = {}): Effect<Line | NetError> {
    return (resume) => {
      const { world, node } = this.#process;
      const { network } = world;
      const { faults } = network;
      const target = "path" in to ? node : "host" in to ? network.resolve(to.host, node) : undefined;
      const net = "host" in to ? (target?.networkOf(to.host) ?? 0) : 0;
      const wait = (delay: Millis, what: () => void) => this.#process.plan(world.toTurn(delay), what);
      const timeout = options.timeoutMs ?? DIAL_TIMEOUT_MS;
      if ("host" in to && target === undefined && NUMERIC.test(to.host)) {
        wait(timeout, () => resume(failure("timeout", `nobody is at ${to.host}`)));
        return;
      }
      if ("fd" in to || target === undefined) {
        wait(world.chance.span(0.1), () => resume(failure("bad-address", JSON.stringify(to))));
        return;
      }
      wait(world.chance.span(faults.latencyMs), () => {
        if (target !== node && (network.isCut(node, target, net) || network.isCut(target, node, net))) {
          const isTold = world.chance.often(0.2);
          wait(isTold ? faults.latencyMs : timeout, () =>
            resume(failure(isTold ? "unreachable" : "timeout", target.name)),
          );
          return;
        }
        const key = "path" in to ? `${node.name}!${to.path}` : `${target.name}:${to.port}`;
        const listener = network.listener(key);
        if (listener === undefined || world.chance.often(faults.refuse)) {
          wait(world.chance.span(faults.latencyMs), () => resume(failure("refused", key)));
          return;
        }
        const port = "path" in to ? 0 : (options.localPort ?? network.port());
        const [near, far] = connect(this.#process, listener.process, port, "path" in to ? 0 : to.port, net);
        listener.process.net.keep(far);
        this.keep(near);
        listener.process.plan(world.toTurn(0), () => {
          if (listener.isOpen) listener.accept(far);
          else far.close();
          if (far.ear === NO_EAR && !far.isOver) throw new Error("a line was accepted, and nobody listens to it");
        });
        wait(world.chance.span(faults.latencyMs), () => {
          if (near.isOver) resume(failure("refused", `${key} hung up`));
          else resume(near);
        });
      });
    };
  }

  secure(line: Line, tls: Tls): Effect<Line | NetError> {
    return (resume) => {
      if (!(line instanceof SimLine)) throw new Error("a line of another net is to be secured");
      line.secure(tls, resume);
    };
  }

  keep(line: SimLine): void {
    this.#lines.add(line);
    line.onOver = () => this.#lines.delete(line);
  }

  /** The process dies: its node tells the other sides, unless it has lost its power. */
  abandon(): void {
    for (const listener of [...this.#listeners]) listener.close();
    for (const line of [...this.#lines]) line.vanish();
    this.#lines.clear();
  }
}

export class SimListener implements Listener {
  readonly process: SimProcess;
  readonly address: Address;
  readonly accept: (line: Line) => void;
  isOpen = true;
  readonly #key: string;
  readonly #onClose: () => void;

  constructor(process: SimProcess, address: Address, key: string, accept: (line: Line) => void, onClose: () => void) {
    this.process = process;
    this.address = address;
    this.accept = accept;
    this.#key = key;
    this.#onClose = onClose;
  }

  close(): void {
    this.isOpen = false;
    this.process.world.network.unlisten(this.#key, this);
    this.#onClose();
  }
}

const NO_EAR: Ear = {
  onReceived: () => unheard("onReceived"),
  onSent: () => unheard("onSent"),
  onClosed: () => {},
};
function unheard(what: string): never {
  throw new Error(`${what} of a line without an ear`);
}

function connect(dialler: SimProcess, listener: SimProcess, dialPort: number, listenPort: number, net: number) {
  const near = new SimLine(dialler, {
    host: listenPort === 0 ? "" : listener.node.addresses[net]!,
    port: listenPort,
    localHost: listenPort === 0 ? "" : dialler.node.addresses[net]!,
    localPort: dialPort,
    tlsName: "",
  });
  const far = new SimLine(listener, {
    host: near.peer.localHost,
    port: near.peer.localPort,
    localHost: near.peer.host,
    localPort: near.peer.port,
    tlsName: "",
  });
  near.other = far;
  far.other = near;
  return [near, far] as const;
}

export class SimLine implements Line {
  ear: Ear = NO_EAR;
  readonly peer: Peer;
  readonly process: SimProcess;
  /** What a send is called when something is wrong with it. */
  readonly #sends: string;
  /** The network that it goes over. */
  readonly #net: number;
  other!: SimLine;
  onOver: () => void = () => {};
  /** Nothing is told to the owner any more but `onClosed`. */
  isOver = false;
  /** What has arrived and was not received yet, and what the other side has sent and is still under way. */
  #arrived: Uint8Array[] = [];
  #arrivedBytes = 0;
  #underWay: Uint8Array[] = [];
  #underWayBytes = 0;
  #isStalled = false;
  #finAfter: "nothing" | "all" = "nothing";
  #hasFinArrived = false;
  /** What was sent to this side is lost from now on, and nobody is told. */
  #isDeaf = false;
  #lastArrival: Millis = 0;
  #receiveAt = -1;
  #receiveLength = 0;
  #restAt = 0;
  #restLength = 0;
  #isReceivePlanned = false;
  #sending: Pieces | undefined;
  #sendPiece = 0;
  #sendByte = 0;
  #tls: { readonly tls: Tls; readonly resume: (line: Line | NetError) => void } | undefined;

  constructor(process: SimProcess, peer: Peer) {
    this.process = process;
    this.peer = peer;
    this.#sends = `a send of ${process.name}`;
    this.#net = process.node.networkOf(peer.localHost);
    process.world.network.connected(this);
  }

  get #node(): SimNode {
    return this.process.node;
  }

  receive(at: number, length: number, restAt = 0, restLength = 0): void {
    if (this.#receiveAt >= 0) throw new Error("a line receives twice at a time");
    if (length <= 0) throw new Error(`a line receives ${length} bytes`);
    if (this.isOver || this.process.dead) return;
    this.process.memory.assertOwned(at, length, "a receive");
    if (restLength > 0) this.process.memory.assertOwned(restAt, restLength, "the rest of a receive");
    this.#receiveAt = at;
    this.#receiveLength = length;
    this.#restAt = restAt;
    this.#restLength = restLength;
    this.#planReceive();
  }

  send(pieces: Pieces): void {
    if (this.#sending !== undefined) throw new Error("a line sends twice at a time");
    if (pieces.total <= 0) throw new Error("a line sends nothing");
    if (this.isOver || this.process.dead) return;
    this.process.memory.assertOwnedPieces(pieces, this.#sends);
    this.process.world.ioCount++;
    this.#sending = pieces;
    this.#sendPiece = 0;
    this.#sendByte = 0;
    this.process.plan(0, () => this.#pump());
  }

  keepAlive(idleMs: Millis): void {
    this.#planProbe(idleMs, false);
  }

  close(): void {
    if (this.isOver) return;
    const hasUnread = this.#arrivedBytes + this.#underWayBytes > 0;
    this.#end("stopped");
    // A kernel that has unread data of a closed socket answers with a reset, which may overtake what was sent.
    if (hasUnread && this.process.world.chance.often(0.5)) this.#tellReset();
    else this.other.#finish();
  }

  abort(): void {
    if (this.isOver) return;
    this.#end("stopped");
    // What has left the machine is there before the reset, or lost with it: nobody is left to send it again.
    const { world } = this.process;
    const { other } = this;
    const delay = Math.max(other.#lastArrival - world.now, world.chance.span(world.network.faults.latencyMs));
    world.plan(delay, () => {
      other.#isDeaf = true;
      if (!world.network.isCut(this.#node, other.#node, this.#net)) other.fail("reset");
    });
  }

  /** Both sides learn that the connection is reset; what is under way is lost. */
  reset(): void {
    this.fail("reset");
    this.other.fail("reset");
  }

  /** The process behind this side is gone. */
  vanish(): void {
    if (this.isOver) return;
    this.isOver = true;
    this.process.world.network.ended(this);
    if (!this.#node.isUp) return;
    if (this.process.world.chance.often(0.5)) this.#tellReset();
    else this.other.#finish();
  }

  /** The line ends without having been asked to. */
  fail(end: LineEnd): void {
    if (!this.isOver) this.#end(end);
  }

  /** What stood still because of a cut goes on, if it can now. */
  retransmit(): void {
    if (!this.#isStalled || this.process.world.network.isCut(this.other.#node, this.#node, this.#net)) return;
    this.#isStalled = false;
    const { world } = this.process;
    // One arrival was planned for each piece; those that were missed are planned again.
    for (let i = 0; i < this.#underWay.length + 1; i++)
      world.plan(world.chance.span(world.network.faults.latencyMs) * (i + 1), () => this.#arrive());
  }

  /* ---------------------------------------------------- towards the other */

  /** Copies what is being sent into the other side's flow, as far as there is room. */
  #pump(): void {
    const pieces = this.#sending;
    if (pieces === undefined || this.isOver) return;
    const { world, memory } = this.process;
    const { faults } = world.network;
    while (this.#sendPiece < pieces.count) {
      const room = faults.bufferBytes - this.other.#arrivedBytes - this.other.#underWayBytes;
      if (room <= 0) return;
      const at = pieces.at[this.#sendPiece]! + this.#sendByte;
      const left = pieces.length[this.#sendPiece]! - this.#sendByte;
      const step = Math.min(left, room, 1 + world.chance.below(faults.chunkMax));
      memory.assertOwned(at, step, this.#sends);
      this.other.#depart(memory.bytes.slice(at, at + step));
      if (this.isOver) return;
      this.#sendByte += step;
      if (step === left) {
        this.#sendPiece++;
        this.#sendByte = 0;
      }
    }
    this.#sending = undefined;
    this.process.plan(world.toTurn(0), () => {
      if (!this.isOver) this.ear.onSent();
    });
  }

  /* ------------------------------------------------------- what comes in */

  /** The other side has put bytes on their way to this one. */
  #depart(bytes: Uint8Array): void {
    const { world } = this.process;
    const { faults } = world.network;
    if (world.chance.often(faults.reset)) {
      world.fault("connection reset", this.#node);
      this.reset();
      return;
    }
    if (world.chance.often(faults.vanish)) {
      world.fault("half-open", this.#node);
      this.#isDeaf = true;
    }
    if (this.isOver) {
      // Nobody is here any more: the sender is told, if the machine is there to tell.
      if (!world.network.isCut(this.other.#node, this.#node, this.#net)) this.#tellReset();
      else this.#planGivingUp();
      return;
    }
    if (this.#isDeaf) {
      this.#planGivingUp();
      return;
    }
    let delay = world.chance.span(faults.latencyMs);
    if (world.chance.often(faults.clog)) {
      world.fault("clog", this.#node);
      delay += world.chance.fraction() * faults.clogMs;
    }
    this.#underWay.push(bytes);
    this.#underWayBytes += bytes.length;
    this.#lastArrival = Math.max(this.#lastArrival, world.now + delay);
    world.plan(this.#lastArrival - world.now, () => this.#arrive());
  }

  #arrive(): void {
    if (this.isOver || this.#isDeaf || this.#isStalled) return;
    const { world } = this.process;
    if (world.network.isCut(this.other.#node, this.#node, this.#net)) {
      this.#isStalled = true;
      this.#planGivingUp();
      return;
    }
    const bytes = this.#underWay.shift();
    if (bytes !== undefined) {
      this.#underWayBytes -= bytes.length;
      this.#arrivedBytes += bytes.length;
      this.#arrived.push(bytes);
    } else if (this.#finAfter === "all") this.#hasFinArrived = true;
    this.#planReceive();
  }

  /** What was sent to this side is not acknowledged: in the end its sender gives up. */
  #planGivingUp(): void {
    const { world } = this.process;
    const other = this.other;
    world.plan(world.network.faults.giveUpMs, () => {
      if (other.isOver) return;
      if (!this.isOver && !this.#isDeaf && !this.#isStalled) return;
      // With the sender, what it would have sent again is gone.
      this.#isDeaf = true;
      this.#underWay = [];
      this.#underWayBytes = 0;
      other.fail("broken");
    });
  }

  /** What the machine does on its own, also for a process that is paused. */
  #planProbe(idleMs: Millis, isSuspect: boolean): void {
    const { world, node } = this.process;
    const { network } = world;
    world.plan(isSuspect ? PROBING_MS : idleMs, () => {
      if (this.isOver || this.process.dead) return;
      const far = this.other.#node;
      const isCut = network.isCut(node, far, this.#net) || network.isCut(far, node, this.#net);
      const isUnheard = isCut || !far.isUp || this.#isDeaf || this.other.#isDeaf;
      if (isUnheard && isSuspect) this.fail("broken");
      else if (!isUnheard && this.other.isOver && this.#finAfter === "nothing") this.fail("reset");
      else this.#planProbe(idleMs, isUnheard);
    });
  }

  #finish(): void {
    if (this.isOver) return;
    this.#finAfter = "all";
    const { world } = this.process;
    this.#lastArrival = Math.max(this.#lastArrival, world.now + world.chance.span(world.network.faults.latencyMs));
    world.plan(this.#lastArrival - world.now, () => this.#arrive());
  }

  #tellReset(): void {
    const { world } = this.process;
    const other = this.other;
    world.plan(world.chance.span(world.network.faults.latencyMs), () => {
      if (!world.network.isCut(this.#node, other.#node, this.#net)) other.fail("reset");
    });
  }

  #planReceive(): void {
    if (this.#isReceivePlanned || this.#receiveAt < 0) return;
    if (this.#arrivedBytes === 0 && !this.#hasFinArrived) return;
    this.#isReceivePlanned = true;
    this.process.plan(this.process.world.toTurn(0), () => {
      this.#isReceivePlanned = false;
      if (!this.isOver && this.#receiveAt >= 0) this.#giveReceived();
    });
  }

  #giveReceived(): void {
    const { world, memory } = this.process;
    const { chunkMax } = world.network.faults;
    const length = this.#receiveLength;
    const room = length + this.#restLength;
    const limit = Math.min(room, world.chance.often(0.5) ? chunkMax : 1 + world.chance.below(chunkMax));
    memory.assertOwned(this.#receiveAt, length, "a receive");
    if (this.#restLength > 0) memory.assertOwned(this.#restAt, this.#restLength, "the rest of a receive");
    let count = 0;
    while (count < limit && this.#arrived.length > 0) {
      const first = this.#arrived[0]!;
      const step = Math.min(first.length, (count < length ? Math.min(limit, length) : limit) - count);
      const at = count < length ? this.#receiveAt + count : this.#restAt + count - length;
      memory.bytes.set(first.subarray(0, step), at);
      if (step === first.length) this.#arrived.shift();
      else this.#arrived[0] = first.subarray(step);
      count += step;
    }
    world.ioCount++;
    this.#arrivedBytes -= count;
    this.#receiveAt = -1;
    const other = this.other;
    if (count > 0 && !other.process.dead)
      other.process.plan(world.chance.span(world.network.faults.latencyMs), () => other.#pump());
    this.ear.onReceived(count);
  }

  #end(end: LineEnd): void {
    this.isOver = true;
    this.#receiveAt = -1;
    this.#sending = undefined;
    const { world } = this.process;
    world.network.ended(this);
    if (this.#tls !== undefined) this.#tls.resume(failure("tls-failed", end));
    this.#tls = undefined;
    this.process.plan(world.toTurn(world.chance.span(0.02)), () => {
      this.onOver();
      this.ear.onClosed(end);
    });
  }

  /* ---------------------------------------------------------------- TLS */

  secure(tls: Tls, resume: (line: Line | NetError) => void): void {
    if (this.#receiveAt >= 0 || this.#sending !== undefined)
      throw new Error("a line is secured with something in flight");
    const { world } = this.process;
    const { other } = this;
    const planned = (what: () => void) =>
      this.process.plan(world.chance.span(world.network.faults.latencyMs) * 2, what);
    if (this.isOver) {
      planned(() => resume(failure("broken", "the line has ended")));
      return;
    }
    this.#tls = { tls, resume };
    const theirs = other.#tls;
    if (theirs === undefined) {
      this.process.plan(TLS_TIMEOUT_MS, () => this.#failTls("no handshake"));
      return;
    }
    const name = matchTls(tls, theirs.tls);
    const isClean = this.#arrivedBytes + this.#underWayBytes + other.#arrivedBytes + other.#underWayBytes === 0;
    if (name === undefined || !isClean) {
      planned(() => this.#failTls("the two sides do not agree"));
      other.process.plan(0, () => other.#failTls("the two sides do not agree"));
      return;
    }
    this.#tls = undefined;
    other.#tls = undefined;
    const near = new SimLine(this.process, { ...this.peer, tlsName: tls.role === "server" ? name : "" });
    const far = new SimLine(other.process, { ...other.peer, tlsName: tls.role === "server" ? "" : name });
    near.other = far;
    far.other = near;
    for (const [old, made] of [
      [this, near],
      [other, far],
    ] as const) {
      old.isOver = true;
      world.network.ended(old);
      old.onOver();
      made.process.net.keep(made);
    }
    planned(() => resume(near));
    other.process.plan(world.chance.span(world.network.faults.latencyMs) * 2, () => theirs.resume(far));
  }

  #failTls(why: string): void {
    const pending = this.#tls;
    if (pending === undefined) return;
    this.#tls = undefined;
    pending.resume(failure("tls-failed", why));
  }
}

/** The client's name as the server learns it, or undefined when they do not agree. */
function matchTls(one: Tls, two: Tls): string | undefined {
  const client = one.role === "client" ? one : two;
  const server = one.role === "server" ? one : two;
  if (client === server || client.role === server.role) return undefined;
  const identity = client.psk?.keys().next().value;
  if (identity !== undefined) {
    const key = server.psk?.get(identity);
    const own = client.psk?.get(identity);
    return key !== undefined && own !== undefined && key.join() === own.join() ? identity : undefined;
  }
  if (server.cert === undefined || (client.ca !== undefined && client.ca !== server.cert)) return undefined;
  if (server.ca !== undefined && client.cert !== server.ca) return undefined;
  return client.cert ?? "";
}

function failure(fault: NetFault, detail: string): NetError {
  return { fault, detail };
}
