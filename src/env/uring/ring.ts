/**
 * One io_uring. Requests are objects that live as long as their owner and are registered once; the kernel knows them by
 * their index. Preparing one writes 64 bytes into the submission queue, nothing is allocated. Everything prepared goes
 * to the kernel in one `enter`, which also fetches what has completed.
 *
 * Ownership: what a request points to must stay until its `complete`; nothing here copies. `close` waits for requests
 * in flight, so that memory can never be freed under the kernel's hands.
 */
import {
  CQ_EVENTFD_DISABLED,
  CQE_WORDS,
  ENTER,
  ERRNO,
  FEAT,
  GETEVENTS_ARG,
  IOVEC_BYTES,
  MSGHDR,
  OFFSETS,
  OP,
  type Op,
  PARAMS,
  PROBE_HEAD_BYTES,
  PROBE_OP_BYTES,
  PROBE_OPS_MAX,
  PROBE_SUPPORTED,
  REGISTER,
  SETUP,
  SQ_WORK,
  SQE_WORDS,
  TIMESPEC,
} from "./abi.ts";
import { errorName, loadNative, type Mapping, type Native } from "./native.ts";
import type { Remains } from "./remains.ts";

/** What waits for a completion. */
export interface Request {
  /** Given by `Ring.register`. */
  index: number;
  /** @param result what the operation returned, or minus the error number. */
  complete(result: number): void;
}

export interface RingOptions {
  /** Submission queue entries, a power of two; when it is full, it is submitted early. */
  readonly entries: number;
  /** Completion queue entries; what does not fit, the kernel keeps. */
  readonly completions: number;
  /** Whether completions may wait until somebody asks for them (DEFER_TASKRUN), which batches best. */
  readonly defer: boolean;
}

/** For gathered operations of one submission: so many pieces, then it is submitted early. */
const IOVECS = 4096;
const MESSAGES = 512;
/** So often in a row the kernel may have no memory for a submission. */
const TRIES_MAX = 10_000;
/** Upper half of an address or position. */
const HIGH = 2 ** 32;

/** Arena: what the kernel reads beside the rings and the lane's memory. One block, allocated once. */
const ARENA = {
  arg: 0,
  timespec: 32,
  timeout: 48,
  messages: 64,
  iovecs: 64 + MESSAGES * MSGHDR.byteLength,
  byteLength: 64 + MESSAGES * MSGHDR.byteLength + IOVECS * IOVEC_BYTES,
} as const;

export class Ring {
  readonly fd: number;
  /** Which set-up flags the kernel took, for the log. */
  readonly flags: number;
  /** Requests that the kernel has, or will have with the next `enter`. */
  inFlight = 0;
  /** Calls of `enter` so far, for the tests and the meter. */
  enters = 0;
  /** Completions told so far. */
  told = 0;
  readonly #native: Native;
  readonly #remains: Remains;
  readonly #requests: (Request | undefined)[] = [];
  readonly #freeIndexes: number[] = [];
  readonly #rings: Mapping;
  readonly #sqeMap: Mapping;
  /** The mapped queues as words. */
  #words: Uint32Array;
  #sqes: Uint32Array;
  readonly #sqHead: number;
  readonly #sqTail: number;
  readonly #sqFlags: number;
  readonly #sqDropped: number;
  readonly #sqMask: number;
  readonly #sqEntries: number;
  readonly #cqHead: number;
  readonly #cqTail: number;
  readonly #cqMask: number;
  readonly #cqes: number;
  readonly #cqFlags: number;
  readonly #cqOverflow: number;
  /** Our own copy of the tail: what is between it and the published one has been prepared and not submitted. */
  #tail: number;
  #submitted: number;
  #head: number;
  #closed = false;
  /** `allocUnsafeSlow`, since that memory never moves; pinned by this reference. */
  readonly #arena = Buffer.allocUnsafeSlow(ARENA.byteLength).fill(0);
  readonly #arenaWords = new Uint32Array(this.#arena.buffer, this.#arena.byteOffset, ARENA.byteLength / 4);
  readonly #arenaAt: number;
  #iovecs = 0;
  #messages = 0;

  constructor(options: RingOptions, remains: Remains) {
    const native = loadNative();
    if ("missing" in native) throw new Error(native.missing);
    this.#native = native;
    this.#remains = remains;
    const { fd, params } = setUp(native, options);
    this.fd = fd;
    remains.add(fd);
    this.flags = params.getUint32(PARAMS.flags, true);
    const word = (field: keyof typeof PARAMS): number => params.getUint32(PARAMS[field], true) / 4;
    const entries = params.getUint32(PARAMS.sq_entries, true);
    const completions = params.getUint32(PARAMS.cq_entries, true);
    const ringBytes = Math.max(
      params.getUint32(PARAMS.sq_array, true) + entries * 4,
      params.getUint32(PARAMS.cqes, true) + completions * CQE_WORDS * 4,
    );
    this.#rings = native.map(fd, ringBytes, OFFSETS.SQ_RING);
    this.#sqeMap = native.map(fd, entries * SQE_WORDS * 4, OFFSETS.SQES);
    remains.addMapping(this.#rings.at, this.#rings.bytes.byteLength);
    remains.addMapping(this.#sqeMap.at, this.#sqeMap.bytes.byteLength);
    this.#words = new Uint32Array(this.#rings.bytes, 0, Math.floor(ringBytes / 4));
    this.#sqes = new Uint32Array(this.#sqeMap.bytes);
    this.#sqHead = word("sq_head");
    this.#sqTail = word("sq_tail");
    this.#sqFlags = word("sq_flags");
    this.#sqDropped = word("sq_dropped");
    this.#sqMask = this.#words[word("sq_ring_mask")]!;
    this.#sqEntries = entries;
    this.#cqHead = word("cq_head");
    this.#cqTail = word("cq_tail");
    this.#cqMask = this.#words[word("cq_ring_mask")]!;
    this.#cqes = word("cqes");
    this.#cqFlags = word("cq_flags");
    this.#cqOverflow = word("cq_overflow");
    // Entry n of the queue is always SQE n.
    const array = word("sq_array");
    for (let entry = 0; entry < entries; entry++) this.#words[array + entry] = entry;
    this.#tail = this.#words[this.#sqTail]!;
    this.#submitted = this.#tail;
    this.#head = this.#words[this.#cqHead]!;
    this.#arenaAt = native.address(this.#arena);
    // Index 0 stands for completions that nobody waits for.
    this.register({ index: 0, complete() {} });
  }

  register(request: Request): void {
    request.index = this.#freeIndexes.pop() ?? this.#requests.length;
    this.#requests[request.index] = request;
  }

  /** Nothing of it may be in flight. */
  release(request: Request): void {
    this.#requests[request.index] = undefined;
    this.#freeIndexes.push(request.index);
  }

  /** Whether something has been prepared and not submitted. */
  get pending(): boolean {
    return this.#tail !== this.#submitted;
  }

  /**
   * Prepares one operation. Which field means what depends on the operation, see io_uring_enter(2); `flags` are those
   * of the operation (fsync_flags, msg_flags …), `sqeFlags` those of the entry.
   */
  prepare(
    request: Request | undefined,
    op: Op,
    fd: number,
    address: number,
    length: number,
    position: number,
    flags: number,
    sqeFlags = 0,
  ): void {
    for (let tries = 0; this.#tail - this.#submitted === this.#sqEntries; tries++) {
      if (tries === TRIES_MAX) throw new Error("the kernel takes no submissions");
      this.enter(0, 0);
    }
    const at = (this.#tail & this.#sqMask) * SQE_WORDS;
    const sqes = this.#sqes;
    sqes[at] = op | (sqeFlags << 8);
    sqes[at + 1] = fd;
    // Typed arrays store numbers modulo 2^32.
    sqes[at + 2] = position;
    sqes[at + 3] = position / HIGH;
    sqes[at + 4] = address;
    sqes[at + 5] = address / HIGH;
    sqes[at + 6] = length;
    sqes[at + 7] = flags;
    sqes[at + 8] = request === undefined ? 0 : request.index;
    sqes[at + 9] = 0;
    sqes[at + 10] = 0;
    sqes[at + 11] = 0;
    sqes[at + 12] = 0;
    sqes[at + 13] = 0;
    sqes[at + 14] = 0;
    sqes[at + 15] = 0;
    this.#tail = (this.#tail + 1) | 0;
    this.inFlight++;
  }

  /** Completes `request` after so many microseconds, less than a second. One at a time can be prepared. */
  prepareTimeout(request: Request, micros: number): void {
    this.#arenaWords[(ARENA.timeout + TIMESPEC.tv_nsec) / 4] = micros * 1000;
    this.prepare(request, OP.TIMEOUT, -1, this.#arenaAt + ARENA.timeout, 1, 0, 0);
  }

  /** Asks for the end of whatever is in flight for `request`; it then completes with ECANCELED, or as it would have. */
  cancel(request: Request): void {
    this.prepare(undefined, OP.ASYNC_CANCEL, -1, request.index, 0, 0, 0);
  }

  /**
   * Room for one gathered operation of `count` pieces; returns the index of the first iovec. The kernel copies them
   * when it takes the submission, so they last until the next `enter`; `prepare` does not enter after this.
   */
  takeIovecs(count: number): number {
    for (let tries = 0; !this.#hasRoom(count); tries++) {
      if (tries === TRIES_MAX) throw new Error("the kernel takes no submissions");
      this.enter(0, 0);
    }
    const first = this.#iovecs;
    this.#iovecs += count;
    return first;
  }

  #hasRoom(iovecs: number): boolean {
    return (
      this.#iovecs + iovecs <= IOVECS && this.#messages < MESSAGES && this.#tail - this.#submitted < this.#sqEntries
    );
  }

  setIovec(index: number, address: number, length: number): void {
    const at = (ARENA.iovecs + index * IOVEC_BYTES) / 4;
    this.#arenaWords[at] = address;
    this.#arenaWords[at + 1] = address / HIGH;
    this.#arenaWords[at + 2] = length;
    this.#arenaWords[at + 3] = 0;
  }

  iovecAddress(index: number): number {
    return this.#arenaAt + ARENA.iovecs + index * IOVEC_BYTES;
  }

  /** Writes the iovecs just taken to a file, now, and gives their room back. Bytes written, or minus the error number. */
  writeNow(fd: number, iovec: number, count: number, position: number): number {
    const result = this.#native.write(fd, this.iovecAddress(iovec), count, position);
    this.#iovecs = iovec;
    return result;
  }

  /** A message of the iovecs just taken, for SENDMSG: its address. It lasts as they do. */
  makeMessage(iovec: number, count: number): number {
    const offset = ARENA.messages + this.#messages++ * MSGHDR.byteLength;
    const iov = (offset + MSGHDR.iov) / 4;
    const address = this.iovecAddress(iovec);
    this.#arenaWords[iov] = address;
    this.#arenaWords[iov + 1] = address / HIGH;
    this.#arenaWords[(offset + MSGHDR.iovlen) / 4] = count;
    return this.#arenaAt + offset;
  }

  /**
   * Submits what is prepared and fetches completions; with `wait`, sleeps until there is one, or until `micros` have
   * passed.
   */
  enter(wait: 0 | 1, micros: number): void {
    const submit = (this.#tail - this.#submitted) | 0;
    if (submit > 0) Atomics.store(this.#words, this.#sqTail, this.#tail >>> 0);
    let flags: number = ENTER.GETEVENTS;
    let arg = 0;
    let argBytes = 0;
    if (wait === 1) {
      flags |= ENTER.EXT_ARG;
      arg = this.#arenaAt + ARENA.arg;
      argBytes = GETEVENTS_ARG.byteLength;
      const timespec = this.#arenaAt + ARENA.timespec;
      this.#arenaWords[(ARENA.arg + GETEVENTS_ARG.ts) / 4] = timespec;
      this.#arenaWords[(ARENA.arg + GETEVENTS_ARG.ts) / 4 + 1] = timespec / HIGH;
      this.#arenaWords[(ARENA.timespec + TIMESPEC.tv_nsec) / 4] = micros * 1000;
    }
    this.enters++;
    const result = this.#native.enter(this.fd, submit, wait, flags, arg, argBytes);
    const { EAGAIN, EINTR, ETIME } = ERRNO;
    // EAGAIN, EBUSY: short of memory for the moment; what was not taken is submitted with the next turn.
    if (result < 0 && result !== -ETIME && result !== -EINTR && result !== -EAGAIN && result !== -16)
      throw new Error(`io_uring_enter: ${errorName(-result)}`);
    this.#submitted = Atomics.load(this.#words, this.#sqHead) | 0;
    if (this.#submitted === this.#tail) {
      this.#iovecs = 0;
      this.#messages = 0;
    }
  }

  /** Whether the kernel waits for an `enter` to give completions: seen in memory, without a system call. */
  get called(): boolean {
    return (Atomics.load(this.#words, this.#sqFlags) & SQ_WORK) !== 0;
  }

  /** Whether there are completions, or will be after the next `enter`. */
  get signalled(): boolean {
    return this.called || this.ready > 0;
  }

  /** Completions that are there already. */
  get ready(): number {
    return (Atomics.load(this.#words, this.#cqTail) - this.#head) | 0;
  }

  /** Tells every completion that is there now. Returns how many. */
  reap(most = Number.POSITIVE_INFINITY): number {
    const words = this.#words;
    const tail = Atomics.load(words, this.#cqTail) | 0;
    let told = 0;
    while (this.#head !== tail && told < most && !this.#closed) {
      const at = this.#cqes + (this.#head & this.#cqMask) * CQE_WORDS;
      const index = words[at]!;
      const result = words[at + 2]! | 0;
      this.#head = (this.#head + 1) | 0;
      // Given back one by one: what a callback prepares may need the room.
      Atomics.store(words, this.#cqHead, this.#head >>> 0);
      this.inFlight--;
      told++;
      this.told++;
      const request = this.#requests[index];
      if (request === undefined) throw new Error(`io_uring completed request ${index}, which nobody waits for`);
      request.complete(result);
    }
    return told;
  }

  /** Whether the kernel signals the eventfd; while the lane is awake it need not. */
  set notify(on: boolean) {
    if (on) Atomics.and(this.#words, this.#cqFlags, ~CQ_EVENTFD_DISABLED);
    else Atomics.or(this.#words, this.#cqFlags, CQ_EVENTFD_DISABLED);
  }

  registerEventfd(eventfd: number): void {
    const result = this.#native.register(this.fd, REGISTER.EVENTFD, new Uint8Array(Int32Array.of(eventfd).buffer), 1);
    if (result < 0) throw new Error(`IORING_REGISTER_EVENTFD: ${errorName(-result)}`);
  }

  /** What the kernel counts as lost: entries it found malformed, completions it had no memory for. Both must be 0. */
  get lost(): number {
    return this.#closed ? 0 : this.#words[this.#sqDropped]! + this.#words[this.#cqOverflow]!;
  }

  /**
   * Ends everything that is in flight, without telling anybody, and waits until the kernel has let go of it; then
   * closes the ring. What cannot be cancelled (a sync, for one) is waited for.
   */
  close(): void {
    if (this.#closed) return;
    for (const request of this.#requests) if (request !== undefined && request.index > 0) this.cancel(request);
    while (this.inFlight > 0) {
      this.enter(1, 1000);
      const ready = this.ready;
      this.#head = (this.#head + ready) | 0;
      this.inFlight -= ready;
      Atomics.store(this.#words, this.#cqHead, this.#head >>> 0);
    }
    this.#closed = true;
    this.#words = new Uint32Array(0);
    this.#sqes = new Uint32Array(0);
    this.#remains.remove(this.fd);
    this.#native.close(this.fd);
    for (const mapping of [this.#rings, this.#sqeMap]) {
      this.#remains.removeMapping(mapping.at);
      mapping.unmap();
    }
  }
}

/** Flags from the best to what the oldest kernels take. */
function setUp(native: Native, options: RingOptions): { fd: number; params: DataView } {
  const base = SETUP.CQSIZE | SETUP.CLAMP;
  const levels = [
    ...(options.defer
      ? [base | SETUP.SUBMIT_ALL | SETUP.SINGLE_ISSUER | SETUP.DEFER_TASKRUN | SETUP.TASKRUN_FLAG]
      : []),
    base | SETUP.SUBMIT_ALL | SETUP.COOP_TASKRUN | SETUP.TASKRUN_FLAG,
    base,
  ];
  let result = 0;
  for (const flags of levels) {
    const bytes = new Uint8Array(PARAMS.byteLength);
    const params = new DataView(bytes.buffer);
    params.setUint32(PARAMS.flags, flags, true);
    params.setUint32(PARAMS.cq_entries, options.completions, true);
    result = native.setup(options.entries, bytes);
    if (result >= 0) return { fd: result, params };
    // Only "invalid argument" can mean that a flag is unknown.
    if (result !== -22) break;
  }
  throw new Error(`io_uring_setup: ${errorName(-result)}`);
}

/** The operations that the Env is made of. */
const NEEDED = [
  "READV",
  "WRITEV",
  "FSYNC",
  "POLL_ADD",
  "SENDMSG",
  "ACCEPT",
  "ASYNC_CANCEL",
  "CONNECT",
  "FALLOCATE",
  "CLOSE",
  "READ",
  "WRITE",
  "SEND",
  "RECV",
] as const satisfies (keyof typeof OP)[];

/** Why this machine cannot do it, as a sentence, or undefined if it can. */
export function whyNoUring(): string | undefined {
  const native = loadNative();
  if ("missing" in native) return native.missing;
  const bytes = new Uint8Array(PARAMS.byteLength);
  const fd = native.setup(4, bytes);
  if (fd < 0) return refusal(-fd);
  try {
    const features = new DataView(bytes.buffer).getUint32(PARAMS.features, true);
    for (const [name, bit] of Object.entries(FEAT))
      if ((features & bit) === 0) return `this kernel's io_uring is too old: it lacks ${name}`;
    const probe = new Uint8Array(PROBE_HEAD_BYTES + PROBE_OPS_MAX * PROBE_OP_BYTES);
    const result = native.register(fd, REGISTER.PROBE, probe, PROBE_OPS_MAX);
    if (result < 0) return `this kernel's io_uring cannot be probed: ${errorName(-result)}`;
    // Each entry: operation, reserved byte, flags (16 bits), reserved.
    for (const name of NEEDED)
      if (((probe[PROBE_HEAD_BYTES + OP[name] * PROBE_OP_BYTES + 2] ?? 0) & PROBE_SUPPORTED) === 0)
        return `this kernel's io_uring is too old: it lacks the operation ${name}`;
    return undefined;
  } finally {
    native.close(fd);
  }
}

function refusal(errno: number): string {
  const name = errorName(errno);
  if (name === "ENOSYS") return "this kernel has no io_uring";
  if (name === "EPERM")
    return "io_uring is forbidden here (kernel.io_uring_disabled, or the container's seccomp profile)";
  if (name === "EMFILE" || name === "ENFILE") return `no file descriptor is left for io_uring (${name})`;
  return `io_uring cannot be set up: ${name}`;
}
