/** Which faults met which states of the product, over all worlds of a run: a hole in the table is a thing never tried. */
import type { SimNode } from "./env/sim-node.ts";

type Counts = readonly (readonly [string, number])[];
export interface CoverageCounts {
  readonly faults: readonly (readonly [string, Counts])[];
  readonly states: Counts;
}

export class Coverage {
  readonly #counts = new Map<string, Map<string, number>>();
  readonly #states = new Map<string, number>();

  /** `fault` happened at a node while its processes were in the midst of their states. */
  fault(fault: string, node: SimNode): void {
    const states = new Set<string>();
    for (const process of node.processes) for (const state of process.states) states.add(state);
    if (states.size === 0) states.add("idle");
    for (const state of states) this.add(fault, state);
  }

  add(fault: string, state: string, count = 1): void {
    let row = this.#counts.get(fault);
    if (row === undefined) {
      row = new Map();
      this.#counts.set(fault, row);
    }
    row.set(state, (row.get(state) ?? 0) + count);
  }

  /** The product has been in a state, faults or not. */
  entered(state: string): void {
    this.#states.set(state, (this.#states.get(state) ?? 0) + 1);
  }

  /** Its counts as plain data, and adding those of another one. */
  get counts(): CoverageCounts {
    return { faults: [...this.#counts].map(([fault, row]) => [fault, [...row]]), states: [...this.#states] };
  }
  merge({ faults, states }: CoverageCounts): void {
    for (const [fault, row] of faults) for (const [state, count] of row) this.add(fault, state, count);
    for (const [state, count] of states) this.#states.set(state, (this.#states.get(state) ?? 0) + count);
  }

  /** How often a fault met a state. */
  count(fault: string, state: string): number {
    return this.#counts.get(fault)?.get(state) ?? 0;
  }

  table(): string {
    const states = new Set(this.#states.keys());
    for (const row of this.#counts.values()) for (const state of row.keys()) states.add(state);
    const columns = [...states].sort();
    const faults = [...this.#counts.keys()].sort();
    const nameWidth = Math.max(12, ...faults.map((fault) => fault.length));
    const widths = columns.map((column) => Math.max(7, column.length));
    const line = (name: string, cells: string[]): string =>
      name.padEnd(nameWidth) + cells.map((cell, i) => cell.padStart(widths[i]! + 1)).join("");
    const lines = [line("", columns)];
    lines.push(
      line(
        "entered",
        columns.map((column) => `${this.#states.get(column) ?? 0}`),
      ),
    );
    for (const fault of faults)
      lines.push(
        line(
          fault,
          columns.map((column) => `${this.count(fault, column) || "-"}`),
        ),
      );
    return lines.join("\n");
  }
}
