"""The manifests: built by kubectl, valid, locked up, and in step with the settings, the primary and the image."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conftest import missing
from everycore.server import ServerSettings
from everycore.server.settings import default_run_dir
from everycore.state.client.url import FILE_OPTIONS
from everycore.web import AppSettings

MANIFESTS = "deploy/kubernetes"
KEY = "x" * 32
SECRETS = {"SECRET_KEY": KEY, "OPS_TOKEN": KEY, "REDIS_URL": "redis://redis:6379/0"}
OLDEST, NEWEST = "1.30", "1.37"

# "Restricted", of the Pod Security Standards: what a volume may be, and a container; its root is read-only besides.
ALLOWED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
}
LOCKED_UP = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}


@pytest.fixture
def kubectl(tmp_path):
    """Run it without a cluster; its output."""
    if not shutil.which("kubectl"):
        missing("no kubectl. Install 1.27 or newer: Debian's kubernetes-client from 13 on, or kubernetes.io's")

    def run(*arguments):
        environ = {**os.environ, "KUBECONFIG": str(tmp_path / "no-cluster")}
        ended = subprocess.run(["kubectl", *arguments], env=environ, capture_output=True, text=True)
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
        return ended.stdout

    return run


@pytest.fixture
def project(bake):
    return bake(jobs="yes")


@pytest.fixture(params=["development", "production"])
def overlay(request):
    return request.param


@pytest.fixture
def objects(project, overlay, kubectl):
    """What an overlay of a bake with jobs builds, by kind and name: the settings' without the hash of what is in it."""
    found = list(yaml.safe_load_all(kubectl("kustomize", str(project / MANIFESTS / "overlays" / overlay))))
    names = [re.sub("^settings-.*", "settings", each["metadata"]["name"]) for each in found]
    return {(each["kind"], name): each for each, name in zip(found, names, strict=True)}


def pods(objects):
    return [each["spec"]["template"] for each in objects.values() if "template" in each.get("spec", {})]


def web(objects):
    """The app's pod and its one container."""
    pod = objects["Deployment", "web"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def selectors_in(node):
    """Every selector of pods, however deep: of services, policies, budgets, and of how pods are spread."""
    if isinstance(node, list):
        for each in node:
            yield from selectors_in(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("selector", "podSelector", "labelSelector"):
                yield value.get("matchLabels", value)
            else:
                yield from selectors_in(value)


def settings_of(objects, project):
    """The environment of the container, and what the server and the app read from it."""
    _, container = web(objects)
    environ = dict(objects["ConfigMap", "settings"]["data"])
    for each in container.get("env", []):
        environ[each["name"]] = each.get("value") or SECRETS[each["name"]]
    return environ, ServerSettings.from_environ(environ), AppSettings.from_environ(environ)


@pytest.mark.parametrize("slug", ["cluster-app", "a" * 40])
def test_every_overlay_is_built_and_is_strictly_valid(bake, kubectl, tmp_path, overlay, slug):
    project = bake(project_slug=slug)
    text = kubectl("kustomize", str(project / MANIFESTS / "overlays" / overlay))
    (tmp_path / "built.yaml").write_text(text)
    assert f"\nVersion {OLDEST} or newer." in (project / MANIFESTS / "README.md").read_text()
    for version in (OLDEST, NEWEST):
        validate = [Path(sys.executable).parent / "kubernetes-validate", "--strict", "--kubernetes-version", version]
        ended = subprocess.run([*validate, tmp_path / "built.yaml"], capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    for each in yaml.safe_load_all(text):
        assert len(each["metadata"]["name"]) <= 63
        own = each["metadata"]["name"] if each["kind"] == "Namespace" else each["metadata"]["namespace"]
        assert own == {"production": slug, "development": f"{slug}-development"}[overlay]


def test_every_pod_is_restricted(objects):
    (namespace,) = (each for (kind, _), each in objects.items() if kind == "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for template in pods(objects):
        pod = template["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for volume in pod.get("volumes", []):
            assert volume.keys() - {"name"} <= ALLOWED_VOLUMES
        for container in pod["containers"]:
            assert container["securityContext"] == LOCKED_UP
            assert all("hostPort" not in port for port in container.get("ports", []))
            assert "memory" in container["resources"]["limits"]
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                assert "host" not in container.get(probe, {}).get("httpGet", {})


def test_what_the_app_writes_to_is_mounted(objects, project):
    pod, container = web(objects)
    volumes = {each["name"]: each["emptyDir"] for each in pod["volumes"] if "emptyDir" in each}
    mounts = {each["mountPath"]: volumes.get(each["name"]) for each in container["volumeMounts"]}
    _, settings, _ = settings_of(objects, project)
    # The volume itself belongs to root, and the primary wants a folder of its own user's.
    assert mounts[str((settings.run_dir or default_run_dir("cluster_app.app:create_app")).parent)]["medium"] == "Memory"
    assert "medium" not in mounts["/tmp"]
    assert all("sizeLimit" in volume for volume in volumes.values())


def test_the_environment_is_one_that_the_app_knows(objects, project, overlay):
    environ, _, settings = settings_of(objects, project)
    known = re.findall(r"^#? ?([A-Z_]+)=", (project / ".env.example").read_text(), re.M)
    assert environ.keys() <= set(known)
    assert settings.production == (overlay == "production")
    assert "WEB_CONCURRENCY" not in environ  # auto: by the cpu limit, which must then be there, in whole CPUs
    assert float(web(objects)[1]["resources"]["limits"]["cpu"]).is_integer()


def test_no_secret_is_in_the_manifests(objects, overlay):
    assert not [name for kind, name in objects if kind == "Secret"]
    values = {each["name"]: each for each in web(objects)[1]["env"]}
    if overlay == "production":
        for name in ("SECRET_KEY", "REDIS_URL", "OPS_TOKEN"):
            assert values[name].keys() == {"name", "valueFrom"}
            assert values[name]["valueFrom"] == {"secretKeyRef": {"name": "web", "key": name}}
    else:
        assert "SECRET_KEY" not in values


@pytest.mark.parametrize("overlay", ["production"])
def test_command_for_the_secrets_makes_every_one_asked_for(objects, project, kubectl):
    readme = (project / MANIFESTS / "README.md").read_text()
    (namespace,) = re.findall(r"^kubectl (create namespace .*)$", readme, re.M)
    made = yaml.safe_load(kubectl(*namespace.split(), "--dry-run=client", "-o", "yaml"))
    secret = re.search(r"kubectl (-n \S+ create secret generic \S+)((?: \\\n +--from-literal=\S+=\".*\")+)", readme)
    names = re.findall(r"--from-literal=([A-Z_]+)=", secret[2])
    literals = [f"--from-literal={name}={KEY}" for name in names]
    given = yaml.safe_load(kubectl(*secret[1].split(), *literals, "--dry-run=client", "-o", "yaml"))
    asked = [each["valueFrom"]["secretKeyRef"] for each in web(objects)[1]["env"] if "valueFrom" in each]
    assert {each["name"] for each in asked} == {given["metadata"]["name"]}
    assert {each["key"] for each in asked} == given["data"].keys()
    assert given["metadata"]["namespace"] == made["metadata"]["name"] == "cluster-app"


@pytest.mark.parametrize("overlay", ["production"])
def test_files_for_tls_to_redis_are_mounted_where_the_page_says(objects, project):
    readme = (project / MANIFESTS / "README.md").read_text()
    pod, container = web(objects)
    (mount,) = (each for each in container["volumeMounts"] if each.get("readOnly"))
    (volume,) = (each for each in pod["volumes"] if each["name"] == mount["name"])
    (secret,) = re.findall(r"create secret generic (redis-\S+) --from-file", readme)
    assert volume["secret"] == {"secretName": secret, "optional": True}  # a pod without TLS starts all the same
    given = set(re.findall(r"--from-file=([\w.]+)", readme))
    named = dict(re.findall(r"(ssl_\w+)=([\w./-]+)", readme))
    assert named.keys() == set(FILE_OPTIONS)
    assert set(named.values()) == {f"{mount['mountPath']}/{name}" for name in given}


def test_a_pod_has_longer_to_leave_than_its_primary_takes(objects, project):
    pod, container = web(objects)
    _, settings, _ = settings_of(objects, project)
    policy = settings.policy()
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    # Lingering is a part of the graceful timeout; drain_limit is when the primary ends the last worker itself.
    assert settings.linger <= settings.graceful_timeout < policy.drain_limit
    taken = before + settings.drain_delay + policy.drain_limit
    assert pod["terminationGracePeriodSeconds"] >= taken + 10


def test_probes_ask_real_routes_and_wait_longer_than_the_primary(objects, project):
    _, container = web(objects)
    _, settings, app = settings_of(objects, project)
    abort_grace = settings.policy().abort_grace
    routes = re.findall(r'Route\("(/\w+)"', (project / "src/everycore/web/health.py").read_text())
    startup, liveness, readiness = (container[f"{name}Probe"] for name in ("startup", "liveness", "readiness"))
    assert [probe["httpGet"]["path"] for probe in (startup, liveness, readiness)] == ["/healthz", "/healthz", "/readyz"]
    assert {"/healthz", "/readyz"} <= set(routes)
    (port,) = container["ports"]
    assert {probe["httpGet"]["port"] for probe in (startup, liveness, readiness)} == {port["name"]}
    assert startup["periodSeconds"] * startup["failureThreshold"] > settings.boot_timeout + abort_grace
    assert liveness["periodSeconds"] * liveness["failureThreshold"] >= 2 * settings.hang_timeout
    assert readiness["timeoutSeconds"] > app.redis_timeout


def test_the_port_and_the_user_are_the_images(objects, project):
    pod, container = web(objects)
    dockerfile = (project / "Dockerfile").read_text()
    (port,) = container["ports"]
    assert re.findall(r"^EXPOSE (\d+)$", dockerfile, re.M) == [str(port["containerPort"])]
    assert f"PORT={port['containerPort']}\n" in dockerfile
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert set(re.findall(r"^USER (\S+)$", dockerfile, re.M)) == {user}


def test_whoever_selects_pods_finds_them(objects, overlay):
    labels = [template["metadata"]["labels"] for template in pods(objects)]
    _, container = web(objects)
    selectors = list(selectors_in(list(objects.values())))
    assert len(selectors) >= 6
    if overlay == "production":
        target = objects["HorizontalPodAutoscaler", "web"]["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) in objects
        assert "cpu" in container["resources"]["requests"]  # a utilization is of this
    for selector in selectors:
        # Of one kind of pod, and no other. Those of `web` and of `work` are clients of Redis.
        kinds = 2 if "redis-client" in selector else 1
        assert [selector.items() <= each.items() for each in labels].count(True) == kinds, selector
    assert objects["Service", "web"]["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]


def test_the_network_lets_in_requests_and_out_names_and_redis(objects, overlay):
    policies = [each["spec"] for (kind, _), each in objects.items() if kind == "NetworkPolicy"]
    labels = objects["Deployment", "web"]["spec"]["template"]["metadata"]["labels"]
    of_web = [each for each in policies if each["podSelector"]["matchLabels"].items() <= labels.items()]
    ways_in = [port["port"] for each in of_web for rule in each.get("ingress", []) for port in rule["ports"]]
    ways_out = {port["port"] for each in of_web for rule in each.get("egress", []) for port in rule["ports"]}
    assert ways_in == [8000]
    assert ways_out == {53, 6379} | ({26379} if overlay == "production" else set())
    assert {"Ingress", "Egress"} <= {kind for each in of_web for kind in each["policyTypes"]}


def test_jobs_have_the_environment_of_the_app_and_reach_redis(objects, overlay):
    (container,) = objects["Deployment", "work"]["spec"]["template"]["spec"]["containers"]
    _, of_web = web(objects)
    own = [each for each in of_web.get("env", []) if each["name"] != "RUN_DIR"]
    assert (container["image"], container["envFrom"]) == (of_web["image"], of_web["envFrom"])
    assert container.get("env", []) == own
    assert container["args"] == ["work"]
    labels = objects["Deployment", "work"]["spec"]["template"]["metadata"]["labels"]
    policies = [each["spec"] for (kind, _), each in objects.items() if kind == "NetworkPolicy"]
    of_work = [each for each in policies if each["podSelector"]["matchLabels"].items() <= labels.items()]
    assert not [rule for each in of_work for rule in each.get("ingress", [])]
    ways_out = {port["port"] for each in of_work for rule in each["egress"] for port in rule["ports"]}
    assert ways_out == {53, 6379} | ({26379} if overlay == "production" else set())


@pytest.mark.parametrize("overlay", ["production"])
def test_a_new_version_comes_before_an_old_one_leaves(objects):
    deployment = objects["Deployment", "web"]["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert "replicas" not in deployment  # the autoscaler's
    assert objects["HorizontalPodAutoscaler", "web"]["spec"]["minReplicas"] >= 2
    assert objects["PodDisruptionBudget", "web"]["spec"]["maxUnavailable"] == 1
    spread = {each["topologyKey"] for each in web(objects)[0]["topologySpreadConstraints"]}
    assert spread == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
    assert not re.search(r":latest$|/[^:]*$", web(objects)[1]["image"])


@pytest.mark.parametrize("overlay", ["development"])
def test_the_page_builds_the_image_that_is_tried(objects, project):
    readme = (project / MANIFESTS / "README.md").read_text()
    (tag,) = re.findall(r"^docker build --tag (\S+) \.$", readme, re.M)
    assert web(objects)[1]["image"] == tag
    assert f"kind load docker-image {tag}\n" in readme


def test_without_it_nothing_of_it_is_left(bake):
    project = bake(kubernetes="no")
    assert (project / "deploy" / "systemd").is_dir()
    for path in project.rglob("*"):
        assert not re.search(r"kube|k8s|kustom", str(path.relative_to(project)), re.I), path
        if path.is_file() and path.name != ".cluster-template.json" and "everycore" not in path.parts:
            assert not re.search(rb"kube|k8s|kustom", path.read_bytes(), re.I), path
