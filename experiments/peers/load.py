"""What other processes take of the machine while something is measured."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

Result = TypeVar("Result")


class Moment(NamedTuple):
    """Seconds so far: of the clock, of all processors in use, and of one's own processes."""

    clock: float
    busy: float
    own: float


def beside(run: Callable[[], Result], pids: Sequence[int]) -> tuple[Result, float]:
    """Runs something and says how many processors other processes kept busy meanwhile, on average.

    Time that a hypervisor gave to another machine counts as busy. 0 where `/proc` does not say.

    Args:
      run: what is measured.
      pids: one's own processes; this one is among them anyway.
    """
    before = _now(pids)
    result = run()
    after = _now(pids)
    if before is None or after is None:
        return result, 0.0
    foreign = (after.busy - before.busy) - (after.own - before.own)
    return result, max(0.0, foreign / (after.clock - before.clock))


def _now(pids: Sequence[int]) -> Moment | None:
    ticks = os.sysconf("SC_CLK_TCK")
    try:
        user, nice, system, _, _, interrupts, soft, stolen, *_ = map(
            int, Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
        )
        own = sum(_of_process(pid) for pid in {os.getpid(), *pids})
    except (OSError, ValueError):
        return None
    return Moment(time.perf_counter(), (user + nice + system + interrupts + soft + stolen) / ticks, own / ticks)


def _of_process(pid: int) -> int:
    """Ticks in user and system mode: fields 14 and 15, counted behind the name in parentheses."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
