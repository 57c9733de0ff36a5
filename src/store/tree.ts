/**
 * What the entries of a log mean: the tree of versions, their maps, and how much of each segment lives. It is changed by
 * `apply` alone, in the order of the log, and comes to the same state when the log is replayed.
 */
import { canary } from "#base/canary";
import { type Effect, perform, type Task } from "#base/task";
import { BLOCK_BYTES, type Bytes } from "#base/units";
import type { BlockCache } from "./block-cache.ts";
import type { NodeRecord } from "./checkpoint.ts";
import { EntryKind, SLOT_BLOCKS } from "./format.ts";
import type { LogEntry } from "./log.ts";
import { LEAF_BLOCKS, type LeafArena, type Location, VersionMap } from "./map.ts";
import { dropRun, forEachUnique, Node, type NodeFacts, neighboursAt, parentAt, releaseLeaf } from "./node.ts";
import { blockOf, type SegmentTable } from "./segment.ts";
import { Sharing } from "./sharing.ts";
import type { Version } from "./version.ts";

/** A change of the tree, as it stands in the log. */
export type Control =
  | { readonly op: "create"; readonly node: NodeFacts }
  | { readonly op: "snapshot"; readonly volume: number; readonly node: NodeFacts }
  | { readonly op: "clone"; readonly of: number; readonly node: NodeFacts }
  | { readonly op: "rollback"; readonly volume: number; readonly to: number }
  | { readonly op: "remove"; readonly nodes: readonly number[] }
  | { readonly op: "resize"; readonly volume: number; readonly size: Bytes }
  | { readonly op: "rename"; readonly node: number; readonly name: string };

const RELEASE_LEAVES_PER_TURN = 64;

export class VersionTree {
  readonly arena: LeafArena;
  readonly #segments: SegmentTable;
  readonly #cache: BlockCache;
  readonly #makeVersion: (node: Node) => Version;
  readonly #nodes = new Map<number, Node>();
  /** By name: `db`, `db@monday`. */
  readonly versions = new Map<string, Version>();
  readonly #ghosts: Node[] = [];
  /** The number that the next new version gets. */
  nextNode = 1;
  /** Something was copied without being moved, in this set, at some time. */
  #shares = false;
  /** Entries are read back from the log: what lives is counted once, at the end of it. */
  replaying = false;

  constructor(segments: SegmentTable, arena: LeafArena, cache: BlockCache, makeVersion: (node: Node) => Version) {
    this.arena = arena;
    this.#cache = cache;
    this.#segments = segments;
    this.#makeVersion = makeVersion;
  }

  /** Puts the tree of a checkpoint in place; parents stand before their children. */
  restore(nextNode: number, records: readonly NodeRecord[], maps: readonly VersionMap[]): void {
    this.nextNode = nextNode;
    const ghosts = new Map<number, Node>();
    for (const [index, record] of records.entries()) {
      const parent = this.#nodes.get(record.parent) ?? ghosts.get(record.parent);
      if (!record.ghost) {
        this.#addNode(record, maps[index]!, parent);
        continue;
      }
      const ghost = new Node(record, maps[index]!);
      ghost.ghost = true;
      ghost.released = record.released;
      ghost.setParent(parent);
      ghosts.set(ghost.id, ghost);
      this.#ghosts.push(ghost);
    }
  }

  /** What a checkpoint keeps of a version. */
  recordOf(node: Node): NodeRecord {
    return {
      id: node.id,
      name: node.name,
      kind: node.kind,
      uuid: node.uuid,
      size: node.size,
      blockSize: node.blockSize,
      createdAt: node.createdAt,
      parent: node.parent?.id ?? 0,
      mapped: node.map.mapped,
      ghost: node.ghost,
      // A junction is walked again after a start; what was given back already must be looked through for ever.
      released: node.ghost && !node.joins ? Math.min(node.released, node.map.directory.leaves.length) : 0,
    };
  }

  /** Takes an entry into effect: `count` blocks of it, from `entry.applied` on, are now at `location`. */
  apply(entry: LogEntry, count: number, location: Location): void {
    if (entry.kind === EntryKind.CONTROL) {
      this.#applyControl(decodeControl(entry.control!));
      return;
    }
    if (entry.kind === EntryKind.MOVE) {
      this.#applyMove(entry, count, location);
      return;
    }
    if (entry.kind === EntryKind.COPY) {
      this.#applyCopy(entry);
      return;
    }
    const node = this.#nodes.get(entry.version);
    // Its version was removed between the write's start and now: nobody can read it.
    if (node === undefined) return;
    const block = entry.block + (entry.kind === EntryKind.DATA ? entry.applied : 0);
    const length = entry.kind === EntryKind.DATA ? count : entry.count;
    if (entry.kind === EntryKind.DATA && !this.replaying) this.#segments.at(location).live += length;
    if (canary.armed === "forget-trim" && entry.kind === EntryKind.CLEAR) return;
    node.map.replace(block, length, entry.kind === EntryKind.DATA ? location : 0, this.#collect);
    this.#dropCollected(node);
  }

  /** What a change of a map replaced; looked at when the change is done, since looking may change other maps. */
  readonly #dropped: number[] = [];
  /** Numbers in it. It is never cut: an array that is emptied gives its room back, and has to get it again. */
  #droppedCount = 0;
  readonly #collect = (block: number, length: number, location: Location): void => {
    if (this.replaying) return;
    const dropped = this.#dropped;
    dropped[this.#droppedCount++] = block;
    dropped[this.#droppedCount++] = length;
    dropped[this.#droppedCount++] = location;
  };

  #dropCollected(node: Node): void {
    const dropped = this.#dropped;
    for (let each = 0; each < this.#droppedCount; each += 3) {
      const block = dropped[each]!;
      const length = dropped[each + 1]!;
      const location = dropped[each + 2]!;
      this.#cache.forget(this.#segments.at(location), blockOf(location), length);
      if (canary.armed === "free-shared") this.#kill(block, length, location);
      else dropRun(node, block, length, location, this.#kill);
    }
    this.#droppedCount = 0;
  }

  readonly #kill = (_: number, length: number, location: Location): void => {
    const segment = this.#segments.at(location);
    if (segment.sharing === undefined || canary.armed === "free-copied") segment.live -= length;
    else segment.live -= segment.sharing.drop(blockOf(location), length);
  };

  /** A range becomes what another one is, by mapping the same locations. */
  #applyCopy(entry: LogEntry): void {
    const from = this.#nodes.get(entry.fromVersion);
    const to = this.#nodes.get(entry.version);
    if (from === undefined || to === undefined) return;
    // The two may overlap: what is there now is looked at before anything is changed.
    const runs: number[] = [];
    for (let at = 0; at < entry.count; ) {
      from.map.find(entry.fromBlock + at, entry.count - at);
      runs.push(at, from.map.length, from.map.location);
      at += from.map.length;
    }
    for (let each = 0; each < runs.length; each += 3)
      this.#mapRun(to, entry.block + runs[each]!, runs[each + 1]!, runs[each + 2]!);
    this.#dropCollected(to);
  }

  #mapRun(node: Node, block: number, length: number, location: Location): void {
    node.map.find(block, length);
    if (node.map.location === location && node.map.length === length) return;
    if (location !== 0) {
      const sharing = this.#sharingOf(location);
      sharing.addPlace(blockOf(location), length, block, this.#isAt(location - blockOf(location)));
      if (!this.replaying) this.#addHolder(sharing, node, block, length, location);
    }
    node.map.replace(block, length, location, this.#collect);
  }

  #sharingOf(location: Location): Sharing {
    const segment = this.#segments.at(location);
    segment.sharing ??= new Sharing();
    this.#shares = true;
    return segment.sharing;
  }

  /** A version gets a run: where its parent has the same, the two are one holder. */
  #addHolder(sharing: Sharing, node: Node, block: number, length: number, location: Location): void {
    while (length > 0) {
      let part = Math.min(length, LEAF_BLOCKS - (block % LEAF_BLOCKS));
      const parent = parentAt(node, Math.floor(block / LEAF_BLOCKS));
      if (parent !== undefined) {
        parent.map.find(block, part);
        part = parent.map.length;
      }
      if (parent?.map.location !== location) sharing.add(blockOf(location), part);
      block += part;
      location += part;
      length -= part;
    }
  }

  /** Whether some version has a run of a segment (whose first location is `base`) at a block still. */
  #isAt(base: Location): (from: number, count: number, block: number) => boolean {
    return (from, count, block) => {
      let found = false;
      for (const node of this.all())
        this.#forEachAt(node, block, count, base + from, () => {
          found = true;
        });
      return found;
    };
  }

  /** Calls with each part of [block, block + count) that a version has at `location` and on. */
  #forEachAt(
    node: Node,
    block: number,
    count: number,
    location: Location,
    visit: (block: number, length: number) => void,
    seen?: Set<number>,
  ): void {
    for (let at = block; at < block + count; ) {
      const index = Math.floor(at / LEAF_BLOCKS);
      const base = index * LEAF_BLOCKS;
      const end = Math.min(block + count, base + LEAF_BLOCKS);
      const leaf = node.map.leafAt(index);
      const skips = leaf === 0 || seen?.has(leaf) === true;
      seen?.add(leaf);
      while (!skips && at < end) {
        this.arena.find(leaf, at - base);
        const length = Math.min(this.arena.length, end - at);
        if (this.arena.location === location + (at - block)) visit(at, length);
        at += length;
      }
      at = end;
    }
  }

  /** Marks the blocks of a run of the log, written at `block`, that some version has: there, or where it was copied to. */
  markAlive(block: number, count: number, location: Location, alive: Uint8Array): void {
    const mark = (at: number, length: number, index: number): void => {
      const seen = new Set<number>();
      const found = (block: number, part: number): void => {
        alive.fill(1, index + (block - at), index + (block - at) + part);
      };
      for (const node of this.all()) this.#forEachAt(node, at, length, location + index, found, seen);
    };
    mark(block, count, 0);
    const first = blockOf(location);
    this.#segments
      .at(location)
      .sharing?.forEachPlace(first, count, (from, length, at) => mark(at, length, from - first));
  }

  /** After a start: where shared blocks may be mapped. */
  findPlaces(): void {
    if (![...this.#segments.values()].some(({ sharing }) => sharing !== undefined)) return;
    this.#shares = true;
    for (const node of this.all())
      for (const [index, leaf] of node.map.directory.leaves.entries())
        if (leaf !== 0)
          this.arena.forEach(leaf, (start, length, location) => {
            const { sharing } = this.#segments.at(location);
            const base = location - blockOf(location);
            sharing?.addPlace(blockOf(location), length, index * LEAF_BLOCKS + start, this.#isAt(base));
          });
  }

  /** Blocks that the cleaner copied: whoever still has them at their old place has them at the new one. */
  #applyMove(entry: LogEntry, count: number, location: Location): void {
    const from = entry.from + entry.applied;
    const source = this.#segments.at(from);
    const target = this.#segments.at(location);
    const moved = new Uint8Array(count);
    const move = (block: number, length: number, index: number): void => {
      const seen = new Set<number>();
      for (const node of this.all()) {
        const put = (at: number, part: number): void => {
          // The leaf may be shared: what it says stays true for all who share it, so it is changed in place.
          const to = index + (at - block);
          const leaf = node.map.leafAt(Math.floor(at / LEAF_BLOCKS));
          this.arena.replace(leaf, at % LEAF_BLOCKS, part, location + to, ignore);
          moved.fill(1, to, to + part);
        };
        this.#forEachAt(node, block, length, from + index, put, seen);
      }
    };
    move(entry.block + entry.applied, count, 0);
    const first = blockOf(from);
    if (!this.replaying)
      this.#cache.carry(source, first, target, blockOf(location), count, entry.at + entry.applied * BLOCK_BYTES);
    source.sharing?.forEachPlace(first, count, (at, length, block) => {
      move(block, length, at - first);
      const to = location + (at - first);
      this.#sharingOf(to).addPlace(blockOf(to), length, block, this.#isAt(to - blockOf(to)));
    });
    if (this.replaying) return;
    for (let index = 0; index < count; index++) {
      if (moved[index] === 0) continue;
      target.live++;
      source.live--;
      if (target.sharing !== undefined)
        source.sharing?.moveHolders(first + index, target.sharing, blockOf(location) + index);
    }
  }

  #addNode(facts: NodeFacts, map: VersionMap, parent: Node | undefined): Node {
    const node = new Node(facts, map);
    node.setParent(parent);
    this.#nodes.set(node.id, node);
    this.versions.set(node.name, this.#makeVersion(node));
    return node;
  }

  /** True when all versions that a control record speaks of are there; it is not so behind a gap in the log. */
  isPossible(record: Uint8Array): boolean {
    const control = decodeControl(record);
    const isThere = (id: number): boolean => this.#nodes.has(id);
    switch (control.op) {
      case "create":
        return true;
      case "clone":
        return isThere(control.of);
      case "rollback":
        return isThere(control.volume) && isThere(control.to);
      case "remove":
        return control.nodes.every(isThere);
      case "rename":
        return isThere(control.node);
      default:
        return isThere(control.volume);
    }
  }

  #applyControl(control: Control): void {
    switch (control.op) {
      case "create":
        this.#newNode(control.node, new VersionMap(this.arena, blocksOf(control.node.size)), undefined);
        return;
      case "snapshot": {
        const volume = this.#nodes.get(control.volume)!;
        const { parent } = volume;
        const snapshot = this.#newNode(control.node, volume.map.share(), parent);
        volume.setParent(snapshot);
        return;
      }
      case "clone": {
        const of = this.#nodes.get(control.of)!;
        this.#newNode(control.node, of.map.share(), of);
        return;
      }
      case "rollback": {
        const volume = this.#nodes.get(control.volume)!;
        const to = this.#nodes.get(control.to)!;
        const abandoned = new Node({ ...volume, id: this.nextNode++, kind: "volume" }, volume.map);
        abandoned.setParent(volume.parent);
        this.#makeGhost(abandoned);
        volume.map = to.map.share();
        volume.map.grow(blocksOf(volume.size));
        volume.setParent(to);
        return;
      }
      case "remove":
        for (const id of control.nodes) {
          const node = this.#nodes.get(id);
          if (node === undefined) continue;
          this.#nodes.delete(id);
          const version = this.versions.get(node.name)!;
          this.versions.delete(node.name);
          this.#makeGhost(node);
          if (!this.replaying) version.changed("gone");
        }
        return;
      case "resize": {
        const volume = this.#nodes.get(control.volume)!;
        volume.size = control.size;
        volume.map.grow(blocksOf(control.size));
        if (!this.replaying) this.versions.get(volume.name)?.changed("resized");
        return;
      }
      case "rename": {
        const node = this.#nodes.get(control.node)!;
        const former = node.name;
        for (const [name, version] of [...this.versions])
          if (name === former || name.startsWith(`${former}@`)) {
            this.versions.delete(name);
            version.node.name = control.name + name.slice(former.length);
            this.versions.set(version.node.name, version);
          }
        return;
      }
    }
  }

  #newNode(facts: NodeFacts, map: VersionMap, parent: Node | undefined): Node {
    this.nextNode = Math.max(this.nextNode, facts.id + 1);
    return this.#addNode(facts, map, parent);
  }

  /** A version that nobody can name any more; its blocks are given back in the background. */
  #makeGhost(node: Node): void {
    node.ghost = true;
    this.#ghosts.push(node);
  }

  /** A ghost whose walk is not done, or a junction that has nothing to join any more. */
  restless(): Node | undefined {
    for (const ghost of this.#ghosts) {
      if (ghost.joins && ghost.children.size < 2) {
        ghost.joins = false;
        ghost.released = 0;
      }
      if (!ghost.joins || ghost.released === 0) return ghost;
    }
    return undefined;
  }

  /** Gives back what only a ghost had, a few leaves per turn. */
  *release(ghost: Node, breathe: () => Effect<void>): Task<void> {
    if (ghost.released === 0) ghost.joins = ghost.children.size > 1;
    const leafCount = ghost.map.directory.leaves.length;
    for (let index = ghost.released; index < leafCount; index++) {
      releaseLeaf(this.arena, ghost, index, this.#kill, this.#shares);
      if (index % RELEASE_LEAVES_PER_TURN === RELEASE_LEAVES_PER_TURN - 1) yield* perform(breathe());
    }
    ghost.released = Number.POSITIVE_INFINITY;
    if (ghost.joins) return;
    for (const child of [...ghost.children]) child.setParent(ghost.parent);
    ghost.setParent(undefined);
    ghost.map.release();
    this.#ghosts.splice(this.#ghosts.indexOf(ghost), 1);
  }

  /** Parents before their children. */
  inOrder(): Node[] {
    const order: Node[] = [];
    const add = (node: Node): void => {
      order.push(node);
      for (const child of node.children) add(child);
    };
    for (const node of [...this.#nodes.values(), ...this.#ghosts]) if (node.parent === undefined) add(node);
    return order;
  }

  /** Counts what lives in each segment: every location once, however many versions share it. */
  countLive(): void {
    const segments = this.#segments;
    const seen = new Map<Sharing, Uint8Array>();
    for (const segment of segments.values()) {
      segment.live = 0;
      if (segment.sharing === undefined) continue;
      segment.sharing.clearHolders();
      seen.set(segment.sharing, new Uint8Array(SLOT_BLOCKS));
    }
    for (const node of [...this.#nodes.values(), ...this.#ghosts]) {
      const { leaves } = node.map.directory;
      for (let index = 0; index < leaves.length; index++) {
        const leaf = leaves[index]!;
        if (leaf === 0) continue;
        const parent = parentAt(node, index);
        forEachUnique(this.arena, leaf, index, parent === undefined ? [] : [parent], (_, length, location) => {
          const segment = segments.at(location);
          const { sharing } = segment;
          if (sharing === undefined) {
            segment.live += length;
            return;
          }
          const marks = seen.get(sharing)!;
          const first = blockOf(location);
          for (let block = first; block < first + length; block++) {
            if (marks[block] === 1) sharing.add(block, 1);
            else segment.live++;
            marks[block] = 1;
          }
        });
      }
    }
  }

  /** Recounts what lives in each segment, for tests: a text for each count that was wrong. */
  checkCounts(): string[] {
    const before = [...this.#segments.values()].map((segment) => {
      return [segment, segment.live, segment.sharing?.clearHolders()] as const;
    });
    this.countLive();
    const wrong = before
      .filter(([segment, live]) => segment.live !== live)
      .map(([segment, live]) => `segment ${segment.number}: counted ${live}, really ${segment.live}`);
    for (const [segment, live, holders] of before) {
      segment.live = live;
      const really = segment.sharing?.clearHolders();
      if (holders === undefined || really === undefined) continue;
      const block = really.findIndex((more, at) => more !== holders[at]);
      if (block >= 0)
        wrong.push(
          `segment ${segment.number}, block ${block}: counted ${holders[block]}, really ${really[block]} holders`,
        );
      segment.sharing!.restoreHolders(holders);
    }
    return wrong;
  }

  /** Blocks that only this version has. A walk over the leaves that it does not share whole. */
  *countExclusive(node: Node, breathe: () => Effect<void>): Task<number> {
    const { leaves } = node.map.directory;
    let exclusive = 0;
    for (let index = 0; index < leaves.length; index++) {
      const leaf = node.map.leafAt(index);
      if (leaf === 0) continue;
      forEachUnique(this.arena, leaf, index, [...neighboursAt(node, index)], (_, length, location) => {
        const { sharing } = this.#segments.at(location);
        for (let block = blockOf(location), left = length; left > 0; block++, left--)
          if (sharing === undefined || sharing.holdersBeyondFirst(block) === 0) exclusive++;
      });
      if (index % 256 === 255) yield* perform(breathe());
    }
    return exclusive;
  }

  /** All versions and ghosts, in no order. */
  *all(): Generator<Node> {
    yield* this.#nodes.values();
    yield* this.#ghosts;
  }
}

const ignore = (): void => {};
export const blocksOf = (size: Bytes): number => Math.ceil(size / BLOCK_BYTES);

function decodeControl(record: Uint8Array): Control {
  return JSON.parse(new TextDecoder().decode(record)) as Control;
}
