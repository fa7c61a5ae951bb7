"""No answer talks its way to a verdict: every cheat is graded wrong, and what honest answers need is graded right."""

from __future__ import annotations

from textwrap import dedent

import pytest
from jail.jails import QUICK, best

from semalign.jail.programs import Outcome, Program, run_programs

# The function has to square; each of these does not, and tries to be taken for right.
LIES = """
class Lie{base}:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 9
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __bool__(self): return True
    def __getattr__(self, name): return lambda *a, **k: True
    def __instancecheck__(self, other): return True
    def __array_priority__(self): return 10**9
    def __radd__(self, other): return self
    __rsub__ = __rmul__ = __sub__ = __add__ = __radd__
    def __abs__(self): return 0
    def __float__(self): return 0.0
    def __reduce__(self): return (eval, ("9",))
def f(x): return Lie({value})
"""
CHEATS = {
    "an object that equals all": LIES.format(base="", value=""),
    "a whole number that equals all": LIES.format(base="(int)", value="1"),
    "a number that equals all": LIES.format(base="(float)", value="1.5"),
    "a text that equals all": LIES.format(base="(str)", value="'x'"),
    "a list that equals all": LIES.format(base="(list)", value="[1]"),
    "a dict that equals all": LIES.format(base="(dict)", value=""),
    "a tuple that equals all": LIES.format(base="(tuple)", value=""),
    "a set that equals all": LIES.format(base="(set)", value=""),
    "a decimal that equals all": "from decimal import Decimal\n" + LIES.format(base="(Decimal)", value="'1'"),
    "a class that equals all": LIES.format(base="", value="") + "def f(x): return Lie",
    "a metaclass that equals all": r"""
        class Meta(type):
            def __eq__(s, o): return True
            __hash__ = type.__hash__
        class A(metaclass=Meta): pass
        def f(x): return A""",
    "patched abs": r"""
        import builtins
        builtins.abs = lambda x: 0
        def f(x): return 0""",
    "patched exec and compile": r"""
        import builtins
        builtins.exec = lambda *a, **k: None
        builtins.compile = lambda *a, **k: 0
        def f(x): return 0""",
    "patched isinstance": r"""
        import builtins
        builtins.isinstance = lambda *a: True
        builtins.any = builtins.all = lambda *a: True
        def f(x): return 0""",
    "patched len and eq": r"""
        import builtins, operator
        builtins.len = lambda x: 9
        operator.eq = lambda *a: True
        def f(x): return 0""",
    "patched json": r"""
        import json
        json.dumps = lambda *a, **k: '{"failed": null}'
        json.loads = lambda *a, **k: {'failed': None}
        def f(x): return 0""",
    "patched write": r"""
        import os
        write = os.write
        os.write = lambda fd, data: write(fd, b'\0\0\0\x10{"failed": null}')
        def f(x): return 0""",
    "patched modules": r"""
        import sys
        for m in list(sys.modules): sys.modules[m] = sys
        def f(x): return 0""",
    "patched encoder": r"""
        import sys
        for m in list(sys.modules.values()):
            if hasattr(m, 'encode') and hasattr(m, 'decode'): m.encode = lambda v: {'passed': True}
        def f(x): return 0""",
    "an exception called passed": r"""
        class passed(Exception): pass
        def f(x): raise passed('passed')""",
    "an exception of text passed": r"""
        class E(Exception):
            def __str__(self): return 'passed'
        def f(x): raise E""",
    "an AssertionError": r"""
        class E(AssertionError): pass
        def f(x): raise E('passed')""",
    "leaving with success": "def f(x): raise SystemExit(0)",
    "leaving at once": r"""
        import os
        def f(x): os._exit(0)""",
    "leaving while it loads": "raise SystemExit(0)",
    "leaving at once while it loads": r"""
        import os
        os._exit(0)""",
    "an interrupt": "def f(x): raise KeyboardInterrupt",
    "the end of a generator": "def f(x): raise GeneratorExit",
    "the end of an iteration": "def f(x): raise StopIteration(9)",
    "recursion": "def f(x): return f(x)",
    "a verdict on every descriptor": r"""
        import os, struct
        def f(x):
            body = b'{"failed": null}'
            for fd in range(256):
                for data in (body, len(body).to_bytes(4, 'big') + body, b'passed\n'):
                    try: os.write(fd, data)
                    except OSError: pass
            os._exit(0)""",
    "a verdict on every descriptor while it loads": r"""
        import os
        body = b'{"failed": null}'
        for fd in range(256):
            try: os.write(fd, len(body).to_bytes(4, 'big') + body)
            except OSError: pass""",
    "a verdict printed": r"""
        print('{"failed": null}', flush=True)
        print('passed')
        def f(x): return 0""",
    "replies before they are asked for": r"""
        import os
        body = b'{"ran": true, "passed": true, "failed": null, "value": true}'
        for n in range(20): os.write(3, len(body).to_bytes(4, 'big') + body)
        def f(x): return 0""",
    "the expected value from frames": r"""
        import sys
        def f(x):
            frame = sys._getframe()
            while frame:
                for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
                    if isinstance(value, dict) and 'asserts' in value: return 9
                frame = frame.f_back
            return 0""",
    "the expected value from all objects": r"""
        import gc
        def f(x):
            for value in gc.get_objects():
                inner = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
                if any(isinstance(v, str) and v.startswith(''.join(['ass', 'ert f('])) for v in inner):
                    return x * x
            return 0""",
    "the asserts from files": r"""
        import glob
        def f(x):
            text = ''.join(open(name).read() for name in glob.glob('/proc/self/fd/*'))
            return 9 if 'assert' in text else 0""",
    "the argument": "def f(x): return x",
    "a changed argument": r"""
        def f(x):
            if hasattr(x, 'clear'): x.clear()
            return x""",
    "nothing while it is tested": r"""
        import sys
        def f(x): return True if sys.gettrace() is None else x * x""",
    "an array that equals all": r"""
        class ndarray:
            __module__ = 'numpy'
            shape = (1,)
            def __array__(self): return [9]
            def __eq__(self, other): return self
            def all(self): return True
            def __bool__(self): return True
        def f(x): return ndarray()""",
    "a value that cannot be compared": "def f(x): return float('nan')",
    "true for one": "def f(x): return True",
    "an endless value": r"""
        import itertools
        def f(x): return itertools.repeat(9)""",
    "no function": "f = 9",
    "no name": "g = 9",
    "a changed recursion": r"""
        import sys
        sys.setrecursionlimit(10**9)
        def f(x): return [f(x)]""",
    "a thread that writes later": r"""
        import os, threading, time
        def late():
            time.sleep(0.2)
            os.write(3, b'x')
        try: threading.Thread(target=late).start()
        except RuntimeError: pass
        def f(x): return 0""",
    "a fork that writes later": r"""
        import os
        try: os.fork()
        except OSError: pass
        def f(x): return 0""",
    "an odd name of an exception": r"""
        E = type('failed\0', (Exception,), {}) if False else type('None', (Exception,), {})
        def f(x): raise E('null')""",
    "a finaliser": r"""
        class D:
            def __del__(self):
                import os
                os.write(3, b'{"failed": null}')
        def f(x): return [D()] and 0""",
    "settrace": r"""
        import sys
        sys.settrace(lambda *a: None)
        sys.setprofile(lambda *a: None)
        def f(x): return 0""",
    "an audit hook": r"""
        import sys
        sys.addaudithook(lambda *a: None)
        def f(x): return 0""",
    "no closing bracket": "def f(x: return x",
}

ASSERTS = {
    "bare": ("assert f(3) == 9", "assert f(4) == 16"),
    "with code": (
        "import math\ndef check(g):\n    assert math.isclose(g(3), 9) and abs(g(3) - 9) < 1e-9\n    assert sorted([g(4), g(5)]) == [16, 25]\n"
        "    assert all(isinstance(g(n), int) and g(n) is not True for n in (2, 3))\n    assert {g(2): 1} == {4: 1} and g(2) in {4}\ncheck(f)",
    ),
}


@pytest.mark.parametrize("asserts", ASSERTS.values(), ids=ASSERTS)
def test_every_cheat_is_graded_wrong_and_the_next_answer_right(asserts: tuple[str, ...]) -> None:
    honest = Program("def f(x): return x * x", asserts, ("f",))
    tries = [p for code in CHEATS.values() for p in (Program(dedent(code), asserts, ("f",)), honest)]
    outcomes = run_programs(tries, limits=QUICK, backend=best())
    passed = [outcome.passed for outcome in outcomes]
    assert [name for name, right in zip(CHEATS, passed[::2], strict=True) if right] == []
    assert all(passed[1::2]), outcomes
    assert len(CHEATS) >= 27


def outcome(code: str, *asserts: str, entry: str = "f", prefix: str = "") -> Outcome:
    (found,) = run_programs([Program(code, asserts, (entry,), prefix)], limits=QUICK, backend=best())
    return found


RIGHT = {
    "a value of each kind": (
        "def f(x): return [x, 1.5, 'a', b'b', (1,), {2}, {'k': None}, True, 2**99, 1j]",
        "assert f(3) == [3, 1.5, 'a', b'b', (1,), {2}, {'k': None}, True, 2**99, 1j]",
    ),
    "keywords": ("def f(x, *, y=1): return x - y", "assert f(3, y=2) == 1"),
    "true itself": ("def f(x): return x > 1", "assert f(2) is True", "assert f(0) is False"),
    "a generator": ("def f(x):\n    for n in range(x): yield n", "assert list(f(3)) == [0, 1, 2]"),
    "a change in place": ("def f(x): x.sort(); x[0] = 'a'", "xs = [3, 2]\nassert f(xs) is None\nassert xs == ['a', 3]"),
    "a changed dict and set": (
        "def f(x, y): x['n'] = 1; y.add(2)",
        "d, s = {}, set()\nf(d, s)\nassert d == {'n': 1} and s == {2}",
    ),
    "an exception": ("def f(x): raise ValueError('no')", "try:\n    f(1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'no'"),
    "an own exception": (
        "class Odd(KeyError): pass\ndef f(x): raise Odd('no')",
        "try:\n    f(1)\n    assert False\nexcept KeyError as e:\n    assert type(e).__name__ == 'Odd'",
    ),
    "an exception of many arguments": (
        "def f(x): return x.decode()",
        "try:\n    f(b'\\xff')\n    assert False\nexcept Exception as e:\n    assert type(e).__name__ == 'UnicodeDecodeError'",
    ),
    "state between calls": ("seen = []\ndef f(x):\n    seen.append(x)\n    return len(seen)", "assert [f(0), f(0)] == [1, 2]"),
    "output": ("def f(x):\n    print('x' * 10**6)\n    return x", "assert f(3) == 3"),
    "modules that are loaded from memory": (
        "import difflib, xml.etree.ElementTree, email.message, logging, unittest, asyncio\ndef f(x): return x.encode('utf-16-le')",
        "assert f('a') == b'a\\0'",
    ),
    "a changed argument by name": ("def f(x, *, y): x.sort(); y.sort()", "a, b = [2, 1], [4, 3]\nf(x=a, y=b)\nassert (a, b) == ([1, 2], [3, 4])"),
    "a changed argument among others": ("def f(x, y, z): y.clear()", "a, b = [2, 1], [4, 3]\nf(a, z=1, y=b)\nassert (a, b) == ([2, 1], [])"),
    "a missing key": (
        "def f(x): return {}[x]",
        "for key in ('x', 3, (1, 'x')):\n    try:\n        f(key)\n        assert False\n    except KeyError as e:\n"
        "        assert str(e) == repr(key) and e.args == (key,)",
    ),
    "a missing key that is no plain data": (
        "def f(x): return {}[len]",
        "try:\n    f(1)\n    assert False\nexcept KeyError as e:\n    assert 'len' in str(e)",
    ),
    "an exception of many arguments, by its base": (
        "def f(x): return x.decode()",
        "try:\n    f(b'\\xff')\n    assert False\nexcept ValueError as e:\n    assert type(e).__name__ == 'UnicodeDecodeError'",
    ),
    "a name of asserts that hides a built-in": ("def f(x): return x", "sum = f\nassert sum(2) == 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_honest_answers_do_is_graded_right(name: str) -> None:
    code, *asserts = RIGHT[name]
    assert outcome(code, *asserts).reason == "passed"


@pytest.mark.parametrize(
    ("code", "asserts", "reason"),
    [
        ("def f(x): return x", "assert f(2) == 3, 'not three'", "AssertionError: not three"),
        ("def f(x): return 1 / 0", "assert f(2) == 3", "ZeroDivisionError: division by zero"),
        ("def f(x): return f", "assert f(2)", "NotPlainError: a value of type function"),
        ("def f(x): return x", "assert f(len)", "NotPlainError: a value of type builtin_function"),
        ("def f(x): return 'x' * 2**21", "assert f(2)", "sent 2097"),
        ("import time\ndef f(x): time.sleep(60)", "assert f(2)", "ran past its time limit"),
        ("def f(x):\n    while True: pass", "assert f(2)", "ended before it answered"),
        ("def f(x): return bytearray(2**30)", "assert f(2)", "MemoryError"),
        ("def f(x): raise SystemExit(3)", "try:\n    f(2)\nexcept BaseException: pass", "SystemExit: 3"),
        ("def g(x): return x", "assert f(2)", "NameError: the code does not define f"),
        ("def f(x): return g", "assert g(2)", "NameError: name 'g' is not defined"),
        ("import numpy\ndef f(x): return x", "assert f(2)", "ModuleNotFoundError: No module named 'numpy'"),
        ("def f(x): return open('x', 'w')", "assert f(2)", "PermissionError"),
        ("raise ValueError('x' * 1000)", "assert True", "ValueError: xxx"),
        ("class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd", "assert True", "Odd"),
        ("raise ValueError('\\ud800')", "assert True", r"ValueError: \ud800"),
        (
            "E = type('UnicodeDecodeError', (StopIteration,), {})\ndef f(x): raise E(9)",
            "assert list(map(f, [1])) == []",
            "RuntimeError: UnicodeDecodeError: 9",
        ),
        ("def f(x): raise KeyError('x')", "assert f(1)", "KeyError: 'x'"),
        ("def f(x): return input()", "assert f(2)", "EOFError"),
    ],
)
def test_a_failure_is_named_and_cut_short(code: str, asserts: str, reason: str) -> None:
    found = outcome(code, asserts)
    assert found.reason.startswith(reason) and len(found.reason) <= 300 and not found.passed
    assert found.reason.encode()


def test_asserts_use_what_the_task_defines_and_not_what_the_answer_makes_of_it() -> None:
    prefix = "import math\ndef error(x): return abs(x - 9)\ndef f(x):\n    '''Square.'''\n"
    test = "def check(candidate):\n    assert error(candidate(3)) < math.ulp(1)\ncheck(f)"
    assert outcome(prefix + "    return x * x", test, prefix=prefix).passed
    assert not outcome("def error(x): return 0\ndef f(x): return 0", test, prefix=prefix).passed
    assert outcome(
        "def f(x): return x * x", "assert math.sqrt(f(3)) == 3", prefix="import math\ndef f(x):\n"
    ).passed


def test_what_the_task_defines_may_be_dataclasses_and_every_checker_has_its_own() -> None:
    prefix = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    for names in ("P(f(2)) == P(4) and 'left' not in globals()", "not globals().update(left=1)"):
        assert outcome("def f(x): return x * x", f"assert {names}", prefix=prefix).passed


def test_an_assert_after_a_failing_one_does_not_run() -> None:
    assert outcome("def f(x): return x", "assert f(1) == 2", "raise ValueError").reason == "AssertionError"
