# SPDX-License-Identifier: Apache-2.0
"""Run nginx.conf before a real ``vllm serve`` and see what comes through.

    python examples/deploy/check.py

Needs ``nginx`` and ``openssl`` on PATH, and no privileges. Prints a line for every
property and exits with 1 if one does not hold.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import requests
import urllib3

MODEL = "lladav-tiny"
KEY = "check"
CONF = Path(__file__).with_name("nginx.conf")
START_SECONDS = 240

urllib3.disable_warnings()  # The certificate is made here.


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):
            if holds():
                return True
        time.sleep(0.2)
    return False


@contextmanager
def engine(port: int, log: Path) -> Iterator[None]:
    """A healthy ``vllm serve``, stopped at the end."""
    vllm = Path(sys.executable).with_name("vllm")
    command = [str(vllm), "serve", "--model", MODEL, "--api-key", KEY]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("a") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        url = f"http://127.0.0.1:{port}/health"
        if not wait_until(lambda: requests.get(url, timeout=5).ok, START_SECONDS):
            raise RuntimeError(f"vllm serve did not start:\n{log.read_text()[-3000:]}")
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def proxy(port: int, engine_port: int, folder: Path) -> Iterator[None]:
    """nginx with the example's configuration, at other ports and paths."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
        + ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    text = CONF.read_text()
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    for pattern, ours in (
        (r"listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        (r"127\.0\.0\.1:8000", f"127.0.0.1:{engine_port}"),
        (r"/etc/nginx/\S+\.pem", str(certificate)),
        (r"/etc/nginx/\S+\.key", str(key)),
        (r"http \{", f"http {{ access_log off; {temporary}"),
    ):
        text, count = re.subn(pattern, ours, text)
        assert count == 1, pattern
    conf = folder / "nginx.conf"
    conf.write_text(f"daemon off; pid {folder}/nginx.pid;\n{text}")
    process = subprocess.Popen(
        ["nginx", "-p", str(folder), "-c", str(conf), "-e", str(folder / "error.log")]
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGQUIT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


class Client:
    """Requests through the proxy; the engine is seen beside it."""

    def __init__(self, port: int, engine_port: int) -> None:
        self.url = f"https://127.0.0.1:{port}"
        self.engine_url = f"http://127.0.0.1:{engine_port}"

    def get(self, path: str) -> requests.Response:
        headers = {"Authorization": f"Bearer {KEY}"}
        return requests.get(self.url + path, headers=headers, verify=False, timeout=30)

    def ask(self, text: str = "Hello", key: str = KEY, **fields: Any) -> Any:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": 32,
            "vllm_xargs": {"block_length": 32},
            "ignore_eos": True,
            **fields,
        }
        return requests.post(
            f"{self.url}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {key}"},
            stream=fields.get("stream", False),
            verify=False,
            timeout=300,
        )

    def metric(self, pattern: str) -> float:
        """The sum of the engine's metrics whose name and labels match."""
        text = requests.get(f"{self.engine_url}/metrics", timeout=10).text
        found = re.findall(rf"^{pattern} (\S+)$", text, re.M)
        return sum(map(float, found))


def status_is(response: requests.Response, *expected: int) -> tuple[bool, str]:
    return response.status_code in expected, f"HTTP {response.status_code}"


def answers(client: Client) -> tuple[bool, str]:
    return status_is(client.ask(), 200)


def needs_the_key(client: Client) -> tuple[bool, str]:
    return status_is(client.ask(key="wrong"), 401)


def denies_routes(client: Client) -> tuple[bool, str]:
    paths = (
        "/metrics",
        "/docs",
        "/openapi.json",
        "/tokenize",
        "/inference/v1/generate",
    )
    found = {path: client.get(path).status_code for path in paths}
    return set(found.values()) == {404}, str(found)


def refuses_a_large_body(client: Client) -> tuple[bool, str]:
    return status_is(client.ask("x" * (33 << 20)), 413)


def streams(client: Client) -> tuple[bool, str]:
    start = time.monotonic()
    with client.ask(max_tokens=256, stream=True) as response:
        times = [
            time.monotonic() - start
            for line in response.iter_lines()
            if line.startswith(b"data: {")
        ]
    first, last = times[0], times[-1]
    found = f"{len(times)} pieces, the first after {first:.2f} s, the last {last:.2f} s"
    return len(times) >= 8 and times[len(times) // 2] < 0.8 * last, found


def is_left(client: Client) -> tuple[bool, str]:
    """A client that goes away ends its request in the engine."""
    done = r'vllm:request_success_total\{.*finished_reason="(?:stop|length)".*\}'
    running = r"vllm:num_requests_running\{.*\}"
    before = client.metric(done)
    response = client.ask(max_tokens=1024, stream=True)
    ran = wait_until(lambda: client.metric(running) == 1, 10)
    start = time.monotonic()
    response.close()
    ended = wait_until(lambda: client.metric(running) == 0, 30)
    seconds = time.monotonic() - start
    count = client.metric(done) - before
    found = f"running {ran}, gone after {seconds:.1f} s, {count:.0f} done"
    return ran and ended and count == 0, found


def limits_rates(client: Client) -> tuple[bool, str]:
    found = [client.get("/v1/models") for _ in range(60)]
    codes = {code: 0 for code in sorted({each.status_code for each in found})}
    for each in found:
        codes[each.status_code] += 1
    waits = {each.headers.get("Retry-After") for each in found if not each.ok}
    return set(codes) == {200, 429} and waits == {"1"}, f"{codes}, Retry-After {waits}"


def says_that_it_is_down(client: Client) -> tuple[bool, str]:
    response = client.ask()
    wait = response.headers.get("Retry-After")
    is_right, found = status_is(response, 503)
    return is_right and wait is not None, f"{found}, Retry-After {wait}"


UP = (
    answers,
    needs_the_key,
    denies_routes,
    refuses_a_large_body,
    streams,
    is_left,
    limits_rates,
)


def main() -> int:
    for program in ("nginx", "openssl"):
        if shutil.which(program) is None:
            print(f"{program} is not on PATH")
            return 1
    failed = 0

    def check(look: Callable[[Client], tuple[bool, str]]) -> None:
        nonlocal failed
        holds, found = look(client)
        failed += not holds
        print(f"{'ok  ' if holds else 'FAIL'} {look.__name__}: {found}", flush=True)

    port, engine_port = free_port(), free_port()
    client = Client(port, engine_port)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = folder / "engine.log"
        with proxy(port, engine_port, folder):
            with engine(engine_port, log):
                for look in UP:
                    check(look)
            check(says_that_it_is_down)
            with engine(engine_port, log):
                check(answers)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
