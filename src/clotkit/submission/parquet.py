"""Read and write Parquet submissions, which gateways of competitions write.

pandas does it with pyarrow, polars alone; Kaggle's image has all three, an installation here may have none of them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clotkit.errors import one_line
from clotkit.files import atomic_write

SUFFIX = ".parquet"


def parquet_to_csv(path: Path, table: Path) -> None:
    """Write a Parquet file as CSV.

    Raises ImportError if no library here reads Parquet, ValueError if the file cannot be read.
    """
    try:
        import pandas as pd

        pd.read_parquet(path).to_csv(table, index=False)
    except OSError as error:
        raise ValueError(one_line(error)) from error
    except ImportError:
        import polars as pl

        try:
            pl.read_parquet(path).write_csv(table)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise ValueError(one_line(error)) from error


def write_parquet(path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns as Parquet, atomically. Raises ImportError if no library here writes Parquet."""
    with atomic_write(path) as temporary:
        try:
            import pandas as pd

            pd.DataFrame(columns).to_parquet(temporary, index=False)
        except ImportError:
            import polars as pl

            pl.DataFrame(columns).write_parquet(temporary)
