"""The demo's pipeline asks for no network and writes down no secret."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from semalign.config.options import DEMO
from semalign.config.parsing import load_config
from semalign.report import build_report
from semalign.steps.pipeline import transfer

SECRET = "correct-horse-battery-staple"
LOOPBACK = ("127.", "::1", "localhost")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address beyond this machine that was asked for; each is refused."""
    found: list[Any] = []

    def guard(name: str) -> None:
        real = getattr(socket.socket, name)

        def guarded(self: socket.socket, *args: Any) -> Any:
            address = args[-1]
            if isinstance(address, tuple) and not str(address[0]).startswith(LOOPBACK):
                found.append(address)
                raise OSError("no network")
            return real(self, *args)

        monkeypatch.setattr(socket.socket, name, guarded)

    for name in ("connect", "connect_ex", "sendto"):
        guard(name)
    look_up = socket.getaddrinfo

    def resolve(host: Any, *args: Any, **options: Any) -> Any:
        if host is not None and not str(host).startswith(LOOPBACK):
            found.append(host)
            raise socket.gaierror("no network")
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return found


def test_the_guard_notices_what_leaves_the_machine(asked: list[Any]) -> None:
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("example.org", 80), timeout=1)
    with pytest.raises(OSError, match="no network"), socket.socket() as direct:
        direct.connect(("192.0.2.1", 80))
    assert asked == ["example.org", ("192.0.2.1", 80)]


def test_the_demo_needs_no_network_and_writes_no_secret(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    demo = load_config(DEMO, output_dir=str(tmp_path / "run"))
    small = replace(
        demo,
        data=replace(demo.data, max_rows=16),
        train=replace(demo.train, max_steps=2, per_device_train_batch_size=8),
        evaluation=replace(demo.evaluation, max_items=2, cka_rows=2),
    )
    run = transfer(small)
    build_report(run.root)
    assert asked == []
    files = [path for path in run.root.rglob("*") if path.is_file()]
    assert run.report in files and run.root / "student" / "README.md" in files
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
