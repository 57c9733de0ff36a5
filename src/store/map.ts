/**
 * The map of a version: block → location in the log. It is made for millions of scattered 4 KiB blocks at about seven
 * bytes each, for next to nothing where runs are long, and for snapshots that cost nothing until something changes.
 *
 * A version's map is a *directory* of leaves; a leaf covers 4096 blocks (16 MiB of the volume). Directories are shared
 * between versions until one of them changes; then it is copied, and its leaves are shared, until they change.
 *
 * A leaf is a sorted list of extents, each a 16-bit key `start << 4 | log2(length)` and a 32-bit location: a run of any
 * length is at most twelve such powers of two, and one that grows by appending joins up like a binary counter. A leaf
 * with more extents than a plain table would cost becomes that table ("dense").
 *
 * All leaves of a version set lie in pages of one arena, as numbers in typed arrays: no object per leaf or extent. The
 * record of a leaf lies in the same pages as its extents, so that what a read needs of a small set's map is side by side:
 * where a thousand sets are in use, each cache line counts.
 */

/** A location is `slot * SEGMENT_BLOCKS + block in the segment`; 0 is "not mapped", since no segment has slot 0. */
export type Location = number;

const LEAF_BITS = 12;
/** Blocks that a leaf covers. */
export const LEAF_BLOCKS = 1 << LEAF_BITS;
const LEAF_MASK = LEAF_BLOCKS - 1;

/**
 * How many extents a leaf's piece of the arena can hold, by class; each is even, and 1.5 words are taken per extent.
 * The steps are small where most leaves are, so that little of a piece is empty. The last class is a dense leaf.
 */
const CAPACITY = [
  2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512,
  640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2304, 2560, 2730,
] as const;
const DENSE = CAPACITY.length;
const EXTENTS_MAX = CAPACITY[CAPACITY.length - 1]!;
const DENSE_WORDS = LEAF_BLOCKS;

const wordsOf = (kind: number): number => (kind === DENSE ? DENSE_WORDS : (CAPACITY[kind]! * 3) / 2);

function classFor(count: number): number {
  for (let kind = 0; kind < DENSE; kind++) if (CAPACITY[kind]! >= count) return kind;
  return DENSE;
}

const PAGE_BITS = 18;
const PAGE_WORDS = 1 << PAGE_BITS;
const PAGE_MASK = PAGE_WORDS - 1;
/** The first page of an arena is half a KiB, each one twice the one before up to 1 MiB: most sets are small, some are not. */
const FIRST_PAGE_WORDS = 1 << 7;
/** In which page an address is. */
const pageOf = (address: number): number => address >>> PAGE_BITS;

/** Words of a leaf's record: how many directories have it; its class, and how many extents (dense: mapped blocks); its piece. */
const RECORD_WORDS = 3;
const SHAPE = 1;
const PIECE = 2;
/** A shape is `count << 8 | class`. */
const KIND_BITS = 8;
const KIND_MASK = (1 << KIND_BITS) - 1;

/** A leaf of a directory is named by the address of its record; 0 is "none". Shared by all versions of a set. */
export class LeafArena {
  /** Pages of the arena, seen as words (locations, records) and as half-words (keys). */
  #words: readonly Uint32Array[] = [];
  #halves: readonly Uint16Array[] = [];
  /** The free part of the last page. */
  #nextWord = 0;
  #endWord = 0;
  readonly #freePieces: (number[] | undefined)[] = [];
  readonly #freeLeaves: number[] = [];
  #pieceWords = 0;
  #leafCount = 0;

  /** What the last `find` found: the location of the block asked for (0: not mapped), and of how many from there on. */
  location: Location = 0;
  length = 0;

  /** Bytes that all leaves take. */
  get bytes(): number {
    return (this.#pieceWords + this.#leafCount * RECORD_WORDS) * 4;
  }

  get leafCount(): number {
    return this.#leafCount;
  }

  refs(leaf: number): number {
    return this.#words[pageOf(leaf)]![leaf & PAGE_MASK]!;
  }

  retain(leaf: number): void {
    this.#words[pageOf(leaf)]![leaf & PAGE_MASK]! += 1;
  }

  release(leaf: number): void {
    const words = this.#words[pageOf(leaf)]!;
    const record = leaf & PAGE_MASK;
    const refs = words[record]! - 1;
    words[record] = refs;
    if (refs > 0) return;
    this.#freePiece(words[record + PIECE]!, words[record + SHAPE]! & KIND_MASK);
    this.#leafCount--;
    this.#freeLeaves.push(leaf);
  }

  /** A new leaf without extents, with one reference. */
  make(): number {
    return this.#newLeaf(0, 0);
  }

  copy(leaf: number): number {
    const kind = this.#kindOf(leaf);
    const count = this.#countOf(leaf);
    const twin = this.#newLeaf(kind, count);
    this.#copyPiece(this.#pieceOf(leaf), kind, this.#pieceOf(twin), kind, count);
    return twin;
  }

  #kindOf(leaf: number): number {
    return this.#words[pageOf(leaf)]![(leaf & PAGE_MASK) + SHAPE]! & KIND_MASK;
  }
  #countOf(leaf: number): number {
    return this.#words[pageOf(leaf)]![(leaf & PAGE_MASK) + SHAPE]! >>> KIND_BITS;
  }
  #pieceOf(leaf: number): number {
    return this.#words[pageOf(leaf)]![(leaf & PAGE_MASK) + PIECE]!;
  }
  #shape(leaf: number, kind: number, count: number): void {
    this.#words[pageOf(leaf)]![(leaf & PAGE_MASK) + SHAPE] = (count << KIND_BITS) | kind;
  }
  #setPiece(leaf: number, piece: number): void {
    this.#words[pageOf(leaf)]![(leaf & PAGE_MASK) + PIECE] = piece;
  }

  /** True when nothing in it is mapped. */
  isEmpty(leaf: number): boolean {
    return this.#countOf(leaf) === 0;
  }

  /** Looks up block `start` of the leaf, and sets `location` and `length` (to the end of the leaf at most). */
  find(leaf: number, start: number): void {
    const records = this.#words[pageOf(leaf)]!;
    const shape = records[(leaf & PAGE_MASK) + SHAPE]!;
    const piece = records[(leaf & PAGE_MASK) + PIECE]!;
    const kind = shape & KIND_MASK;
    const words = this.#words[pageOf(piece)]!;
    const base = piece & PAGE_MASK;
    if (kind === DENSE) {
      const first = words[base + start]!;
      let end = start + 1;
      if (first === 0) while (end < LEAF_BLOCKS && words[base + end] === 0) end++;
      else while (end < LEAF_BLOCKS && words[base + end] === first + (end - start)) end++;
      this.location = first;
      this.length = end - start;
      return;
    }
    const halves = this.#halves[pageOf(piece)]!;
    const keys = (base + CAPACITY[kind]!) * 2;
    const count = shape >>> KIND_BITS;
    let index = lastAtMost(halves, keys, count, start);
    if (index >= 0) {
      const key = halves[keys + index]!;
      const into = start - (key >>> 4);
      const size = 1 << (key & 15);
      if (into < size) {
        const location = words[base + index]! + into;
        let end = start - into + size;
        // Pieces of one run follow each other.
        while (++index < count) {
          const next = halves[keys + index]!;
          if (next >>> 4 !== end || words[base + index] !== location + (end - start)) break;
          end += 1 << (next & 15);
        }
        this.location = location;
        this.length = end - start;
        return;
      }
    }
    this.location = 0;
    this.length = (index + 1 < count ? halves[keys + index + 1]! >>> 4 : LEAF_BLOCKS) - start;
  }

  /**
   * Maps `length` blocks from `start` to `location` and on (0: unmaps them). The leaf must have one reference only.
   * What was mapped there before is told to `dropped(start in leaf, length, location)`.
   */
  replace(
    leaf: number,
    start: number,
    length: number,
    location: Location,
    dropped: (start: number, length: number, location: Location) => void,
  ): void {
    if (this.#kindOf(leaf) === DENSE) this.#replaceDense(leaf, start, length, location, dropped);
    else this.#replaceSparse(leaf, start, length, location, dropped);
  }

  /** Calls `visit(start in leaf, length, location)` for each run, in order. */
  forEach(leaf: number, visit: (start: number, length: number, location: Location) => void): void {
    for (let start = 0; start < LEAF_BLOCKS; ) {
      this.find(leaf, start);
      const { location, length } = this;
      if (location !== 0) visit(start, length, location);
      start += length;
    }
  }

  #replaceDense(
    leaf: number,
    start: number,
    length: number,
    location: Location,
    dropped: (start: number, length: number, location: Location) => void,
  ): void {
    const piece = this.#pieceOf(leaf);
    const words = this.#words[pageOf(piece)]!;
    const base = piece & PAGE_MASK;
    const end = start + length;
    let gone = 0;
    for (let at = start; at < end; ) {
      const old = words[base + at]!;
      let next = at + 1;
      if (old === 0) while (next < end && words[base + next] === 0) next++;
      else {
        while (next < end && words[base + next] === old + (next - at)) next++;
        gone += next - at;
        dropped(at, next - at, old);
      }
      at = next;
    }
    if (location === 0) words.fill(0, base + start, base + end);
    else for (let at = 0; at < length; at++) words[base + start + at] = location + at;
    this.#shape(leaf, DENSE, this.#countOf(leaf) + (location === 0 ? 0 : length) - gone);
  }

  #replaceSparse(
    leaf: number,
    start: number,
    length: number,
    location: Location,
    dropped: (start: number, length: number, location: Location) => void,
  ): void {
    const piece = this.#pieceOf(leaf);
    const kind = this.#kindOf(leaf);
    const words = this.#words[pageOf(piece)]!;
    const halves = this.#halves[pageOf(piece)]!;
    const base = piece & PAGE_MASK;
    const keys = (base + CAPACITY[kind]!) * 2;
    const count = this.#countOf(leaf);
    const end = start + length;

    // The extents [first, final) overlap the range; what sticks out of it on both sides stays.
    let first = lastAtMost(halves, keys, count, start);
    if (first < 0 || (halves[keys + first]! >>> 4) + (1 << (halves[keys + first]! & 15)) <= start) first++;

    // The common case, a block written again: nothing moves.
    if (location !== 0 && length === 1 && first < count && halves[keys + first] === start << 4) {
      const old = words[base + first]!;
      words[base + first] = location;
      dropped(start, 1, old);
      return;
    }

    fresh.clear();
    let final = first;
    let rightStart = 0;
    let rightEnd = 0;
    let rightLocation = 0;
    while (final < count) {
      const key = halves[keys + final]!;
      const from = key >>> 4;
      if (from >= end) break;
      const to = from + (1 << (key & 15));
      const at = words[base + final]!;
      if (from < start) fresh.add(from, start - from, at);
      const cutFrom = Math.max(from, start);
      const cutTo = Math.min(to, end);
      dropped(cutFrom, cutTo - cutFrom, at + (cutFrom - from));
      if (to > end) {
        rightStart = end;
        rightEnd = to;
        rightLocation = at + (end - from);
      }
      final++;
    }
    if (location !== 0) {
      // Joins with the pieces of the same run on both sides, so that sequential writes end up as few extents.
      let runStart = start;
      let runEnd = end;
      if (fresh.count === 0)
        while (first > 0) {
          const key = halves[keys + first - 1]!;
          const size = 1 << (key & 15);
          if ((key >>> 4) + size !== runStart || words[base + first - 1] !== location - (start - runStart) - size)
            break;
          runStart -= size;
          first--;
        }
      if (rightEnd === 0)
        while (final < count) {
          const key = halves[keys + final]!;
          if (key >>> 4 !== runEnd || words[base + final] !== location + (runEnd - start)) break;
          runEnd += 1 << (key & 15);
          final++;
        }
      fresh.add(runStart, runEnd - runStart, location - (start - runStart));
    }
    if (rightEnd > 0) fresh.add(rightStart, rightEnd - rightStart, rightLocation);

    const total = count - (final - first) + fresh.count;
    if (total > EXTENTS_MAX) {
      this.#makeDense(leaf);
      // The drops were told already.
      this.#replaceDense(leaf, start, length, location, ignore);
      return;
    }
    if (total > CAPACITY[kind]! || (kind > 0 && total < CAPACITY[kind]! >> 2)) this.#resize(leaf, classFor(total));
    const moved = this.#pieceOf(leaf);
    const toWords = this.#words[pageOf(moved)]!;
    const toHalves = this.#halves[pageOf(moved)]!;
    const toBase = moved & PAGE_MASK;
    const toKind = this.#kindOf(leaf);
    const toKeys = (toBase + CAPACITY[toKind]!) * 2;
    if (final - first !== fresh.count && final < count) {
      toWords.copyWithin(toBase + first + fresh.count, toBase + final, toBase + count);
      toHalves.copyWithin(toKeys + first + fresh.count, toKeys + final, toKeys + count);
    }
    for (let index = 0; index < fresh.count; index++) {
      toWords[toBase + first + index] = fresh.locations[index]!;
      toHalves[toKeys + first + index] = fresh.keys[index]!;
    }
    this.#shape(leaf, toKind, total);
  }

  #makeDense(leaf: number): void {
    const runs: number[] = [];
    this.forEach(leaf, (start, length, location) => runs.push(start, length, location));
    this.#freePiece(this.#pieceOf(leaf), this.#kindOf(leaf));
    const piece = this.#newPiece(DENSE);
    this.#setPiece(leaf, piece);
    const words = this.#words[pageOf(piece)]!;
    const base = piece & PAGE_MASK;
    words.fill(0, base, base + DENSE_WORDS);
    let mapped = 0;
    for (let index = 0; index < runs.length; index += 3) {
      const [start, length, location] = [runs[index]!, runs[index + 1]!, runs[index + 2]!];
      for (let at = 0; at < length; at++) words[base + start + at] = location + at;
      mapped += length;
    }
    this.#shape(leaf, DENSE, mapped);
  }

  /** Moves a sparse leaf to a piece of another class. With fewer places than extents, those beyond are about to be cut. */
  #resize(leaf: number, kind: number): void {
    const from = this.#pieceOf(leaf);
    const fromKind = this.#kindOf(leaf);
    const count = this.#countOf(leaf);
    // A shrinking leaf may, for this one moment, have more extents than it will have: never copy more than fits.
    if (CAPACITY[kind]! < count) return;
    const to = this.#newPiece(kind);
    this.#copyPiece(from, fromKind, to, kind, count);
    this.#freePiece(from, fromKind);
    this.#setPiece(leaf, to);
    this.#shape(leaf, kind, count);
  }

  #copyPiece(from: number, fromKind: number, to: number, toKind: number, count: number): void {
    const source = this.#words[pageOf(from)]!;
    const target = this.#words[pageOf(to)]!;
    const fromBase = from & PAGE_MASK;
    const toBase = to & PAGE_MASK;
    if (fromKind === DENSE) {
      target.set(source.subarray(fromBase, fromBase + DENSE_WORDS), toBase);
      return;
    }
    target.set(source.subarray(fromBase, fromBase + count), toBase);
    const fromKeys = (fromBase + CAPACITY[fromKind]!) * 2;
    this.#halves[pageOf(to)]!.set(
      this.#halves[pageOf(from)]!.subarray(fromKeys, fromKeys + count),
      (toBase + CAPACITY[toKind]!) * 2,
    );
  }

  #newLeaf(kind: number, count: number): number {
    const leaf = this.#freeLeaves.pop() ?? this.#takeWords(RECORD_WORDS);
    this.#leafCount++;
    this.#words[pageOf(leaf)]![leaf & PAGE_MASK] = 1;
    this.#shape(leaf, kind, count);
    this.#setPiece(leaf, this.#newPiece(kind));
    return leaf;
  }

  #newPiece(kind: number): number {
    const words = wordsOf(kind);
    this.#pieceWords += words;
    return this.#freePieces[kind]?.pop() ?? this.#takeWords(words);
  }

  /** What is left of the last page is given up when something does not fit. */
  #takeWords(count: number): number {
    if (this.#nextWord + count > this.#endWord) this.#addPage(count);
    const at = this.#nextWord;
    this.#nextWord += count;
    return at;
  }

  #addPage(wordsMin: number): void {
    const number = this.#words.length;
    let size = Math.min(FIRST_PAGE_WORDS * 2 ** number, PAGE_WORDS);
    while (size < wordsMin) size *= 2;
    const page = new Uint32Array(size);
    // Arrays without room to grow: there are few pages, and many arenas.
    this.#words = [...this.#words, page];
    this.#halves = [...this.#halves, new Uint16Array(page.buffer)];
    // Address 0 is nobody's.
    this.#nextWord = number === 0 ? 1 : number * PAGE_WORDS;
    this.#endWord = number * PAGE_WORDS + size;
  }

  #freePiece(piece: number, kind: number): void {
    this.#pieceWords -= wordsOf(kind);
    const free = this.#freePieces[kind];
    if (free === undefined) this.#freePieces[kind] = [piece];
    else free.push(piece);
  }
}

/** The extents that a change puts in the place of others: runs cut into powers of two. At most three runs. */
class Fresh {
  readonly keys = new Uint16Array(64);
  readonly locations = new Uint32Array(64);
  count = 0;

  clear(): void {
    this.count = 0;
  }

  add(start: number, length: number, location: Location): void {
    for (let bit = LEAF_BITS; length > 0; bit--) {
      const size = 1 << bit;
      if (length < size) continue;
      this.keys[this.count] = (start << 4) | bit;
      this.locations[this.count] = location;
      this.count++;
      start += size;
      location += size;
      length -= size;
    }
  }
}
const fresh = new Fresh();
const ignore = (): void => {};

function grown<A extends { set(from: A): void }>(from: A, to: A): A {
  to.set(from);
  return to;
}

/** The index of the last extent that starts at or before `start`; -1 if there is none. */
function lastAtMost(halves: Uint16Array, keys: number, count: number, start: number): number {
  let low = 0;
  let high = count;
  const limit = (start << 4) | 15;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (halves[keys + middle]! <= limit) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** The leaves of a version, shared by as many versions (and the checkpoint being written) as `refs` says. */
export class Directory {
  refs = 1;
  leaves: Uint32Array;
  constructor(blocks: number) {
    this.leaves = new Uint32Array(Math.ceil(blocks / LEAF_BLOCKS));
  }
}

/** The map of one version. Reading never changes it; the first change after a share copies the directory. */
export class VersionMap {
  readonly arena: LeafArena;
  directory: Directory;
  /** Mapped blocks. */
  mapped = 0;
  /** Set by `find`. */
  location: Location = 0;
  length = 0;

  constructor(arena: LeafArena, blocks: number) {
    this.arena = arena;
    this.directory = new Directory(blocks);
  }

  /** A map that has the same content, at no cost until one of the two changes. */
  share(): VersionMap {
    const twin = new VersionMap(this.arena, 0);
    twin.directory = this.directory;
    twin.mapped = this.mapped;
    this.directory.refs++;
    return twin;
  }

  /** Lets go of everything, without telling anybody what was dropped. */
  release(): void {
    this.letGo(this.directory);
    this.directory = new Directory(0);
    this.mapped = 0;
  }

  /** Gives up one share of a directory (of this map, or one that a checkpoint held). */
  letGo(directory: Directory): void {
    directory.refs--;
    if (directory.refs > 0) return;
    for (const leaf of directory.leaves) if (leaf !== 0) this.arena.release(leaf);
    directory.leaves = new Uint32Array(0);
  }

  grow(blocks: number): void {
    const leaves = Math.ceil(blocks / LEAF_BLOCKS);
    if (leaves <= this.directory.leaves.length) return;
    this.#own();
    this.directory.leaves = grown(this.directory.leaves, new Uint32Array(leaves));
  }

  leafAt(index: number): number {
    return this.directory.leaves[index] ?? 0;
  }

  /**
   * Sets `location` and `length`: where `block` lies (0: not mapped), and for how many blocks from there on, at most
   * `lengthMax`, the same is true: contiguous in the log, or not mapped.
   */
  find(block: number, lengthMax: number): void {
    const { arena } = this;
    const { leaves } = this.directory;
    let index = Math.floor(block / LEAF_BLOCKS);
    const inLeaf = block & LEAF_MASK;
    const leaf = leaves[index] ?? 0;
    if (leaf !== 0) {
      arena.find(leaf, inLeaf);
      this.location = arena.location;
      this.length = arena.length;
      if (this.location !== 0 || this.length >= lengthMax || inLeaf + this.length < LEAF_BLOCKS) {
        if (this.location !== 0 && this.length < lengthMax && inLeaf + this.length === LEAF_BLOCKS)
          this.#findOn(index + 1, lengthMax);
        if (this.length > lengthMax) this.length = lengthMax;
        return;
      }
    } else {
      this.location = 0;
      this.length = LEAF_BLOCKS - inLeaf;
    }
    // Not mapped to the end of the leaf: leaves that do not exist are skipped in one step each.
    while (this.length < lengthMax) {
      const next = leaves[++index] ?? 0;
      if (next === 0) {
        this.length += LEAF_BLOCKS;
        continue;
      }
      arena.find(next, 0);
      if (arena.location !== 0) break;
      this.length += arena.length;
      if (arena.length < LEAF_BLOCKS) break;
    }
    if (this.length > lengthMax) this.length = lengthMax;
  }

  /** A mapped run that reaches the end of its leaf may go on in the next. */
  #findOn(index: number, lengthMax: number): void {
    while (this.length < lengthMax) {
      const leaf = this.leafAt(index++);
      if (leaf === 0) return;
      this.arena.find(leaf, 0);
      if (this.arena.location !== this.location + this.length) return;
      this.length += this.arena.length;
      if (this.arena.length < LEAF_BLOCKS) return;
    }
  }

  /**
   * Maps `length` blocks from `block` to `location` and on (0: unmaps them). Tells `dropped(block, length, location)`
   * what was there before.
   */
  replace(
    block: number,
    length: number,
    location: Location,
    dropped: (block: number, length: number, location: Location) => void,
  ): void {
    // Where a part of the log is missing, a volume may not have grown to where it was written to.
    this.grow(block + length);
    this.#own();
    const { leaves } = this.directory;
    while (length > 0) {
      const index = Math.floor(block / LEAF_BLOCKS);
      const inLeaf = block & LEAF_MASK;
      const part = Math.min(length, LEAF_BLOCKS - inLeaf);
      let leaf = leaves[index]!;
      if (leaf !== 0 || location !== 0) {
        if (leaf === 0) {
          leaf = this.arena.make();
          leaves[index] = leaf;
        } else if (this.arena.refs(leaf) > 1) {
          const twin = this.arena.copy(leaf);
          this.arena.release(leaf);
          leaf = twin;
          leaves[index] = leaf;
        }
        const base = index * LEAF_BLOCKS;
        if (location !== 0) this.mapped += part;
        this.#base = base;
        this.#dropped = dropped;
        this.arena.replace(leaf, inLeaf, part, location, this.#onDropped);
        if (location === 0 && this.arena.isEmpty(leaf)) {
          this.arena.release(leaf);
          leaves[index] = 0;
        }
      }
      block += part;
      length -= part;
      if (location !== 0) location += part;
    }
  }

  // Kept from call to call, so that a change allocates no closure.
  #base = 0;
  #dropped: (block: number, length: number, location: Location) => void = ignore;
  readonly #onDropped = (start: number, length: number, location: Location): void => {
    this.mapped -= length;
    this.#dropped(this.#base + start, length, location);
  };

  /** Takes the leaf at `index` out of the directory, without telling what it held. */
  dropLeaf(index: number): void {
    this.#own();
    const leaf = this.directory.leaves[index] ?? 0;
    if (leaf === 0) return;
    this.directory.leaves[index] = 0;
    this.arena.release(leaf);
  }

  #own(): void {
    const shared = this.directory;
    if (shared.refs === 1) return;
    const own = new Directory(0);
    own.leaves = shared.leaves.slice();
    for (const leaf of own.leaves) if (leaf !== 0) this.arena.retain(leaf);
    shared.refs--;
    this.directory = own;
  }
}
