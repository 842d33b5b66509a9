"""Write the fallback as submission.parquet, the file that a gateway writes otherwise."""

from dataclasses import replace
from pathlib import Path

from clotkit.competitions import Competition
from clotkit.competitions.schema import AnswerForm
from clotkit.errors import ClotkitError
from clotkit.serving.frames import Batch, answer_for
from clotkit.splits import read_sample
from clotkit.submission.answers import answer_cells
from clotkit.supervise import WORKING, say

SUBMISSION = "submission.parquet"


def write_fallback(split: Path, competition: Competition) -> None:
    """Write the fallback for every id of the sample submission, unless there is a submission or no sample."""
    path = WORKING / SUBMISSION
    if path.exists():
        return
    try:
        ids = read_sample(competition.sample_path(split), competition).texts
        whole = replace(competition, serving=replace(competition.serving, answer=AnswerForm.ROWS))
        frame = answer_for(Batch(()), ids, [answer_cells(competition, None)] * len(ids), whole)
        frame.to_parquet(path, index=False)
    except (ClotkitError, ImportError, OSError, ValueError) as error:
        say(f"{path.name}: not written: {error}")
