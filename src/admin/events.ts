/** What happens on the server, for people and programs that watch: numbered, and the last ones kept for those who resume. */
const KEPT_MAX = 1000;

export interface ServerEvent {
  readonly id: number;
  /** RFC 3339. */
  readonly at: string;
  /** "volume-created", "space-soft", "lane-died" … */
  readonly type: string;
  readonly message: string;
  readonly data: object;
}

export class Events {
  readonly #kept: ServerEvent[] = [];
  readonly #watchers = new Set<(event: ServerEvent) => void>();
  #lastId = 0;

  add(type: string, message: string, data: object = {}): void {
    const event = { id: ++this.#lastId, at: new Date().toISOString(), type, message, data };
    this.#kept.push(event);
    if (this.#kept.length > KEPT_MAX) this.#kept.shift();
    for (const watcher of [...this.#watchers]) watcher(event);
  }

  /** Those after event `id` that are still kept, oldest first. */
  after(id: number): readonly ServerEvent[] {
    return this.#kept.filter((event) => event.id > id);
  }

  get lastId(): number {
    return this.#lastId;
  }

  /** Returns how to stop. */
  watch(watcher: (event: ServerEvent) => void): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }
}
