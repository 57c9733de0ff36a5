/** The devices of a lane by name: the versions of its own sets, and stand-ins for those of other lanes. */
import type { BlockDevice } from "#device/device";
import type { DeviceDirectory } from "#target/protection";
import type { RemoteDevice } from "./remote-device.ts";

export class LaneDirectory implements DeviceDirectory {
  readonly #own = new Map<string, BlockDevice>();
  readonly #remote = new Map<string, RemoteDevice>();
  readonly #watchers = new Set<(name: string) => void>();

  find(name: string): BlockDevice | undefined {
    return this.#own.get(name) ?? this.#remote.get(name);
  }

  *names(): Iterable<string> {
    yield* this.#own.keys();
    for (const name of this.#remote.keys()) if (!this.#own.has(name)) yield name;
  }

  isOwn(name: string): boolean {
    return this.#own.has(name);
  }

  /** The lane that has it, if it is another one. */
  laneOf(name: string): number | undefined {
    return this.#own.has(name) ? undefined : this.#remote.get(name)?.lane;
  }

  watch(changed: (name: string) => void): () => void {
    this.#watchers.add(changed);
    return () => this.#watchers.delete(changed);
  }

  /** Of the own devices, those in `before` become those in `now`; the names that changed are told. */
  replaceOwn(before: ReadonlyMap<string, BlockDevice>, now: ReadonlyMap<string, BlockDevice>): void {
    this.#replace(this.#own, before, now);
  }

  replaceRemote(before: ReadonlyMap<string, RemoteDevice>, now: ReadonlyMap<string, RemoteDevice>): void {
    this.#replace(this.#remote, before, now);
  }

  #replace<Device>(
    all: Map<string, Device>,
    before: ReadonlyMap<string, Device>,
    now: ReadonlyMap<string, Device>,
  ): void {
    const changed = new Set<string>();
    for (const name of before.keys()) {
      if (now.get(name) === before.get(name)) continue;
      all.delete(name);
      changed.add(name);
    }
    for (const [name, device] of now) {
      if (all.get(name) === device) continue;
      all.set(name, device);
      changed.add(name);
    }
    for (const name of changed) for (const watcher of [...this.#watchers]) watcher(name);
  }
}
