/** The tree of versions, and what lives only in some of them. */
import type { Bytes } from "#base/units";
import { LEAF_BLOCKS, type LeafArena, type Location, type VersionMap } from "./map.ts";

/**
 * One version in the tree. Volumes are always leaves of the tree: a snapshot takes the volume's place, and the volume
 * goes on below it.
 *
 * Versions share a location only by inheritance, so those that have it at a block are connected in the tree: what none
 * of a version's neighbours has is its own. A removed version is a *ghost* until a walk over its leaves has given back
 * what was only its own. With at most one child it then leaves the tree. With more, it stays as a *junction* that maps
 * what at least two of its neighbours have, so that they remain connected; nobody can name it, and it goes when all but
 * one of its children have gone.
 */
export class Node {
  map: VersionMap;
  size: Bytes;
  readonly blockSize: number;
  readonly kind: "volume" | "snapshot";
  readonly id: number;
  name: string;
  readonly uuid: string;
  /** Milliseconds since 1970. */
  readonly createdAt: number;
  parent: Node | undefined;
  readonly children = new Set<Node>();
  ghost = false;
  /** Of a ghost: the walk has done the leaves below this one. */
  released = 0;
  /** Of a ghost: it stays as a junction. Otherwise leaves that the walk has done are looked through. */
  joins = false;

  constructor(facts: NodeFacts, map: VersionMap) {
    this.id = facts.id;
    this.name = facts.name;
    this.kind = facts.kind;
    this.uuid = facts.uuid;
    this.size = facts.size;
    this.blockSize = facts.blockSize;
    this.createdAt = facts.createdAt;
    this.map = map;
  }

  setParent(parent: Node | undefined): void {
    this.parent?.children.delete(this);
    this.parent = parent;
    parent?.children.add(this);
  }

  /** The version it descends from, leaving ghosts out. */
  get ancestor(): Node | undefined {
    let parent = this.parent;
    while (parent?.ghost === true) parent = parent.parent;
    return parent;
  }
}

export interface NodeFacts {
  readonly id: number;
  readonly name: string;
  readonly kind: "volume" | "snapshot";
  readonly uuid: string;
  readonly size: Bytes;
  readonly blockSize: number;
  readonly createdAt: number;
}

/** Whose map is above a version's at a leaf: ghosts that have given this leaf back are looked through. */
export function parentAt(node: Node, leafIndex: number): Node | undefined {
  let { parent } = node;
  while (parent !== undefined && isThrough(parent, leafIndex)) parent = parent.parent;
  return parent;
}

const isThrough = (node: Node, leafIndex: number): boolean => node.ghost && !node.joins && leafIndex < node.released;
const isJunction = (node: Node, leafIndex: number): boolean => node.ghost && node.joins && leafIndex < node.released;

/** All versions next to one in the tree, as seen at a leaf. */
export function* neighboursAt(node: Node, leafIndex: number): Generator<Node> {
  const parent = parentAt(node, leafIndex);
  if (parent !== undefined) yield parent;
  yield* childrenAt(node, leafIndex);
}

function* childrenAt(node: Node, leafIndex: number): Generator<Node> {
  for (const child of node.children)
    if (isThrough(child, leafIndex)) yield* childrenAt(child, leafIndex);
    else yield child;
}

/** Told of a run that no version has any more. */
export type Kill = (block: number, length: number, location: Location) => void;

/** A volume does not map a run (within one leaf) any more: what none of its neighbours has is dead. */
export function dropRun(node: Node, block: number, length: number, location: Location, kill: Kill): void {
  const leafIndex = Math.floor(block / LEAF_BLOCKS);
  const parent = parentAt(node, leafIndex);
  if (parent === undefined) return kill(block, length, location);
  while (length > 0) {
    parent.map.find(block, length);
    const part = parent.map.length;
    if (parent.map.location !== location) kill(block, part, location);
    else if (isJunction(parent, leafIndex)) settle(parent, block, part, location, kill);
    block += part;
    location += part;
    length -= part;
  }
}

/** A neighbour of a junction has lost a run: the junction keeps only what at least two others still have. */
function settle(junction: Node, block: number, length: number, location: Location, kill: Kill): void {
  const leafIndex = Math.floor(block / LEAF_BLOCKS);
  const mine = new Uint8Array(length);
  markSame(junction, block, length, location, mine);
  const holders = new Uint8Array(length);
  let missing = length;
  for (const other of neighboursAt(junction, leafIndex)) {
    const theirs = new Uint8Array(length);
    markSame(other, block, length, location, theirs);
    missing = 0;
    for (let at = 0; at < length; at++) {
      if (theirs[at] === 1 && holders[at]! < 2) holders[at]! += 1;
      if (mine[at] === 1 && holders[at]! < 2) missing++;
    }
    if (missing === 0) return;
  }
  for (let start = 0; start < length; ) {
    let end = start + 1;
    while (end < length && holders[end] === holders[start] && mine[end] === mine[start]) end++;
    if (mine[start] === 1 && holders[start]! < 2) {
      junction.map.replace(block + start, end - start, 0, ignore);
      if (holders[start] === 0) kill(block + start, end - start, location + start);
      else settleNeighbours(junction, block + start, end - start, location + start, kill);
    }
    start = end;
  }
}

function settleNeighbours(node: Node, block: number, length: number, location: Location, kill: Kill): void {
  const leafIndex = Math.floor(block / LEAF_BLOCKS);
  for (const other of [...neighboursAt(node, leafIndex)])
    if (isJunction(other, leafIndex)) settle(other, block, length, location, kill);
}

/** Marks the blocks of a run that a version has at the same place. */
function markSame(node: Node, block: number, length: number, location: Location, marks: Uint8Array): void {
  const { map } = node;
  for (let at = 0; at < length; ) {
    map.find(block + at, length - at);
    const end = at + map.length;
    if (map.location === location + at) marks.fill(1, at, end);
    at = end;
  }
}

/**
 * The walk of a ghost over one of its leaves: what only it had is dead. `copied`: something was copied in the set, so that
 * a parent and a child may have the same location by themselves.
 */
export function releaseLeaf(arena: LeafArena, ghost: Node, leafIndex: number, kill: Kill, copied: boolean): void {
  const leaf = ghost.map.leafAt(leafIndex);
  const runs: number[] = [];
  const base = leafIndex * LEAF_BLOCKS;
  if (leaf !== 0) arena.forEach(leaf, (start, length, location) => runs.push(base + start, length, location));
  if (ghost.joins) {
    ghost.released = leafIndex + 1;
    for (let each = 0; each < runs.length; each += 3)
      settle(ghost, runs[each]!, runs[each + 1]!, runs[each + 2]!, kill);
    return;
  }
  if (leaf !== 0) forEachUnique(arena, leaf, leafIndex, [...neighboursAt(ghost, leafIndex)], kill);
  const around = [...neighboursAt(ghost, leafIndex)].filter((other) => isJunction(other, leafIndex));
  if (copied) joinHolders(arena, ghost, leafIndex, kill);
  ghost.map.dropLeaf(leafIndex);
  ghost.released = leafIndex + 1;
  for (const junction of around)
    for (let each = 0; each < runs.length; each += 3)
      settle(junction, runs[each]!, runs[each + 1]!, runs[each + 2]!, kill);
}

/**
 * A ghost goes from between its parent and its children: what both have now, and it has not, had two holders and has one.
 */
function joinHolders(arena: LeafArena, ghost: Node, leafIndex: number, kill: Kill): void {
  const parentLeaf = parentAt(ghost, leafIndex)?.map.leafAt(leafIndex) ?? 0;
  if (parentLeaf === 0) return;
  const above = locationsOf(arena, parentLeaf);
  const own = locationsOf(arena, ghost.map.leafAt(leafIndex));
  const base = leafIndex * LEAF_BLOCKS;
  for (const child of childrenAt(ghost, leafIndex)) {
    const leaf = child.map.leafAt(leafIndex);
    if (leaf === 0) continue;
    arena.forEach(leaf, (start, length, location) => {
      for (let at = start; at < start + length; at++) {
        const here = location + (at - start);
        if (above[at] === here && own[at] !== here) kill(base + at, 1, here);
      }
    });
  }
}

function locationsOf(arena: LeafArena, leaf: number): Uint32Array {
  const locations = new Uint32Array(LEAF_BLOCKS);
  if (leaf !== 0)
    arena.forEach(leaf, (start, length, location) => {
      for (let at = 0; at < length; at++) locations[start + at] = location + at;
    });
  return locations;
}

const ignore = (): void => {};

/** Zeroes, but while somebody uses it. */
const scratch = new Uint32Array(LEAF_BLOCKS);

/**
 * Calls `visit` with the runs of a version's leaf that none of `others` has at the same place. With the parent alone,
 * each location of a set is visited exactly once over all versions, since those that share it are connected.
 */
export function forEachUnique(
  arena: LeafArena,
  leaf: number,
  leafIndex: number,
  others: Iterable<Node>,
  visit: (block: number, length: number, location: Location) => void,
): void {
  const rest: number[] = [];
  for (const other of others) {
    const theirs = other.map.leafAt(leafIndex);
    if (theirs === leaf) return;
    if (theirs !== 0) rest.push(theirs);
  }
  const base = leafIndex * LEAF_BLOCKS;
  if (rest.length === 0) {
    arena.forEach(leaf, (start, length, location) => visit(base + start, length, location));
    return;
  }
  let first = LEAF_BLOCKS;
  let final = 0;
  arena.forEach(leaf, (start, length, location) => {
    first = Math.min(first, start);
    final = Math.max(final, start + length);
    for (let each = 0; each < length; each++) scratch[start + each] = location + each;
  });
  for (const theirs of rest)
    arena.forEach(theirs, (start, length, location) => {
      for (let each = 0; each < length; each++)
        if (scratch[start + each] === location + each) scratch[start + each] = 0;
    });
  for (let start = first; start < final; ) {
    const location = scratch[start]!;
    let end = start + 1;
    if (location !== 0) {
      while (end < final && scratch[end] === location + (end - start)) end++;
      visit(base + start, end - start, location);
    }
    start = end;
  }
  scratch.fill(0, first, final);
}
