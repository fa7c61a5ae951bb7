"""What a transfer between published models takes: memory per device, bytes of the cache, hours, and the launch.

The figures come from `plan_costs`; this prints them.

    python scripts/plan.py                       prints the tables
    python scripts/plan.py --write docs/scale.md puts them between the page's markers
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pages
from plan_costs import PAIRS, SERVED, Case, Machine, Pair, Work

BEGIN, END = "<!-- plan: begin, written by scripts/plan.py -->", "<!-- plan: end -->"

Cases = tuple[Case, Case]
"""The default recipe's, and the one with layer targets."""
COLUMNS = ("default", "with layer targets (`aligned`)")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit, value in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= value:
            return f"{count / value:.{0 if count >= 100 * value else 1}f} {unit}"
    return f"{count:.0f} B"


def span(seconds: float) -> str:
    """Seconds as people read them."""
    return (
        f"{seconds / 3600:.1f} h"
        if seconds >= 3600
        else f"{seconds / 60:.0f} min"
        if seconds >= 60
        else f"{seconds:.0f} s"
    )


def fits(needed: float, given: float) -> str:
    """Bytes, and whether they are there."""
    return f"{size(needed)}{'' if needed <= given else ' (does not fit)'}"


def bits(case: Case) -> str:
    """What holding the teacher takes."""
    shape, device = case.teacher, case.machine.device_bytes
    outer, layers = 2 * shape.outer_parameters, shape.layers * shape.layer_parameters
    ways = {
        "bfloat16": 2 * layers,
        "load_in_8bit": layers,
        "load_in_4bit": layers / 2,
        "offload": 2 * shape.layer_parameters,
    }
    return table(
        ("how the teacher is loaded", "weights on one device"),
        [(f"`{n}`", fits(outer + b, device)) for n, b in ways.items()],
    )


def memory(case: Case) -> str:
    """Peak of every step."""
    device, host = case.machine.device_bytes, case.machine.host_bytes
    rows = [
        ("cache, student's forward pass", fits(case.device_student(), device)),
        ("cache, teacher's forward pass", fits(case.device_teacher(), device)),
        (f"train the last {case.trained} layers", fits(case.device_train(), device)),
        (f"train all {case.student.layers} layers", fits(case.device_train(case.student.layers), device)),
        (
            "host memory of the node: the checkpoint in the page cache, and sums for maps",
            fits(case.host_fit() + 2 * case.teacher.parameters, host),
        ),
    ]
    return table(("step", "peak memory per device"), rows)


def disk(cases: Cases) -> str:
    """The cache a token and in all."""
    first = cases[0]
    full_logits = size(first.positions * first.teacher.vocabulary * 2)
    rows = [
        ("per token: hidden state after the frozen prefix, in fp8", *(size(c.sizes.token) for c in cases)),
        (
            "per supervised position: top-k tokens, and the student's own states and targets",
            *(size(c.sizes.position) for c in cases),
        ),
        (
            "per supervised position, until the maps are fitted: teacher's raw states",
            *(size(c.sizes.raw) if c.sizes.raw else "none" for c in cases),
        ),
        (
            f"all {first.tokens / 1e6:.1f} M tokens, {first.positions / 1e6:.1f} M of them supervised",
            *(size(c.cache_bytes()) for c in cases),
        ),
        (
            "largest size, before the raw states are deleted",
            *(size(c.cache_bytes() + c.raw_bytes()) for c in cases),
        ),
        ("for comparison: full teacher logits in bfloat16", full_logits, full_logits),
    ]
    return table(("content of the cache", *COLUMNS), rows)


def hours(cases: Cases) -> str:
    """Time of every step."""
    work, machine = cases[0].work, cases[0].machine
    parts = [
        {
            "first read of the teacher's checkpoint": case.seconds_first_read(),
            "cache, student's forward pass": case.seconds_student(),
            "cache, teacher's forward pass": case.seconds_teacher(),
            "cache, fit the maps, and write and read what is stored": case.seconds_maps(),
            f"train for {work.epochs:g} epochs": case.seconds_train(),
        }
        for case in cases
    ]
    rows = [(name, *(span(p[name]) for p in parts)) for name in parts[0]]
    total = ("**total**", *(f"**{span(sum(p.values()))}**" for p in parts))
    return table((f"step, on {machine.devices} devices", *COLUMNS), [*rows, total])


def run_file(case: Case) -> str:
    """The config to launch, as a YAML block."""
    c = case.config
    lines = [
        f"# {case.pair.folder}.yaml",
        "teacher:",
        f"  model_name_or_path: {c.teacher.model_name_or_path}",
        f'  server: {{url: "{c.teacher.server.url}", engine: vllm}}'
        if c.teacher.server.url
        else f"  offload: {c.teacher.offload}",
        "student:",
        f"  model_name_or_path: {c.student.model_name_or_path}",
        f"data: {{dataset_name: {c.data.dataset_name}, max_length: {c.data.max_length}, heldout_rows: {c.data.heldout_rows}}}",
        f"output_dir: {c.output_dir}",
        f"cache: {{prefix_dtype: {c.cache.prefix_dtype}, batch_size: {c.cache.batch_size}}}",
        "train:",
        f"  lora_r: {c.train.lora_r}",
        f"  num_train_epochs: {c.train.num_train_epochs:g}",
        f"  per_device_train_batch_size: {c.train.per_device_train_batch_size}",
        "  bf16: true",
        "  activation_checkpointing: true",
    ]
    return "\n".join(["```yaml", *lines, "```"])


def commands(devices: int, *lines: str) -> str:
    """What to type, as a block that says why it is not run."""
    why_not = f"<!-- not run: needs {devices} accelerators and the weights -->"
    return "\n".join([why_not, "", "```bash", *lines, "```"])


def section(pair: Pair, work: Work, machine: Machine) -> str:
    """One pair."""
    cases = case, _ = Case(pair, work, machine), Case(pair, work, machine, "aligned")
    t, s = case.teacher, case.student
    what = (
        f"The teacher has {t.parameters / 1e9:.1f} billion parameters in {t.layers} layers of width {t.width}. The student has "
        f"{s.parameters / 1e9:.1f} billion in {s.layers} layers of width {s.width}. The run trains the last {case.trained} student "
        f"layers, which have {case.trained * s.layer_parameters / 1e9:.1f} billion parameters."
    )
    launch = f"accelerate launch --multi_gpu --num_processes {case.machine.devices} -m semalign transfer {case.pair.folder}.yaml"
    command = commands(case.machine.devices, launch)
    tables = (bits(case), memory(case), disk(cases), hours(cases))
    return "\n\n".join([f"## {case.pair.title}", what, *tables, run_file(case), command])


def served_section(pair: Pair, work: Work, machine: Machine) -> str:
    """A teacher that a server holds on all devices; the student has one device of the same kind elsewhere."""
    case = Case(pair, work, replace(machine, devices=1), url="http://server:8000")
    t, s, tokens = case.teacher, case.student, case.tokens + case.held_tokens
    active = t.outer_parameters / 2 + t.layers * t.active_parameters
    what = (
        f"The teacher has {t.parameters / 1e9:.1f} billion parameters in {t.layers} layers, of which a token passes {active / 1e9:.0f} "
        f"billion. vLLM holds it on the {machine.devices} devices and tells the {case.request.top_k} likeliest tokens of every position. The "
        f"student has {s.parameters / 1e9:.1f} billion in {s.layers} layers, of which the last {case.trained} are trained, on one device of the "
        f"same kind ({size(case.device_train())} of its memory) on another machine."
    )
    weights = [
        (name, fits(t.parameters * width / machine.devices, machine.device_bytes))
        for name, width in (("in bfloat16", 2), ("in 8 bits", 1))
    ]
    told, stored = tokens * (case.request.top_k + 1) * TOLD_BYTES, case.cache_bytes()
    read = t.forward_flops(tokens, t.layers, work.tokens_a_row) + 2 * tokens * t.vocabulary * t.width
    parts = {
        f"server, {machine.devices} devices: read the checkpoint": 2 * t.parameters / machine.disk,
        f"server, {machine.devices} devices: read all rows, every position through the head": read
        / (machine.devices * machine.bf16_flops),
        "cache, student's forward pass": case.seconds_student(),
        "cache, write and read what is stored": stored / machine.disk,
        f"train for {work.epochs:g} epochs": case.seconds_train(),
    }
    rows = [(name, span(value)) for name, value in parts.items()]
    rows.append(("**total**", f"**{span(sum(parts.values()))}**"))
    moved = (
        f"The server sends {size(told)} of JSON, some {TOLD_BYTES} bytes for each token that it tells. How long the run's CPU takes to read "
        f"them has not been measured at this size and is not in the table. The cache has {size(stored)}."
    )
    serve = (
        f"vllm serve {t.name} --tensor-parallel-size {machine.devices} --max-logprobs {case.request.top_k}"
    )
    transfer = f"semalign transfer {pair.folder}.yaml    # on the other machine"
    block = commands(machine.devices + 1, f"{serve}    # on the server", transfer)
    tables = (
        table(("the teacher's weights", "on each device"), weights),
        table(("step", "default"), rows),
    )
    return "\n\n".join([f"## {pair.title}", what, *tables, moved, run_file(case), block])


# {"12345":{"logprob":-12.345678901,"rank":12,"decoded_token":" word"}, and a comma.
TOLD_BYTES = 70


def page(work: Work, machine: Machine) -> str:
    """Everything between the page's markers."""
    lead = (
        f"The plan assumes {work.rows} rows of {work.tokens_a_row} tokens, of which {work.supervised_a_row} are supervised, and "
        f"{work.epochs:g} epochs. The machine has {machine.devices} devices with {size(machine.device_bytes)} of memory each, which "
        f"reach {machine.bf16_flops / 1e12:.0f} TFLOP/s in bfloat16. Each device reads {size(machine.host_to_device)}/s from "
        f"{size(machine.host_bytes)} of host memory, the disk delivers {size(machine.disk)}/s, and the CPU cores together reach "
        f"{machine.host_float64_flops / 1e12:.0f} TFLOP/s in float64."
    )
    return "\n\n".join(
        [lead, *(section(pair, work, machine) for pair in PAIRS), served_section(SERVED, work, machine)]
    )


def replaced(text: str, tables: str) -> str:
    """A page's text with the part between the markers made anew."""
    return pages.replaced(text, BEGIN, END, f"\n\n{tables}\n\n")


def main() -> None:
    """See the module."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--write", type=Path, help="a page with the markers")
    options.add_argument("--rows", type=int, default=Work.rows)
    options.add_argument("--tokens_a_row", type=int, default=Work.tokens_a_row)
    options.add_argument("--supervised_a_row", type=int, default=Work.supervised_a_row)
    options.add_argument("--devices", type=int, default=Machine.devices)
    given = options.parse_args()
    work = Work(given.rows, given.tokens_a_row, given.supervised_a_row)
    tables = page(work, Machine(given.devices))
    if given.write is None:
        print(tables)
    else:
        given.write.write_text(replaced(given.write.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main()
