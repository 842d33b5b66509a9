"""Check that no mutation of a valid file hangs or crashes the reader, or is silently wrong."""

from contextlib import closing
from pathlib import Path

import pytest

from .mutations import seeds
from .reading import Reader
from .run import FULL, fuzz, lines
from .seeds import FOLDER, forms

SHORT = 400  # mutations of the fast test


def test_every_seed_is_read_as_a_second_decoder_reads_it() -> None:
    assert {seed.name for seed in seeds()} == set(forms())
    with closing(Reader()) as reader:
        for seed in seeds():
            answer = reader.read(FOLDER / f"{seed.name}.tif")
            assert answer["outcome"] == "read", (seed.name, answer)
            assert answer["seconds"], (seed.name, answer)
            assert not answer["differs"], (seed.name, answer)
            assert not answer["codes"], (seed.name, answer)


@pytest.mark.parametrize("number", [SHORT, pytest.param(FULL, marks=pytest.mark.soak)])
def test_no_mutation_hangs_crashes_or_is_silently_wrong(number: int, tmp_path: Path) -> None:
    outcome = fuzz(number, tmp_path)
    assert outcome.counts.total() >= number * 0.9
    assert not outcome.findings, "\n".join(lines(outcome))
