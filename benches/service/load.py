"""`steadfast serve` and onnxruntime in Python under the same load of apache2-utils' `ab`, in turns.

    python benches/service/load.py BINARY BUNDLE IMAGE [--seconds 20] [--rounds 3] [--clients 32]

Needs ab, and for the other side onnxruntime, pillow, starlette and uvicorn. The bundle is one of `export --format onnx` with frames
of the image's size. Prints, for each round and side: answers per second, p50 and p99 in milliseconds, answers that were no 200, and
the memory of the server before and after in MiB.
"""

import argparse
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("binary")
parser.add_argument("bundle")
parser.add_argument("image")
parser.add_argument("--seconds", type=int, default=20)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--clients", type=int, default=32)
parser.add_argument("--alone", action="store_true", help="steadfast only")
arguments = parser.parse_args()
HERE = Path(__file__).parent
PORTS = {"steadfast": 8101, "onnxruntime": 8102}
COMMANDS = {
    "steadfast": [arguments.binary, "serve", arguments.bundle, "--listen", f"127.0.0.1:{PORTS['steadfast']}", "--device", "cpu"],
    "onnxruntime": [sys.executable, HERE / "onnxruntime_server.py", arguments.bundle, str(PORTS["onnxruntime"])],
}


def memory(server):
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def load(port, seconds):
    said = subprocess.run(
        ["ab", "-k", "-q", "-l", "-c", str(arguments.clients), "-t", str(seconds), "-n", "100000000", "-s", "30", "-p", arguments.image]
        + ["-T", "image/png", f"http://127.0.0.1:{port}/v1/inspect"],
        capture_output=True, text=True, check=True,
    ).stdout
    find = lambda pattern: (re.search(pattern, said) or [0, "0"])[1]
    failed = int(find(r"Failed requests:\s+(\d+)")) + int(find(r"Non-2xx responses:\s+(\d+)"))
    return float(find(r"Requests per second:\s+([\d.]+)")), find(r"\b50%\s+(\d+)"), find(r"\b99%\s+(\d+)"), failed, find(r"Complete requests:\s+(\d+)")


sides = ["steadfast"] if arguments.alone else list(PORTS)
for number in range(arguments.rounds):
    for side in sides:
        server = subprocess.Popen(COMMANDS[side], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            body = Path(arguments.image).read_bytes()
            for _ in range(200):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{PORTS[side]}/v1/inspect", body).read()
                    break
                except OSError:
                    time.sleep(0.1)
            load(PORTS[side], 3)
            before = memory(server)
            rate, p50, p99, failed, complete = load(PORTS[side], arguments.seconds)
            print(f"{number + 1} {side:12} {rate:8.0f}/s  p50 {p50:>4} ms  p99 {p99:>4} ms  {failed} failed of {complete}  {before:.0f} to {memory(server):.0f} MiB", flush=True)
        finally:
            server.terminate()
            server.wait()
