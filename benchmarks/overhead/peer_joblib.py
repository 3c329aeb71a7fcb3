"""joblib.Memory: keyed by arguments, one function."""

import time

from chain import arguments, report, source, step
from joblib import Memory

count, folder = arguments()
cached = Memory(folder, verbose=0).cache(step)
started = time.perf_counter()
image = source()
for index in range(count):
    image = cached(image, index)
report(time.perf_counter() - started, image)
