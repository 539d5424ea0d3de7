"""Made-up media for all tests of stamps."""

import pytest

from avs_jax.data.stamps.media import Media
from tests.data.stamps import made_up


@pytest.fixture(scope="session")
def small_media(tmp_path_factory):
    """`Media` of made-up pictures and sounds."""
    return Media(made_up.write_media(tmp_path_factory.mktemp("media")))
