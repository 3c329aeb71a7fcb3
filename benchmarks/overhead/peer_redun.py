"""redun: tasks recorded in SQLite, keyed by contents."""

import logging
import time

from chain import Pixels, arguments, report, source, step
from redun import Scheduler, task
from redun.config import Config

redun_namespace = "peer"
logging.disable(logging.CRITICAL)


@task()
def first() -> Pixels:
    return source()


@task()
def one(image: Pixels, index: int) -> Pixels:
    return step(image, index)


@task()
def chain(count: int) -> Pixels:
    image = first()
    for index in range(count):
        image = one(image, index)
    return image


wanted, folder = arguments()
folder.mkdir(parents=True, exist_ok=True)
started = time.perf_counter()
scheduler = Scheduler(config=Config({"backend": {"db_uri": f"sqlite:///{folder}/redun.db"}}))
scheduler.load()
found = scheduler.run(chain(wanted))
report(time.perf_counter() - started, found)
