/** Hosts and grants as the control plane keeps them: one file, changed as a whole, handed to every lane. */
import { Refusal } from "#base/refusal";
import { RIGHTS_EMPTY, type RightsState } from "#base/rights";
import { readIfThere, writeDurably } from "./durable-file.ts";

export class Rights {
  state: RightsState;
  readonly #path: string;
  readonly #publish: (state: RightsState) => Promise<unknown>;

  /** @throws Refusal damaged */
  constructor(path: string, publish: (state: RightsState) => Promise<unknown>) {
    this.#path = path;
    this.#publish = publish;
    this.state = read(path);
  }

  /** Replaces the state by `edit`'s answer: durable, then in force on every lane, then answered. */
  async change(edit: (state: RightsState) => RightsState): Promise<void> {
    const next = { ...edit(this.state), generation: this.state.generation + 1 };
    writeDurably(this.#path, `${JSON.stringify(next, undefined, 2)}\n`);
    this.state = next;
    await this.publish();
  }

  async publish(): Promise<void> {
    await this.#publish(this.state);
  }
}

function read(path: string): RightsState {
  const text = readIfThere(path);
  if (text === undefined) return RIGHTS_EMPTY;
  let state: RightsState;
  try {
    state = JSON.parse(text) as RightsState;
  } catch {
    throw new Refusal(
      "damaged",
      `${path} is damaged: it is not JSON`,
      "Restore it from a backup, or remove it to start without hosts.",
    );
  }
  if ((state.format as number) > 1)
    throw new Refusal(
      "too-new",
      `${path} has format ${state.format}`,
      "Start the newer version of Ashlar that wrote it.",
    );
  return { ...RIGHTS_EMPTY, ...state };
}
