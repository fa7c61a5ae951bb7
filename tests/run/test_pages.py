"""A freed tensor's memory: the next one's, with the commands, and the system's, once it is given back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

PROBE = """
import sys
from semalign.run.pages import keep_pages
if "keep" in sys.argv:
    keep_pages()
import resource, torch
from semalign.run.meter import free_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20
torch.set_num_threads(1)
torch.ones(10 << 20)  # 40 MiB
before = faults()
for _ in range(20):
    torch.ones(10 << 20)
print(faults() - before)
several = [torch.ones(10 << 20) for _ in range(60)]
full = resident()
del several
print(full - resident())
free_memory()
print(full - resident())
"""


def _probe(*arguments: str, **environment: str) -> tuple[int, int, int]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *arguments],
        env=kept | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    faults, lost, freed = map(int, done.stdout.split())
    return faults, lost, freed


WIDENED = """
import resource, sys
from pathlib import Path
from semalign.run.pages import give_back, keep_pages
import torch
if "limit" in sys.argv:
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
def addresses():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() >> 20
before = addresses()
keep_pages()
print(addresses() - before)
for _ in range(3):
    # What stays holds the heap's end where it is.
    several = [torch.empty(20 << 20) for _ in range(40)]
    stays = torch.empty(20 << 20)
    del several
    give_back()
print(addresses() - before)
"""

HAS_GLIBC = "CS_GNU_LIBC_VERSION" in os.confstr_names and bool(os.confstr("CS_GNU_LIBC_VERSION"))


@pytest.mark.skipif(not HAS_GLIBC, reason="glibc alone has these settings")
def test_a_freed_tensor_leaves_its_pages_to_the_next_one_until_they_are_given_back() -> None:
    plain, _, _ = _probe()
    faults, lost, freed = _probe("keep")
    # 20 tensors of 10,240 pages of 4 KiB.
    assert plain > 20_000 and faults < plain / 20
    # More than 2 GiB at once, as a backward pass frees.
    assert lost < 100 and freed >= 2200
    # A user's own settings stand.
    faults, _, _ = _probe("keep", MALLOC_MMAP_THRESHOLD_="131072")
    assert faults > 20_000


@pytest.mark.skipif(not HAS_GLIBC, reason="glibc alone has these settings")
def test_the_heap_reaches_far_except_where_addresses_are_limited() -> None:
    def widened(*arguments: str) -> list[int]:
        command = [sys.executable, "-c", WIDENED, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [int(line) for line in done.stdout.split()]

    memory = psutil.virtual_memory().total >> 20
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() != "2":
        at_first, later = widened()
        assert abs(at_first - 0.75 * memory) < 1100
        assert later < at_first + 200
    assert max(widened("limit")) < 4096
