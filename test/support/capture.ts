/**
 * Wireshark looks over a test's shoulder: all that goes to and from ports of this machine is captured, and checked in the
 * end. What a target sends must be well-formed whoever it talks to; what clients send, where they are well-behaved.
 *
 *   const capture = await Capture.start(scope, [port]);
 *   …
 *   await capture.check({ messages: 500 });
 */
import { createSocket } from "node:dgram";
import { closeSync, existsSync, fstatSync, openSync, readSync, rmSync } from "node:fs";
import { join } from "node:path";
import { Program, run, until } from "./program.ts";
import { cleanUp, type Scope, tempFolder } from "./temp.ts";

/** A capture ends by itself when it is as large as this: all of a conversation, or the beginning of one about bulk data. */
const FILE_KB_MAX = 64_000;
/** What the kernel keeps while the writer waits for a processor. More than the file can be: so there are no holes in it. */
const BUFFER_MIB = 128;
const CHECK_MS_MAX = 240_000;
/** How much of the end of the file is searched for what was sent last. */
const TAIL_BYTES = 65_536;
/** What tshark finds fault with: PDUs that cannot be read, kinds and keys that there are not, errors of other kinds. */
const WRONG =
  "_ws.malformed || iscsi.opcode.invalid || iscsi.keyvalue.invalid || (iscsi && _ws.expert.severity == error)";
/** As TCP does it: on a busy machine a segment is captured after a later one, or sent again, and is no fault. */
const IN_ORDER = ["-o", "tcp.reassemble_out_of_order:TRUE"];
/** What is right all the same. */
const EXCUSED = [
  // A page is cut where the initiator's allocation length ends: QEMU asks for the first 64 bytes of VPD page 83h.
  "(iscsi.opcode == 0x25 && scsi_sbc.opcode == 0x12 && iscsi.scsidata.U == 0)",
  // It reads subpages of mode pages as pages (SPC-4 §7.5.1), and the list of log pages as parameters (§7.3.20).
  "scsi.spc.modepage.spf == 1",
  "(scsi_sbc.opcode == 0x4d && scsi.log.pagecode == 0)",
];
/** And where clients ask for what they like: a rejected header, shown as the PDU that it was; any answer cut as asked for. */
const EXCUSED_IF_HOSTILE = ["iscsi.opcode == 0x3f", "(iscsi.opcode == 0x25 && iscsi.scsidata.U == 0)"];

export interface CaptureCheck {
  /** iSCSI messages that there must be at least, so that nobody checks an empty file. */
  readonly messages: number;
  /** Clients here send whatever they like: only what the target sends is judged. */
  readonly isHostile?: boolean;
}

export class Capture {
  readonly #dumpcap: Program;
  readonly #file: string;
  readonly #ports: readonly number[];

  private constructor(dumpcap: Program, file: string, ports: readonly number[]) {
    this.#dumpcap = dumpcap;
    this.#file = file;
    this.#ports = ports;
  }

  /** Captures whole packets from now on; until `check`, or the end of the scope. */
  static async start(scope: Scope, ports: readonly number[]): Promise<Capture> {
    const file = join(tempFolder(scope), "capture.pcapng");
    const filter = ports.map((port) => `tcp port ${port} or udp port ${port}`).join(" or ");
    const limits = ["-B", String(BUFFER_MIB), "-a", `filesize:${FILE_KB_MAX}`];
    const dumpcap = new Program("dumpcap", ["-q", "-i", "lo", "-f", filter, ...limits, "-w", file]);
    cleanUp(scope, () => dumpcap.stop("SIGKILL").then(() => {}));
    const capture = new Capture(dumpcap, file, ports);
    await dumpcap.until("capturing", () => capture.#isCaptured("first"));
    return capture;
  }

  /** Whether it has ended by itself, because there was so much. */
  get isFull(): boolean {
    return this.#dumpcap.end !== undefined;
  }

  /** Ends the capture: all that was said until now is in it, and nothing that is said later. */
  async stop(): Promise<void> {
    await until("all is captured", () => this.#dumpcap.end !== undefined || this.#isCaptured("last"));
    await this.#dumpcap.stop("SIGINT");
  }

  /** Ends the capture, and throws when tshark finds fault with it. Returns how many packets had iSCSI messages. */
  async check({ messages, isHostile }: CaptureCheck): Promise<number> {
    await this.stop();
    const ours = this.#ports.map((port) => `tcp.srcport == ${port}`).join(" || ");
    const judged = isHostile === true ? `(${ours})` : "tcp";
    const excused = isHostile === true ? [...EXCUSED, ...EXCUSED_IF_HOSTILE] : EXCUSED;
    const found = await this.#read(`${judged} && (${WRONG}) && !(${excused.join(" || ")})`, "-O", "iscsi,scsi");
    if (found.trim() !== "") throw new Error(`tshark finds fault with what was sent:\n${found.slice(0, 20_000)}`);
    const count = (await this.#read("iscsi", "-T", "fields", "-e", "frame.number")).split("\n").length - 1;
    if (count < messages) throw new Error(`only ${count} packets have iSCSI messages`);
    if (process.env["ASHLAR_KEEP"] === undefined) rmSync(this.#file);
    return count;
  }

  #read(filter: string, ...shown: string[]): Promise<string> {
    const decode = this.#ports.flatMap((port) => ["-d", `tcp.port==${port},iscsi`]);
    return run("tshark", ["-n", "-r", this.#file, ...IN_ORDER, ...decode, "-Y", filter, ...shown], {
      limitMs: CHECK_MS_MAX,
    });
  }

  /** Says a word that nobody listens to, and looks whether it is in the file: then so is all that was said before it. */
  async #isCaptured(word: string): Promise<boolean> {
    const socket = createSocket("udp4");
    const marker = `ashlar capture: ${word}`;
    await new Promise<void>((resolve) => socket.send(marker, this.#ports[0]!, "127.0.0.1", () => resolve()));
    socket.close();
    if (!existsSync(this.#file)) return false;
    const tail = Buffer.alloc(TAIL_BYTES);
    const file = openSync(this.#file, "r");
    readSync(file, tail, 0, TAIL_BYTES, Math.max(0, fstatSync(file).size - TAIL_BYTES));
    closeSync(file);
    return tail.includes(marker);
  }
}
