/** The commands that are clients of a server. A new noun adds its file under `commands/` and one line here. */
import type { Command } from "commander";
import { addAttachCommands } from "./commands/attach.ts";
import { addDemoCommand } from "./commands/demo.ts";
import { addDriveCommands } from "./commands/drive.ts";
import { addHostCommands } from "./commands/host.ts";
import { addScrubCommand } from "./commands/scrub.ts";
import { addServerCommands } from "./commands/server.ts";
import { addSnapshotCommands } from "./commands/snapshot.ts";
import { addTargetCommands } from "./commands/target.ts";
import { addTopCommand } from "./commands/top.ts";
import { addVolumeCommands } from "./commands/volume.ts";

export function addCommands(program: Command): void {
  addServerCommands(program);
  addVolumeCommands(program);
  addSnapshotCommands(program);
  addHostCommands(program);
  addDriveCommands(program);
  addAttachCommands(program);
  addTargetCommands(program);
  addScrubCommand(program);
  addTopCommand(program);
  addDemoCommand(program);
}
