"""A program is a module that the standard library finds."""

from __future__ import annotations

import pytest
from jail.jails import QUICK, best

from semalign.jail.programs import Program, run_programs

DATACLASS = """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Node:
    v: int
    next: Node = None
def f(x): return Node(x, Node(x + 1)).next.v
"""
HINTS = """
from typing import get_type_hints
class Node:
    next: 'Node'
def f(x): return x + 1 if get_type_hints(Node)['next'] is Node else x
"""
PICKLE = """
import pickle
class Box: pass
def f(x):
    box = Box()
    box.x = x + 1
    return pickle.loads(pickle.dumps(box)).x
"""


@pytest.mark.parametrize("code", [DATACLASS, HINTS, PICKLE], ids=["dataclass", "hints", "pickle"])
def test_own_classes_are_found_by_the_name_of_their_module(code: str) -> None:
    programs = [Program(code, (f"assert f(1) == {value}",), ("f",)) for value in (2, 1)]
    reasons = [outcome.reason for outcome in run_programs(programs, limits=QUICK, backend=best())]
    assert reasons == ["passed", "AssertionError"]
