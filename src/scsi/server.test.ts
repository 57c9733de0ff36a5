import assert from "node:assert/strict";
import { test } from "node:test";
import { MIB } from "#base/units";
import { MemoryDevice } from "#device/memory-device";
import { StillEnv } from "#test/support/still-env";
import { Asc, Op } from "#wire/scsi/codes";
import { Nexus, PortGroup } from "./nexus.ts";
import { ReservationBook } from "./reservation-store.ts";
import { DeviceServer } from "./server.ts";
import { ScsiTask, type TaskAttribute } from "./task.ts";
import { LogicalUnit } from "./unit.ts";

test("a command that waits for one that is cleared with it does not begin, and takes no unit attention with it", () => {
  const env = new StillEnv();
  const book = new ReservationBook();
  const server = new DeviceServer(env, book);
  const device = new MemoryDevice(env.memory, MIB);
  const unit = new LogicalUnit(device, book.of(device.uuid));
  const port = { name: "t", relativeId: 1, group: 1, portal: new PortGroup(1, []) };
  const nexus = new Nexus("a", port, "a", { find: () => undefined, list: () => [] });
  unit.join(nexus);
  nexus.takeAttention(unit);

  const ends: string[] = [];
  const deliver = (name: string, opcode: number, attribute: TaskAttribute): void => {
    const task = new ScsiTask(server, {
      // Its data never comes.
      collect: () => {},
      finish: ({ aborted }) => ends.push(`${name} ${aborted ? "aborted" : "answered"}`),
    });
    task.cdb.setUint8(0, opcode);
    task.cdb.setUint32(10, 1);
    Object.assign(task, { attribute, nexus, unit, device, outMax: unit.blockSize, inMax: unit.blockSize });
    server.deliver(task);
  };
  deliver("write", Op.WRITE_16, "ordered");
  deliver("read", Op.READ_16, "simple");
  assert.deepEqual(ends, []);
  nexus.addAttention(unit, Asc.CAPACITY_CHANGED);

  let isDone = false;
  server.clearTasks(unit, nexus, true, () => {
    isDone = true;
  });
  assert.ok(isDone);
  assert.deepEqual(ends, ["write aborted", "read aborted"]);
  assert.equal(nexus.takeAttention(unit), Asc.CAPACITY_CHANGED);
  assert.equal(unit.tasks.size, 0);
});
