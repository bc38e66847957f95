"""What the command does to its own process."""

import ctypes
import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, tempfile, threading
from activefreq_engine.serve.command import _share_heaps

def heaps():
    c = ctypes.CDLL(None)
    c.fopen.restype = ctypes.c_void_p
    with tempfile.NamedTemporaryFile() as told:
        file = ctypes.c_void_p(c.fopen(told.name.encode(), b"w"))
        c.malloc_info(0, file)
        c.fclose(file)
        return told.read().count(b"<heap nr=")

def threads():
    together = threading.Barrier(12)
    def work():
        together.wait(60)
        ctypes.CDLL(None).malloc(5000)
        together.wait(60)
    all_ = [threading.Thread(target=work) for _ in range(12)]
    for t in all_:
        t.start()
    for t in all_:
        t.join(60)

_share_heaps()
threads()
print(heaps())
"""


def heaps(**environment: str) -> int:
    env = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"} | environment
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has a heap for each thread"
)
def test_threads_share_two_heaps_unless_the_environment_says_otherwise() -> None:
    assert heaps() <= 2
    assert heaps(MALLOC_ARENA_MAX="4") == 4
