"""Simulate `clotkit tile` on equal machines, each with threads that share its network."""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

MIN_GAIN = 0.10  # share of the time that twice as many machines must save to be worth it


@dataclass(frozen=True)
class Job:
    """A slide in the simulation."""

    name: str
    file_mb: float  # of the slide
    moved_mb: float  # over its machine's network: the slide and its shard
    work_s: float  # of a thread, without the network


@dataclass(frozen=True)
class Fleet:
    """Equal machines."""

    machines: int
    threads: int  # of each machine; a thread has one slide at a time
    bandwidth_mb_s: float = math.inf  # of each machine; infinite if slides are local
    startup_s: float = 0.0  # until a machine takes slides
    task_s: float = 0.0  # of the scheduler, for each slide

    def alone_s(self, job: Job) -> float:
        """Return the seconds of a slide that has a machine to itself."""
        return job.moved_mb / self.bandwidth_mb_s + self.task_s + job.work_s


def with_machines(fleet: Fleet, machines: int) -> Fleet:
    """Return the fleet with another number of machines."""
    return replace(fleet, machines=machines)


class _Link:
    """The network of a machine, which slides in transfer share evenly at each moment.

    `version` changes with the set of slides in transfer; an end that was predicted for another version is void.
    """

    def __init__(self, rate_mb_s: float) -> None:
        self.rate_mb_s, self.at_s, self.served_mb, self.version = rate_mb_s, 0.0, 0.0, 0
        self.in_transfer: list[tuple[float, int]] = []  # (served_mb at its end, number of the slide)

    def add(self, now_s: float, size_mb: float, number: int) -> None:
        """Start the transfer of a slide."""
        if self.in_transfer:
            self.served_mb += (now_s - self.at_s) * self.rate_mb_s / len(self.in_transfer)
        self.at_s = now_s
        heapq.heappush(self.in_transfer, (self.served_mb + size_mb, number))
        self.version += 1

    def pop(self, now_s: float) -> int:
        """End the transfer of the next slide, and return its number."""
        self.served_mb, number = heapq.heappop(self.in_transfer)
        self.at_s = now_s
        self.version += 1
        return number

    def next_s(self) -> float:
        """Return when the next slide arrives if no other is added."""
        return self.at_s + (self.in_transfer[0][0] - self.served_mb) * len(self.in_transfer) / self.rate_mb_s


def simulate(jobs: Sequence[Job], fleet: Fleet) -> tuple[float, float, Job]:
    """Run slides through a fleet.

    Free threads take the largest file that is left. A slide first crosses its machine's network together with the bytes
    of its shard, then occupies only its thread.

    Returns:
        The seconds until the end, the seconds of the tail (from the first idle thread on), and the last slide.

    Raises:
        ValueError: There are no slides.
    """
    if not jobs:
        raise ValueError("no slides to simulate")
    run = _Run(sorted(jobs, key=lambda job: -job.file_mb), fleet)
    run.start()
    while run.arrivals or run.ends:
        run.step()
    return run.now_s, run.now_s - run.first_idle_s, run.order[run.last]


class _Run:
    """A simulated run: slides in progress, by when they end; a slide is its number in `order`."""

    def __init__(self, order: Sequence[Job], fleet: Fleet) -> None:
        self.order, self.fleet = order, fleet
        self.waiting = deque(range(len(order)))
        self.links = [_Link(fleet.bandwidth_mb_s) for _ in range(fleet.machines)]
        self.arrivals: list[tuple[float, int, int]] = []  # (when, machine, version of its link), a heap
        self.ends: list[tuple[float, int, int]] = []  # (when, machine, slide), a heap
        self.now_s, self.first_idle_s, self.last = fleet.startup_s, math.inf, 0

    def start(self) -> None:
        """Give every thread its first slide, machine by machine in turn."""
        for _ in range(self.fleet.threads):
            for machine in range(self.fleet.machines):
                if math.isfinite(self.first_idle_s):  # no slide was left for a thread, so none is for the others
                    return
                self._take(machine)

    def step(self) -> None:
        """Advance to the next event."""
        if self.arrivals and (not self.ends or self.arrivals[0][0] < self.ends[0][0]):
            when_s, machine, version = heapq.heappop(self.arrivals)
            if version == self.links[machine].version:
                self.now_s = when_s
                self._arrived(machine)
        else:
            self.now_s, machine, self.last = heapq.heappop(self.ends)
            self._take(machine)

    def _take(self, machine: int) -> None:
        if not self.waiting:
            self.first_idle_s = min(self.first_idle_s, self.now_s)
            return
        number, link = self.waiting.popleft(), self.links[machine]
        if math.isinf(self.fleet.bandwidth_mb_s):
            self._work(machine, number)
            return
        link.add(self.now_s, self.order[number].moved_mb, number)
        heapq.heappush(self.arrivals, (link.next_s(), machine, link.version))

    def _arrived(self, machine: int) -> None:
        link = self.links[machine]
        self._work(machine, link.pop(self.now_s))
        if link.in_transfer:
            heapq.heappush(self.arrivals, (link.next_s(), machine, link.version))

    def _work(self, machine: int, number: int) -> None:
        end_s = self.now_s + self.fleet.task_s + self.order[number].work_s
        heapq.heappush(self.ends, (end_s, machine, number))


def stops_helping_at(jobs: Sequence[Job], fleet: Fleet) -> int:
    """Return a number of machines from which doubling saves less than MIN_GAIN of the time.

    With one machine less, doubling still saves that much. The number is found by doubling, then by bisection; with a
    shared network there may be another such number above it.
    """

    def helps(machines: int) -> bool:
        if machines >= len(jobs):  # each slide has a machine to itself
            return False
        return (
            simulate(jobs, with_machines(fleet, 2 * machines))[0]
            <= (1 - MIN_GAIN) * simulate(jobs, with_machines(fleet, machines))[0]
        )

    low, high = 0, 1
    while helps(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if helps(middle) else (low, middle)
    return high
