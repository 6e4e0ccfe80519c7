"""Measure how fast this machine reads memory: 2 GiB that no cache holds, by several threads at once, the best of some.

    python bandwidth.py THREADS        # GB/s (1e9 bytes a second)

A limit is wanted, so the best of two ways to read and of all repetitions counts. NumPy only.
"""

import os
import sys
import threading
import time

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import numpy as np

BYTES = 2 << 30
REPEATS = 6


def read(threads: int) -> float:
    """Return GB/s."""
    parts = np.array_split(np.ones(BYTES // 4, np.float32), threads)
    best = 0.0
    for way in (lambda part: np.dot(part, part), lambda part: np.bitwise_or.reduce(part.view(np.int32))):
        for _ in range(REPEATS):
            running = [threading.Thread(target=way, args=(part,)) for part in parts]
            begun = time.perf_counter()
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            best = max(best, BYTES / (time.perf_counter() - begun) / 1e9)
    return best


if __name__ == "__main__":
    print(read(int(sys.argv[1])))
