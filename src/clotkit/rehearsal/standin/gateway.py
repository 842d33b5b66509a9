"""The base of a competition's gateway: sends batches, checks answers, writes the submission."""

import math
from typing import Any

import pandas as pd

SUBMISSION = "submission.csv"  # the original writes Parquet


class InvalidAnswerError(ValueError):
    """An answer that the gateway refuses."""


class Gateway:
    """Sends the rows of a table in batches."""

    def __init__(self, table: str, image_column: str, id_column: str, by_id: bool, batch_rows: int = 4) -> None:
        """Send the rows of a CSV file.

        Args:
            table: its path.
            image_column: of image ids.
            id_column: of the ids of the submission.
            by_id: whether the answer has a row for each id, not for each row of the batch.
            batch_rows: rows of a batch, with all rows of its last id.
        """
        self._table, self._image, self._id, self._by_id, self._batch_rows = (
            table, image_column, id_column, by_id, batch_rows,
        )  # fmt: skip

    def run(self, client: Any) -> None:
        """Send every batch, check the answers, and write the submission."""
        frame = pd.read_csv(self._table, dtype={self._image: str, self._id: str})
        if self._id not in frame.columns:  # the patient is in the image id only
            self._id = self._image
        answers = []
        for batch in batches_of(frame, self._id, self._batch_rows):
            ids = list(dict.fromkeys(batch[self._id])) if self._by_id else list(batch[self._id])
            answer = rows_of(client.send("predict", batch), len(ids))
            answers.append(pd.DataFrame({self._id: ids} | answer))
        whole = pd.concat(answers, ignore_index=True)
        whole.drop_duplicates(self._id, keep="last").to_csv(SUBMISSION, index=False)


def batches_of(frame: pd.DataFrame, id_column: str, batch_rows: int) -> list[pd.DataFrame]:
    """Return the rows in batches, those of one id in one batch, in the order in which ids come first."""
    groups: list[list[int]] = [[]]
    places: dict[Any, list[int]] = {}
    for place, one in enumerate(frame[id_column]):
        places.setdefault(one, []).append(place)
    for rows in places.values():
        if len(groups[-1]) >= batch_rows:
            groups.append([])
        groups[-1] += rows
    return [frame.iloc[rows].reset_index(drop=True) for rows in groups if rows]


def rows_of(answer: Any, count: int) -> dict[str, list[Any]]:
    """Return the columns of an answer. Raises InvalidAnswerError unless it has `count` rows without a gap."""
    if isinstance(answer, str | int | float):
        answer = pd.DataFrame({"answer": [answer]})
    if not hasattr(answer, "columns"):
        raise InvalidAnswerError(f"{type(answer).__name__}: a frame is needed")
    columns = {str(name): list(answer[name].to_list()) for name in answer.columns}
    if not columns or any(len(cells) != count for cells in columns.values()):
        raise InvalidAnswerError(f"{len(answer)} rows, {count} are needed")
    for name, cells in columns.items():
        if any(cell is None or (isinstance(cell, float) and not math.isfinite(cell)) for cell in cells):
            raise InvalidAnswerError(f"{name} has a gap or a number that is not finite")
    return columns
