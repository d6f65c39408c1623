"""On a real engine: the bake in development, three hosts of it behind a balancer, and this repository itself."""

import os
import re
import shlex
import shutil
import socket
import sys

import pytest

from benchmarks.load import Background
from stacks import (
    COMPOSES,
    PRODUCTION,
    Stack,
    demo_is_exact,
    docker,
    eventually,
    get,
    reload_under_load,
    remove_images,
    run,
    running,
    settled,
)

SERVING = "import urllib.request; print(urllib.request.urlopen('http://balancer:8081').read().decode())"

pytestmark = [pytest.mark.in_all, pytest.mark.timeout(1200), pytest.mark.xdist_group("docker")]


def test_the_container_job_of_a_bake_passes(docker_project):
    # Without a uv.lock, by the old builder and the old Compose; the stack of test_docker.py has the new ones.
    (compose,) = COMPOSES["1.29"]()
    job = ("make", "container", f"PYTHON={sys.executable}", f"COMPOSE={compose}")
    assert re.search(r"6 passed", run(*job, cwd=docker_project, DOCKER_BUILDKIT="0"))


@pytest.mark.parametrize("version", COMPOSES)
def test_edited_code_runs_in_the_container_and_reloads(docker_project, version):
    stack = Stack(COMPOSES[version](), docker_project, f"dev{os.getpid()}", DOCKER_BUILDKIT="0")
    with running(stack, "--build"):
        stack.healthy()
        edited = docker_project / "src" / "everycore" / "web" / "health.py"
        before = edited.read_text()
        try:
            edited.write_text(before.replace('PlainTextResponse("ok")', 'PlainTextResponse("edited")'))
            eventually(lambda: get(f"{stack.url()}/healthz")[1] == "edited")
        finally:
            edited.write_text(before)
        eventually(lambda: get(f"{stack.url()}/healthz")[1] == "ok" and settled(stack))
        demo_is_exact(stack.url())
        reload_under_load(stack)
        stack.compose("stop", "web")
        assert stack.state()["ExitCode"] == 0


def test_three_hosts_share_one_state_and_one_may_go_under_load(docker_project):
    stack = Stack(COMPOSES["v2"](), docker_project, f"hosts{os.getpid()}", DOCKER_BUILDKIT="0", BALANCER_PORT="0")
    with running(stack, "--build", "balancer"):
        url = stack.url("balancer", 8080)
        # A request that HAProxy tries again may reach a host that gets no new requests yet.
        serving = ("exec", stack.id("web1"), "python", "-c", SERVING)
        eventually(lambda: docker(*serving) == "web1=1 web2=1 web3=1")
        assert len(demo_is_exact(url)) == 3
        with Background(url, "/demo/hit", 4, 120) as load:
            stack.compose("stop", "web2")
            stack.compose("start", "web2")
            stack.healthy("web2")
        assert load.result.ok > 0
        assert load.result.failures() == {}
        assert stack.state("web2")["Running"]


def test_deploy_replaces_the_hosts_and_fails_no_request(docker_project, tmp_path):
    project = shutil.copytree(docker_project, tmp_path / "deployed")
    stack = Stack(COMPOSES["v2"](), project, f"deploy{os.getpid()}", *PRODUCTION, COMPOSE_PROFILES="hosts")
    stack.environ |= {"BALANCER_PORT": "0", "DOCKER_BUILDKIT": "0", "COMPOSE_PROJECT_NAME": stack.name}
    environ = {**stack.environ, "COMPOSE": shlex.join(COMPOSES["v2"]())}
    with running(stack, "--build", "balancer"):
        url = stack.url("balancer", 8080)
        eventually(lambda: get(url)[0] == 200)
        home = project / "src/cluster_app/templates/home.html"
        home.write_text(home.read_text().replace("<h1>", "<h1>New: "))
        with Background(url, "/", 1, 300) as load:
            run("make", "deploy", f"PYTHON={sys.executable}", cwd=project, **environ)
            assert all("New: " in get(url)[1] for _ in range(12))
            app = project / "src/cluster_app/app.py"
            app.write_text(app.read_text().replace("    yield\n", "    raise OSError('no database')\n    yield\n"))
            said = run("make", "deploy", f"PYTHON={sys.executable}", cwd=project, fails=True, **environ)
        assert "error: web1 does not get ready" in said
        assert "no database" in said
        assert load.result.ok > 0
        assert load.result.failures() == {}


def test_code_that_only_its_owner_can_read_runs_or_says_why(docker_project, tmp_path):
    project = shutil.copytree(docker_project, tmp_path / "umask")
    run("chmod", "-R", "go=", "src", cwd=project)
    tags = {target: f"umask{os.getpid()}:{target}" for target in ("development", "production")}
    try:
        for target, tag in tags.items():
            run("docker", "build", "--target", target, "--tag", tag, project, DOCKER_BUILDKIT="0")
        assert "serve" in run("docker", "run", "--rm", tags["production"], "--help")
        mount = ("--volume", f"{project}/src:/app/src:ro")
        said = run("docker", "run", "--rm", *mount, tags["development"], "dev", fails=True)
        assert said == "error: the container, whose user is 10001, cannot read src. Run: chmod -R go+rX src\n"
        run("chmod", "-R", "go+rX", "src", cwd=project)
        assert "serve" in run("docker", "run", "--rm", *mount, tags["development"], "--help")
    finally:
        remove_images(f"umask{os.getpid()}")


def test_the_docker_commands_of_its_readme_work_word_for_word(docker_project, tmp_path):
    project = shutil.copytree(docker_project, tmp_path / "word-for-word", ignore=shutil.ignore_patterns("secrets"))
    blocks = re.findall(r"```sh\n(.*?)```", (project / "README.md").read_text(), re.S)
    lines = [
        line.split("  #")[0].strip() for block in blocks if "docker compose" in block for line in block.splitlines()
    ]
    assert len(lines) == 9
    lines.remove("make container")  # it has a test of its own
    docker_compose = shlex.join(COMPOSES["v2"]())
    environ = {
        "COMPOSE_PROJECT_NAME": f"readme{os.getpid()}",
        "WEB_PORT": "0",
        "BALANCER_PORT": "0",
        "DOCKER_BUILDKIT": "0",
    }
    script = [re.sub(r"( up| up balancer)$", r"\1 -d", line) for line in lines]  # or it would not come back
    status = next(line for line in script if line.endswith("status"))
    script.insert(
        script.index(status), f"until {status} >/dev/null 2>&1; do sleep 0.2; done"
    )  # a person is not so quick
    script = [line.replace("docker compose", docker_compose) for line in script]
    try:
        said = run("bash", "-ec", "\n".join(script), cwd=project, **environ)
        assert re.search(r"^primary \d+, up", said, re.M)
    finally:
        run("bash", "-ec", f"{docker_compose} --profile hosts down -v --remove-orphans", cwd=project, **environ)
        remove_images(environ["COMPOSE_PROJECT_NAME"])


@pytest.mark.parametrize("version", COMPOSES)
def test_this_repository_shows_its_demo_with_nothing_but_docker(clone, version):
    stack = Stack(COMPOSES[version](), clone, f"root{os.getpid()}", DOCKER_BUILDKIT="0", REDIS_PORT="0")
    with running(stack, "--build"):
        stack.healthy("demo")
        demo_is_exact(stack.url("demo"))
        host, port = stack.compose("port", "redis", "6379").strip().split(":")
        with socket.create_connection((host, int(port))) as redis:
            redis.sendall(b"PING\r\n")
            assert redis.recv(16) == b"+PONG\r\n"


def test_its_tests_run_with_nothing_but_docker(clone):
    stack = Stack(COMPOSES["1.29"](), clone, f"tests{os.getpid()}", DOCKER_BUILDKIT="0", REDIS_PORT="0")
    with running(stack, "redis"):
        # All of them would be this very run once more, for ten minutes.
        some = "make .venv/dev && .venv/bin/pytest tests/test_bake.py -k default"
        assert re.search(r"\d+ passed", stack.compose("run", "--rm", "-T", "tests", "bash", "-c", some))
