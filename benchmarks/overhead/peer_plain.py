"""Plain Python, which keeps nothing: the least that the work itself costs."""

import time

from chain import arguments, report, source, step

count, _ = arguments()
started = time.perf_counter()
image = source()
for index in range(count):
    image = step(image, index)
report(time.perf_counter() - started, image)
