"""Where everything lies. What is installed goes under build/, which git ignores."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
APPS = HERE / "apps"
NODE_APP = APPS / "node"
REQUIREMENTS = HERE / "requirements.txt"
RESULTS = HERE / "results"

BUILD = ROOT / "build" / "bench"
VENV = BUILD / "venv"
OURS_VENV = BUILD / "ours-venv"
NODE_MODULES = BUILD / "node" / "node_modules"
BAKE = BUILD / "cluster-app"
