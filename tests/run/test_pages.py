"""A freed tensor's memory: the next one's, with the commands, and the system's, once it is given back."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from semalign.run.pages import SETTINGS, VARIABLE

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


def _said(*words: str, **environment: str) -> str:
    """What Python prints in an environment without settings of the heap but these."""
    kept = {k: v for k, v in os.environ.items() if k != VARIABLE and not k.startswith("MALLOC_")}
    command = [sys.executable, *words]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _probe(*arguments: str, **environment: str) -> tuple[int, int, int]:
    faults, lost, freed = map(int, _said("-c", PROBE, *arguments, **environment).split())
    return faults, lost, freed


PARTED = """
import random, resource, torch
torch.set_num_threads(1)
draw = random.Random(0)
stays = []
def addresses():
    return int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() >> 20
before = addresses()
for _ in range(100):
    # What a step makes and lets go, and the small things that stay.
    step = []
    for _ in range(30):
        step.append(torch.empty(draw.randrange(1 << 20, 2 << 20)))
        stays.append(torch.empty(draw.randrange(1, 8)))
        stays.append(torch.nn.Module())
    del step
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
def test_small_things_that_stay_do_not_part_what_tensors_leave() -> None:
    def grown(settings: str) -> int:
        return int(_said("-c", PARTED, **{VARIABLE: settings}))

    with_lists = SETTINGS.replace("tcache_count=0", "tcache_count=7")
    assert with_lists != SETTINGS and grown(SETTINGS) < 0.7 * grown(with_lists)


AGAIN = """
import os, sys
from semalign.run import pages
pages.keep_pages()
print(sys.argv[1:], sys.flags.dont_write_bytecode, pages.VARIABLE in os.environ, pages.VARIABLE in pages.environment_of_others())
"""


@pytest.mark.skipif(not HAS_GLIBC, reason="glibc alone has these settings")
def test_a_program_begins_anew_once_with_its_own_arguments() -> None:
    def said(**environment: str) -> str:
        return _said("-B", "-c", AGAIN, "a b", "--c=d", **environment)

    assert said() == "['a b', '--c=d'] 1 True False"
    # A user's own settings stand, here and in what is started from here.
    assert said(**{VARIABLE: "glibc.malloc.mxfast=0"}) == "['a b', '--c=d'] 1 True True"
    assert said(MALLOC_ARENA_MAX="1") == "['a b', '--c=d'] 1 False False"
