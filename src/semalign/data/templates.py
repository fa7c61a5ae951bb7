"""Chat templates rendered in a process of their own: they are programs of strangers.

transformers renders them in jinja2's sandbox, without files, imports or attributes of Python's own. What the sandbox does not
bound is what a rendering costs: `{{ 10**10000000 }}` is one call into C that no signal handler of Python interrupts. So a second
process renders, and the system ends it when it has used its time; memory and the length of the text are bounded there too. The time
is the processor's, so a busy machine refuses nothing that an idle one renders.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil
from jinja2.exceptions import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from semalign.models.variables import variables_of

CPU_SECONDS = 5.0
"""Processor time that the renderings of one row may take; a long conversation takes milliseconds."""
MEMORY = 2**30
"""Bytes that the renderings may take beside what the process began with."""
OWN_LENGTH = 100_000
"""Characters that a template may write of its own, beside LENGTH_FACTOR times those of the row and the template."""
LENGTH_FACTOR = 10


@dataclass(frozen=True)
class Job:
    """One rendering."""

    messages: list[dict[str, Any]]
    """Turns, of JSON values."""
    tools: list[dict[str, Any]] | None
    """Tools that the model may call, as JSON Schema."""
    prompt: bool
    """Whether the generation prompt of the next assistant turn follows."""


@dataclass(frozen=True)
class Failure:
    """Why a template did not render."""

    reason: str
    """A few words on one line, the template's line among them where it is known."""
    is_broken: bool = False
    """Whether no conversation can be rendered: it is no template, or it did not end."""


def rendered(jobs: list[Job], tokenizer: PreTrainedTokenizerBase) -> list[str | Failure]:
    """The text of each job with the tokenizer's chat template, or why there is none; all have the time of one row."""
    try:
        template = tokenizer.get_chat_template(None, jobs[0].tools)
    except ValueError as error:
        return [Failure(_short(error))] * len(jobs)
    if template in _ENDED:
        return [_ENDED[template]] * len(jobs)
    answer = _ask(jobs, template, tokenizer)
    if isinstance(answer, list):
        return answer
    if answer.is_broken:
        _ENDED[template] = answer
    return [answer] * len(jobs)


def rendered_together(
    rows: Sequence[list[Job]], tokenizer: PreTrainedTokenizerBase
) -> list[list[str] | None]:
    """The texts of several rows' jobs, asked for at once, since asking costs more than rendering.

    Returns:
        None for a row that has to be asked for alone: `rendered` tells what is wrong with it.
    """
    alone: list[list[str] | None] = [None] * len(rows)
    jobs = [job for row in rows for job in row]
    template = tokenizer.chat_template
    if not jobs or not isinstance(template, str) or template in _ENDED or template in _ALONE:
        return alone
    answer = _ask(jobs, template, tokenizer)
    if isinstance(answer, Failure):
        _ALONE.add(template)
        return alone
    texts = iter(answer)
    found = [[next(texts) for _ in row] for row in rows]
    return [
        [t for t in row if isinstance(t, str)] if all(isinstance(t, str) for t in row) else None
        for row in found
    ]


def _ask(
    jobs: Sequence[Job], template: str, tokenizer: PreTrainedTokenizerBase
) -> list[str | Failure] | Failure:
    """Each job's text or failure, or why there is none of any."""
    request = {
        "template": template,
        "variables": dict(tokenizer.special_tokens_map) | variables_of(tokenizer),
        "jobs": [vars(job) for job in jobs],
        "seconds": CPU_SECONDS,
    }
    try:
        answer = _RENDERER.ask(json.dumps(request).encode())
    except (TypeError, ValueError) as error:
        return Failure(f"the conversation holds a value that no JSON has: {_short(error)}")
    if isinstance(answer, Failure):
        return answer
    return [reply if isinstance(reply, str) else Failure(**reply) for reply in answer]


_ALONE: set[str] = set()
"""Templates that ended the process with several rows: too slow for them, or hopeless with one of them."""
_ENDED: dict[str, Failure] = {}
"""Templates that ended their process once: with another ten thousand rows each of them would take as long."""


class _Renderer:
    """The process that renders, started when it is first needed and again after it was ended."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner = 0
        self.process: Any = None
        self.connection: Any = None

    def ask(self, request: bytes) -> list[Any] | Failure:
        with self.lock:
            if self.owner != os.getpid():
                self._start()
            try:
                self.connection.send_bytes(request)
                return json.loads(self.connection.recv_bytes())
            except (EOFError, OSError):
                return self._end()

    def _start(self) -> None:
        """A child of this very process where the system can fork: transformers is imported there already."""
        has_fork = "fork" in multiprocessing.get_all_start_methods()
        context: Any = multiprocessing.get_context("fork" if has_fork else "spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, has_fork), daemon=True)
        self.process.start()
        theirs.close()
        self.owner = os.getpid()

    def _end(self) -> Failure:
        """What ended the process; it is gone afterwards."""
        self.connection.close()
        self.process.join()
        code = self.process.exitcode
        self.owner = 0
        if code == -getattr(signal, "SIGPROF", 0):
            return Failure(f"it does not end within {CPU_SECONDS:g} s", is_broken=True)
        return Failure(f"it ended the process that renders it, exit code {code}", is_broken=True)


_RENDERER = _Renderer()


def _serve(connection: Connection, is_forked: bool) -> None:
    """Renders what is asked for until the other side is gone."""
    _limit(connection.fileno() if is_forked else None)
    while True:
        try:
            data = connection.recv_bytes()
        except (EOFError, OSError):
            os._exit(0)
        request = json.loads(data)
        _clock(request["seconds"])
        # Where rows are asked for together this is a mean; one that is longer is asked for again, alone.
        most = OWN_LENGTH + LENGTH_FACTOR * len(data) // len(request["jobs"])
        answer = [_render(request["template"], request["variables"], job, most) for job in request["jobs"]]
        reply = json.dumps(answer).encode()
        _clock(0.0)
        connection.send_bytes(reply)


def _limit(kept: int | None) -> None:
    """Leaves nothing of a forked parent but its code: no handlers, files, locks or objects to finalise; bounds the memory."""
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if hasattr(
        signal, "pthread_sigmask"
    ):  # a parent that holds signals back would make this one deaf to its end
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    if kept is not None:
        os.closerange(3, kept)
        os.closerange(kept + 1, min(os.sysconf("SC_OPEN_MAX"), 2**16))
    with contextlib.suppress(ImportError, AttributeError, ValueError, OSError):
        import resource  # here because not every system has it

        most = psutil.Process().memory_info().vms + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _clock(seconds: float) -> None:
    """Starts the clock at whose end the system ends this process, or stops it with 0."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _render(template: str, variables: dict[str, Any], job: dict[str, Any], most: int) -> str | dict[str, Any]:
    try:
        found: Any = render_jinja_template(
            conversations=[job["messages"]],
            tools=job["tools"],
            chat_template=template,
            add_generation_prompt=job["prompt"],
            **variables,
        )
        text: str = found[0][0]
        text.encode()
    except UnicodeEncodeError:
        return asdict(Failure("it writes half of a surrogate pair, which is no character"))
    except Exception as error:  # whatever a program can raise
        return asdict(Failure(_reason(error), isinstance(error, (TemplateSyntaxError, SyntaxError))))
    return (
        text
        if len(text) <= most
        else asdict(Failure(f"it writes {len(text)} characters, expected at most {most}"))
    )


def _reason(error: Exception) -> str:
    """The template's own words, or the error with its name; and the line."""
    line, step = (error.lineno if isinstance(error, TemplateSyntaxError) else None), error.__traceback__
    while step is not None:
        # jinja2 rewrites its tracebacks, so that they name the template's lines.
        if step.tb_frame.f_code.co_filename in ("<template>", "<unknown>"):
            line = step.tb_lineno
        step = step.tb_next
    kind = "" if type(error) is TemplateError else f"{type(error).__name__}: "
    return kind + _short(error) + (f", line {line}" if line else "")


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return text if len(text) <= 120 else text[:119] + "…"
