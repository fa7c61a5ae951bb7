"""Counts a process's changes of files and strikes it in the middle of one; Python imports this where the folder is on its path.

STRIKE holds `FOLDER|PART|NUMBER|SIGNAL|WHO`: before the NUMBERth change below FOLDER of a path that has PART in it, the process is sent
SIGNAL. WHO is `main`, or `worker` for the processes that multiprocessing starts. It happens once, whichever process comes first; a file
in FOLDER's parent says so. With number 0 nothing is sent, and the file `changes` beside FOLDER holds how many there were.
"""

import os
import signal
import sys

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


def install() -> None:
    """Begin to count, as STRIKE says."""
    folder, part, number, name, who = os.environ["STRIKE"].split("|")
    if ("worker" if "--multiprocessing-fork" in sys.orig_argv else "main") != who:
        return
    beside, counted, wanted = os.path.dirname(folder), [0], int(number)
    busy = [False]

    def watch(event: str, arguments: tuple) -> None:
        if busy[0]:
            return
        if event == "open":
            path, mode, flags = arguments
            if not ((isinstance(mode, str) and mode.strip("rbt")) or flags & (os.O_WRONLY | os.O_RDWR)):
                return
        elif event in CHANGES:
            path = arguments[1] if event == "os.rename" else arguments[0]
        else:
            return
        if isinstance(path, int):
            return
        text = os.fsdecode(path)
        if not text.startswith(folder) or part not in text or text.endswith("/.lock"):
            return
        counted[0] += 1
        busy[0] = True
        try:
            if wanted == 0:
                with open(os.path.join(beside, "changes"), "w") as file:
                    file.write(str(counted[0]))
            elif counted[0] == wanted:
                os.close(os.open(os.path.join(beside, "struck"), os.O_CREAT | os.O_EXCL))
                os.kill(os.getpid(), signal.Signals[name])
        except FileExistsError:
            pass
        finally:
            busy[0] = False

    sys.addaudithook(watch)


if "STRIKE" in os.environ:
    install()
