"""Who may connect to the workers of a run on this machine."""

from __future__ import annotations

import os
import socket
import ssl
from urllib.parse import urlsplit

import psutil
import pytest

from calibdask.engine.cluster import open_executor
from calibdask.errors import ConfigError, TransientError

pytestmark = pytest.mark.cluster


def _ports_of_this_run() -> set[tuple[str, int]]:
    me = psutil.Process()
    processes = [me, *me.children(recursive=True)]
    sockets = [one for process in processes for one in process.net_connections(kind="inet")]
    listening = [one for one in sockets if one.status == psutil.CONN_LISTEN]
    return {(one.laddr.ip, one.laddr.port) for one in listening}


def test_every_port_is_local_and_dask_asks_for_a_certificate() -> None:
    before = _ports_of_this_run()
    with open_executor("local", workers=1) as (executor, dashboard):
        assert executor.workers == 1
        assert dashboard is not None
        opened = _ports_of_this_run() - before
        assert {ip for ip, _ in opened} == {"127.0.0.1"}

        strangers = ssl.create_default_context()
        strangers.check_hostname = False
        strangers.verify_mode = ssl.CERT_NONE
        refused = 0
        for ip, port in opened:
            with socket.create_connection((ip, port), timeout=2) as plain:
                try:
                    with strangers.wrap_socket(plain) as secure:
                        secure.recv(1)  # TLS 1.3 tells of the missing certificate only now
                except TimeoutError:
                    continue  # a page over HTTP waits for the end of a request
                except ssl.SSLError as error:
                    refused += "CERTIFICATE_REQUIRED" in str(error)
        # Scheduler, worker and nanny refuse; what is left are pages that only tell.
        assert refused == 3
        assert urlsplit(dashboard).hostname == "127.0.0.1"


def test_words_that_are_no_cluster() -> None:
    with pytest.raises(ConfigError, match="neither serial, threads, local"), open_executor("lcoal"):
        pass


def test_a_scheduler_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    # Long enough for Dask to give up: it tries for the time that cluster.py allows.
    with (
        pytest.raises(TransientError, match="no Dask scheduler answers"),
        open_executor(f"tcp://{address}"),
    ):
        pass


def test_threads_of_blas_are_one_on_workers() -> None:
    with open_executor("local", workers=1) as (executor, _):
        client = executor._client
        assert client.run(os.environ.get, "OPENBLAS_NUM_THREADS") == dict.fromkeys(
            client.scheduler_info(n_workers=-1)["workers"], "1"
        )


def test_dasks_own_report(tmp_path) -> None:
    page = tmp_path / "performance.html"
    with open_executor("local", workers=1, performance_report=page, dashboard=False) as (_, link):
        assert link is None
    assert "<html" in page.read_text(encoding="utf-8")
