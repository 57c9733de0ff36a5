/** What a version set should contain: its versions with their histories, and control operations whose end is not known yet. */
import type { FrozenHistory } from "../oracle/history.ts";
import { History, type Ticks } from "../oracle/history.ts";

export interface VolumeModel {
  readonly kind: "volume";
  readonly name: string;
  readonly blockSize: number;
  size: number;
  history: History;
}
export interface SnapshotModel {
  readonly kind: "snapshot";
  readonly name: string;
  readonly blockSize: number;
  readonly size: number;
  readonly frozen: FrozenHistory;
}
export type VersionModel = VolumeModel | SnapshotModel;

/** A change that was asked for and not answered before its process died: it is there, or it is not. */
export type OpenChange =
  | { readonly kind: "appears"; readonly version: VersionModel }
  | { readonly kind: "disappears"; readonly names: readonly string[] }
  | { readonly kind: "resizes"; readonly volume: VolumeModel; readonly size: number }
  | { readonly kind: "rolls-back"; readonly volume: VolumeModel; readonly to: SnapshotModel };

export class SetModel {
  readonly ticks: Ticks;
  readonly versions = new Map<string, VersionModel>();
  #nextName = 1;

  constructor(ticks: Ticks) {
    this.ticks = ticks;
  }

  volumes(): VolumeModel[] {
    return [...this.versions.values()].filter((version) => version.kind === "volume");
  }
  snapshots(): SnapshotModel[] {
    return [...this.versions.values()].filter((version) => version.kind === "snapshot");
  }
  snapshotsOf(volume: VolumeModel): SnapshotModel[] {
    return this.snapshots().filter(({ name }) => name.startsWith(`${volume.name}@`));
  }

  newName(prefix: string): string {
    return `${prefix}${this.#nextName++}`;
  }

  volume(name: string, size: number, blockSize: number, origin?: FrozenHistory): VolumeModel {
    return { kind: "volume", name, size, blockSize, history: new History(this.ticks, origin) };
  }

  add(version: VersionModel): void {
    this.versions.set(version.name, version);
  }

  /** The change has happened. */
  settle(change: OpenChange): void {
    switch (change.kind) {
      case "appears":
        this.add(change.version);
        return;
      case "disappears":
        for (const name of change.names) this.versions.delete(name);
        return;
      case "resizes":
        change.volume.size = change.size;
        return;
      case "rolls-back":
        change.volume.history = new History(this.ticks, change.to.frozen);
        return;
    }
  }

  killed(): void {
    for (const volume of this.volumes()) volume.history.killed();
  }
  powerCut(): void {
    for (const volume of this.volumes()) volume.history.powerCut();
  }
}
