"""A few of the damaged films of tests/fuzz_media.py, which tries hundreds in its own command."""

import pytest

from tests import fuzz_media


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    fuzz_media.write_films(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(fuzz_media.KINDS)), ids=fuzz_media.KINDS)
def test_damaged_film_gives_no_trace_and_stays_in_step(films, index):
    _, _, outcome, _ = fuzz_media.try_film(films, 0, index)
    assert not outcome.startswith(fuzz_media.BAD), outcome
