/** What became of the last copies at a unit: SPC-4 §6.24. Asked for by list identifier, per nexus. */
export interface CopyOutcome {
  readonly failed: boolean;
  readonly segments: number;
  readonly bytes: number;
  readonly sense: Uint8Array;
}
/** How many outcomes are remembered; the oldest ones go first. */
const OUTCOMES_MAX = 64;

export class CopyHistory {
  readonly #outcomes = new Map<string, CopyOutcome>();

  put(nexus: string, list: number, outcome: CopyOutcome): void {
    const key = `${list} ${nexus}`;
    this.#outcomes.delete(key);
    this.#outcomes.set(key, outcome);
    if (this.#outcomes.size > OUTCOMES_MAX) this.#outcomes.delete(this.#outcomes.keys().next().value!);
  }

  get(nexus: string, list: number): CopyOutcome | undefined {
    return this.#outcomes.get(`${list} ${nexus}`);
  }
}
