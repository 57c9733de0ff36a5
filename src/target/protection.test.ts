import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type GrantRecord, type HostRecord, newHostRecord, RIGHTS_EMPTY, type RightsState } from "#base/rights";
import { type BlockDevice, BlockOp, type DeviceWatcher, type OpKind } from "#device/device";
import type { Guard } from "#device/guard";
import { canonicalAddress, isLocalAddress, isNotOpened, LOCAL, ProtectionTable } from "./protection.ts";

class TapeDevice implements BlockDevice {
  size = 1 << 20;
  readonly blockSize = 512;
  readonly preferredBlockSize = 4096;
  readonly readOnly = false;
  readonly uuid = "00112233445566778899aabbccddeeff";
  readonly seen: string[] = [];
  readonly watchers = new Set<DeviceWatcher>();
  submit(op: BlockOp): void {
    this.seen.push(`${op.kind} ${op.offset}+${op.length}`);
    op.status = "ok";
    op.done(op);
  }
  watch(watcher: DeviceWatcher): () => void {
    this.watchers.add(watcher);
    return () => this.watchers.delete(watcher);
  }
}

function world() {
  const devices = new Map([
    ["db", new TapeDevice()],
    ["logs", new TapeDevice()],
  ]);
  const listeners: ((name: string) => void)[] = [];
  const table = new ProtectionTable({
    find: (name) => devices.get(name),
    names: () => devices.keys(),
    watch: (changed) => {
      listeners.push(changed);
      return () => {};
    },
  });
  return { devices, table, changed: (name: string) => listeners.map((listener) => listener(name)) };
}

const host = (name: string, more: Partial<HostRecord> = {}): HostRecord => ({
  ...newHostRecord(name),
  ...more,
});
const grant = (hostName: string, device: string, unit: number, more: Partial<GrantRecord> = {}): GrantRecord => ({
  host: hostName,
  device,
  unit,
  access: "read-write",
  range: undefined,
  ...more,
});
let generation = 0;
const state = (hosts: HostRecord[], grants: GrantRecord[], more: Partial<RightsState> = {}): RightsState => ({
  ...RIGHTS_EMPTY,
  generation: ++generation,
  hosts,
  grants,
  ...more,
});

function opened(guard: ReturnType<ProtectionTable["open"]>): Guard {
  assert(!isNotOpened(guard), `not opened: ${String(guard)}`);
  return guard;
}
function run(device: BlockDevice, kind: OpKind, offset = 0, length = 512): string {
  const op = new BlockOp(() => {});
  op.kind = kind;
  op.offset = offset;
  op.length = length;
  device.submit(op);
  return op.status;
}

describe("the protection table", () => {
  it("opens nothing for a host without a grant", () => {
    const { table } = world();
    table.load(state([host("web")], [grant("web", "db", 0)]));
    assert.equal(table.open("web", "logs"), "denied");
    assert.equal(table.open("web", 1), "unknown");
    assert.equal(table.open("stranger", 0), "unknown");
    assert.equal(table.open("web", "nothing"), "unknown");
  });

  it("denies changes through a read-only grant, and only those", () => {
    const { table, devices } = world();
    table.load(state([host("web")], [grant("web", "db", 3, { access: "read-only" })]));
    const guard = opened(table.open("web", 3));
    for (const kind of ["write", "zero", "trim", "compare-write"] as const) assert.equal(run(guard, kind), "denied");
    for (const kind of ["read", "flush", "status", "cache"] as const) assert.equal(run(guard, kind), "ok");
    assert.equal(devices.get("db")!.seen.length, 4);
  });

  it("moves and bounds a grant of a range", () => {
    const { table, devices } = world();
    table.load(state([host("web")], [grant("web", "db", 0, { range: { offset: 8192, length: 4096 } })]));
    const guard = opened(table.open("web", 0));
    assert.equal(guard.size, 4096);
    assert.equal(run(guard, "read", 512, 512), "ok");
    assert.equal(run(guard, "read", 3584, 1024), "range");
    assert.equal(run(guard, "write", 4096, 512), "range");
    assert.equal(run(guard, "read", -512, 512), "invalid");
    assert.equal(run(guard, "read", 2 ** 53, 512), "invalid");
    assert.deepEqual(devices.get("db")!.seen, ["read 8704+512"]);
  });

  it("denies everything after a revocation, on guards that were open", () => {
    const { table } = world();
    table.load(state([host("web")], [grant("web", "db", 0), grant("web", "logs", 1)]));
    const db = opened(table.open("web", 0));
    const logs = opened(table.open("web", "logs"));
    table.load(state([host("web")], [grant("web", "logs", 1)]));
    assert.equal(run(db, "read"), "denied");
    assert.equal(run(logs, "read"), "ok");
    table.load(state([], []));
    assert.equal(run(logs, "read"), "denied");
  });

  it("narrows an open guard to reading without closing it", () => {
    const { table } = world();
    table.load(state([host("web")], [grant("web", "db", 0)]));
    const db = opened(table.open("web", 0));
    table.load(state([host("web")], [grant("web", "db", 0, { access: "read-only" })]));
    assert.equal(run(db, "write"), "denied");
    assert.equal(run(db, "read"), "ok");
  });

  it("tells each host its own changes, and no other's", () => {
    const { table, devices, changed } = world();
    const a: string[] = [];
    const b: string[] = [];
    table.load(state([host("a"), host("b")], [grant("a", "db", 0), grant("b", "logs", 0)]));
    table.watch("a", (change) => a.push(change.kind));
    table.watch("b", (change) => b.push(change.kind));
    table.load(state([host("a"), host("b")], [grant("a", "db", 0), grant("a", "logs", 1), grant("b", "logs", 0)]));
    assert.deepEqual([a, b], [["unit-added"], []]);
    table.load(state([host("a", { secret: "00" }), host("b")], [grant("a", "db", 0), grant("b", "logs", 0)]));
    assert.deepEqual([a, b], [["unit-added", "unit-removed", "credentials"], []]);
    for (const watcher of devices.get("logs")!.watchers) watcher("resized");
    assert.deepEqual(b, ["unit-resized"]);
    devices.delete("db");
    changed("db");
    assert.equal(a.at(-1), "unit-removed");
    table.load(state([host("b")], [grant("b", "logs", 0)]));
    assert.deepEqual(a.slice(-2), ["unit-removed", "removed"]);
    assert.deepEqual(b, ["unit-resized"]);
  });

  it("lets local NBD clients do what the rule says", () => {
    const { table } = world();
    assert.deepEqual(
      table.list(LOCAL).map((one) => one.device),
      ["db", "logs"],
    );
    const guard = opened(table.open(LOCAL, "db"));
    assert.equal(run(guard, "write"), "ok");
    table.load(state([host("web")], [grant("web", "db", 0)], { localNbd: "ungranted" }));
    assert.equal(run(guard, "read"), "denied");
    assert.equal(table.open(LOCAL, "db"), "denied");
    opened(table.open(LOCAL, "logs"));
    table.load(state([], [], { localNbd: "none" }));
    assert.equal(table.open(LOCAL, "logs"), "denied");
    assert.deepEqual(table.list(LOCAL), []);
  });

  it("knows hosts by TLS name before IQN before address", () => {
    const { table } = world();
    table.load(
      state(
        [host("a", { addresses: ["10.0.0.1"] }), host("b", { tlsNames: ["bee"] }), host("c", { iqns: ["iqn.c"] })],
        [],
      ),
    );
    assert.equal(table.identify({ address: "::ffff:10.0.0.1" })?.name, "a");
    assert.equal(table.identify({ address: "10.0.0.1", tlsName: "bee" })?.name, "b");
    assert.equal(table.identify({ address: "10.0.0.1", tlsName: "stranger" }), undefined);
    assert.equal(table.identify({ address: "10.0.0.1", iqn: "iqn.c" })?.name, "c");
    assert.equal(table.identify({ address: "10.0.0.2" }), undefined);
    assert.equal(table.identify({}), undefined);
  });

  it("says away, not unknown, while a granted device is missing", () => {
    const { table, devices } = world();
    table.load(state([host("web")], [grant("web", "db", 0)]));
    const guard = opened(table.open("web", 0));
    for (const watcher of devices.get("db")!.watchers) watcher("gone");
    devices.delete("db");
    assert.equal(run(guard, "read"), "gone");
    assert.equal(table.open("web", 0), "away");
    assert.equal(table.list("web")[0]!.shape, undefined);
  });

  it("reads addresses as the network writes them", () => {
    assert.equal(canonicalAddress("FE80::1%eth0"), "fe80::1");
    assert(isLocalAddress("::ffff:127.0.0.1") && isLocalAddress("") && isLocalAddress("::1"));
    assert(!isLocalAddress("10.0.0.1") && !isLocalAddress("127.0.0.1.example"));
  });
});
