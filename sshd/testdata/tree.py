"""Carries a tree with paramiko: tree.py PORT KEY put|get FROM TO."""
import os, stat, sys
import paramiko

port, key, way, source, target = sys.argv[1:]
transport = paramiko.Transport(("127.0.0.1", int(port)))
transport.connect(username=os.environ.get("USER", "root"), pkey=paramiko.Ed25519Key.from_private_key_file(key))
sftp = paramiko.SFTPClient.from_transport(transport)
b = os.fsencode


def put(a, z):
    st = os.lstat(a)
    if stat.S_ISDIR(st.st_mode):
        sftp.mkdir(z)
        for name in os.listdir(a):
            put(os.path.join(a, name), os.path.join(z, name))
    else:
        sftp.put(os.fsdecode(a), z)
    sftp.chmod(z, stat.S_IMODE(st.st_mode))
    sftp.utime(z, (int(st.st_atime), int(st.st_mtime)))


def get(a, z):
    st = sftp.lstat(a)
    if stat.S_ISDIR(st.st_mode):
        os.mkdir(z)
        for entry in sftp.listdir(a):
            name = b(entry)
            get(os.path.join(a, name), os.path.join(z, name))
    else:
        sftp.get(a, os.fsdecode(z))
    os.chmod(z, stat.S_IMODE(st.st_mode))
    os.utime(z, (st.st_atime, st.st_mtime))


{"put": put, "get": get}[way](b(source), b(target))
transport.close()
