"""Write the fallback as the submission, which a gateway writes otherwise."""

from pathlib import Path

from clotkit.competitions import Competition
from clotkit.errors import ClotkitError
from clotkit.serving.frames import answer_columns
from clotkit.splits import read_sample
from clotkit.submission.answers import answer_cells
from clotkit.submission.parquet import SUFFIX, write_parquet
from clotkit.submission.writing import write_submission
from clotkit.supervise import WORKING, say


def write_fallback(split: Path, competition: Competition) -> None:
    """Write the fallback for every id of the sample submission, unless there is a submission or no sample."""
    path = WORKING / competition.files.submission
    if path.exists():
        return
    try:
        sample = read_sample(competition.sample_path(split), competition)
        if path.suffix != SUFFIX:
            write_submission(path, competition, sample, {})
            return
        columns = answer_columns([answer_cells(competition, None)] * len(sample.ids), competition, sample.texts)
        write_parquet(path, columns)
    except (ClotkitError, ImportError, OSError, ValueError) as error:
        say(f"{path.name}: not written: {error}")
