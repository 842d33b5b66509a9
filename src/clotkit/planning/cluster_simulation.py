"""A simulation of `clotkit tile` on machines that are alike: each has threads, and a network that they share."""

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

GAIN = 0.10  # of the time, that twice as many machines must save to be of help


@dataclass(frozen=True)
class Job:
    """One slide for the simulation: what goes over its machine's network, and the seconds of a thread beside it."""

    name: str
    file_mb: float
    moved_mb: float
    work_s: float


@dataclass(frozen=True)
class Fleet:
    """Machines that are alike; `bandwidth_mb_s` infinite where slides are local."""

    machines: int
    threads: int
    bandwidth_mb_s: float = math.inf
    startup_s: float = 0.0
    task_s: float = 0.0

    def alone_s(self, job: Job) -> float:
        """What a slide takes when it has a machine for itself."""
        return job.moved_mb / self.bandwidth_mb_s + self.task_s + job.work_s


def sized(fleet: Fleet, machines: int) -> Fleet:
    """The same fleet with another number of machines."""
    return replace(fleet, machines=machines)


class _Link:
    """The network of a machine: what is on its way shares it evenly, at each moment.

    `version` changes with what is on its way: what was said of the next end before is no longer so.
    """

    def __init__(self, rate_mb_s: float) -> None:
        self.rate_mb_s, self.at_s, self.served_mb, self.version = rate_mb_s, 0.0, 0.0, 0
        self.on_way: list[tuple[float, int]] = []  # (what each will have had at its end, MB, number of the slide)

    def add(self, now_s: float, size_mb: float, number: int) -> None:
        """Begin to move a slide."""
        if self.on_way:
            self.served_mb += (now_s - self.at_s) * self.rate_mb_s / len(self.on_way)
        self.at_s = now_s
        heapq.heappush(self.on_way, (self.served_mb + size_mb, number))
        self.version += 1

    def pop(self, now_s: float) -> int:
        """The slide that has come now."""
        self.served_mb, number = heapq.heappop(self.on_way)
        self.at_s = now_s
        self.version += 1
        return number

    def next_s(self) -> float:
        """When the next slide will have come, if no other is added."""
        return self.at_s + (self.on_way[0][0] - self.served_mb) * len(self.on_way) / self.rate_mb_s


def simulate(jobs: Sequence[Job], fleet: Fleet) -> tuple[float, float, Job]:
    """Run slides through a fleet: seconds until the end, of the tail, and the slide that ends last.

    Free threads take the largest file that is left. A slide first moves over its machine's network, its shard's bytes
    with it, then takes its thread alone. Raises ValueError for no slides.
    """
    if not jobs:
        raise ValueError("no slides to simulate")
    run = _Run(sorted(jobs, key=lambda job: -job.file_mb), fleet)
    run.start()
    while run.moved or run.worked:
        run.step()
    return run.now_s, run.now_s - run.first_idle_s, run.order[run.last]


class _Run:
    """A simulated run: what is under way, by when it ends; slides are numbers in `order`."""

    def __init__(self, order: Sequence[Job], fleet: Fleet) -> None:
        self.order, self.fleet = order, fleet
        self.waiting = deque(range(len(order)))
        self.links = [_Link(fleet.bandwidth_mb_s) for _ in range(fleet.machines)]
        self.moved: list[tuple[float, int, int]] = []  # (when, machine, version of its link)
        self.worked: list[tuple[float, int, int]] = []  # (when, machine, slide)
        self.now_s, self.first_idle_s, self.last = fleet.startup_s, math.inf, 0

    def start(self) -> None:
        """Every thread takes its first slide, machine by machine in turn."""
        for _ in range(self.fleet.threads):
            for machine in range(self.fleet.machines):
                if math.isfinite(self.first_idle_s):  # nothing was left for one: nor is there for the rest
                    return
                self._take(machine)

    def step(self) -> None:
        """Go on to the next end of something."""
        if self.moved and (not self.worked or self.moved[0][0] < self.worked[0][0]):
            when_s, machine, version = heapq.heappop(self.moved)
            if version == self.links[machine].version:
                self.now_s = when_s
                self._arrived(machine)
        else:
            self.now_s, machine, self.last = heapq.heappop(self.worked)
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
        heapq.heappush(self.moved, (link.next_s(), machine, link.version))

    def _arrived(self, machine: int) -> None:
        link = self.links[machine]
        self._work(machine, link.pop(self.now_s))
        if link.on_way:
            heapq.heappush(self.moved, (link.next_s(), machine, link.version))

    def _work(self, machine: int, number: int) -> None:
        end_s = self.now_s + self.fleet.task_s + self.order[number].work_s
        heapq.heappush(self.worked, (end_s, machine, number))


def stops_helping_at(jobs: Sequence[Job], fleet: Fleet) -> int:
    """A number of machines of which twice as many save less than GAIN of the time, while of one machine less they do.

    Found by doubling, then halving what is between: with a shared network there may be another such number above.
    """

    def helps(machines: int) -> bool:
        if machines >= len(jobs):  # each slide has a machine for itself
            return False
        return simulate(jobs, sized(fleet, 2 * machines))[0] <= (1 - GAIN) * simulate(jobs, sized(fleet, machines))[0]

    low, high = 0, 1
    while helps(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if helps(middle) else (low, middle)
    return high
