/**
 * What lanes want of each other passes through here: operations on another lane's volume, and reservations, of
 * which every lane keeps a copy. The last word on each volume is kept, so that a lane that is replaced learns it.
 */
import { Refusal } from "#base/refusal";
import type { LaneCalls, LaneWishes } from "#lane/messages";
import type { LaneMessage, Lanes } from "./lanes.ts";

type Wish = Extract<LaneMessage, { type: "wish" }>;

interface Known {
  readonly shared: LaneWishes["reservations"]["given"]["shared"];
  /** The lane that told it: its sessions are the ones that an old RESERVE belongs to. */
  readonly lane: number;
}

export class LaneWishDesk {
  readonly #lanes: Lanes;
  readonly #reservations = new Map<string, Known>();

  constructor(lanes: Lanes) {
    this.#lanes = lanes;
  }

  /** Does what a lane wants, and brings it the answer. */
  async take(lane: number, { id, wish, given }: Wish): Promise<void> {
    const answer =
      wish === "reservations"
        ? await this.#share(lane, given as LaneWishes["reservations"]["given"])
        : await this.#doThere(wish, given as LaneWishes[typeof wish]["given"]);
    await this.#lanes.call(lane, "answer", { wish: id, answer });
  }

  /** An old RESERVE ends with the session that holds it, and sessions end with their lane. */
  async died(lane: number): Promise<void> {
    for (const { shared, lane: teller } of [...this.#reservations.values()])
      if (teller === lane && shared.legacy !== undefined)
        await this.#share(lane, { shared: { ...shared, legacy: undefined }, cleared: false });
  }

  /** Tells a lane that knows only what was made to persist. */
  async tellAll(lane: number): Promise<void> {
    for (const { shared } of this.#reservations.values())
      await this.#lanes.call(lane, "reservations.take", { shared, cleared: false });
  }

  async #share(lane: number, given: LaneWishes["reservations"]["given"]): Promise<undefined> {
    const { record, legacy } = given.shared;
    if (record.registrants.length === 0 && legacy === undefined) this.#reservations.delete(record.uuid);
    else this.#reservations.set(record.uuid, { shared: given.shared, lane });
    await Promise.all(
      this.#lanes.others(lane).map((index) => this.#orDead(this.#lanes.call(index, "reservations.take", given))),
    );
    return undefined;
  }

  /** An operation on a volume of another lane. */
  async #doThere<Op extends "compare-write" | "copy">(
    wish: Op,
    { lane, ...given }: LaneWishes[Op]["given"],
  ): Promise<LaneWishes[Op]["answer"]> {
    const call = `device.${wish}` as const;
    const answer = this.#lanes.call(lane, call, given as unknown as LaneCalls[typeof call]["given"]);
    return (await this.#orDead(answer)) ?? { status: "away", result: 0 };
  }

  /** A lane that dies meanwhile is told everything when it is replaced. */
  async #orDead<T>(answer: Promise<T>): Promise<T | undefined> {
    try {
      return await answer;
    } catch (error) {
      if (error instanceof Refusal && error.code === "unreachable") return undefined;
      throw error;
    }
  }
}
