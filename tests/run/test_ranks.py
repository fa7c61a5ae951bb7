"""Who is who among the processes of a launch, what they tell each other, and what one alone never waits for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from semalign.cli import main
from semalign.errors import ConfigError
from semalign.run import ranks


@pytest.mark.parametrize(
    ("name", "what"), [("DEEPSPEED", "DeepSpeed"), ("FSDP", "FSDP"), ("MEGATRON_LM", "Megatron")]
)
def test_an_untested_way_to_launch_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, what: str
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    config = tmp_path / "run.yaml"
    models = {side: {"model_name_or_path": str(tmp_path / side)} for side in ("teacher", "student")}
    values = {**models, "data": {"dataset_name": str(tmp_path / "rows")}, "output_dir": str(tmp_path / "run")}
    config.write_text(yaml.safe_dump(values))
    assert main(["transfer", str(config)]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert what in said and "--multi_gpu" in said and not (tmp_path / "run").exists()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher has set anything."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", *ranks.REFUSED):
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (ranks.world(), ranks.rank(), ranks.is_main()) == (1, 0, True)
    monkeypatch.setenv("RANK", "3")
    assert (ranks.rank(), ranks.is_main()) == (0, True), "a number without a launch says nothing"


@pytest.mark.parametrize("number", range(3))
def test_a_launched_process_has_the_launcher_s_number(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", str(number))
    assert (ranks.world(), ranks.rank(), ranks.is_main()) == (3, number, number == 0)


@pytest.mark.parametrize("name", sorted(ranks.REFUSED))
def test_each_mode_that_has_not_been_tested_is_refused_when_it_is_on(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for value in ("false", "False", ""):
        monkeypatch.setenv(name, value)
        ranks.check_launch()
    for value in ("true", "True"):
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError) as caught:
            ranks.check_launch()
        assert ranks.REFUSED[name] in str(caught.value) and "--multi_gpu" in str(caught.value)
        with pytest.raises(ConfigError):
            ranks.start()


def test_alone_nothing_is_joined_and_nothing_waits() -> None:
    ranks.start()
    assert not torch.distributed.is_initialized()
    ranks.wait()
    numbers = torch.tensor([1.0, 2.0])
    assert ranks.total(numbers) is numbers and numbers.tolist() == [1.0, 2.0]
    made = object()
    assert ranks.from_main(lambda: made) is made
    assert ranks.agree(True) is True and ranks.agree(False) is False
    ranks.leave()


def test_asking_who_is_main_loads_no_torch() -> None:
    code = "import sys; from semalign.run import ranks; ranks.is_main(); ranks.start(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# Two processes that load torch once: the second is a fork from before they join.
TWO = """
import json, os, sys, time
import torch
from semalign.errors import RankError
from semalign.run import ranks

def say(line):
    os.write(1, (json.dumps(line) + "\\n").encode())  # at once, for both write to one pipe

child = os.fork()
os.environ["RANK"] = "0" if child else "1"
rank = ranks.rank()
ranks.start()
ranks.start()
found = {}
if rank == 0:
    time.sleep(0.2)
    open(sys.argv[1], "w").close()
ranks.wait()
found["met"] = os.path.exists(sys.argv[1])
found["from_main"] = ranks.from_main(lambda: {"made by": rank, "list": [1, None]})
mine = torch.tensor([rank + 1.0, 10.0 * rank])
found["total"] = ranks.total(mine).tolist()
found["agree"] = [ranks.agree(flag) for flag in (True, rank == 1, rank == 0, False)]
say({"rank": rank, **found})
if rank == 1:
    os._exit(7)
os.waitpid(child, 0)
try:
    ranks.wait()
except RankError as error:
    say({"error": str(error)})
ranks.leave()
say({"left": not torch.distributed.is_initialized()})
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    """What two processes printed; then process 1 dies."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TWO, str(tmp_path_factory.mktemp("two") / "mark")]
    kept = {k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")}
    done = subprocess.run(
        command, env=kept | launch | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_two_processes_meet_and_hear_what_the_main_one_made(told: list[dict[str, object]]) -> None:
    both = [line for line in told if "rank" in line]
    assert sorted(line["rank"] for line in both) == [0, 1]  # type: ignore[type-var]
    for line in both:
        assert line["met"], "nobody goes on before all are here"
        assert line["from_main"] == {"made by": 0, "list": [1, None]}


def test_two_processes_add_up_and_agree_when_one_says_yes(told: list[dict[str, object]]) -> None:
    for line in told:
        if "rank" in line:
            assert line["total"] == [3.0, 10.0]
            assert line["agree"] == [True, True, True, False]


def test_the_death_of_the_other_process_is_one_sentence(told: list[dict[str, object]]) -> None:
    (said,) = [line["error"] for line in told if "error" in line]
    assert said == (
        "process 0 of 2: another process has stopped, and says why itself; run the same command again to go on."
    )
    assert told[-1] == {"left": True}
