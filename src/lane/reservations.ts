/** Reservations as the control plane sees them: listed, and cleared by an operator. */
import { Refusal } from "#base/refusal";
import type { Task } from "#base/task";
import type { ReservationBook } from "#scsi/reservation-store";
import { PrType } from "#wire/scsi/codes";
import type { ReservationFacts } from "./messages.ts";

const TYPE_NAMES = new Map<number, string>(
  Object.entries(PrType).map(([name, code]) => [code, name.toLowerCase().replaceAll("_", " ")]),
);

export function describeReservations(book: ReservationBook): ReservationFacts[] {
  return [...book.taken()].map((one) => {
    const { reservation, legacyHolder } = one;
    const holders = one.registrants
      .filter(({ nexus }) => one.isHolder(nexus))
      .map(({ initiatorPort }) => initiatorPort);
    return {
      uuid: one.uuid,
      persists: one.aptpl,
      generation: one.generation,
      type:
        reservation === undefined
          ? legacyHolder === undefined
            ? undefined
            : "RESERVE"
          : TYPE_NAMES.get(reservation.type),
      holders: legacyHolder === undefined ? holders : [legacyHolder.slice(0, legacyHolder.indexOf("|"))],
      registrants: one.registrants.map(({ initiatorPort, targetPort, key }) => ({
        initiator: initiatorPort,
        target: targetPort,
        key,
      })),
    };
  });
}

/** @throws Refusal storage-failed when it cannot be made durable; then nothing was cleared. */
export function* clearReservations(book: ReservationBook, uuid: string): Task<readonly string[]> {
  const hurt = new Set<string>();
  for (const one of [...book.taken()]) {
    if (one.uuid !== uuid && !one.uuid.startsWith(`${uuid} `)) continue;
    const before = one.record();
    for (const nexus of one.clearAll()) hurt.add(nexus.slice(0, nexus.indexOf("|")));
    const fault = yield* book.save(one, true);
    if (fault !== undefined) {
      one.restore(before);
      throw new Refusal("storage-failed", `Cannot save the cleared reservations (${fault})`);
    }
    book.tell(one.uuid);
  }
  return [...hurt];
}
