"""What tests of this folder share."""

import threading
from collections.abc import Iterator

import pytest

from tests.data_pipelines.web_site import Site


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield site
    site.server.shutdown()
    site.server.server_close()
