/**
 * Mode pages: SPC-4 §7.5, SBC-3 §6.5. There is one set per unit, shared by all nexuses, not saved. What can be changed:
 * the write cache, the sense format, the software write protection, and the threshold of thin provisioning.
 */
import { layout } from "#base/layout";

export const ModePage = {
  ERROR_RECOVERY: 0x01,
  CACHING: 0x08,
  CONTROL: 0x0a,
  INFORMATIONAL_EXCEPTIONS: 0x1c,
  ALL: 0x3f,
} as const;
export const ModeSubpage = { NONE: 0x00, PROVISIONING: 0x02, ALL: 0xff } as const;
export const ModeControl = { CURRENT: 0, CHANGEABLE: 1, DEFAULT: 2, SAVED: 3 } as const;

export class ModeState {
  writeCache = true;
  descriptorSense = false;
  softwareWriteProtect = false;
  /** SPC-4 §7.5.11, DEXCPT: exceptions are off when set; then there are no threshold attentions. */
  exceptionsOff = false;
  /** SBC-3 §6.5.9, LBPERE: whether thresholds of thin provisioning are reported. */
  reportsThreshold = true;
  /** SBC-3 §6.5.8: whether the threshold counts; and where it is, in threshold sets; undefined: where the server has it. */
  thresholdOn = true;
  threshold: number | undefined = undefined;
}

const RECOVERY = layout({
  code: 1,
  length: 1,
  flags: 1,
  readRetries: 1,
  reserved: 3,
  provisioning: 1,
  writeRetries: 1,
  reserved2: 1,
  timeLimit: 2,
});
const CACHING = layout({ code: 1, length: 1, flags: 1, rest: 17 });
const CONTROL = layout({
  code: 1,
  length: 1,
  flags: 1,
  queue: 1,
  protect: 1,
  autoload: 1,
  obsolete: 2,
  busyTimeout: 2,
  selfTest: 2,
});
const EXCEPTIONS = layout({ code: 1, length: 1, flags: 1, method: 1, interval: 4, count: 4 });
/** SBC-3 §6.5.8: logical block provisioning, a subpage of the informational exceptions; one threshold descriptor. */
const THRESHOLD = layout({
  code: 1,
  subpage: 1,
  length: 2,
  flags: 1,
  reserved: 11,
  kind: 1,
  resource: 1,
  reserved2: 2,
  count: 4,
});
const LBPERE = 0x80;
/** Of a threshold descriptor: it counts; it is a soft one, reached as the resource decreases. */
const THRESHOLD_ON = 0x80;
const AVAILABLE_SPACE = 0x01;
const WCE = 0x04;
const D_SENSE = 0x04;
const SWP = 0x08;
/** Unrestricted reordering: commands in flight at once may be done in any order. */
const QAM_UNRESTRICTED = 0x10;
const DEXCPT = 0x08;
/** Thresholds come as unit attentions. */
const MRIE_UNIT_ATTENTION = 0x02;
/** What the first byte of a page says besides its code: a subpage follows. */
const CODE_MASK = 0x3f;
const SUBPAGE = 0x40;

/** @param threshold where the server has the threshold of thin provisioning. */
type PageWriter = (mode: ModeState, changeable: boolean, threshold: number) => Uint8Array;
const PAGES: readonly (readonly [code: number, subpage: number, write: PageWriter])[] = [
  [
    ModePage.ERROR_RECOVERY,
    ModeSubpage.NONE,
    (mode, changeable) => {
      const bytes = new Uint8Array(RECOVERY.byteLength);
      bytes[RECOVERY.code] = ModePage.ERROR_RECOVERY;
      bytes[RECOVERY.length] = RECOVERY.byteLength - RECOVERY.flags;
      bytes[RECOVERY.provisioning] = changeable || mode.reportsThreshold ? LBPERE : 0;
      return bytes;
    },
  ],
  [
    ModePage.CACHING,
    ModeSubpage.NONE,
    (mode, changeable) => {
      const bytes = new Uint8Array(CACHING.byteLength);
      bytes[CACHING.code] = ModePage.CACHING;
      bytes[CACHING.length] = CACHING.byteLength - CACHING.flags;
      bytes[CACHING.flags] = changeable || mode.writeCache ? WCE : 0;
      return bytes;
    },
  ],
  [
    ModePage.CONTROL,
    ModeSubpage.NONE,
    (mode, changeable) => {
      const bytes = new Uint8Array(CONTROL.byteLength);
      bytes[CONTROL.code] = ModePage.CONTROL;
      bytes[CONTROL.length] = CONTROL.byteLength - CONTROL.flags;
      bytes[CONTROL.flags] = changeable || mode.descriptorSense ? D_SENSE : 0;
      bytes[CONTROL.queue] = changeable ? 0 : QAM_UNRESTRICTED;
      bytes[CONTROL.protect] = changeable || mode.softwareWriteProtect ? SWP : 0;
      return bytes;
    },
  ],
  [
    ModePage.INFORMATIONAL_EXCEPTIONS,
    ModeSubpage.NONE,
    (mode, changeable) => {
      const bytes = new Uint8Array(EXCEPTIONS.byteLength);
      bytes[EXCEPTIONS.code] = ModePage.INFORMATIONAL_EXCEPTIONS;
      bytes[EXCEPTIONS.length] = EXCEPTIONS.byteLength - EXCEPTIONS.flags;
      bytes[EXCEPTIONS.flags] = changeable || mode.exceptionsOff ? DEXCPT : 0;
      bytes[EXCEPTIONS.method] = changeable ? 0 : MRIE_UNIT_ATTENTION;
      return bytes;
    },
  ],
  [
    ModePage.INFORMATIONAL_EXCEPTIONS,
    ModeSubpage.PROVISIONING,
    (mode, changeable, threshold) => {
      const bytes = new Uint8Array(THRESHOLD.byteLength);
      const view = new DataView(bytes.buffer);
      bytes[THRESHOLD.code] = ModePage.INFORMATIONAL_EXCEPTIONS | SUBPAGE;
      bytes[THRESHOLD.subpage] = ModeSubpage.PROVISIONING;
      view.setUint16(THRESHOLD.length, THRESHOLD.byteLength - THRESHOLD.flags);
      bytes[THRESHOLD.kind] = changeable || mode.thresholdOn ? THRESHOLD_ON : 0;
      bytes[THRESHOLD.resource] = changeable ? 0 : AVAILABLE_SPACE;
      view.setUint32(THRESHOLD.count, changeable ? 0xffff_ffff : (mode.threshold ?? threshold));
      return bytes;
    },
  ],
];
const hasPage = (subpage: number, threshold: number | undefined): boolean =>
  subpage !== ModeSubpage.PROVISIONING || threshold !== undefined;

/**
 * The page `code` (or all) with that subpage (or all); undefined when there is no such page. `threshold`: where the
 * server has the threshold of thin provisioning, undefined when there is none.
 */
export function encodeModePages(
  code: number,
  subpage: number,
  control: number,
  mode: ModeState,
  threshold: number | undefined,
): Uint8Array | undefined {
  const from = control === ModeControl.DEFAULT ? new ModeState() : mode;
  const found = PAGES.filter(
    ([page, sub]) =>
      (code === ModePage.ALL || code === page) &&
      (subpage === ModeSubpage.ALL || subpage === sub) &&
      hasPage(sub, threshold),
  );
  if (found.length === 0) return undefined;
  const isChangeable = control === ModeControl.CHANGEABLE;
  return Uint8Array.from(found.flatMap(([, , write]) => [...write(from, isChangeable, threshold ?? 0)]));
}

/**
 * Applies the pages of a MODE SELECT to `mode`. Returns the offset of the first byte that cannot be so (then nothing
 * has been changed), "length" when a page is cut short, or undefined. `threshold` as in `encodeModePages`.
 */
export function applyModePages(
  pages: Uint8Array,
  mode: ModeState,
  threshold: number | undefined,
): number | "length" | undefined {
  const next = Object.assign(new ModeState(), mode);
  for (let at = 0; at < pages.length; ) {
    const code = pages[at]! & CODE_MASK;
    const subpage = (pages[at]! & SUBPAGE) === 0 ? ModeSubpage.NONE : (pages[at + 1] ?? ModeSubpage.ALL);
    const write = PAGES.find(([page, sub]) => page === code && sub === subpage && hasPage(sub, threshold))?.[2];
    if (write === undefined) return at;
    const changeable = write(next, true, threshold ?? 0);
    const current = write(next, false, threshold ?? 0);
    // The header must be as ours: code, and length.
    const header = subpage === ModeSubpage.NONE ? CACHING.flags : THRESHOLD.flags;
    for (let index = 1; index < header; index++)
      if (pages[at + index] !== current[index]) return at + index < pages.length ? at + index : "length";
    if (at + current.length > pages.length) return "length";
    for (let index = header; index < current.length; index++)
      if (((pages[at + index]! ^ current[index]!) & ~changeable[index]!) !== 0) return at + index;
    if (code === ModePage.ERROR_RECOVERY) next.reportsThreshold = (pages[at + RECOVERY.provisioning]! & LBPERE) !== 0;
    if (code === ModePage.CACHING) next.writeCache = (pages[at + CACHING.flags]! & WCE) !== 0;
    if (code === ModePage.CONTROL) {
      next.descriptorSense = (pages[at + CONTROL.flags]! & D_SENSE) !== 0;
      next.softwareWriteProtect = (pages[at + CONTROL.protect]! & SWP) !== 0;
    }
    if (subpage === ModeSubpage.PROVISIONING) {
      next.thresholdOn = (pages[at + THRESHOLD.kind]! & THRESHOLD_ON) !== 0;
      const count = new DataView(pages.buffer, pages.byteOffset).getUint32(at + THRESHOLD.count);
      if (count !== (mode.threshold ?? threshold)) next.threshold = count;
    } else if (code === ModePage.INFORMATIONAL_EXCEPTIONS)
      next.exceptionsOff = (pages[at + EXCEPTIONS.flags]! & DEXCPT) !== 0;
    at += current.length;
  }
  Object.assign(mode, next);
  return undefined;
}
