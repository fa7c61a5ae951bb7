"""What a machine offers is found by doing it, said, and refused where it is nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from semalign.errors import ConfigError
from semalign.jail import process
from semalign.jail.process import Backend, Jail, JailError, Limits, offered, probe, require_backend
from tests.jail.jails import KINDS, backend, best


@pytest.fixture
def no_jail(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose kernel offers nothing."""

    def probed(kind: str) -> Backend | str:
        return Backend("limits") if kind == "limits" else "it is not there"

    monkeypatch.setattr(process, "probe", probed)
    yield


@pytest.mark.parametrize("kind", KINDS)
def test_a_jail_that_is_offered_keeps_every_door_shut(kind: str) -> None:
    found = backend(kind)
    assert found.kind == kind and found.as_json()["backend"] == kind
    assert ("Landlock" in str(found)) == bool(found.details["landlock"]) and "a list of system calls" in str(
        found
    )
    with Jail(found, Limits()) as jail:
        assert jail.run(process._PROOF, ["assert doors() == []"], ["doors"], "", is_bare=False) is None


def test_the_best_that_is_offered_is_taken() -> None:
    found = offered()
    assert (found is None) == all(isinstance(probe(kind), str) for kind in KINDS)  # type: ignore[arg-type]
    if found is not None:
        assert require_backend(True) == found == require_backend("unsafe")


def test_without_a_jail_code_is_refused_with_the_reasons_and_what_helps(no_jail: None) -> None:
    said = "bubblewrap: it is not there; landlock: it is not there.*install bubblewrap.*allow_code_execution to unsafe"
    with pytest.raises(ConfigError, match=said):
        require_backend(True)


def test_what_is_unsafe_is_said(no_jail: None, caplog: pytest.LogCaptureFixture) -> None:
    found = require_backend("unsafe")
    assert found.kind == "limits" and str(found) == "no jail, resource limits alone"
    assert "it can read and change what you can" in caplog.text


def test_a_jail_serves_one_program_after_another_and_ends_with_its_block() -> None:
    with Jail(best(), Limits()) as jail:
        for number in range(3):
            assert (
                jail.run(f"def f(): return {number}", [f"assert f() == {number}"], ["f"], "", is_bare=False)
                is None
            )
        wrong = jail.run("def f(): return 1", ["assert f() == 2"], ["f"], "", is_bare=False)
        assert wrong is not None and "AssertionError" in wrong
        pid = jail._process.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(JailError):
        jail.run("def f(): return 1", ["assert f() == 1"], ["f"], "", is_bare=False)
