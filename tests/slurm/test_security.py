"""Who may talk to a campaign on a cluster: nobody without the certificate of the run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys

import psutil
import pytest
from campaign import Campaign, processes_of_job
from distributed import Security

pytestmark = pytest.mark.cluster

# Run as another user: it may read nothing, and the servers want a certificate.
STRANGER = """
import json, socket, ssl, sys
answers = {}
for path in sys.argv[2:]:
    try:
        open(path).read()
        answers[path] = "readable"
    except OSError as error:
        answers[path] = type(error).__name__
for ip, port in json.loads(sys.argv[1]):
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((ip, port), timeout=5) as plain:
            with context.wrap_socket(plain) as secure:
                secure.recv(1)
        answers[f"{ip}:{port}"] = "let in"
    except OSError as error:
        answers[f"{ip}:{port}"] = str(error)
print(json.dumps(answers))
"""


@pytest.fixture
def running(slurm, tmp_path):
    """A campaign at work on two worker jobs, with its dashboard."""
    one = Campaign(tmp_path, script={"*": ["sleep 5!"]}, more=("--dashboard",))
    process = one.start()
    one.wait_for(2)
    yield one, process
    os.killpg(process.pid, signal.SIGTERM)
    assert one.finish(process).code == 143
    assert not (one.workdir / "session").exists()


@pytest.fixture
def listening(running):
    """Every listening socket of the campaign, and whose it is."""
    one, process = running
    processes = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for job in one.worker_jobs():
        processes += processes_of_job(job)
    found = {}
    for single in {process.pid: process for process in processes}.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in single.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[(connection.laddr.ip, connection.laddr.port)] = " ".join(single.cmdline())
    return found


def _answer(address, *, certificate=None, key=None):
    """What a server says to a client that begins with TLS."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    try:
        with (
            socket.create_connection(address, timeout=3) as plain,
            context.wrap_socket(plain) as secure,
        ):
            secure.recv(1)  # with TLS 1.3 a refusal comes only now
    except TimeoutError:
        return "waits"
    except ssl.SSLError as error:
        return str(error)
    except ConnectionResetError:
        return "reset"
    return "let in"


def _is_page(address):
    """Whether it is a page over HTTP."""
    with socket.create_connection(address, timeout=3) as plain:
        plain.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        with contextlib.suppress(OSError):
            return plain.recv(5) == b"HTTP/"
    return False


def _reachable(ip):
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(ip, ip)


def test_nobody_gets_in_without_the_certificate(running, listening, tmp_path):
    one, _ = running
    comms = _account_for_sockets(listening)
    _ask_with_wrong_certificates(comms, one.workdir / "session", tmp_path)
    _key_is_for_its_owner_alone(one.workdir / "session")
    if os.getuid() == 0 and shutil.which("setpriv") and (python := _public_python()):
        _another_user_gets_nowhere(python, comms, one.workdir / "session")
    else:
        pytest.skip("the rest: only root, with a Python that all may run, can be somebody else")


def _account_for_sockets(listening):
    pages, comms = [], []
    for (ip, port), who in listening.items():
        address = _reachable(ip), port
        (pages if _is_page(address) else comms).append((ip, port, who))
    # Scheduler; two nannies and two workers.
    assert len({port for _, port, _ in comms}) == 5, comms
    # Nobody from outside the node sees a page.
    assert len(pages) == 3, pages
    assert {ip for ip, _, _ in pages} == {"127.0.0.1"}
    return [(_reachable(ip), port) for ip, port, _ in comms]


def _ask_with_wrong_certificates(comms, session, tmp_path):
    other = Security.temporary().get_tls_config_for_role("client")
    for name in ("cert", "key"):
        (tmp_path / name).write_text(other[name])
    own = {"certificate": session / "certificate.pem", "key": session / "key.pem"}
    for address in comms:
        assert "CERTIFICATE_REQUIRED" in _answer(address)
        strange = _answer(address, certificate=tmp_path / "cert", key=tmp_path / "key")
        assert "UNKNOWN_CA" in strange or "DECRYPT_ERROR" in strange, strange
        # The control: the same question with the right certificate is heard.
        assert _answer(address, **own) in ("waits", "let in")


def _key_is_for_its_owner_alone(session):
    assert stat.S_IMODE(session.stat().st_mode) == 0o700
    files = [path for path in session.iterdir() if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE((session / "scratch").stat().st_mode) == 0o700
    # Nor does it stand on a command line.
    key = (session / "key.pem").read_text().splitlines()[3]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert key not in " ".join(process.cmdline())


def _another_user_gets_nowhere(python, comms, session):
    paths = [session / name for name in ("key.pem", "certificate.pem", "session.json")]
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/env", "-i", python, "-c",
         STRANGER, json.dumps(comms), *map(str, paths)],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    answers = json.loads(done.stdout)
    assert [answers.pop(str(path)) for path in paths] == ["PermissionError"] * 3
    assert len(answers) == len(comms)
    assert all("CERTIFICATE_REQUIRED" in answer for answer in answers.values()), answers


def _public_python():
    """A Python that every user may run; the one of the tests may lie in root's home."""
    for name in ("/usr/bin/python3", "/usr/local/bin/python3", sys.executable):
        probe = ["setpriv", "--reuid=65534", "--clear-groups", name, "-c", "import ssl"]
        with contextlib.suppress(OSError):
            if subprocess.run(probe, capture_output=True, check=False, cwd="/").returncode == 0:
                return name
    return None
