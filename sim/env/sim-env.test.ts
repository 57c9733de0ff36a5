/** The simulated Env does what every Env must do: without faults it cannot be told from a real one. */
import { perform } from "#base/task";
import { envContract } from "#test/contract/env";
import { Resources, World } from "./world.ts";

const MEMORY_BYTES = 128 * 1024 * 1024;

envContract("sim", { unix: false, allocate: true }, () => {
  const world = new World(1, new Resources(MEMORY_BYTES));
  const node = world.node("machine");
  const env = node.start();
  world.finish(perform(env.disk.makeDirectory("/folder")));
  return {
    env,
    folder: "/folder",
    address: { host: node.address, port: 0 },
    run: async (task) => world.finish(task),
    close: async () => world.end(),
  };
});
