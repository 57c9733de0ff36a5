"""Writes scp.json: the golden messages of SCP, from WO 02/15018 appendices C and D and docs/protocols/scp.md, with
Python's own struct, hmac and hashlib, so that nothing of Ashlar has a hand in them. Run: python3 test/golden/scp.py"""
import hashlib, hmac, json, pathlib, struct


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


FIELDS = "type version hostid zlun authentic sequence nsequence op flags requestid status reqsz_hi reqsz_lo lba_hi lba_lo marker".split()


def zn(pad=b"", **given):
    values = {"type": 1, "version": 1, **given}
    return (struct.pack(">16I", *[values.get(field, 0) & 0xFFFFFFFF for field in FIELDS]) + pad).ljust(512, b"\0")


R = 0x12345678
SESSION = 0x0BADCAFE
SECRET = "5ec7e7".ljust(64, "0")
server_id, server_nonce = bytes(range(16)), bytes(range(0x20, 0x40))
host_nonce, instance = bytes(range(0x60, 0x80)), bytes(range(0xA0, 0xB0))
challenge = struct.pack(">4I", 7, 64, 1 << 20, 0) + server_id + server_nonce
name = b"web".ljust(64, b"\0")
said = struct.pack(">5I", 3, R, 7, 64, 1 << 20) + server_id + server_nonce + struct.pack(">I", 3) + instance + host_nonce + name


def mac(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


secret = bytes.fromhex(SECRET)
host_mac, key = mac(secret, b"scp2 host", said), mac(secret, b"scp2 key", said)
server_mac = mac(key, b"scp2 server", struct.pack(">I", SESSION))
hello = mac(key, b"scp2 hello", struct.pack(">3I", SESSION, 9, R))
welcome = mac(key, b"scp2 welcome", struct.pack(">2I", SESSION, 9))


def frame(body=b"", type=1, unit=0, op=0, flags=0, tag=0, status=0, length=0, lba=0):
    def pack(header_crc):
        return struct.pack(
            ">16I", type, 2, SESSION, unit, crc32c(body) if body else 0, header_crc, len(body), op, flags, tag, status,
            length >> 32, length & 0xFFFFFFFF, lba >> 32, lba & 0xFFFFFFFF, 0x41534832,
        )
    return pack(crc32c(pack(0))) + body


ports = struct.pack(">I4B12xII", 4, 10, 1, 1, 1, 10002, 10)
ports += struct.pack(">I16sII", 6, bytes.fromhex("20010db8000000000000000000000001"), 10003, 12)
unit = struct.pack(">IIQII", 7, 1, 60 << 20, 512, 4096) + bytes.fromhex("00112233445566778899aabbccddeeff") + b"p2".ljust(216, b"\0")
MESSAGES = [
    ("v1 greeting", "D (2): Z_GET_VERSION, version 1 on offer, the challenge in zn_reqsz_lo", zn(op=0x1005, reqsz_lo=R)),
    ("v1 answer", "D (3): version 1 chosen, the complement", zn(op=0x1005, reqsz_lo=~R)),
    ("v1 verdict", "D (5): success", zn(op=0x1005, reqsz_lo=~R)),
    ("v1 verdict refused", "D (5): -1", zn(op=0x1005, reqsz_lo=~R, status=-1)),
    ("v1 starttime", "D (6)", zn(op=0x1006)),
    ("v1 starttime reply", "D (7): the cookie", zn(op=0x1006, reqsz_lo=0xC00C1E5)),
    ("v1 capacities", "D (8)", zn(op=0x1007)),
    ("v1 capacities reply", "D (9): two units, 20 GiB and 2^53 - 513 bytes", zn(op=0x1007, reqsz_lo=2) + struct.pack(">QQ", 20 << 30, 2**53 - 513)),
    ("v1 dataport", "D (10)", zn(op=0x1008)),
    ("v1 dataport reply", "D (11): one of each family", zn(op=0x1008, reqsz_lo=2) + ports),
    ("v1 hello", "D (14)", zn(op=0x1009, reqsz_lo=R)),
    ("v1 hello refused", "D (15): -1", zn(op=0x1009, status=-1)),
    ("v1 read", "C: 64 KiB from block 2^33 + 8 of unit 3", zn(zlun=3, op=2, reqsz_lo=65536, lba_hi=2, lba_lo=8)),
    ("v1 read reply", "C: success; 65536 bytes of data follow", zn(zlun=3, op=2, reqsz_lo=65536, lba_hi=2, lba_lo=8)),
    ("v1 write", "C: 512 bytes to block 1 of unit 0, and the data", zn(op=3, reqsz_lo=512, lba_lo=1) + b"\xdd" * 512),
    ("v1 write failed", "C: the extended error information says denied (7)", zn(op=3, status=-1, flags=7, lba_lo=1)),
    ("v2 greeting", "both versions on offer; capabilities 7, depth 64, 1 MiB", zn(pad=challenge, op=0x1005, version=3, reqsz_lo=R)),
    ("v2 answer", "version 2, capabilities 3, the proof of host web", zn(pad=struct.pack(">I", 3) + instance + host_nonce + host_mac + name, op=0x1005, version=2, reqsz_lo=~R)),
    ("v2 verdict", "session 0x0badcafe, the server's proof", zn(pad=struct.pack(">I", SESSION) + server_mac, op=0x1005, version=2, reqsz_lo=~R)),
    ("v2 hello", "serial 9", zn(pad=struct.pack(">2I", SESSION, 9) + hello, op=0x1009, version=2, reqsz_lo=R)),
    ("v2 welcome", "the server's proof of it", zn(pad=struct.pack(">I", 9) + welcome, op=0x1009, version=2)),
    ("v2 read", "4 KiB from block 2^33 of unit 7, tag 0x305", frame(unit=7, op=2, tag=0x305, length=4096, lba=1 << 33)),
    ("v2 read reply", "with its data", frame(b"\x77" * 4096, type=2, unit=7, op=2, tag=0x305, length=4096, lba=1 << 33)),
    ("v2 write", "FUA", frame(b"\xdd" * 512, unit=7, op=3, flags=1, tag=1, length=512, lba=1)),
    ("v2 write failed", "no space", frame(type=2, unit=7, op=3, tag=1, status=3, lba=1)),
    ("v2 miscompare", "the first difference is at byte 100", frame(type=2, unit=7, op=7, tag=2, status=10, length=100, lba=1)),
    ("v2 zero", "1 TiB, without a hole", frame(unit=7, op=6, flags=2, tag=3, length=1 << 40)),
    ("v2 ping", "", frame(op=10, tag=0xFFFFFFFF)),
    ("v2 units reply", "one unit, read-only", frame(unit, type=2, op=0x100B, tag=1, length=1)),
    ("v2 fence", "socket 9", frame(unit=9, op=0x100C, tag=16)),
    ("v2 event", "unit 7 was resized", frame(type=3, op=0x100D, flags=2, unit=7)),
]


def short(data):
    """Hex; sixteen and more equal bytes as "00*448"."""
    parts, plain, at = [], b"", 0
    while at < len(data):
        end = at
        while end < len(data) and data[end] == data[at]:
            end += 1
        if end - at >= 16:
            parts += ([plain.hex()] if plain else []) + [f"{data[at]:02x}*{end - at}"]
            plain = b""
        else:
            plain += data[at:end]
        at = end
    return " ".join(parts + ([plain.hex()] if plain else []))


messages = [{"name": n, "means": m, "hex": short(data)} for n, m, data in MESSAGES]
path = pathlib.Path(__file__).with_name("scp.json")
path.write_text(json.dumps({"from": "test/golden/scp.py", "secret": SECRET, "messages": messages}, indent=1) + "\n")
