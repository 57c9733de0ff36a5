"""A host and a server of SCP version 1, written from WO 02/15018 appendices C and D alone: nothing of Ashlar has a hand in
it. They are what `test/interop/scp-version-1.test.ts` holds Ashlar's server and host against.

  scp_v1.py host ADDRESS PORT UNIT [privileged]   configures, writes and reads; prints what it found as JSON
  scp_v1.py server ADDRESS BYTES                  a server with one unit in memory; prints its port
"""
import hashlib, json, os, socket, struct, sys, threading

READ, WRITE = 2, 3
GET_VERSION, GET_STARTTIME, GET_CAPACITIES, GET_DATAPORT = 0x1005, 0x1006, 0x1007, 0x1008
FIELDS = ("type version hostid zlun authentic sequence nsequence op flags requestid status "
          "reqsz_hi reqsz_lo lba_hi lba_lo marker").split()
SECTOR, MOST = 512, 256 * 512


def family_of(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def exactly(sock, count):
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def send(sock, **fields):
    values = {"type": 1, "version": 1, **fields}
    sock.sendall(struct.pack(">16I", *[values.get(name, 0) & 0xFFFFFFFF for name in FIELDS]) + bytes(448))


def receive(sock):
    return dict(zip(FIELDS, struct.unpack(">16I", exactly(sock, 512)[:64])))


# ---------------------------------------------------------------- the host


def configure(address, port, privileged):
    sock = socket.socket(family_of(address))
    if privileged:  # (1)
        for local in range(1023, 600, -1):
            try:
                sock.bind(("::" if ":" in address else "", local))
                break
            except OSError:
                continue
    sock.connect((address, port))
    greeting = receive(sock)  # (2)
    assert greeting["op"] == GET_VERSION, greeting
    assert greeting["version"] & 1, "version mismatch"  # (3)
    number = greeting["reqsz_lo"]
    send(sock, op=GET_VERSION, version=1, reqsz_lo=~number)
    assert receive(sock)["status"] == 0  # (5)
    send(sock, op=GET_STARTTIME)  # (6)
    cookie = receive(sock)["reqsz_lo"]  # (7)
    send(sock, op=GET_CAPACITIES)  # (8)
    count = receive(sock)["reqsz_lo"]  # (9)
    sizes = list(struct.unpack(f">{count}Q", exactly(sock, 8 * count)))
    send(sock, op=GET_DATAPORT)  # (10)
    ports = []
    for _ in range(receive(sock)["reqsz_lo"]):  # (11)
        kind, raw, data_port, most = struct.unpack(">I16sII", exactly(sock, 28))
        at = socket.inet_ntop(socket.AF_INET, raw[:4]) if kind == 4 else socket.inet_ntop(socket.AF_INET6, raw)
        ports.append((kind, at, data_port, most))
    return sock, number, cookie, sizes, ports


def open_data(port, number):
    kind, address, data_port, _ = port
    sock = socket.create_connection((address, data_port))  # (13)
    send(sock, reqsz_lo=number)  # (14)
    return sock, receive(sock)["status"]  # (15)


def read(sock, unit, lba, length):
    send(sock, op=READ, zlun=unit, reqsz_lo=length, lba_hi=lba >> 32, lba_lo=lba)
    answer = receive(sock)
    if answer["status"] != 0:
        return answer, None
    assert answer["reqsz_lo"] == length, answer
    return answer, exactly(sock, length)


def write(sock, unit, lba, data):
    send(sock, op=WRITE, zlun=unit, reqsz_lo=len(data), lba_hi=lba >> 32, lba_lo=lba)
    sock.sendall(data)
    return receive(sock)


def host(address, port, unit, privileged):
    config, number, cookie, sizes, ports = configure(address, port, privileged)
    found = {"cookie": cookie, "sizes": sizes, "ports": ports}
    sockets, beyond = [], set()
    for port in ports:
        for _ in range(port[3]):
            sock, status = open_data(port, number)
            assert status == 0, status
            sockets.append(sock)
        try:  # "Attempts to create additional data connections beyond max_connections will fail"
            open_data(port, number)
            beyond.add("taken")
        except ConnectionRefusedError:
            beyond.add("refused")
    found["beyond"] = list(beyond)
    last = sizes[unit] // SECTOR - MOST // SECTOR
    same = True
    for index, lba in enumerate([0, 1, 255, last // 2, last]):
        data = hashlib.shake_128(bytes([index])).digest(MOST)
        assert write(sockets[index % len(sockets)], unit, lba, data)["status"] == 0
        # "Each data port on the NSU box is capable of handling I/O requests for any unit"; and so is each socket.
        same &= read(sockets[-1 - index % len(sockets)], unit, lba, MOST)[1] == data
    found["same"] = same
    far, nothing = read(sockets[0], unit, (1 << 32) + 1, SECTOR)
    found["far"] = [far["status"], nothing is None]
    nobody, nothing = read(sockets[0], 77, 0, SECTOR)
    found["nobody"] = [nobody["status"], nothing is None]
    again, data = read(sockets[0], unit, 0, SECTOR)
    found["in step"] = again["status"] == 0 and data is not None
    config.close()
    closed = 0  # note (2): its end is the end of all data connections
    for sock in sockets:
        sock.settimeout(10)
        try:
            closed += sock.recv(1) == b""
        except ConnectionResetError:
            closed += 1
    found["closed"] = closed == len(sockets)
    print(json.dumps(found))


# -------------------------------------------------------------- the server


def server(address, size):
    disk = bytearray(size)
    config = socket.create_server((address, 0), family=family_of(address))
    print(config.getsockname()[1], flush=True)

    def serve_data(sock, number):
        with sock:
            if receive(sock)["reqsz_lo"] != number:
                return send(sock, status=-1)
            send(sock)
            while True:
                ask = receive(sock)
                at, length = (ask["lba_hi"] << 32 | ask["lba_lo"]) * SECTOR, ask["reqsz_lo"]
                data = exactly(sock, length) if ask["op"] == WRITE else None
                fits = 0 < length <= MOST and at + length <= size and ask["zlun"] == 0
                echo = {name: ask[name] for name in ("zlun", "op", "requestid", "lba_hi", "lba_lo")}
                send(sock, **echo, status=0 if fits else -1, reqsz_lo=length if fits else 0)
                if fits and data is not None:
                    disk[at:at + length] = data
                elif fits:
                    sock.sendall(disk[at:at + length])

    def serve_config(sock):
        number = int.from_bytes(os.urandom(4), "big")
        send(sock, op=GET_VERSION, version=1, reqsz_lo=number)
        answer = receive(sock)
        right = answer["version"] == 1 and answer["reqsz_lo"] == number ^ 0xFFFFFFFF
        send(sock, op=GET_VERSION, status=0 if right else -1)
        listener = socket.create_server((address, 0), family=family_of(address))

        def accept():
            while True:
                one, _ = listener.accept()
                threading.Thread(target=quietly, args=(serve_data, one, number), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        while right:
            ask = receive(sock)
            if ask["op"] == GET_STARTTIME:
                send(sock, op=ask["op"], reqsz_lo=7)
            elif ask["op"] == GET_CAPACITIES:
                send(sock, op=ask["op"], reqsz_lo=1)
                sock.sendall(struct.pack(">Q", size))
            elif ask["op"] == GET_DATAPORT:
                send(sock, op=ask["op"], reqsz_lo=1)
                kind = 6 if ":" in address else 4
                raw = socket.inet_pton(family_of(address), address).ljust(16, b"\0")
                sock.sendall(struct.pack(">I16sII", kind, raw, listener.getsockname()[1], 4))

    while True:
        one, _ = config.accept()
        threading.Thread(target=quietly, args=(serve_config, one), daemon=True).start()


def quietly(call, *args):
    try:
        call(*args)
    except (EOFError, OSError):
        pass


if sys.argv[1] == "host":
    host(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), "privileged" in sys.argv)
else:
    server(sys.argv[2], int(sys.argv[3]))
