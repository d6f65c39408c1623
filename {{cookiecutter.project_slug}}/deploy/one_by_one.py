"""New code on one machine without a gap: `make deploy`.

It builds the image, then replaces the three hosts behind the balancer, one after the other. It stops at a host that
does not get ready. The other hosts keep serving meanwhile.
"""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

HOSTS = ("web1", "web2", "web3")
DEADLINE = 120  # seconds for a host to start, and for the balancer to notice it
ASK = "import urllib.request; print(urllib.request.urlopen('http://balancer:8081', timeout=2).read().decode())"
FILES = {"COMPOSE_FILE": "docker-compose.yml:docker-compose.production.yml", "COMPOSE_PROFILES": "hosts"}


def compose(*arguments: str, capture: bool = False) -> subprocess.CompletedProcess[str]:
    """Run Compose v2. COMPOSE names another one than `docker compose`."""
    command = [*shlex.split(os.environ.get("COMPOSE", "docker compose")), *arguments]
    folder = Path(__file__).parents[1]
    environ = {**os.environ, **FILES}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=capture, text=True, check=False)


def serves(host: str) -> bool:
    """Return whether the balancer sends requests to a host. The host itself asks the balancer."""
    return f"{host}=1" in compose("exec", "-T", host, "python", "-c", ASK, capture=True).stdout


def replace(host: str) -> bool:
    """Start a host with the new image, and return whether it got ready in time."""
    print(f"Replacing {host}", flush=True)
    until = time.monotonic() + DEADLINE
    if compose("up", "-d", "--no-deps", "--wait", "--wait-timeout", str(DEADLINE), host).returncode:
        return False
    while not serves(host):
        if time.monotonic() > until:
            return False
        time.sleep(1)
    return True


def main() -> None:
    """Replace each host, and exit with 1 at the first one that does not get ready."""
    if compose("build", *HOSTS).returncode or compose("up", "-d", "--no-recreate", "balancer").returncode:
        sys.exit("error: the hosts are not replaced. The output of Compose is above.")
    for host in HOSTS:
        if not replace(host):
            compose("logs", "--tail", "20", host)
            sys.exit(f"error: {host} does not get ready. Its log is above. Mend the code, and run this again.")


if __name__ == "__main__":
    main()
