/**
 * Content of simulated disks: immutable pages of 4 KiB, named by number. Files, their durable states and their unflushed
 * changes share pages by number, so a write is copied once however many states it is part of. Page 0 is all zeroes.
 * Pages are not counted: when too many are taken, those that no disk can reach are found and used again.
 */
export const PAGE_BYTES = 4096;
const CHUNK_PAGES = 256;
const COLLECT_PAGES_MIN = 64 * 1024;

/** Who can name the pages it still needs. */
export interface PageHolder {
  eachPage(visit: (page: number) => void): void;
}

export class PageStore {
  /** Each page as a view of its own, made once: a copy of a whole page then makes no object. */
  readonly #pages: Uint8Array<ArrayBuffer>[] = [];
  readonly #free: number[] = [];
  readonly #holders = new Set<PageHolder>();
  #next = 1;
  #collectAt = COLLECT_PAGES_MIN;

  constructor() {
    this.#grow();
  }

  add(holder: PageHolder): void {
    this.#holders.add(holder);
  }

  /** Forgets all content; what pages held by disks of former worlds name is arbitrary from now on. */
  reset(): void {
    this.#holders.clear();
    this.#free.length = 0;
    this.#next = 1;
    this.#collectAt = COLLECT_PAGES_MIN;
  }

  /** A page with arbitrary content. The caller fills it before anybody else learns its number. */
  allocate(): number {
    const reused = this.#free.pop();
    if (reused !== undefined) return reused;
    if (this.#next >= this.#collectAt) {
      this.#collect();
      const found = this.#free.pop();
      if (found !== undefined) return found;
    }
    const page = this.#next++;
    if (page >= this.#pages.length) this.#grow();
    return page;
  }

  /** The page's content. */
  page(page: number): Uint8Array<ArrayBuffer> {
    return this.#pages[page]!;
  }

  /** A new page with the content of another. */
  copy(page: number): number {
    const made = this.allocate();
    this.page(made).set(this.page(page));
    return made;
  }

  #grow(): void {
    const chunk = new ArrayBuffer(CHUNK_PAGES * PAGE_BYTES);
    for (let at = 0; at < chunk.byteLength; at += PAGE_BYTES) this.#pages.push(new Uint8Array(chunk, at, PAGE_BYTES));
  }

  #collect(): void {
    const reached = new Uint8Array(this.#next);
    reached[0] = 1;
    for (const holder of this.#holders)
      holder.eachPage((page) => {
        if (page > 0) reached[page] = 1;
      });
    for (let page = this.#next - 1; page > 0; page--) if (reached[page] === 0) this.#free.push(page);
    this.#collectAt = Math.max(COLLECT_PAGES_MIN, (this.#next - this.#free.length) * 2);
  }
}
