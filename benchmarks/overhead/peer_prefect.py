"""Prefect alone: one task a node, results persisted and cached by inputs, on a server that already runs."""

import os
import time

from chain import Pixels, arguments, report, source, step

count, folder = arguments()
os.environ["PREFECT_LOCAL_STORAGE_PATH"] = str(folder)
os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"

from prefect import flow, task
from prefect.cache_policies import INPUTS


@task(persist_result=True, cache_policy=INPUTS)
def one(image: Pixels, index: int) -> Pixels:
    return step(image, index)


@flow
def chain(count: int) -> Pixels:
    image = source()
    for index in range(count):
        image = one(image, index)
    return image


started = time.perf_counter()
found = chain(count)
report(time.perf_counter() - started, found)
