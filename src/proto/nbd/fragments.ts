/**
 * Which parts of a range have come already: to find overlaps and gaps in a reply whose chunks may come in any order.
 * Chunks in order, which is nearly always, cost two numbers and no list.
 */
const FRAGMENTS_MAX = 4096;

export class Fragments {
  /** Bytes that have come. */
  bytes = 0;
  /** The first run; what lies apart from it is in `#apart`: start, end, start, end, …, in order. */
  #start = 0;
  #end = 0;
  readonly #apart: number[] = [];

  clear(): void {
    this.bytes = this.#start = this.#end = 0;
    this.#apart.length = 0;
  }

  /** Adds [start, end), which is not empty. */
  add(start: number, end: number): "added" | "overlap" | "too-many-pieces" {
    if (this.#apart.length === 0) {
      if (this.bytes === 0) {
        this.#start = start;
        this.#end = end;
        this.bytes = end - start;
        return "added";
      }
      if (start === this.#end) {
        this.#end = end;
        this.bytes += end - start;
        return "added";
      }
      this.#apart.push(this.#start, this.#end);
    }
    return this.#addApart(start, end);
  }

  #addApart(start: number, end: number): "added" | "overlap" | "too-many-pieces" {
    const runs = this.#apart;
    // The first run that ends after `start`: by halving, since there can be many.
    let low = 0;
    let high = runs.length / 2;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (runs[middle * 2 + 1]! > start) high = middle;
      else low = middle + 1;
    }
    const index = low * 2;
    if (index < runs.length && runs[index]! < end) return "overlap";
    this.bytes += end - start;
    const joinsLeft = index > 0 && runs[index - 1] === start;
    const joinsRight = index < runs.length && runs[index] === end;
    if (joinsLeft && joinsRight) runs.splice(index - 1, 2);
    else if (joinsLeft) runs[index - 1] = end;
    else if (joinsRight) runs[index] = start;
    else {
      if (runs.length === FRAGMENTS_MAX * 2) return "too-many-pieces";
      runs.splice(index, 0, start, end);
    }
    return "added";
  }
}
