"""Processes that want one run folder at the same moment: `racing.py FOLDER PROCESSES RACES CONTENT SEED` prints what came of it.

Who owns the folder makes a marker that must not be there yet, sleeps, and takes it away; every eighth is killed while it owns. CONTENT is
what a lock file holds before each race: `none` for no file, `dead` for the number of a process that is no more, `odd` for random bytes.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from semalign.errors import CacheError
from semalign.run.folder import RunFolder

REFUSED, DOUBLE = 3, 4


def own(folder: Path, chance: random.Random) -> None:
    """Try once."""
    marker = folder / "marker"
    try:
        with RunFolder(folder).lock():
            try:
                os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                os._exit(DOUBLE)
            time.sleep(chance.random() * 0.004)
            try:
                marker.unlink()
            except FileNotFoundError:
                os._exit(DOUBLE)
            if chance.random() < 0.125:
                os.kill(os.getpid(), signal.SIGKILL)
    except CacheError as error:
        assert "in use by" in str(error), error
        os._exit(REFUSED)
    os._exit(0)


def race(folder: Path, processes: int, seed: int) -> list[int]:
    """How each of the processes ended."""
    start, begin = os.pipe()
    children = []
    for number in range(processes):
        child = os.fork()
        if child == 0:
            os.close(begin)
            os.read(start, 1)  # returns once the parent has closed the other end
            try:
                own(folder, random.Random(f"{seed} {number}"))
            finally:
                sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
                os._exit(1)
        children.append(child)
    os.close(begin)
    found = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    os.close(start)
    return found


def main() -> None:
    """All races; one line of JSON."""
    folder, content, chance = Path(sys.argv[1]), sys.argv[4], random.Random(sys.argv[5])
    folder.mkdir(parents=True)
    gone = os.fork()
    if gone == 0:
        os._exit(0)
    os.waitpid(gone, 0)
    counted = {"races": 0, "owners": 0, "killed": 0, "refused": 0, "double": 0, "failed": 0, "nobody": 0}
    for number in range(int(sys.argv[3])):
        (folder / "marker").unlink(missing_ok=True)
        if content == "none":
            (folder / ".lock").unlink(missing_ok=True)
        else:
            data = str(gone).encode() if content == "dead" else chance.randbytes(chance.randrange(2000))
            (folder / ".lock").write_bytes(data)
        codes = race(folder, int(sys.argv[2]), number)
        counted["races"] += 1
        counted["double"] += DOUBLE in codes
        counted["failed"] += 1 in codes
        counted["nobody"] += not {0, -signal.SIGKILL, DOUBLE} & set(codes)
        for name, code in (("owners", 0), ("killed", -signal.SIGKILL), ("refused", REFUSED)):
            counted[name] += codes.count(code)
    print(json.dumps(counted))


main()
