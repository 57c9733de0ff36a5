/** INQUIRY data and vital product data pages. SPC-4 §6.6 and §7.8, SBC-3 §6.6. All are small and made anew when asked. */
import { layout, writeU64 } from "#base/layout";
import { Vpd } from "./codes.ts";
import { asciiBytes, bytesOfHex, euiOf, naaOf } from "./identity.ts";

/** At most 8, 16 and 4 characters of printable ASCII. */
export const VENDOR = "ASHLAR";
export const PRODUCT = "VOLUME";
export const REVISION = "0001";

const STANDARD = layout({
  device: 1,
  removable: 1,
  version: 1,
  format: 1,
  additional: 1,
  flags5: 1,
  flags6: 1,
  flags7: 1,
  vendor: 8,
  product: 16,
  revision: 4,
  vendorSpecific: 20,
  clocking: 2,
  versions: 6,
});
const VERSION_SPC4 = 6;
const FORMAT_2 = 0x02;
const HIERARCHICAL = 0x10;
const THIRD_PARTY_COPY = 0x08;
const TPGS_BOTH = 0x30;
const MULTI_PORT = 0x10;
const COMMAND_QUEUEING = 0x02;
/**
 * SPC-4 table 142: SPC-4, SBC-3, iSCSI, all without a claim to one revision. With three of the eight, everything is in the
 * 64 bytes that initiators ask for first.
 */
const VERSION_DESCRIPTORS = [0x0460, 0x04c0, 0x0960] as const;
/** SPC-4 table 139: no unit can be at this LUN. */
const NO_UNIT = 0x7f;

export function encodeInquiry(removable: boolean, present: boolean): Uint8Array {
  const bytes = new Uint8Array(STANDARD.byteLength);
  const view = new DataView(bytes.buffer);
  bytes[STANDARD.device] = present ? 0 : NO_UNIT;
  bytes[STANDARD.removable] = removable ? 0x80 : 0;
  bytes[STANDARD.version] = VERSION_SPC4;
  bytes[STANDARD.format] = FORMAT_2 | HIERARCHICAL;
  bytes[STANDARD.additional] = STANDARD.byteLength - STANDARD.flags5;
  bytes[STANDARD.flags5] = THIRD_PARTY_COPY | TPGS_BOTH;
  bytes[STANDARD.flags6] = MULTI_PORT;
  bytes[STANDARD.flags7] = COMMAND_QUEUEING;
  bytes.set(asciiBytes(VENDOR.padEnd(8)), STANDARD.vendor);
  bytes.set(asciiBytes(PRODUCT.padEnd(16)), STANDARD.product);
  bytes.set(asciiBytes(REVISION.padEnd(4)), STANDARD.revision);
  for (const [index, version] of VERSION_DESCRIPTORS.entries()) view.setUint16(STANDARD.versions + 2 * index, version);
  return bytes;
}

/** A page: its four-byte header and its content. */
const PAGE = layout({ device: 1, code: 1, length: 2 });
function page(code: number, content: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(PAGE.byteLength + content.length);
  bytes[PAGE.code] = code;
  new DataView(bytes.buffer).setUint16(PAGE.length, content.length);
  bytes.set(content, PAGE.byteLength);
  return bytes;
}

export const encodeSupportedPages = (): Uint8Array =>
  page(Vpd.SUPPORTED_PAGES, Uint8Array.from(Object.values(Vpd).sort((a, b) => a - b)));
export const encodeSerialNumber = (uuid: string): Uint8Array => page(Vpd.UNIT_SERIAL_NUMBER, asciiBytes(uuid));

/** The port through which the page is asked for. */
export interface PortIdentity {
  /** `<target name>,t,0x<portal group tag as 4 hex digits>`. */
  readonly name: string;
  readonly relativeId: number;
  readonly group: number;
}

const DESIGNATOR = layout({ codeSet: 1, type: 1, reserved: 1, length: 1 });
const CodeSet = { BINARY: 1, ASCII: 2, UTF8: 3 } as const;
const DesignatorType = { T10_VENDOR: 1, EUI64: 2, NAA: 3, RELATIVE_PORT: 4, PORT_GROUP: 5, NAME_STRING: 8 } as const;
/** Of a port: with the protocol iSCSI, which the PIV bit declares valid. */
const OF_PORT = 0x90;
const ISCSI_CODE = 0x50;

function designator(codeSet: number, type: number, content: Uint8Array, ofPort = false): number[] {
  const head = new Array<number>(DESIGNATOR.byteLength).fill(0);
  head[DESIGNATOR.codeSet] = codeSet | (ofPort ? ISCSI_CODE : 0);
  head[DESIGNATOR.type] = type | (ofPort ? OF_PORT : 0);
  head[DESIGNATOR.length] = content.length;
  return [...head, ...content];
}

/** SPC-4 §7.8.6: NAA first, since it is what hosts name their disks after. */
export function encodeDeviceIdentification(uuid: string, port: PortIdentity): Uint8Array {
  const name = new Uint8Array((port.name.length + 1 + 3) & ~3);
  name.set(asciiBytes(port.name));
  const u16 = (value: number): Uint8Array => Uint8Array.of(0, 0, value >> 8, value & 0xff);
  return page(
    Vpd.DEVICE_IDENTIFICATION,
    Uint8Array.from([
      ...designator(CodeSet.BINARY, DesignatorType.NAA, bytesOfHex(naaOf(uuid))),
      ...designator(CodeSet.BINARY, DesignatorType.EUI64, bytesOfHex(euiOf(uuid))),
      ...designator(CodeSet.ASCII, DesignatorType.T10_VENDOR, asciiBytes(VENDOR.padEnd(8) + uuid)),
      ...designator(CodeSet.BINARY, DesignatorType.RELATIVE_PORT, u16(port.relativeId), true),
      ...designator(CodeSet.BINARY, DesignatorType.PORT_GROUP, u16(port.group), true),
      ...designator(CodeSet.UTF8, DesignatorType.NAME_STRING, name, true),
    ]),
  );
}

const EXTENDED = layout({ checks: 1, attributes: 1, cache: 1, unitState: 1, reserved: 56 });
/** SPC-4 §7.8.7: all task attributes; unit attentions of a nexus go with a reported one; volatile cache. */
export function encodeExtendedInquiry(): Uint8Array {
  const content = new Uint8Array(EXTENDED.byteLength);
  const HEAD_OF_QUEUE_AND_ORDERED_AND_SIMPLE = 0x07;
  const VOLATILE_CACHE = 0x01;
  content[EXTENDED.attributes] = HEAD_OF_QUEUE_AND_ORDERED_AND_SIMPLE;
  content[EXTENDED.cache] = VOLATILE_CACHE;
  return page(Vpd.EXTENDED_INQUIRY, content);
}

/** SPC-4 §7.8.9: one policy for all pages: every nexus shares one set of them. */
export const encodeModePagePolicy = (): Uint8Array => page(Vpd.MODE_PAGE_POLICY, Uint8Array.of(0x3f, 0xff, 0x00, 0x00));

/** What a unit can do at once, in its own blocks; 0 stands for "no limit is reported". */
export interface BlockLimits {
  readonly optimalGranularity: number;
  readonly transferMax: number;
  readonly transferOptimal: number;
  readonly compareMax: number;
  readonly unmapMax: number;
  readonly unmapDescriptorsMax: number;
  readonly unmapGranularity: number;
  readonly writeSameMax: number;
  readonly atomicMax: number;
  readonly atomicGranularity: number;
}
const LIMITS = layout({
  writeSameNonZero: 1,
  compareMax: 1,
  optimalGranularity: 2,
  transferMax: 4,
  transferOptimal: 4,
  prefetchMax: 4,
  unmapMax: 4,
  unmapDescriptorsMax: 4,
  unmapGranularity: 4,
  unmapAlignment: 4,
  writeSameMax: 8,
  atomicMax: 4,
  atomicAlignment: 4,
  atomicGranularity: 4,
  atomicBoundaryTransferMax: 4,
  atomicBoundaryMax: 4,
});
/** SBC-4 §6.6.4. */
export function encodeBlockLimits(limits: BlockLimits): Uint8Array {
  const content = new Uint8Array(LIMITS.byteLength);
  const view = new DataView(content.buffer);
  content[LIMITS.compareMax] = limits.compareMax;
  view.setUint16(LIMITS.optimalGranularity, limits.optimalGranularity);
  view.setUint32(LIMITS.transferMax, limits.transferMax);
  view.setUint32(LIMITS.transferOptimal, limits.transferOptimal);
  view.setUint32(LIMITS.prefetchMax, limits.transferMax);
  view.setUint32(LIMITS.unmapMax, limits.unmapMax);
  view.setUint32(LIMITS.unmapDescriptorsMax, limits.unmapDescriptorsMax);
  view.setUint32(LIMITS.unmapGranularity, limits.unmapGranularity);
  const ALIGNMENT_VALID = 0x8000_0000;
  view.setUint32(LIMITS.unmapAlignment, limits.unmapGranularity > 0 ? ALIGNMENT_VALID : 0);
  writeU64(view, LIMITS.writeSameMax, limits.writeSameMax);
  view.setUint32(LIMITS.atomicMax, limits.atomicMax);
  view.setUint32(LIMITS.atomicAlignment, limits.atomicGranularity);
  view.setUint32(LIMITS.atomicGranularity, limits.atomicGranularity);
  return page(Vpd.BLOCK_LIMITS, content);
}

const CHARACTERISTICS = layout({ rotation: 2, product: 1, form: 1, flags: 1, reserved: 55 });
/** SBC-3 §6.6.3: not rotating, so that hosts neither elevate nor defragment. */
export function encodeCharacteristics(): Uint8Array {
  const NON_ROTATING = 1;
  /** WABEREQ 01b: after a block erase, blocks can be read without having been written. */
  const READABLE_AFTER_ERASE = 0x40;
  const content = new Uint8Array(CHARACTERISTICS.byteLength);
  new DataView(content.buffer).setUint16(CHARACTERISTICS.rotation, NON_ROTATING);
  content[CHARACTERISTICS.form] = READABLE_AFTER_ERASE;
  return page(Vpd.BLOCK_DEVICE_CHARACTERISTICS, content);
}

const PROVISIONING = layout({ thresholdExponent: 1, flags: 1, type: 1, reserved: 1 });
/** SBC-3 §6.6.6. `thresholdExponent` 0: no thresholds. */
export function encodeProvisioning(thin: boolean, thresholdExponent: number): Uint8Array {
  const LBPU = 0x80;
  const LBPWS = 0x40;
  const LBPWS10 = 0x20;
  const READS_ZEROES = 0x04;
  const ANCHORS = 0x02;
  const THIN = 2;
  const content = new Uint8Array(PROVISIONING.byteLength);
  content[PROVISIONING.thresholdExponent] = thresholdExponent;
  content[PROVISIONING.flags] = thin ? LBPU | LBPWS | LBPWS10 | READS_ZEROES | ANCHORS : 0;
  content[PROVISIONING.type] = thin ? THIN : 0;
  return page(Vpd.LOGICAL_BLOCK_PROVISIONING, content);
}
