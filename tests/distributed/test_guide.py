"""The lines that ``deploy/celery/README.md`` has one type, without containers: that they fit the code."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path

import pytest
import yaml

from ringrift_pipeline.enhancements import TrainingConfig
from ringrift_pipeline.orchestration import pools
from ringrift_pipeline.orchestration.celery_settings import CelerySettings
from ringrift_pipeline.orchestration.places import data_folder
from tests.waiting import until

from .cluster import INSTANCE_FILE, ROOT, Postgres, free_port

GUIDE = INSTANCE_FILE.with_name("README.md").read_text()
COMPOSE = INSTANCE_FILE.with_name("compose.yaml").read_text()
TYPED = GUIDE.partition("## Setting it up")[2].partition("### Compose")[0]
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"(?m)(?:^    .*\n)+", TYPED)]
READING = ". .venv/bin/activate; set -a; . ./ringrift.env; set +a"
GIVEN = {"SERVER": "127.0.0.1", "REDIS_PASSWORD": "abc-123", "POSTGRES_PASSWORD": "def-456"}


def block(part: str) -> str:
    """The block of lines that has ``part`` in it."""
    (found,) = [one for one in BLOCKS if part in one]
    return found


def typed(part: str) -> str:
    """The line with ``part`` in it and all that is typed behind it, up to END."""
    (found,) = re.findall(rf"(?ms)^[^\n]*{re.escape(part)}[^\n]*<<END$.*?^END$", "\n".join(BLOCKS))
    return str(found)


def shell(lines: str, folder: Path, **more: str) -> str:
    """What the lines print; ``sudo`` does nothing."""
    sudo = 'sudo() { if [ "$1" = -u ]; then shift 2; fi; "$@"; }\n'
    told = {**GIVEN, "PATH": os.environ["PATH"], "HOME": str(folder), **more}
    done = subprocess.run(
        ["bash", "-euc", sudo + lines], cwd=folder, env=told, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def known() -> set[str]:
    """Variables that the package or the instance file reads."""
    modules = (ROOT / "ringrift_pipeline").rglob("*.py")
    text = "".join(path.read_text() for path in modules)
    return set(re.findall(r'"(RINGRIFT_[A-Z_]+)"', text)) | asked()


def asked() -> set[str]:
    return set(re.findall(r"env: (RINGRIFT_\w+)", INSTANCE_FILE.read_text()))


def test_the_file_that_every_shell_reads_says_what_the_code_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("dagster_celery", reason="the extra `celery` is not installed")
    shell(block("cat >ringrift.env"), tmp_path)
    assert (tmp_path / "ringrift.env").stat().st_mode & 0o077 == 0
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    printed = shell(f"{READING}\nenv -0", tmp_path)
    told = dict(one.split("=", 1) for one in printed.split("\0") if one.startswith("RINGRIFT_"))
    assert asked() | {"RINGRIFT_EXECUTOR", "RINGRIFT_CELERY_BROKER", "RINGRIFT_DATA"} == set(told)
    assert set(told) <= known()
    TrainingConfig.load(environ=told)  # none is taken for a setting
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert pools.distributed() and data_folder() == tmp_path / "ringrift-data"
    assert CelerySettings.from_environment().broker == "redis://:abc-123@127.0.0.1:6379/0"


def test_every_shell_reads_the_file_first() -> None:
    for part in ("-Q selfplay", "-Q gpu", "ringrift loop"):
        assert block(part).startswith(f"{READING}\n"), part
    assert block("ringrift loop").index("cp deploy/celery/dagster.yaml") > 0
    order = [TYPED.index(part) for part in ("redis.conf", "ringrift.env", "-Q selfplay", "loop --")]
    assert order == sorted(order)


def test_the_guide_names_no_variable_that_nobody_reads() -> None:
    for name in set(re.findall(r"RINGRIFT_[A-Z_]+[A-Z]", GUIDE)):
        if "__" in name:
            TrainingConfig.load(environ={name: "200"})
        else:
            assert name in known() or f"${{{name}" in COMPOSE, name


def test_the_servers_are_told_what_compose_tells_its_own() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    (most,) = re.findall(r"max_connections = (\d+)", TYPED)
    assert f"max_connections={most}" in services["postgres"]["command"]
    assert "\nappendonly yes\n" in typed("redis.conf")
    assert "appendonly yes\n" in services["redis"]["command"][-1]


@pytest.mark.services
def test_redis_takes_its_lines(tmp_path: Path) -> None:
    import redis

    port, config = free_port(), tmp_path / "redis.conf"
    config.write_text(f"bind 127.0.0.1 -::1\nport {port}\ndir {tmp_path}\n")
    shell(typed("/etc/redis/redis.conf").replace("/etc/redis", str(tmp_path)), tmp_path)
    client = redis.Redis("127.0.0.1", port, password=GIVEN["REDIS_PASSWORD"], decode_responses=True)

    def answers() -> bool:
        with contextlib.suppress(redis.ConnectionError):
            return bool(client.ping())
        return False

    process = subprocess.Popen([str(shutil.which("redis-server")), str(config)])
    try:
        until(answers, "Redis answers")
        with pytest.raises(redis.AuthenticationError):
            redis.Redis("127.0.0.1", port).ping()
        told = client.config_get("appendonly") | client.config_get("bind")
        assert told == {"appendonly": "yes", "bind": "127.0.0.1"}
    finally:
        process.kill()
        process.wait()


@pytest.mark.services
def test_postgresql_takes_its_lines(tmp_path: Path) -> None:
    import psycopg2

    # Not below the folder of the test run, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="ringrift-postgres-"))
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        server = Postgres(folder / "postgres", ["127.0.0.1"], "")
        stack.callback(server.stop)
        place = {"PGHOST": "127.0.0.1", "PGPORT": str(server.port)}
        own = {"PGUSER": "dagster", "PGPASSWORD": server.password, "PGDATABASE": "postgres"}
        shell(typed("psql").replace("psql", "psql -v ON_ERROR_STOP=1"), tmp_path, **place, **own)
        with contextlib.closing(server.connect()) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT name, setting FROM pg_file_settings WHERE sourcefile ~ 'auto'")
            told = {"max_connections": "500", "listen_addresses": GIVEN["SERVER"]}
            assert dict(cursor.fetchall()) == told
        psycopg2.connect(
            host="127.0.0.1",
            port=server.port,
            user="ringrift",
            password=GIVEN["POSTGRES_PASSWORD"],
            dbname="ringrift",
        ).close()
