"""The image's HEALTHCHECK, run as Docker runs it, against each form of BIND."""

import json
import os
import re
import socket
import subprocess
import sys
from typing import Any

import pytest

from places import TEMPLATE

DOCKERFILE = TEMPLATE / "Dockerfile"


def is_healthy(**settings: str) -> bool:
    joined = DOCKERFILE.read_text().replace("\\\n", "")
    found = re.search(r"^HEALTHCHECK .*CMD (\[.*\])$", joined, re.M)
    assert found
    _, *arguments = json.loads(found[1])
    environ = {**os.environ, "PORT": "1", **settings}
    return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, check=False).returncode == 0


FORMS = [
    "0.0.0.0:{}",
    "127.0.0.1:{}",
    "localhost:{}",
    "[::]:{}",
    "[::1]:{}",
    "0.0.0.0:{}, [::]:{}",
    "127.0.0.1:0,[::]:{}",
]


@pytest.mark.parametrize("form", FORMS)
def test_healthcheck_finds_the_last_address_of_bind(serve: Any, eventually: Any, form: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bind = form.replace("{}", str(port))
    assert not is_healthy(BIND=bind)
    serve("--workers", "1", "--bind", bind, ALLOWED_HOSTS="shop.com")
    eventually(lambda: is_healthy(BIND=bind))


def test_healthcheck_asks_port_where_bind_is_not_set(serve: Any, eventually: Any) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    assert not is_healthy(PORT=port)
    serve("--workers", "1", "--bind", f"0.0.0.0:{port}")
    eventually(lambda: is_healthy(PORT=port))
