"""Score slides on this machine: each is read in a process of its own, the members predict in this one."""

from collections.abc import Iterator, Sequence
from functools import partial

from clotkit.competitions import Competition
from clotkit.members.loading import Member
from clotkit.scoring.budget import Scheduler
from clotkit.scoring.prefetch import Event, prefetch
from clotkit.scoring.scorer import Scored, Scorer, score_tasks, tilings_of
from clotkit.scoring.settings import RunSettings
from clotkit.splits import SlideRow
from clotkit.workers import Ended, Limits, Task, Work, stream


def score_locally(
    scorer: Scorer,
    slides: Sequence[SlideRow],
    members: Sequence[Member],
    settings: RunSettings,
    competition: Competition,
    started: float,
    work: Work,
) -> Iterator[Scored]:
    """Score each slide, the smallest file first; slides whose process was lost are read again at the end.

    `started` is the time.monotonic() value at which the run began.
    """
    deadline = settings.last_start(started)
    limits = Limits(competition.limits.slide_s, settings.memory_mb, deadline, settings.stall_s)
    scheduler = Scheduler(len(slides), deadline, competition.limits.min_tiles)

    def read(tasks: Sequence[Task], jobs: int) -> Iterator[Event]:
        for event in prefetch(partial(stream, tasks, limits, jobs, work, scheduler.prepare)):
            if isinstance(event, Ended):
                scheduler.slide_ended()
            yield event

    tilings = tilings_of(members)
    ordered = sorted(slides, key=lambda slide: slide.size_bytes)
    tasks = [Task(slide.image_id, slide.path, tilings, stored=slide.stored) for slide in ordered]
    yield from score_tasks(scorer, tasks, settings.jobs, deadline, read)
