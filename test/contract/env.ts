/** What every Env must do. Written as tasks, so that worlds with a time of their own can run it too. */

import { clockContract } from "./env-clock.ts";
import { diskContract } from "./env-disk.ts";
import type { Abilities, Ground } from "./env-ground.ts";
import { netContract } from "./env-net.ts";

export type { Abilities, Ground } from "./env-ground.ts";

export function envContract(name: string, abilities: Abilities, make: () => Ground | Promise<Ground>): void {
  clockContract(name, make);
  diskContract(name, abilities, make);
  netContract(name, abilities, make);
}
