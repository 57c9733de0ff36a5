/**
 * A file system that forgets: POSIX-like names and files as a process sees them, and beside them what a power cut would
 * leave. It has no time and no chance of faults of its own (`sim-disk.ts` has both); what is lost in a power cut is
 * decided by a `PowerCut`.
 *
 * - A write changes the page cache, and is a pending change of its file until that is synced. In a power cut each sector
 *   of 512 bytes has its durable content, or what any of the pending changes gave it.
 * - Names are pending until their directory is synced ("loose": any subset of the changes may be lost, and a move to
 *   another directory may leave both names) or until anything is synced ("journal", as ext4: the changes survive in order, up to a point).
 * - A failed sync forgets that its changes are pending: they look written and are gone after the next power cut.
 */
import type { Memory } from "#base/memory";
import type { DiskFault, FileFacts } from "#env/env";
import type { Chance } from "./chance.ts";
import { PAGE_BYTES, type PageHolder, type PageStore } from "./page-store.ts";

export const SECTOR_BYTES = 512;
const SECTORS_PER_PAGE = PAGE_BYTES / SECTOR_BYTES;
const ALL_SECTORS = 2 ** SECTORS_PER_PAGE - 1;
/** In page tables: space is taken and reads as zeroes. A page that is not in the table takes no space. */
const ZERO_PAGE = 0;
const HOLE = -1;

/** A pending change of one page, of the size, or of both. */
interface Change {
  /** Index of the page in the file, -1 for none. */
  readonly index: number;
  /** The page's whole new content, or HOLE. */
  readonly page: number;
  /** Bit per sector: which of them it changes. */
  readonly sectors: number;
  /** The file's new size, -1 when it stays; with a page, the size is at least that. */
  readonly size: number;
}

export class Inode {
  readonly kind: "file" | "directory";
  readonly id: number;
  /** As a process sees it. */
  size = 0;
  pages = new Map<number, number>();
  /** As a power cut leaves it, but for the changes. */
  durableSize = 0;
  durablePages = new Map<number, number>();
  changes: Change[] = [];
  /** Changes that are not pending any more. */
  flushedCount = 0;
  /** Sectors that cannot be read until they are written again. */
  readonly badSectors = new Set<number>();
  entries = new Map<string, Inode>();
  durableEntries = new Map<string, Inode>();
  links = 0;
  handles = 0;

  constructor(kind: "file" | "directory", id: number) {
    this.kind = kind;
    this.id = id;
  }
}

interface NameChange {
  readonly set: { readonly directory: Inode; readonly name: string; readonly inode: Inode } | undefined;
  readonly removed: { readonly directory: Inode; readonly name: string; readonly inode: Inode } | undefined;
}

export type NamePolicy = "loose" | "journal";

/** What a power cut takes: how likely each pending thing survives, and how finely it tears. */
export interface PowerCut {
  /** Probability that a change of content survives. */
  readonly keep: number;
  /** Decide for a whole file, a whole change of a page, or each sector. */
  readonly grain: "file" | "page" | "sector";
  /** Probability that a name change survives (loose), or where in their order they end (journal). */
  readonly keepNames: number;
  /** Probability that a torn page has a sector that cannot be read afterwards. */
  readonly unreadable: number;
}

export class SimFileSystem implements PageHolder {
  readonly #store: PageStore;
  readonly #chance: Chance;
  readonly root: Inode;
  names: NamePolicy = "journal";
  /** Bytes. */
  capacity = Number.POSITIVE_INFINITY;
  #nameChanges: NameChange[] = [];
  #nextInode = 1;
  #usedPages = 0;
  /** Every file with changes, so that a power cut need not search for them. */
  readonly #dirty = new Set<Inode>();

  constructor(store: PageStore, chance: Chance) {
    this.#store = store;
    this.#chance = chance;
    this.root = new Inode("directory", 0);
    store.add(this);
  }

  get used(): number {
    return this.#usedPages * PAGE_BYTES;
  }
  get available(): number {
    return Math.max(0, this.capacity - this.used);
  }

  eachPage(visit: (page: number) => void): void {
    for (const inode of this.#everything()) {
      for (const page of inode.pages.values()) visit(page);
      for (const page of inode.durablePages.values()) visit(page);
      for (const change of inode.changes) visit(change.page);
    }
  }

  /* -------------------------------------------------------------- names */

  find(path: string): Inode | undefined {
    let at: Inode | undefined = this.root;
    for (const name of path.split("/")) {
      if (name === "") continue;
      at = at.entries.get(name);
      if (at === undefined) return undefined;
    }
    return at;
  }

  create(path: string, kind: "file" | "directory"): Inode | DiskFault {
    const place = this.#place(path);
    if (typeof place === "string") return place;
    if (place.directory.entries.has(place.name)) return "exists";
    const inode = new Inode(kind, this.#nextInode++);
    this.#change({ set: { ...place, inode }, removed: undefined });
    return inode;
  }

  link(from: string, to: string): DiskFault | undefined {
    const inode = this.find(from);
    const place = this.#place(to);
    if (inode === undefined) return "missing";
    if (typeof place === "string") return place;
    if (place.directory.entries.has(place.name)) return "exists";
    if (inode.kind === "directory") return "denied";
    this.#change({ set: { ...place, inode }, removed: undefined });
    return undefined;
  }

  rename(from: string, to: string): DiskFault | undefined {
    const source = this.#place(from);
    const target = this.#place(to);
    if (typeof source === "string") return source;
    if (typeof target === "string") return target;
    const inode = source.directory.entries.get(source.name);
    if (inode === undefined) return "missing";
    const replaced = target.directory.entries.get(target.name);
    if (replaced === inode) return undefined;
    if (replaced !== undefined && replaced.kind !== inode.kind) return "exists";
    if (replaced?.kind === "directory" && replaced.entries.size > 0) return "exists";
    this.#change({ set: { ...target, inode }, removed: { ...source, inode } });
    return undefined;
  }

  remove(path: string, kind: "file" | "directory"): DiskFault | undefined {
    const place = this.#place(path);
    if (typeof place === "string") return place;
    const inode = place.directory.entries.get(place.name);
    if (inode === undefined) return "missing";
    if (inode.kind !== kind) return "denied";
    if (inode.entries.size > 0) return "exists";
    this.#change({ set: undefined, removed: { ...place, inode } });
    return undefined;
  }

  facts(inode: Inode): FileFacts {
    return { kind: inode.kind, size: inode.size, allocated: inode.pages.size * PAGE_BYTES };
  }

  /** Makes names durable: those of `directory` (loose), or all (journal). */
  syncDirectory(directory: Inode): void {
    if (this.names === "journal") {
      this.#commitNames();
      return;
    }
    const others: NameChange[] = [];
    for (const change of this.#nameChanges)
      if (change.set?.directory === directory || change.removed?.directory === directory) makeNameDurable(change);
      else others.push(change);
    this.#nameChanges = others;
  }

  #place(path: string): { directory: Inode; name: string } | DiskFault {
    const cut = path.lastIndexOf("/");
    const directory = this.find(path.slice(0, cut));
    if (directory === undefined) return "missing";
    if (directory.kind !== "directory") return "denied";
    return { directory, name: path.slice(cut + 1) };
  }

  #change(change: NameChange): void {
    const { set, removed } = change;
    if (removed !== undefined) {
      removed.directory.entries.delete(removed.name);
      removed.inode.links--;
    }
    if (set !== undefined) {
      const replaced = set.directory.entries.get(set.name);
      set.directory.entries.set(set.name, set.inode);
      set.inode.links++;
      if (replaced !== undefined) {
        replaced.links--;
        this.releaseIfUnused(replaced);
      }
    }
    this.#nameChanges.push(change);
    if (removed !== undefined) this.releaseIfUnused(removed.inode);
  }

  #commitNames(): void {
    for (const change of this.#nameChanges.splice(0)) makeNameDurable(change);
  }

  /** A file without names and handles gives its space back. What is durable of it stays until its name's end is. */
  releaseIfUnused(inode: Inode): void {
    if (inode.links > 0 || inode.handles > 0) return;
    this.#usedPages -= inode.pages.size;
    inode.pages.clear();
  }

  /* ------------------------------------------------------------ content */

  /** Bytes read: fewer than asked at the end of the file. "io" when a sector cannot be read. */
  read(inode: Inode, position: number, length: number, memory: Memory, at: number): number | DiskFault {
    const count = Math.max(0, Math.min(length, inode.size - position));
    if (inode.badSectors.size > 0)
      for (let sector = Math.floor(position / SECTOR_BYTES); sector * SECTOR_BYTES < position + count; sector++)
        if (inode.badSectors.has(sector)) return "io";
    let done = 0;
    while (done < count) {
      const index = Math.floor((position + done) / PAGE_BYTES);
      const inPage = (position + done) % PAGE_BYTES;
      const step = Math.min(PAGE_BYTES - inPage, count - done);
      const page = inode.pages.get(index) ?? ZERO_PAGE;
      if (page === ZERO_PAGE) memory.bytes.fill(0, at + done, at + done + step);
      else {
        const bytes = this.#store.page(page);
        memory.bytes.set(step === PAGE_BYTES ? bytes : bytes.subarray(inPage, inPage + step), at + done);
      }
      done += step;
    }
    return count;
  }

  /** Writes into the page cache. "full" changes nothing. */
  write(inode: Inode, position: number, length: number, memory: Memory, at: number): DiskFault | undefined {
    if (!this.#hasRoom(inode, position, length)) return "full";
    let done = 0;
    while (done < length) {
      const index = Math.floor((position + done) / PAGE_BYTES);
      const inPage = (position + done) % PAGE_BYTES;
      const step = Math.min(PAGE_BYTES - inPage, length - done);
      const old = inode.pages.get(index);
      const page = step === PAGE_BYTES || old === undefined ? this.#store.allocate() : this.#store.copy(old);
      const bytes = this.#store.page(page);
      if (step < PAGE_BYTES && old === undefined) bytes.fill(0);
      bytes.set(memory.bytes.subarray(at + done, at + done + step), inPage);
      done += step;
      const end = position + done;
      this.#put(inode, index, page, sectorsOf(inPage, step), end);
    }
    if (inode.badSectors.size > 0)
      for (let sector = Math.floor(position / SECTOR_BYTES); sector * SECTOR_BYTES < position + length; sector++)
        inode.badSectors.delete(sector);
    return undefined;
  }

  truncate(inode: Inode, size: number): DiskFault | undefined {
    if (size < inode.size) this.#clear(inode, size, inode.size - size);
    this.#resize(inode, size);
    return undefined;
  }

  allocate(inode: Inode, position: number, length: number): DiskFault | undefined {
    if (!this.#hasRoom(inode, position, length)) return "full";
    const final = Math.ceil((position + length) / PAGE_BYTES);
    for (let index = Math.floor(position / PAGE_BYTES); index < final; index++)
      if (!inode.pages.has(index)) this.#put(inode, index, ZERO_PAGE, ALL_SECTORS, -1);
    if (position + length > inode.size) this.#resize(inode, position + length);
    return undefined;
  }

  punch(inode: Inode, position: number, length: number): DiskFault | undefined {
    this.#clear(inode, position, Math.min(length, Math.max(0, inode.size - position)));
    return undefined;
  }

  /** Where in the history of a file's changes it is now: a sync that starts now is about what came before. */
  mark(inode: Inode): number {
    return inode.flushedCount + inode.changes.length;
  }

  /** Makes what came before `mark` durable, and with a journal all names. */
  sync(inode: Inode, mark: number): void {
    applyChanges(inode, Math.max(0, mark - inode.flushedCount));
    if (inode.changes.length === 0) this.#dirty.delete(inode);
    if (this.names === "journal") this.#commitNames();
  }

  /**
   * A sync that fails: a part of the changes is durable, the rest is forgotten. With `evict` the page cache forgets as
   * well, at once; without it, processes see the changes until the power is cut.
   */
  failSync(inode: Inode, evict: boolean): void {
    const count = inode.changes.length;
    inode.changes = inode.changes.filter(() => this.#chance.often(0.5));
    inode.flushedCount += count - inode.changes.length;
    applyChanges(inode, inode.changes.length);
    this.#dirty.delete(inode);
    if (evict) this.#showDurable(inode);
  }

  /** Flips one bit of what is stored at `position`, in the page cache and on the disk. */
  flipBit(inode: Inode, position: number, bit: number): void {
    const index = Math.floor(position / PAGE_BYTES);
    const visible = inode.pages.get(index) ?? ZERO_PAGE;
    const durable = inode.durablePages.get(index) ?? ZERO_PAGE;
    const flip = (page: number): number => {
      const flipped = this.#store.copy(page);
      this.#store.page(flipped)[position % PAGE_BYTES]! ^= 1 << bit;
      return flipped;
    };
    const flipped = visible === ZERO_PAGE ? ZERO_PAGE : flip(visible);
    if (visible !== ZERO_PAGE) inode.pages.set(index, flipped);
    if (durable !== ZERO_PAGE) inode.durablePages.set(index, durable === visible ? flipped : flip(durable));
  }

  /** Each page of a file: as processes see it, or as the disk has it. */
  *pagesOf(inode: Inode, of: "processes" | "disk"): Generator<{ index: number; bytes: Uint8Array<ArrayBuffer> }> {
    for (const [index, page] of of === "disk" ? inode.durablePages : inode.pages)
      if (page !== ZERO_PAGE) yield { index, bytes: this.#store.page(page) };
  }

  /** All files under `path`, with their paths, in a fixed order. */
  files(path: string): { path: string; inode: Inode }[] {
    const found: { path: string; inode: Inode }[] = [];
    const walk = (at: string, inode: Inode): void => {
      if (inode.kind === "file") found.push({ path: at, inode });
      else for (const [name, entry] of inode.entries) walk(`${at}/${name}`, entry);
    };
    const top = this.find(path);
    if (top !== undefined) walk(path === "/" ? "" : path, top);
    return found;
  }

  /* ---------------------------------------------------------- power cut */

  /** What is durable becomes all there is. Handles are void. */
  cutPower(cut: PowerCut): void {
    this.#cutNames(cut);
    for (const inode of this.#dirty) this.#cutContent(inode, cut);
    this.#dirty.clear();
    this.#open.clear();
    const seen = new Set<Inode>();
    const walk = (inode: Inode): void => {
      inode.links++;
      if (seen.has(inode)) return;
      seen.add(inode);
      inode.handles = 0;
      inode.entries = new Map(inode.durableEntries);
      this.#showDurable(inode);
      for (const entry of inode.entries.values()) {
        if (!seen.has(entry)) entry.links = 0;
        walk(entry);
      }
    };
    this.root.links = 0;
    walk(this.root);
    this.#usedPages = 0;
    for (const inode of seen) this.#usedPages += inode.pages.size;
  }

  #cutNames(cut: PowerCut): void {
    const changes = this.#nameChanges;
    this.#nameChanges = [];
    if (this.names === "journal") {
      const kept = cut.keepNames >= 1 ? changes.length : this.#chance.below(changes.length + 1);
      for (const change of changes.slice(0, cut.keepNames <= 0 ? 0 : kept)) makeNameDurable(change);
      return;
    }
    for (const change of changes) {
      if (!this.#chance.often(cut.keepNames)) continue;
      const isMove = change.set !== undefined && change.removed?.directory !== change.set.directory;
      const both = isMove && this.#chance.often(0.2);
      makeNameDurable(both ? { set: change.set, removed: undefined } : change);
    }
  }

  #cutContent(inode: Inode, cut: PowerCut): void {
    const chance = this.#chance;
    const keepFile = cut.grain === "file" ? chance.often(cut.keep) : undefined;
    for (const change of inode.changes) {
      const keep = keepFile ?? chance.often(cut.keep);
      if (keep) keepSize(inode, change);
      if (change.index < 0) continue;
      let sectors = keep ? change.sectors : 0;
      if (cut.grain === "sector") {
        sectors = 0;
        for (let sector = 0; sector < SECTORS_PER_PAGE; sector++)
          if ((change.sectors >> sector) & 1 && chance.often(cut.keep)) sectors |= 1 << sector;
      }
      this.#keepSectors(inode, change, sectors);
      const torn = change.sectors & ~sectors;
      if (torn !== 0 && sectors !== 0 && chance.often(cut.unreadable))
        inode.badSectors.add(change.index * SECTORS_PER_PAGE + 31 - Math.clz32(torn));
    }
    inode.changes = [];
    // What lies beyond the size that survived does not exist, and reads as zeroes should the file grow again.
    for (const index of [...inode.durablePages.keys()])
      if (index * PAGE_BYTES >= inode.durableSize) inode.durablePages.delete(index);
    const tail = inode.durableSize % PAGE_BYTES;
    const last = inode.durablePages.get(Math.floor(inode.durableSize / PAGE_BYTES));
    if (tail > 0 && last !== undefined && last !== ZERO_PAGE) {
      const page = this.#store.copy(last);
      this.#store.page(page).fill(0, tail);
      inode.durablePages.set(Math.floor(inode.durableSize / PAGE_BYTES), page);
    }
  }

  #keepSectors(inode: Inode, change: Change, sectors: number): void {
    if (sectors === 0) return;
    const old = inode.durablePages.get(change.index);
    if (sectors === ALL_SECTORS || (sectors === change.sectors && old === undefined && change.page === HOLE)) {
      setPage(inode.durablePages, change.index, change.page);
      return;
    }
    const merged = this.#store.copy(old ?? ZERO_PAGE);
    const to = this.#store.page(merged);
    const source = this.#store.page(Math.max(change.page, ZERO_PAGE));
    for (let sector = 0; sector < SECTORS_PER_PAGE; sector++) {
      if (((sectors >> sector) & 1) === 0) continue;
      const begin = sector * SECTOR_BYTES;
      to.set(source.subarray(begin, begin + SECTOR_BYTES), begin);
    }
    inode.durablePages.set(change.index, merged);
  }

  #showDurable(inode: Inode): void {
    this.#usedPages += inode.durablePages.size - inode.pages.size;
    inode.pages = new Map(inode.durablePages);
    inode.size = inode.durableSize;
  }

  /* ------------------------------------------------------------ helpers */

  #hasRoom(inode: Inode, position: number, length: number): boolean {
    if (this.capacity === Number.POSITIVE_INFINITY) return true;
    let wanted = 0;
    const final = Math.ceil((position + length) / PAGE_BYTES);
    for (let index = Math.floor(position / PAGE_BYTES); index < final; index++) if (!inode.pages.has(index)) wanted++;
    return wanted === 0 || (this.#usedPages + wanted) * PAGE_BYTES <= this.capacity;
  }

  #put(inode: Inode, index: number, page: number, sectors: number, size: number): void {
    const had = inode.pages.has(index);
    setPage(inode.pages, index, page);
    this.#usedPages += (page === HOLE ? 0 : 1) - (had ? 1 : 0);
    inode.size = Math.max(inode.size, size);
    inode.changes.push({ index, page, sectors, size });
    this.#dirty.add(inode);
  }

  #resize(inode: Inode, size: number): void {
    inode.size = size;
    inode.changes.push({ index: -1, page: HOLE, sectors: 0, size });
    this.#dirty.add(inode);
  }

  /** Whole pages become holes, parts of pages zeroes. */
  #clear(inode: Inode, position: number, length: number): void {
    const end = position + length;
    for (const index of [...inode.pages.keys()]) {
      const first = Math.max(index * PAGE_BYTES, position);
      const final = Math.min((index + 1) * PAGE_BYTES, end);
      // The last page of a file ends with the file.
      const whole = first === index * PAGE_BYTES && (final - first === PAGE_BYTES || end >= inode.size);
      if (final <= first) continue;
      if (whole) this.#put(inode, index, HOLE, ALL_SECTORS, -1);
      else {
        const page = this.#store.copy(inode.pages.get(index)!);
        const start = first % PAGE_BYTES;
        this.#store.page(page).fill(0, start, start + (final - first));
        this.#put(inode, index, page, sectorsOf(start, final - first), -1);
      }
    }
  }

  #everything(): Set<Inode> {
    const seen = new Set<Inode>(this.#dirty);
    const walk = (inode: Inode): void => {
      if (inode.kind === "file") {
        seen.add(inode);
        return;
      }
      if (seen.has(inode)) return;
      seen.add(inode);
      for (const entry of inode.entries.values()) walk(entry);
      for (const entry of inode.durableEntries.values()) walk(entry);
    };
    walk(this.root);
    for (const change of this.#nameChanges) {
      if (change.set !== undefined) walk(change.set.inode);
      if (change.removed !== undefined) walk(change.removed.inode);
    }
    for (const inode of this.#open) seen.add(inode);
    return seen;
  }

  /** Files that have handles: they live on without a name. */
  readonly #open = new Set<Inode>();
  opened(inode: Inode): void {
    inode.handles++;
    this.#open.add(inode);
  }
  closed(inode: Inode): void {
    inode.handles--;
    if (inode.handles > 0) return;
    this.#open.delete(inode);
    this.releaseIfUnused(inode);
  }
}

function makeNameDurable(change: NameChange): void {
  const { set, removed } = change;
  if (set !== undefined) set.directory.durableEntries.set(set.name, set.inode);
  if (removed !== undefined && removed.directory.durableEntries.get(removed.name) === removed.inode)
    removed.directory.durableEntries.delete(removed.name);
}

/** In order, so that a page's last change, whose content includes those before it, decides. */
function applyChanges(inode: Inode, count: number): void {
  inode.flushedCount += Math.min(count, inode.changes.length);
  for (const change of inode.changes.splice(0, count)) {
    if (change.index >= 0) setPage(inode.durablePages, change.index, change.page);
    keepSize(inode, change);
  }
}

function keepSize(inode: Inode, change: Change): void {
  if (change.index >= 0) inode.durableSize = Math.max(inode.durableSize, change.size);
  else inode.durableSize = change.size;
}

function setPage(table: Map<number, number>, index: number, page: number): void {
  if (page === HOLE) table.delete(index);
  else table.set(index, page);
}

function sectorsOf(inPage: number, length: number): number {
  const first = Math.floor(inPage / SECTOR_BYTES);
  const final = Math.ceil((inPage + length) / SECTOR_BYTES);
  return ((1 << final) - 1) & ~((1 << first) - 1);
}
