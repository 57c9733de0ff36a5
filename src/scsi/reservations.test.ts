import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Asc, PrType } from "#wire/scsi/codes";
import { type Effects, KEY_NONE, type Registrant, Reservations } from "./reservations.ts";

const port = (name: string): Omit<Registrant, "key"> => ({
  nexus: `${name}|t`,
  initiatorPort: name,
  targetPort: "t",
  relativePort: 1,
});
const KEYS: Record<string, string> = { a: "000000000000000a", b: "000000000000000b", c: "000000000000000c" };
const join = (on: Reservations, name: string): Effects =>
  on.register([port(name)], KEY_NONE, KEYS[name]!, false, false);

/** a, b and c are registered; a has reserved. */
function held(type: number): Reservations {
  const one = new Reservations("00");
  for (const name of ["a", "b", "c"]) assert.equal(join(one, name).outcome, "ok");
  assert.equal(one.reserve("a|t", KEYS["a"]!, type).outcome, "ok");
  return one;
}

describe("persistent reservations", () => {
  it("who may read and write, by type, as holder, registrant and stranger", () => {
    // [type, registrant reads, registrant writes, stranger reads, stranger writes]
    const table = [
      [PrType.WRITE_EXCLUSIVE, true, false, true, false],
      [PrType.EXCLUSIVE_ACCESS, false, false, false, false],
      [PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, true, true, true, false],
      [PrType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY, true, true, false, false],
      [PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS, true, true, true, false],
      [PrType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS, true, true, false, false],
    ] as const;
    for (const [type, reads, writes, strangerReads, strangerWrites] of table) {
      const one = held(type);
      assert.equal(one.refuses("a|t", "read"), false);
      assert.equal(one.refuses("a|t", "write"), false);
      assert.equal(one.refuses("b|t", "read"), !reads, `type ${type}`);
      assert.equal(one.refuses("b|t", "write"), !writes, `type ${type}`);
      for (const stranger of ["x|t", undefined]) {
        assert.equal(one.refuses(stranger, "read"), !strangerReads, `type ${type}`);
        assert.equal(one.refuses(stranger, "write"), !strangerWrites, `type ${type}`);
      }
    }
  });

  it("registering needs the key that is there, and 0 unregisters", () => {
    const one = new Reservations("00");
    assert.equal(one.register([port("a")], KEYS["b"]!, KEYS["a"]!, false, false).outcome, "conflict");
    assert.equal(join(one, "a").outcome, "ok");
    assert.equal(join(one, "a").outcome, "conflict");
    assert.equal(one.register([port("a")], KEYS["a"]!, KEYS["b"]!, false, false).outcome, "ok");
    assert.equal(one.register([port("a")], KEY_NONE, KEYS["c"]!, true, false).outcome, "ok");
    assert.equal(one.generation, 3);
    assert.equal(one.register([port("a")], KEYS["c"]!, KEY_NONE, false, false).outcome, "ok");
    assert.ok(one.isFree);
  });

  it("the holder that unregisters gives the reservation up; others of its kind are told", () => {
    for (const [type, told] of [
      [PrType.WRITE_EXCLUSIVE, 0],
      [PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 2],
    ] as const) {
      const one = held(type);
      const { attentions } = one.register([port("a")], KEYS["a"]!, KEY_NONE, false, false);
      assert.equal(one.reservation, undefined);
      assert.equal(attentions.length, told);
      for (const [, asc] of attentions) assert.equal(asc, Asc.RESERVATIONS_RELEASED);
    }
  });

  it("a reservation of all registrants ends with the last of them", () => {
    const one = held(PrType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS);
    for (const name of ["a", "b"]) {
      one.register([port(name)], KEYS[name]!, KEY_NONE, false, false);
      assert.equal(one.reservation?.key, KEY_NONE);
    }
    one.register([port("c")], KEYS["c"]!, KEY_NONE, false, false);
    assert.equal(one.reservation, undefined);
  });

  it("preempting the holder takes the reservation; its registration is gone, and it is told", () => {
    const one = held(PrType.WRITE_EXCLUSIVE);
    const effects = one.preempt("b|t", KEYS["b"]!, KEYS["a"]!, PrType.EXCLUSIVE_ACCESS, true);
    assert.equal(effects.outcome, "ok");
    assert.deepEqual(effects.abort, ["a|t"]);
    assert.ok(one.isHolder("b|t"));
    assert.equal(one.isRegistered("a|t"), false);
    assert.deepEqual(
      effects.attentions.filter(([nexus]) => nexus === "a|t").map(([, asc]) => asc),
      [Asc.REGISTRATIONS_PREEMPTED],
    );
    assert.deepEqual(
      effects.attentions.filter(([nexus]) => nexus === "c|t").map(([, asc]) => asc),
      [Asc.RESERVATIONS_RELEASED],
    );
  });

  it("preempting a key that nobody has is a conflict, and 0 makes sense for all registrants only", () => {
    const one = held(PrType.WRITE_EXCLUSIVE);
    assert.equal(one.preempt("b|t", KEYS["b"]!, "00000000000000ff", 1, false).outcome, "conflict");
    assert.equal(one.preempt("b|t", KEYS["b"]!, KEY_NONE, 1, false).outcome, "invalid-parameter");
    const all = held(PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS);
    assert.equal(all.preempt("b|t", KEYS["b"]!, KEY_NONE, PrType.EXCLUSIVE_ACCESS, false).outcome, "ok");
    assert.deepEqual(
      all.registrants.map(({ nexus }) => nexus),
      ["b|t"],
    );
  });

  it("a reservation moves to a port that need not be registered", () => {
    const one = held(PrType.WRITE_EXCLUSIVE);
    assert.equal(one.move("b|t", KEYS["b"]!, port("d"), "00000000000000dd", false, true).outcome, "conflict");
    assert.equal(one.move("a|t", KEYS["a"]!, port("d"), "00000000000000dd", true, true).outcome, "ok");
    assert.ok(one.isHolder("d|t"));
    assert.equal(one.isRegistered("a|t"), false);
    assert.ok(one.aptpl);
  });

  it("a record makes the same state again", () => {
    const one = held(PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY);
    const again = new Reservations("00", JSON.parse(JSON.stringify(one.record())));
    assert.deepEqual(again.record(), one.record());
    assert.ok(again.isHolder("a|t"));
  });

  it("the old RESERVE stands against everybody else, and yields to persistent registrations", () => {
    const one = new Reservations("00");
    assert.ok(one.reserveLegacy("a|t"));
    assert.equal(one.reserveLegacy("b|t"), false);
    assert.ok(one.releaseLegacy("b|t"));
    assert.ok(one.refuses("b|t", "read"));
    assert.ok(one.refuses(undefined, "write"));
    one.dropLegacy("a|t");
    assert.ok(one.isFree);
    join(one, "a");
    assert.equal(one.reserveLegacy("b|t"), false);
  });

  it("whatever happens, at most one holds, and only registrants do", () => {
    let seed = 12345;
    const below = (limit: number): number => {
      seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
      return (seed >>> 8) % limit;
    };
    const names = ["a", "b", "c"];
    const types = Object.values(PrType);
    for (let world = 0; world < 200; world++) {
      const one = new Reservations("00");
      for (let step = 0; step < 60; step++) {
        const name = names[below(3)]!;
        const other = names[below(3)]!;
        const nexus = `${name}|t`;
        const type = types[below(types.length)]!;
        switch (below(7)) {
          case 0:
            one.register([port(name)], KEY_NONE, below(4) === 0 ? KEY_NONE : KEYS[name]!, true, below(2) === 0);
            break;
          case 1:
            one.reserve(nexus, KEYS[name]!, type);
            break;
          case 2:
            one.release(nexus, KEYS[name]!, type);
            break;
          case 3:
            one.clear(nexus, KEYS[name]!);
            break;
          case 4:
            one.preempt(nexus, KEYS[name]!, below(5) === 0 ? KEY_NONE : KEYS[other]!, type, below(2) === 0);
            break;
          case 5:
            one.move(nexus, KEYS[name]!, port(other), KEYS[other]!, below(2) === 0, false);
            break;
          default:
            one.register([port(name)], KEYS[name]!, KEY_NONE, false, false);
        }
        const { reservation } = one;
        const holders = names.filter((each) => one.isHolder(`${each}|t`));
        if (reservation === undefined) assert.equal(holders.length, 0);
        else assert.ok(holders.length >= 1 && one.isRegistered(reservation.holder.nexus));
        for (const holder of holders) {
          assert.ok(one.isRegistered(`${holder}|t`));
          assert.equal(one.refuses(`${holder}|t`, "write"), false);
        }
        if (reservation !== undefined) assert.ok(one.refuses(undefined, "write"));
      }
    }
  });
});
