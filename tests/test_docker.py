"""The bake's stack of production on a real Docker engine: harmed in every way, each time well again."""

import os
import signal
import subprocess
import threading
import time

import pytest

from benchmarks.load import REFUSED, Background
from conftest import missing
from stacks import (
    COMPOSES,
    GRACE,
    PRODUCTION,
    SECRET,
    Stack,
    demo_is_exact,
    docker,
    eventually,
    get,
    reload_under_load,
    running,
    settled,
)

pytestmark = [pytest.mark.in_all, pytest.mark.timeout(1200), pytest.mark.xdist_group("docker")]


@pytest.fixture(scope="module")
def production(locked):
    """Under Compose v2, whose builder is BuildKit, out of a project with a uv.lock."""
    stack = Stack(COMPOSES["v2"](), locked, f"harm{os.getpid()}", *PRODUCTION, DEMO="on", REVISION="abc123")
    with running(stack, "--build"):
        stack.healthy()
        yield stack


@pytest.fixture
def web(production):
    """It, well again after the test before."""
    production.healthy("redis")  # which Compose waits for, but not for a paused one
    production.compose("up", "-d")
    eventually(lambda: get(f"{production.url()}/readyz")[0] == 200 and settled(production))
    return production


def test_the_image_is_of_nobody_and_holds_no_secret(web):
    image = docker("inspect", "-f", "{{.Image}}", web.id("web"))
    assert docker("inspect", "-f", "{{.Config.User}}", image) == "10001:10001"
    assert SECRET not in docker("history", "--no-trunc", image) + docker("inspect", image, web.id("web"))
    search = ["docker", "run", "--rm", "--entrypoint", "grep", image, "-rlE", SECRET, "/app", "/tmp", "/home"]
    ended = subprocess.run(search, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")


def test_image_listens_on_the_port_that_a_platform_sets(web):
    image, network = docker(
        *("inspect", "-f", "{{.Image}} {{range $name, $_ := .NetworkSettings.Networks}}{{$name}}{{end}}", web.id("web"))
    ).split()
    settings = ("-e", "PORT=5000", "-e", f"SECRET_KEY={SECRET}", "-e", "REDIS_URL=redis://redis:6379/0")
    started = docker("run", "-d", "--network", network, *settings, image).strip()
    try:
        eventually(lambda: docker("inspect", "-f", "{{.State.Health.Status}}", started).strip() == "healthy", 60)
        address = docker("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", started).strip()
        assert get(f"http://{address}:5000/healthz")[0] == 200
    finally:
        docker("rm", "-f", started)


def test_image_and_status_show_the_revision_of_the_build(web):
    image = docker("inspect", "-f", "{{.Image}}", web.id("web"))
    assert docker("inspect", "-f", '{{index .Config.Labels "org.opencontainers.image.revision"}}', image) == "abc123"
    assert ", revision abc123, " in web.compose("exec", "-T", "web", "cluster-app", "status")


def test_the_demo_is_exact(web):
    demo_is_exact(web.url())


def test_a_worker_that_is_killed_is_replaced(web):
    before = {row["pid"] for row in web.board()["workers"]}
    victim = min(before)
    docker("exec", web.id("web"), "python", "-c", f"import os; os.kill({victim}, 9)")
    eventually(lambda: settled(web) and len({row["pid"] for row in web.board()["workers"]} - {victim}) == len(before))


def test_a_reload_under_load_fails_no_request(web):
    reload_under_load(web)


def test_a_redis_that_crashes_comes_back_with_its_sessions(web):
    _, _, cookie = get(f"{web.url()}/demo/hit")
    crashed = web.state("redis")["Pid"]
    os.kill(crashed, signal.SIGKILL)  # of the host; `docker kill` would be a stop by hand
    eventually(lambda: web.state("redis")["Pid"] not in (0, crashed))
    again = eventually(lambda: (answer := get(f"{web.url()}/demo/hit", cookie))[0] == 200 and answer[1])
    assert again["session"]["hits"] >= 2


def test_a_redis_that_hangs_costs_nobody_who_needs_none(web):
    assert_only_state_is_away(
        web,
        lambda: docker("pause", web.id("redis")),
        lambda: docker("unpause", web.id("redis")),
    )


def test_a_network_that_is_cut_is_found_again_when_it_is_back(web):
    network, redis = f"{web.name}_default", web.id("redis")
    assert_only_state_is_away(
        web,
        lambda: docker("network", "disconnect", "--force", network, redis),
        lambda: docker("network", "connect", "--alias", "redis", network, redis),
    )


def assert_only_state_is_away(web, cut, restore):
    url = web.url()
    _, _, cookie = get(f"{url}/demo/hit")
    cut()
    try:
        began = time.monotonic()
        assert [get(f"{url}{path}", cookie)[0] for path in ("/healthz", "/demo/hit", "/readyz")] == [200, 503, 200]
        assert time.monotonic() - began < 10  # REDIS_TIMEOUT is 1
    finally:
        restore()
    again = eventually(lambda: (answer := get(f"{url}/demo/hit", cookie))[0] == 200 and answer[1])
    assert again["session"]["hits"] >= 2  # what was answered with 503 may have been counted: only Redis knows


def test_a_stop_under_load_answers_what_is_in_flight(web):
    address, answers = web.address(), []
    slow = [threading.Thread(target=lambda: answers.append(get(f"{address}/demo/slow?ms=3000")[0])) for _ in range(8)]
    for client in slow:
        client.start()
    eventually(lambda: sum(row["in_flight"] for row in web.board()["workers"]) == len(slow))
    with Background(address, "/demo/hit", 4, 60) as load:
        began = time.monotonic()
        stop = threading.Thread(target=web.compose, args=("stop", "web"))
        stop.start()
        # Until it is refused: a container that is gone has no address, and nobody there to refuse.
        eventually(lambda: load.result.outcomes[REFUSED])
        load.stop()
    stop.join()
    assert time.monotonic() - began < GRACE
    for client in slow:
        client.join()
    assert answers == [200] * len(slow)
    assert load.result.failures(REFUSED) == {}
    assert web.state()["ExitCode"] == 0


@pytest.mark.parametrize("cpus", ["0.5", "1"])
def test_auto_means_as_many_workers_as_the_container_has_cpus(web, cpus):
    if int(docker("info", "-f", "{{.NCPU}}")) < 2:
        missing("one CPU: there is nothing to limit")
    web.compose("up", "-d", "web", WEB_CPUS=cpus)
    eventually(lambda: settled(web))
    assert web.board()["wanted"] == 1
    assert f"1 worker: the cgroup allows {cpus} CPU{'' if cpus == '1' else 's'}" in web.compose("logs", "web")


def test_sessions_and_counts_outlive_a_down(web):
    _, first, cookie = get(f"{web.url()}/demo/hit")
    web.compose("down")
    web.compose("up", "-d")
    eventually(lambda: get(f"{web.url()}/readyz")[0] == 200)
    _, second, _ = get(f"{web.url()}/demo/hit", cookie)
    assert second["redis"]["hits"] == first["redis"]["hits"] + 1
    assert second["session"]["hits"] == 2


def test_reload_rotates_the_key_and_logs_nobody_out(web):
    key = web.folder / "secrets" / "secret_key"
    _, _, cookie = get(f"{web.url()}/demo/hit")
    key.write_text(f"a-new-one-of-more-than-32-characters,{SECRET}")
    try:
        generation = web.board()["generation"]
        web.compose("kill", "-s", "HUP", "web")
        eventually(lambda: web.board()["generation"] == generation + 1 and settled(web))
        assert get(f"{web.url()}/demo/hit", cookie)[1]["session"]["hits"] == 2
    finally:
        key.write_text(SECRET)
