"""Programs that try to get out of the sandbox, as bodies of a function that returns something true where the try succeeded.

`{canary}` is a file outside with a secret, `{folder}` its folder, `{port}` a port that listens, `{victim}` the id of another
process, and `nr("name")` the number of a system call. A body that raises, or never returns, has not succeeded.
"""

from __future__ import annotations

from textwrap import dedent, indent

_HEAD = """
import ctypes, os, signal, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {numbers!r}
def raw(name, *arguments):
    wrapped = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    found = libc.syscall(ctypes.c_long(NUMBERS[name]), *wrapped)
    if found < 0:
        raise OSError(ctypes.get_errno(), name)
    return found + 1
CANARY, FOLDER, PORT, VICTIM = {canary!r}, {folder!r}, {port!r}, {victim!r}
PATH = os.fsencode(CANARY)
def raw_number(number):
    NUMBERS["other"] = number
    return raw("other")
def attack():
"""

READING = {
    "open": "return open(CANARY).read()",
    "os.open": "return os.read(os.open(CANARY, os.O_RDONLY), 9)",
    "open from a folder's descriptor": "fd = os.open('/', os.O_RDONLY)\nreturn os.read(os.open(CANARY.lstrip('/'), 0, dir_fd=fd), 9)",
    "open from every descriptor": """
        for fd in range(256):
            for path in (CANARY, "../" * 9 + CANARY):
                try: return os.read(os.open(path, 0, dir_fd=fd), 9)
                except OSError: pass""",
    "FileIO": "import io\nreturn io.FileIO(CANARY).readall()",
    "open_code": "import io\nreturn io.open_code(CANARY).read()",
    "pathlib": "import pathlib\nreturn pathlib.Path(CANARY).read_bytes()",
    "codecs": "import codecs\nreturn codecs.open(CANARY).read()",
    "linecache": "import linecache\nreturn linecache.getlines(CANARY)",
    "tokenize": "import tokenize\nreturn tokenize.open(CANARY).read()",
    "a loader's data": "from importlib.machinery import SourceFileLoader\nreturn SourceFileLoader('x', CANARY).get_data(CANARY)",
    "fileinput": "import fileinput\nreturn list(fileinput.input([CANARY]))",
    "mmap of a file": "import mmap\nreturn mmap.mmap(os.open(CANARY, 0), 0, prot=mmap.PROT_READ)[:]",
    "patched realpath": "os.path.realpath = lambda *a, **k: '/usr/lib'\nreturn open(CANARY).read()",
    "replaced code of realpath": "os.path.realpath.__code__ = (lambda p, *, strict=False: p).__code__\nreturn open(CANARY).read()",
    "patched isinstance and any": "import builtins\nbuiltins.isinstance = builtins.any = lambda *a: True\nreturn open(CANARY).read()",
    "raw open": "return raw('open', PATH, 0)",
    "raw openat": "return raw('openat', -100, PATH, 0, 0)",
    "raw openat2": "return raw('openat2', -100, PATH, bytes(24), 24)",
    "raw creat": "return raw('creat', PATH, 0o600)",
    "a descriptor of a path": "return os.open(CANARY, os.O_PATH) + 1",
    "a handle of a path": "return raw('name_to_handle_at', -100, PATH, struct.pack('ii', 128, 0) + bytes(128), bytes(8), 0)",
    "a file by handle": "return raw('open_by_handle_at', -100, struct.pack('ii', 8, 1) + bytes(8), 0)",
    "fopen": "libc.fopen.restype = ctypes.c_void_p\nreturn libc.fopen(PATH, b'r')",
    "listdir": "return os.listdir(FOLDER)",
    "scandir": "return list(os.scandir(FOLDER))",
    "walk": "return list(os.walk(FOLDER))",
    "glob": "import glob\nreturn glob.glob(FOLDER + '/*')",
    "chdir": "os.chdir(FOLDER)\nreturn True",
    "chroot": "os.chroot(FOLDER)\nreturn True",
    "stat": "return os.stat(CANARY)[:]",
    "lstat": "return os.lstat(CANARY)[:]",
    "statx": "return raw('statx', -100, PATH, 0, 0xfff, ctypes.create_string_buffer(256))",
    "statvfs": "return os.statvfs('/')[:]",
    "access": "return os.access(CANARY, os.F_OK)",
    "exists": "return os.path.exists(CANARY) or os.path.exists('/')",
    "readlink": "return os.readlink('/proc/self/exe')",
    "getxattr": "return os.getxattr(CANARY, 'user.secret')",
    "listxattr": "os.listxattr(CANARY)\nreturn True",
    "readline's history": "import readline\nreadline.read_history_file(CANARY)\nreturn readline.get_current_history_length()",
    "own environment": "return [v for k, v in os.environ.items() if 'TOKEN' in k] or open('/proc/self/environ').read()",
    "getenv of the C library": "libc.getenv.restype = ctypes.c_char_p\nreturn libc.getenv(b'HF_TOKEN')",
    "memory of all objects": """
        import gc
        return [o for o in gc.get_objects() if isinstance(o, dict) and ("asserts" in o or "HF_TOKEN" in o)
                and o is not globals() and "attack" not in o]""",
    "the parent's environment": "return open(f'/proc/{os.getppid()}/environ').read()",
    "the first process' environment": "return open('/proc/1/environ').read()",
    "own maps": "return open('/proc/self/maps').read()",
    "a victim's memory": "return open(f'/proc/{VICTIM}/mem', 'rb').read(1)",
    "a victim's files": "return os.listdir(f'/proc/{VICTIM}/fd')",
    "the password file": "return open('/etc/passwd').read()",
    "keys of ssh": "return [open(os.path.expanduser('~/.ssh/' + n)).read() for n in ('id_rsa', 'id_ed25519', 'known_hosts')]",
    "a home folder": "return os.listdir(os.path.expanduser('~')) or os.listdir('/root')",
    "this project": "import semalign\nreturn True",
    "an installed package": "import torch\nreturn True",
    "a shared library": "return ctypes.CDLL('libm.so.6').cos",
    "a file of the interpreter": "return open(sys.executable, 'rb').read(4)",
}

WRITING = {
    "open": "open(FOLDER + '/new', 'w').write('x')\nreturn True",
    "open here": "open('new', 'w').write('x')\nreturn True",
    "append": "open(CANARY, 'a').write('x')\nreturn True",
    "a temporary file": "import tempfile\ntempfile.TemporaryFile().write(b'x')\nreturn True",
    "two thousand files": "for n in range(2000): open(f'/tmp/f{n}', 'w').write('x')\nreturn True",
    "mkdir": "os.mkdir(FOLDER + '/new')\nreturn True",
    "symlink": "os.symlink(CANARY, FOLDER + '/new')\nreturn True",
    "symlink here": "os.symlink('/', 'new')\nreturn os.listdir('new')",
    "link": "os.link(CANARY, FOLDER + '/new')\nreturn True",
    "rename": "os.rename(CANARY, FOLDER + '/new')\nreturn True",
    "remove": "os.remove(CANARY)\nreturn True",
    "remove from a folder's descriptor": "os.remove('canary', dir_fd=os.open(FOLDER, os.O_RDONLY))\nreturn True",
    "raw unlinkat": "return raw('unlinkat', -100, PATH, 0)",
    "rmtree": "import shutil\nshutil.rmtree(FOLDER)\nreturn True",
    "truncate": "os.truncate(CANARY, 0)\nreturn True",
    "chmod": "os.chmod(CANARY, 0o777)\nreturn True",
    "chown": "os.chown(CANARY, os.getuid(), os.getgid())\nreturn True",
    "utime": "os.utime(CANARY, (0, 0))\nreturn True",
    "setxattr": "os.setxattr(CANARY, 'user.new', b'x')\nreturn True",
    "mkfifo": "os.mkfifo(FOLDER + '/new')\nreturn True",
    "mknod": "os.mknod(FOLDER + '/new')\nreturn True",
    "a file in shared memory": "open('/dev/shm/new', 'w').write('x')\nreturn True",
    "shm_open": "import _posixshmem\nreturn _posixshmem.shm_open('/semalign-escape', os.O_CREAT | os.O_RDWR) + 1",
    "shm_open of the C library": "libc.shm_open\nfd = libc.shm_open(b'/semalign-escape', 66, 0o600)\nreturn fd >= 0",
    "memfd_create": "return os.memfd_create('x') + 1",
    "shmget": "return raw('shmget', 0x5e11, 4096, 0o1600)",
    "msgget": "return raw('msgget', 0x5e11, 0o1600)",
    "semget": "return raw('semget', 0x5e11, 1, 0o1600)",
    "mq_open": "return raw('mq_open', b'escape', 66, 0o600, 0)",
}

PROCESSES = {
    "fork": "return os.fork() + 1",
    "raw fork": "return raw('fork')",
    "raw clone": "return raw('clone', 17, 0, 0, 0, 0)",
    "raw clone3": "return raw('clone3', struct.pack('QQQQQQQQ', 0, 0, 0, 0, 17, 0, 0, 0), 64)",
    "system": "return os.system('true') == 0",
    "popen": "return os.popen('id').read()",
    "subprocess": "import subprocess\nreturn subprocess.run(['/bin/true']).returncode == 0",
    "fork_exec": """
        import _posixsubprocess
        return _posixsubprocess.fork_exec([b"true"], [b"/bin/true"], True, (), None, None, -1, -1, -1, -1, -1, -1, *os.pipe(),
            False, False, -1, None, None, None, -1, None)""",
    "posix_spawn": "return os.posix_spawn('/bin/true', ['true'], {})",
    "execv": "os.execv('/bin/true', ['true'])",
    "raw execveat": "return raw('execveat', -100, b'/bin/true', 0, 0, 0)",
    "pty": "import pty\nreturn pty.fork()[0] + 1",
    "multiprocessing": "import multiprocessing\np = multiprocessing.get_context('fork').Process(target=int)\np.start()\nreturn True",
    "a thread": "import threading\nthreading.Thread(target=time.sleep, args=(1,)).start()\nreturn True",
    "a fork bomb": "while True: os.fork()",
    "an orphan in a session of its own": "if os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\nreturn True",
    "setsid": "os.setsid()\nreturn True",
    "an own subreaper": "return libc.prctl(36, 1, 0, 0, 0) == 0",
    "a signal to a victim": "os.kill(VICTIM, 0)\nreturn True",
    "a signal to the parent": "os.kill(os.getppid(), 0)\nreturn True",
    "a signal to all": "os.kill(-1, 0)\nreturn True",
    "a signal to the group": "os.killpg(0, 0)\nreturn True",
    "SIGKILL to the neighbours": """
        sent = []
        for pid in [n for n in range(max(2, os.getpid() - 50), os.getpid() + 50) if n != os.getpid()]:
            try: os.kill(pid, signal.SIGKILL); sent.append(pid)
            except OSError: pass
        return sent""",
    "pidfd_open": "return os.pidfd_open(VICTIM)",
    "pidfd_send_signal": "return raw('pidfd_send_signal', 3, 0, 0, 0)",
    "pidfd_getfd": "return raw('pidfd_getfd', 3, 0, 0)",
    "tgkill": "return raw('tgkill', VICTIM, VICTIM, 0)",
    "rt_sigqueueinfo": "return raw('rt_sigqueueinfo', VICTIM, 0, bytes(128))",
    "a signal through fcntl": "import fcntl\nfcntl.fcntl(3, fcntl.F_SETOWN, VICTIM)\nreturn True",
    "ptrace": "return raw('ptrace', 16, VICTIM, 0, 0)",
    "ptrace of the parent": "return raw('ptrace', 16, os.getppid(), 0, 0)",
    "process_vm_readv": "return raw('process_vm_readv', VICTIM, bytes(16), 1, bytes(16), 1, 0)",
    "process_vm_writev": "return raw('process_vm_writev', VICTIM, bytes(16), 1, bytes(16), 1, 0)",
    "kcmp": "return raw('kcmp', os.getpid(), VICTIM, 0, 0, 0)",
    "setpriority": "os.setpriority(os.PRIO_PROCESS, VICTIM, 19)\nreturn True",
    "sched_setaffinity": "os.sched_setaffinity(VICTIM, {0})\nreturn True",
    "sched_getaffinity": "return os.sched_getaffinity(VICTIM)",
    "sched_setscheduler": "os.sched_setscheduler(VICTIM, os.SCHED_BATCH, os.sched_param(0))\nreturn True",
    "prlimit": "import resource\nreturn resource.prlimit(VICTIM, resource.RLIMIT_CORE)",
    "own limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (1, 1))\nreturn True",
    "ioprio_set": "return raw('ioprio_set', 1, VICTIM, 0)",
    "getpgid": "return os.getpgid(VICTIM)",
}

NETWORK = {
    "connect": "import socket\nreturn bool(socket.create_connection(('127.0.0.1', PORT), 1))",
    "raw socket": "return raw('socket', 2, 1, 0)",
    "UDP": "import socket\nreturn socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))",
    "a socket of files": "import socket\nsocket.socket(socket.AF_UNIX).bind(FOLDER + '/new')\nreturn True",
    "an abstract socket": "import socket\nsocket.socket(socket.AF_UNIX).bind('\\0semalign-escape')\nreturn True",
    "a pair of sockets": "import socket\nreturn bool(socket.socketpair())",
    "netlink": "import socket\nreturn bool(socket.socket(16, socket.SOCK_RAW, 0))",
    "vsock": "import socket\nreturn bool(socket.socket(40, socket.SOCK_STREAM))",
    "urllib": "import urllib.request\nreturn urllib.request.urlopen(f'http://127.0.0.1:{PORT}').read()",
    "a listener": "import socket\ns = socket.socket()\ns.bind(('', 0))\ns.listen()\nreturn True",
    "connect on a channel": "return raw('connect', 3, struct.pack('=HH', 2, 0) + bytes(12), 16)",
    "descriptors through a channel": "return raw('sendmsg', 3, bytes(56), 0)",
    "getaddrinfo": "import socket\nreturn socket.getaddrinfo('localhost.localdomain', 80)",
}

KERNEL = {
    "mount": "return raw('mount', b'none', b'/', b'tmpfs', 0, 0)",
    "umount": "return raw('umount2', b'/', 0)",
    "pivot_root": "return raw('pivot_root', b'/', b'/')",
    "open_tree": "return raw('open_tree', -100, b'/', 1)",
    "unshare": "return raw('unshare', 0x10000000)",
    "unshare of mounts": "return raw('unshare', 0x20000)",
    "setns": "return raw('setns', 3, 0)",
    "io_uring": "return raw('io_uring_setup', 1, ctypes.create_string_buffer(120))",
    "bpf": "return raw('bpf', 0, bytes(72), 72)",
    "perf_event_open": "return raw('perf_event_open', struct.pack('II', 1, 112) + bytes(104), 0, -1, -1, 0)",
    "userfaultfd": "return raw('userfaultfd', 1)",
    "keyctl": "return raw('keyctl', 0, -3, 0)",
    "add_key": "return raw('add_key', b'user', b'escape', b'x', 1, -3)",
    "request_key": "return raw('request_key', b'user', b'escape', 0, -3)",
    "setuid": "os.setuid(0)\nreturn True",
    "setresuid": "os.setresuid(0, 0, 0)\nreturn True",
    "setgroups": "os.setgroups([0])\nreturn True",
    "capset": "return raw('capset', struct.pack('Ii', 0x20080522, 0), b'\\xff' * 24)",
    "being dumpable": "return libc.prctl(4, 1, 0, 0, 0) == 0",
    "an own filter": "return raw('seccomp', 1, 0, bytes(16))",
    "personality": "return raw('personality', 0x40000)",
    "memory that runs": "import mmap\nreturn bool(mmap.mmap(-1, 4096, prot=7))",
    "memory made to run": """
        import mmap
        room = mmap.mmap(-1, 4096)
        return raw('mprotect', ctypes.addressof(ctypes.c_char.from_buffer(room)), 4096, 7)""",
    "locked memory": "return raw('mlockall', 1)",
    "inotify": "return raw('inotify_init1', 0)",
    "fanotify": "return raw('fanotify_init', 0, 0)",
    "init_module": "return raw('init_module', bytes(8), 8, b'')",
    "kexec_load": "return raw('kexec_load', 0, 0, 0, 0)",
    "swapon": "return raw('swapon', b'/x', 0)",
    "syslog": "return raw('syslog', 3, ctypes.create_string_buffer(64), 64)",
    "sethostname": "return raw('sethostname', b'escape', 6)",
    "clock_settime": "return raw('clock_settime', 0, bytes(16))",
    "a key into the terminal": "return raw('ioctl', 0, 0x5412, b'x')",
    "a debug register": "return raw('arch_prctl', 0x1002, 0)",
    "landlock of its own": "return raw('landlock_create_ruleset', 0, 0, 1)",
    "another architecture's calls": "return raw_number(0x40000000 + 39)",
}

RESOURCES = {
    "memory": "kept = []\nwhile True: kept.append(bytearray(2**24))",
    "one large piece of memory": "return len(bytearray(2**32))",
    "endless loop": "while True: pass",
    "sleep": "time.sleep(3600)\nreturn True",
    "ignored signals": "for n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
    "endless output": "while True: print('x' * 10**6)",
    "a large value": "return 'x' * 2**24",
    "an endless iterator": "import itertools\nreturn itertools.count()",
    "a value that holds itself": "found = []\nfound.append(found)\nreturn found",
    "deep nesting": "found = 1\nfor _ in range(10**6): found = [found]\nreturn found",
    "a flood on the channel": "while True: os.write(3, bytes(2**20))",
}

ALL = {
    f"{group}: {name}": body
    for group, bodies in (
        ("reading", READING),
        ("writing", WRITING),
        ("processes", PROCESSES),
        ("network", NETWORK),
        ("kernel", KERNEL),
        ("resources", RESOURCES),
    )
    for name, body in bodies.items()
}


def code_of(body: str, places: dict[str, object], numbers: dict[str, int]) -> str:
    """The whole program of an attack."""
    head = _HEAD
    for name, value in {**places, "numbers": numbers}.items():
        head = head.replace("{" + name + "!r}", repr(value))
    return head + indent(dedent(body.strip("\n")), "    ") + "\n"
