"""Uploads over two real workers."""

import errno
import re

import pytest
from starlette.testclient import TestClient

from examples import upload as example

MIB = 2**20


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "uploads"


@pytest.fixture
def server(serve, folder):
    return serve(workers=2, app="examples.upload:create_app", UPLOAD_DIR=str(folder))


def upload(visitor, name, content, **headers):
    start = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    headers = {"Content-Type": "multipart/form-data; boundary=x", **headers}
    return visitor.post("/", start + content + b"\r\n--x--\r\n", headers=headers)


def test_file_above_max_body_is_downloaded_from_both_workers(server):
    visitor, content = server.client(), b"0123456789abcdef" * (5 * MIB // 16)
    assert upload(visitor, "a <b>.bin", content).status == 303
    ((path, name),) = re.findall(r'<a href="(/files/[^"]+)">(.*?)</a>', visitor.get("/").text)
    assert name == "a &lt;b&gt;.bin"
    answers = [visitor.get(path, fresh_connection=True) for _ in range(20)]
    assert {answer.worker for answer in answers} == {0, 1}
    assert {answer.text for answer in answers} == {content.decode()}
    assert answers[0].headers["content-disposition"].startswith("attachment")
    assert answers[0].headers["content-type"] == "application/octet-stream"


def test_client_chooses_no_path(server, folder):
    upload(server.client(), "../../evil.txt", b"hello")
    (stored,) = folder.iterdir()
    assert stored.read_bytes() == b"hello"
    assert "evil" not in stored.name


@pytest.mark.parametrize("path", ["/files/none", "/files/..", "/files/..%2f..%2fetc%2fpasswd"])
def test_what_is_no_upload_is_404(server, path):
    assert server.client().get(path).status == 404


def test_request_without_a_file_is_refused(server):
    assert server.client().post("/", {"file": "text"}).status == 400


def test_full_disk_is_answered_507(redis_url, monkeypatch):
    def store(file, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(example, "store", store)
    monkeypatch.setenv("APP_ENV", "development")
    monkeypatch.setenv("REDIS_URL", redis_url)
    with TestClient(example.create_app()) as client:
        assert client.post("/", files={"file": ("a.txt", b"hello")}).status_code == 507


def test_other_site_cannot_upload(server, folder):
    assert upload(server.client(), "a.txt", b"hello", Origin="https://evil.example").status == 403
    assert not folder.exists()
