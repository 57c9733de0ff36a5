/**
 * Tells a story (a generator that yields how many bytes it needs next) over a line: for the linear negotiations that
 * are not worth a slot each. It promises that the story's `send`s leave in order, that the end of the story closes the
 * line only after they have left, and that `onEnd` comes exactly once, after which nothing touches the line.
 */
import { type Memory, Pieces } from "#base/memory";
import type { Ear, Line } from "./env.ts";

export type StoryNeeds = number | "wait";
export type Story<End> = Generator<StoryNeeds, End, DataView>;

const RECEIVE_BYTES = 4096;
const SEND_BYTES_MAX = 64 * 1024;
/** What a story may leave unsent: a peer that asks and never reads is closed when it gets there. */
const UNSENT_BYTES_MAX = 16 * 1024 * 1024;

export interface StoryHooks<End> {
  /** `end` is "closed" when the line ended before the story did. */
  onEnd(end: End | "closed"): void;
  /** The line outlives a story that ends so (to go on under TLS, or with another machine). */
  keeps?(end: End): boolean;
}

export class StoryLine<End> implements Ear {
  readonly line: Line;
  readonly #memory: Memory;
  readonly #hooks: StoryHooks<End>;
  #story: Story<End> | undefined;
  #needs = 0;
  #have: Uint8Array = new Uint8Array(0);
  #filled = 0;
  /** Received, and not yet asked for. */
  #spare: Uint8Array = new Uint8Array(0);
  #receiveAt = 0;
  #receiving = false;
  readonly #outgoing: Uint8Array[] = [];
  #unsent = 0;
  #sendAt = 0;
  #sending = 0;
  readonly #pieces = new Pieces();
  #end: End | undefined;
  #closing = false;
  #closed = false;
  #told = false;

  constructor(memory: Memory, line: Line, hooks: StoryHooks<End>) {
    this.#memory = memory;
    this.line = line;
    this.#hooks = hooks;
    line.ear = this;
  }

  start(story: Story<End>): void {
    this.#story = story;
    this.#advance(undefined);
  }

  /** The story no longer has to wait. */
  resume(): void {
    if (this.#needs === -1) this.#advance(undefined);
  }
  get waiting(): boolean {
    return this.#needs === -1;
  }
  /** Bytes that were received and belong to what comes after the story. */
  get rest(): Uint8Array {
    return this.#spare;
  }

  send(bytes: Uint8Array): void {
    if (this.#closed || this.#closing) return;
    this.#unsent += bytes.length;
    if (this.#unsent > UNSENT_BYTES_MAX) {
      this.close();
      return;
    }
    this.#outgoing.push(bytes);
    this.#sendNext();
  }

  close(): void {
    if (this.#closing || this.#closed) return;
    this.#closing = true;
    this.line.close();
  }

  onReceived(count: number): void {
    this.#receiving = false;
    if (count === 0) {
      this.close();
      return;
    }
    const bytes = this.#memory.slice(this.#receiveAt, count).slice();
    this.#memory.free(this.#receiveAt);
    this.#receiveAt = 0;
    if (this.#spare.length === 0) this.#spare = bytes;
    else {
      const joined = new Uint8Array(this.#spare.length + bytes.length);
      joined.set(this.#spare);
      joined.set(bytes, this.#spare.length);
      this.#spare = joined;
    }
    this.#fill();
  }

  onSent(): void {
    this.#memory.free(this.#sendAt);
    this.#sendAt = 0;
    this.#unsent -= this.#sending;
    this.#sendNext();
  }

  onClosed(): void {
    this.#closed = true;
    if (this.#receiveAt !== 0) this.#memory.free(this.#receiveAt);
    if (this.#sendAt !== 0) this.#memory.free(this.#sendAt);
    this.#receiveAt = this.#sendAt = 0;
    this.#outgoing.length = 0;
    const story = this.#story;
    this.#story = undefined;
    // Told first: a story must not see its world answer after this.
    if (!this.#told) {
      this.#told = true;
      this.#hooks.onEnd(this.#end ?? "closed");
    }
    story?.return(undefined as never);
  }

  onMemory(): void {
    this.#sendNext();
    this.#fill();
  }

  #advance(given: DataView | undefined): void {
    const story = this.#story;
    if (story === undefined) return;
    this.#needs = 0;
    const step = story.next(given as DataView);
    if (step.done === true) {
      this.#story = undefined;
      this.#end = step.value;
      this.#finish();
    } else if (step.value === "wait") {
      this.#needs = -1;
    } else {
      this.#needs = step.value;
      this.#have = new Uint8Array(step.value);
      this.#filled = 0;
      this.#fill();
    }
  }

  /** Gives the story what is there; receives more when that is not enough. */
  #fill(): void {
    if (this.#needs <= 0 || this.#closed || this.#closing) return;
    const count = Math.min(this.#needs - this.#filled, this.#spare.length);
    this.#have.set(this.#spare.subarray(0, count), this.#filled);
    this.#spare = this.#spare.subarray(count);
    this.#filled += count;
    if (this.#filled === this.#needs) {
      this.#advance(new DataView(this.#have.buffer));
      return;
    }
    if (this.#receiving) return;
    this.#receiveAt = this.#memory.allocate(RECEIVE_BYTES);
    if (this.#receiveAt === 0) {
      this.#memory.whenFreed(this);
      return;
    }
    this.#receiving = true;
    this.line.receive(this.#receiveAt, RECEIVE_BYTES);
  }

  #sendNext(): void {
    if (this.#closed || this.#closing || this.#sendAt !== 0) return;
    const next = this.#outgoing[0];
    if (next === undefined) {
      this.#finish();
      return;
    }
    const length = Math.min(next.length, SEND_BYTES_MAX);
    this.#sendAt = this.#memory.allocate(length);
    if (this.#sendAt === 0) {
      this.#memory.whenFreed(this);
      return;
    }
    this.#memory.bytes.set(next.subarray(0, length), this.#sendAt);
    if (length === next.length) this.#outgoing.shift();
    else this.#outgoing[0] = next.subarray(length);
    this.#sending = length;
    this.#pieces.clear();
    this.#pieces.add(this.#sendAt, length);
    this.line.send(this.#pieces);
  }

  #finish(): void {
    if (this.#end === undefined || this.#outgoing.length > 0 || this.#sendAt !== 0 || this.#told) return;
    if (this.#hooks.keeps?.(this.#end) === true) {
      this.#told = true;
      this.#closed = true;
      this.#hooks.onEnd(this.#end);
    } else this.close();
  }
}
