"""What libraries leave behind that are not of the tests' own environment. Each import is in a process of its own."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from forked_imports import FindShared, started
from places import KEPT, importable

pytestmark = [pytest.mark.in_all, pytest.mark.xdist_group("libraries")]  # they install into one folder

LIBRARIES = (
    *(
        "boto3",
        "faker",
        "fastapi",
        "httpx",
        "numpy",
        "opentelemetry-distro",
        "opentelemetry-exporter-otlp-proto-http",
        "pandas",
    ),
    *("psycopg[binary]", "scikit-learn", "sentry-sdk", "sqlalchemy"),
)


@pytest.fixture(scope="module")
def library_path() -> str:
    """PYTHONPATH with libraries that are not of the tests' own environment, in a folder that is kept."""
    folder = KEPT / f"libraries-3.{sys.version_info.minor}" / "site-packages"
    stamp = folder / "installed"
    if not stamp.exists() or stamp.read_text() != str(LIBRARIES):
        shutil.rmtree(folder, ignore_errors=True)
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), *LIBRARIES]
        subprocess.run(pip, check=True, stdin=subprocess.DEVNULL, timeout=280)
        stamp.write_text(str(LIBRARIES))
    return os.pathsep.join([importable(), str(folder)])


@pytest.fixture(scope="module")
def template_with_libraries(library_path: str) -> Iterator[FindShared]:
    with started(PYTHONPATH=library_path, OMP_NUM_THREADS="2") as find:
        yield find


LIBRARIES_FOUND = {
    "FastAPI's tutorial": (
        "import sqlalchemy as sa\nengine = sa.create_engine('sqlite:///app.db')\nmetadata = sa.MetaData()\n"
        "sa.Table('hero', metadata, sa.Column('id', sa.Integer, primary_key=True))\nmetadata.create_all(engine)",
        r"^the file /\S+/app.db that is open for writing$",
    ),
    "scikit-learn fitted": (
        "from sklearn.cluster import KMeans\nimport numpy\n"
        "MODEL = KMeans(2, n_init=1).fit(numpy.arange(2000.0).reshape(-1, 2))",
        r"^the thread \S+$",
    ),
    "NumPy's generator": ("import numpy\nRNG = numpy.random.default_rng()", r"^a random generator \(shop.app.RNG\)$"),
    "NumPy's old generator": (
        "import numpy\nRNG = numpy.random.RandomState()",
        r"^a random generator \(shop.app.RNG\)$",
    ),
    "Faker": ("from faker import Faker\nfake = Faker()", r"^a random generator \(shop.app.fake\)$"),
}


@pytest.mark.parametrize(("source", "pattern"), LIBRARIES_FOUND.values(), ids=LIBRARIES_FOUND)
def test_what_a_library_shares_is_found(
    template_with_libraries: FindShared, tmp_path: Path, source: str, pattern: str
) -> None:
    (found,) = template_with_libraries(tmp_path, source)
    assert re.search(pattern, found), found


OPENTELEMETRY = """\
from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([PeriodicExportingMetricReader(OTLPMetricExporter())]))
tracer = trace.get_tracer(__name__)
"""
LIBRARIES_HARMLESS = {
    "FastAPI": "import fastapi, pydantic\nclass Item(pydantic.BaseModel):\n    price: float\n"
    "app = fastapi.FastAPI()\n@app.post('/')\ndef home(item: Item): ...",
    "SQLAlchemy": "import sqlalchemy, sqlalchemy.ext.asyncio\nFILE = sqlalchemy.create_engine('sqlite:///app.db')\n"
    "DB = sqlalchemy.create_engine('postgresql+psycopg://localhost/shop')",
    "httpx": "import httpx\nCLIENT = httpx.AsyncClient()\nOTHER = httpx.Client()",
    "boto3": "import boto3\nS3 = boto3.client('s3', aws_access_key_id='x', aws_secret_access_key='x')",
    "sentry-sdk": "import sentry_sdk\nsentry_sdk.init('http://key@127.0.0.1:9/1', traces_sample_rate=1.0)",
    "OpenTelemetry": OPENTELEMETRY,
    "NumPy": "import numpy\nfrom numpy.random import rand\nA = numpy.ones((600, 600)) @ numpy.ones((600, 600))\n"
    "B = numpy.random.random(3); SEED = numpy.random.seed",
    "pandas": "import pandas\nROWS = pandas.DataFrame({'a': range(1000)})",
    "scikit-learn": "import sklearn.ensemble, sklearn.linear_model\nMODEL = sklearn.linear_model.LogisticRegression()",
}


@pytest.mark.parametrize("source", LIBRARIES_HARMLESS.values(), ids=LIBRARIES_HARMLESS)
def test_what_a_library_leaves_harmlessly_is_not_found(
    template_with_libraries: FindShared, tmp_path: Path, source: str
) -> None:
    assert template_with_libraries(tmp_path, source) == []


def test_threads_of_opentelemetry_instrument_are_not_found(library_path: str, tmp_path: Path) -> None:
    """They start with the interpreter, and again after a fork."""
    run = "from opentelemetry.instrumentation.auto_instrumentation import run; run()"
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": library_path}
    names = "import threading\nassert any('Otel' in each.name for each in threading.enumerate())"
    with started(sys.executable, "-c", run, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", **environ) as find:
        assert find(tmp_path, "import fastapi\napp = fastapi.FastAPI()", first=names) == []


def test_reseed_gives_each_process_another_series(template_with_libraries: FindShared, tmp_path: Path) -> None:
    source = "import numpy.random, os\nfrom everycore.server.fork_safety import reseed\n"
    source += "def draw(first):\n    read, write = os.pipe()\n    if not os.fork():\n        first()\n"
    source += "        os.write(write, str(numpy.random.random()).encode()); os._exit(0)\n"
    source += "    os.wait(); os.close(write)\n    return os.read(read, 99)\n"
    source += "assert draw(int) == draw(int)\nassert draw(reseed) != draw(reseed)\n"
    assert template_with_libraries(tmp_path, source) == []
