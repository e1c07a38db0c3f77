"""A client that plays with its windows, by paramiko: windows.py PORT KEY DIR.

It prints what it found, a line each; see TestGamesWithWindows."""
import os, sys, time
import paramiko
from paramiko.common import MSG_CHANNEL_WINDOW_ADJUST, cMSG_CHANNEL_DATA, cMSG_CHANNEL_WINDOW_ADJUST

port, key, dir = sys.argv[1:]


def connect():
    t = paramiko.Transport(("127.0.0.1", int(port)))
    t._sanitize_window_size = t._sanitize_packet_size = lambda n: 1 << 20 if n is None else n  # as it is asked for
    t.connect(username=os.environ.get("USER", "root"), pkey=paramiko.Ed25519Key.from_private_key_file(key))
    return t


def message(kind, chan, *parts):
    m = paramiko.Message()
    m.add_byte(kind)
    m.add_int(chan.remote_chanid)
    for p in parts:
        (m.add_int if isinstance(p, int) else m.add_string)(p)
    return m


def served(t):
    """whether the connection still serves a well-behaved channel"""
    c = t.open_session()
    c.exec_command("echo served")
    return c.makefile().read() == b"served\n"


t = connect()
for size in 0, 1:  # no packet fits
    try:
        t.open_session(window_size=1 << 20, max_packet_size=size)
        print("a packet of", size, "is taken")
    except paramiko.ChannelException:
        print("a packet of", size, "is refused")

# A window of 0 holds a writer, one more byte of window lets one byte through.
c = t.open_session(window_size=0, max_packet_size=1 << 15)
c.exec_command("echo $$ >%s/held; exec cat /dev/zero" % dir)
print("a window of 0 holds a writer, others are", "served" if served(t) else "not served", "and it has", len(c.in_buffer))
t._send_user_message(message(cMSG_CHANNEL_WINDOW_ADJUST, c, 1))
print("a byte of window gives", len(c.recv(100)))
c.close()

# A packet of 9 bytes at most, and a window of all that there is.
c = t.open_session(window_size=2**32 - 1, max_packet_size=9)
c.exec_command("seq 1000")
print("small packets carry all:", c.makefile().read() == b"".join(b"%d\n" % i for i in range(1, 1001)))
c = t.open_session(window_size=2**32 - 1, max_packet_size=1 << 31)
c.exec_command("head -c 3000000 /dev/zero")
print("a huge window carries all:", len(c.makefile().read()) == 3000000)
print("others are", "served" if served(t) else "not served")

# A window that grows beyond all bounds is the end of the connection, and of nothing else.
c = t.open_session(window_size=2**32 - 1, max_packet_size=1 << 15)
t._send_user_message(message(cMSG_CHANNEL_WINDOW_ADJUST, c, 2**32 - 1))
t.join(30)
print("an overflow ends it:", not t.is_active())

# So are bytes beyond the server's window.
t = connect()
c = t.open_session()
c.exec_command("sleep 1000")
try:
    for _ in range(200):
        t._send_user_message(message(cMSG_CHANNEL_DATA, c, b"x" * 32768))
except Exception:
    pass
t.join(30)
print("bytes beyond the window end it:", not t.is_active())
t = connect()
print("others are", "served" if served(t) else "not served")
t.close()
