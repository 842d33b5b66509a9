"""Score slides on this machine: each is read in a process of its own, the members predict in this one."""

from collections.abc import Iterator, Sequence
from functools import partial

from clotkit.scoring.prefetch import Event, prefetch
from clotkit.scoring.scorer import ScoredSlide, ScoringJob, score_tasks, slide_task, tilings_of
from clotkit.workers import Ended, Limits, Task, stream


def score_locally(job: ScoringJob) -> Iterator[ScoredSlide]:
    """Score each slide, the smallest file first; slides whose process was lost are read again at the end."""
    settings, pace = job.settings, job.pace()
    limits = Limits(job.competition.limits.slide_s, settings.memory_mb, pace.deadline, settings.stall_s)

    def read(tasks: Sequence[Task], jobs: int) -> Iterator[Event]:
        for event in prefetch(partial(stream, tasks, limits, jobs, job.work, pace.prepare)):
            if isinstance(event, Ended):
                pace.slide_ended()
            yield event

    tilings = tilings_of(job.members)
    tasks = [slide_task(slide, tilings, slide.path) for slide in job.ordered]
    yield from score_tasks(job.scorer, tasks, settings.jobs, pace.deadline, read)
