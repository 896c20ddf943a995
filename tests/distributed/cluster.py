"""Redis, PostgreSQL and Celery's workers as real processes on this machine, for tests and benchmarks.

The servers are Debian's (``redis-server``, ``postgresql``), on free ports, with passwords, in folders
of their own; the bucket is moto's server, where moto is installed. Where the machine allows it every
worker is in a network namespace of its own, from which it reaches nothing but the servers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
INSTANCE_FILE = ROOT / "deploy" / "celery" / "dagster.yaml"
APP = "ringrift_pipeline.orchestration.celery_app"
UNPRIVILEGED = "postgres"  # Debian's package brings the user; PostgreSQL does not run as root


def missing() -> str | None:
    """What these need and this machine lacks, as the reason to skip; None if nothing."""
    for module in ("dagster_celery", "dagster_postgres", "redis"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: pip install 'ringrift-pipeline[celery]'"
    if shutil.which("redis-server") is None:
        return "no redis-server here: apt install redis-server"
    if _postgres_programs() is None:
        return "no PostgreSQL here: apt install postgresql"
    return None


def _postgres_programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts[4])
    if found:
        return found[-1].parent
    path = shutil.which("initdb")
    return Path(path).resolve().parent if path else None


def has_buckets() -> bool:
    """Can what lands be kept in a bucket here?"""
    needed = ("ringrift_pipeline.store.bucket", "s3fs", "moto.server")
    try:
        return all(importlib.util.find_spec(module) is not None for module in needed)
    except ModuleNotFoundError:
        return False


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(
    process: subprocess.Popen[bytes], number: int = signal.SIGTERM, patience: float = 20.0
) -> None:
    """End a process, then whatever is left of its group."""
    if process.poll() is None:
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def _paused(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """A server, with all its processes, that takes connections and does not answer."""
    process.send_signal(signal.SIGSTOP)  # first: it begins no others
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    everyone = [*map(int, children), process.pid]
    for pid in everyone:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in everyone:
            os.kill(pid, signal.SIGCONT)


class Server:
    """One that can be started again."""

    _process: subprocess.Popen[bytes]

    def start(self) -> None:
        raise NotImplementedError

    @property
    def is_down(self) -> bool:
        return self._process.poll() is not None


class Redis(Server):
    """``redis-server`` that keeps what it was told across restarts."""

    def __init__(self, folder: Path, hosts: list[str]) -> None:
        self.port, self.password, self._hosts = free_port(), secrets.token_hex(8), hosts
        self._folder = folder
        folder.mkdir(parents=True)
        self.start()

    def url(self, host: str) -> str:
        return f"redis://:{self.password}@{host}:{self.port}/0"

    def start(self) -> None:
        place = ["--port", str(self.port), "--bind", *self._hosts, "--dir", str(self._folder)]
        keep = ["--appendonly", "yes", "--save", "", "--requirepass", self.password]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                ["redis-server", *place, *keep], stdout=log, stderr=log, start_new_session=True
            )
        until(self.answers, "Redis answers")

    def answers(self) -> bool:
        import redis

        with contextlib.suppress(redis.RedisError):
            return bool(self.client().ping())
        return False

    def client(self) -> Any:
        """Somebody who asks it from this machine."""
        import redis

        return redis.Redis("127.0.0.1", self.port, password=self.password)

    def stop(self) -> None:
        _end(self._process)

    def kill(self) -> None:
        _end(self._process, signal.SIGKILL)

    def paused(self) -> contextlib.AbstractContextManager[None]:
        return _paused(self._process)


class Postgres(Server):
    """``postgres`` on a fresh cluster of databases, with one database ``dagster``."""

    def __init__(self, folder: Path, hosts: list[str], network: str) -> None:
        programs = _postgres_programs()
        assert programs is not None
        self._programs, self._hosts = programs, hosts
        self.port, self.password = free_port(), secrets.token_hex(8)
        self.folder = folder
        folder.mkdir(parents=True)
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._as = {"user": UNPRIVILEGED, "group": UNPRIVILEGED, "extra_groups": []}
            shutil.chown(folder, UNPRIVILEGED, UNPRIVILEGED)
        (folder / "password").write_text(self.password)
        (folder / "password").chmod(0o644)
        initdb = [
            programs / "initdb",
            "-D",
            folder / "data",
            "-U",
            "dagster",
            "-A",
            "scram-sha-256",
        ]
        initdb += ["--pwfile", folder / "password", "-E", "UTF8", "--locale", "C", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **self._as)
        if network:
            with open(folder / "data" / "pg_hba.conf", "a") as rules:
                rules.write(f"host all all {network} scram-sha-256\n")
        self.start()
        with contextlib.closing(self.connect()) as connection:
            connection.autocommit = True
            connection.cursor().execute("CREATE DATABASE dagster")

    def connect(self, database: str = "postgres") -> Any:
        import psycopg2

        return psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user="dagster",
            password=self.password,
            dbname=database,
        )

    def start(self) -> None:
        settings = {
            "port": self.port,
            "listen_addresses": ",".join(self._hosts),
            "unix_socket_directories": "",
            "max_connections": 200,
            "shared_buffers": "64MB",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(self._programs / "postgres"), "-D", str(self.folder / "data"), *options]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True, **self._as
            )
        until(self.answers, "PostgreSQL answers")

    def answers(self) -> bool:
        import psycopg2

        assert self._process.poll() is None, (self.folder / "log").read_text()
        with contextlib.suppress(psycopg2.Error):
            self.connect().close()
            return True
        return False

    def stop(self) -> None:
        """As an upgrade does it: what is being asked is not waited for."""
        _end(self._process, signal.SIGINT)

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """To new connections, and on those that it has."""
        return _paused(self._process)

    def environment(self, host: str) -> dict[str, str]:
        names = {
            "HOST": host,
            "PORT": str(self.port),
            "USER": "dagster",
            "PASSWORD": self.password,
            "DB": "dagster",
        }
        return {f"RINGRIFT_POSTGRES_{name}": value for name, value in names.items()}


class Bucket:
    """moto's server on all addresses, with one bucket in its memory; refuses when it is told to."""

    url = "s3://ringrift/tests"

    def __init__(self, folder: Path) -> None:
        import urllib.request

        self.port = free_port()
        folder.mkdir(parents=True)
        self._refusing = folder / "refusing"
        command = [sys.executable, "-m", "tests.s3_server", "0.0.0.0", str(self.port)]
        with open(folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*command, str(self._refusing)],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                start_new_session=True,
            )
        make = urllib.request.Request(f"http://127.0.0.1:{self.port}/ringrift", method="PUT")

        def made() -> bool:
            with contextlib.suppress(OSError):
                return bool(urllib.request.urlopen(make, timeout=5.0).status == 200)
            return False

        until(made, "the bucket is there")

    def refuse(self, writes: bool) -> None:
        """Refuse to be written to (503, SlowDown), or take what comes again."""
        self._refusing.touch() if writes else self._refusing.unlink()

    def environment(self, host: str) -> dict[str, str]:
        return {
            "RINGRIFT_BUCKET": self.url,
            "AWS_ENDPOINT_URL": f"http://{host}:{self.port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def stop(self) -> None:
        _end(self._process)


class Network:
    """A bridge on this machine, and a namespace for every worker on it.

    Whoever is in a namespace reaches the machine's address on the bridge, and nothing else: there is no
    route out of it, and no namespace reaches another one.
    """

    def __init__(self, part: int) -> None:
        """Raises CalledProcessError if the network of that number is somebody else's."""
        self._name = f"ringrift{part}"
        self.host, self.range = f"10.213.{part}.1", f"10.213.{part}.0/24"
        self._next = 2
        self._spaces: list[str] = []
        self._ip("link", "add", self._name, "type", "bridge")
        try:
            self._ip("address", "add", f"{self.host}/24", "dev", self._name)
            self._ip("link", "set", self._name, "up")
        except BaseException:
            self.close()
            raise

    @staticmethod
    def refusal() -> str | None:
        """Why there can be none here: no root, no iproute2, or what the kernel says; None if nothing."""
        if os.geteuid() != 0:
            return "not root"
        if shutil.which("ip") is None:
            return "no ip here: apt install iproute2"
        name = f"ringp{os.getpid()}"
        try:
            for words in (["link", "add", name, "type", "bridge"], ["netns", "add", name]):
                tried = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
                if tried.returncode:
                    return f"ip {' '.join(words)}: {tried.stderr.strip()}"
            return None
        finally:
            for words in (["link", "del", name], ["netns", "del", name]):
                subprocess.run(["ip", *words], capture_output=True, check=False)

    @classmethod
    def of_this_machine(cls) -> Network | None:
        """None where there can be none, which is told in a warning."""
        why = cls.refusal()
        for part in range(16, 32) if why is None else ():
            try:
                network = cls(part)
                try:
                    network.namespace()
                    return network
                except BaseException:
                    network.close()
                    raise
            except OSError as error:
                why = str(error)
            except subprocess.CalledProcessError as error:
                why = f"{error}: {error.stderr.decode().strip()}"
        warnings.warn(f"workers have no networks of their own here: {why}", stacklevel=2)
        return None

    def _ip(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def namespace(self) -> str:
        """A new one, with an address."""
        number, self._next = self._next, self._next + 1
        space, outside, inside = f"{self._name}-{number}", f"{self._name}v{number}", f"v{number}"
        self._ip("netns", "add", space)
        self._spaces.append(space)
        self._ip("link", "add", outside, "type", "veth", "peer", "name", inside, "netns", space)
        self._ip("link", "set", outside, "master", self._name)
        # Ports that are isolated from each other: the workers share no network either.
        self._ip("link", "set", outside, "type", "bridge_slave", "isolated", "on")
        self._ip("link", "set", outside, "up")
        address = self.host.removesuffix("1") + str(number)
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{address}/24", "dev", inside),
            ("link", "set", inside, "up"),
        ):
            self._ip("-n", space, *words)
        return space

    def close(self) -> None:
        for space in self._spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._name], capture_output=True, check=False)


class Worker:
    """``celery worker`` on some queues, in a session of its own, with a data root of its own.

    Args:
        namespace: of the network, None for this machine's.
        variables: more of its environment.
    """

    def __init__(
        self,
        name: str,
        queues: str,
        data: Path,
        log: Path,
        namespace: str | None,
        variables: dict[str, str],
        slots: int = 1,
        app: str = APP,
    ) -> None:
        self.name, self.data, self.log = name, data, log
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-Q", queues]
        command += ["--concurrency", str(slots), "-n", f"{name}@%h", "--loglevel", "INFO"]
        if namespace is not None:
            # In a shell, so that the session's leader is whom signals are for.
            command = ["ip", "netns", "exec", namespace, *command]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "RINGRIFT_DATA": str(data),
            **variables,
        }
        environment.pop("DAGSTER_HOME", None)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                cwd=ROOT,
                start_new_session=True,
            )

    def says(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def is_ready(self) -> bool:
        assert self.process.poll() is None, f"worker {self.name} ended:\n{self.says()[-3000:]}"
        return " ready." in self.says()

    def kill(self) -> None:
        """As a power failure does it: all processes at once, and no word to anybody."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        _end(self.process)


class Cluster:
    """Redis, PostgreSQL, a data root for the daemon, and workers as they are asked for."""

    def __init__(self, separate: bool = True) -> None:
        # Not below the folder of the test run, which only its owner may enter.
        self.folder = Path(tempfile.mkdtemp(prefix="ringrift-cluster-"))
        self.folder.chmod(0o755)
        self.data = self.folder / "daemon"
        self.stack = contextlib.ExitStack()
        self.workers: list[Worker] = []
        try:
            self.stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.network = Network.of_this_machine() if separate else None
            hosts, where = ["127.0.0.1"], ""
            if self.network is not None:
                self.stack.callback(self.network.close)
                hosts, where = [*hosts, self.network.host], self.network.range
            self.redis = Redis(self.folder / "redis", hosts)
            self.stack.callback(self.redis.kill)
            self.postgres = Postgres(self.folder / "postgres", hosts, where)
            self.stack.callback(self.postgres.stop)
            self.bucket = Bucket(self.folder / "bucket") if has_buckets() else None
            if self.bucket is not None:
                self.stack.callback(self.bucket.stop)
            self.stack.callback(self.stop_workers)
        except BaseException:
            self.close()
            raise

    def environment(self, host: str = "127.0.0.1") -> dict[str, str]:
        """What everybody who works here needs to know."""
        return {
            "RINGRIFT_EXECUTOR": "celery",
            "RINGRIFT_CELERY_BROKER": self.redis.url(host),
            **self.postgres.environment(host),
            **(self.bucket.environment(host) if self.bucket is not None else {}),
        }

    def prepare(self, data: Path) -> Path:
        """The daemon's data root with the instance file that people are given."""
        home = data / "dagster"
        home.mkdir(parents=True, exist_ok=True)
        shutil.copy(INSTANCE_FILE, home / "dagster.yaml")
        return data

    def root(self, name: str) -> Path:
        """The data root of a worker: empty and its own where there is a bucket, else the daemon's."""
        if self.bucket is None:
            return self.data
        root = self.folder / "roots" / name
        root.mkdir(parents=True)
        return root

    def worker(
        self,
        name: str,
        queues: str,
        data: Path,
        slots: int = 1,
        app: str = APP,
        **variables: str,
    ) -> Worker:
        """A worker, started; `ready` waits for it."""
        namespace = self.network.namespace() if self.network is not None else None
        host = self.network.host if self.network is not None else "127.0.0.1"
        started = Worker(
            name,
            queues,
            data,
            self.folder / "logs" / f"{name}.log",
            namespace,
            {**self.environment(host), **variables},
            slots,
            app,
        )
        self.workers.append(started)
        return started

    def ready(self) -> None:
        """Wait until all workers that run take steps."""
        for worker in self.workers:
            if worker.process.poll() is None:
                until(worker.is_ready, f"worker {worker.name} is ready")

    def tidy_up(self) -> None:
        """No workers, and no server that is down, as a test leaves it that failed before it started it."""
        try:
            for server in (self.redis, self.postgres):
                if server.is_down:
                    server.start()
        finally:
            self.stop_workers()

    def stop_workers(self) -> None:
        for worker in self.workers:
            worker.stop()
        self.workers.clear()

    def close(self) -> None:
        self.stack.close()


@contextlib.contextmanager
def cluster(separate: bool = True) -> Iterator[Cluster]:
    """A cluster, ended with all that runs in it."""
    made = Cluster(separate)
    try:
        yield made
    finally:
        made.close()
