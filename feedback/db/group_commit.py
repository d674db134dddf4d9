"""Writes that wait for each other become one transaction.

A disk takes as long for sixteen small transactions as for sixteen large ones. Where many people
ask and are answered at the same time, each would wait for the disk sixteen times.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from feedback.db.database import Database, StoreError

Work = tuple["Future[Any]", Callable[[], Any]]


class Keeper(Executor):
    """Does works one after the other on one thread; those that have come meanwhile share a
    transaction of ``database``. A future is done once what its work has written is on the disk.

    A work that raises is undone alone. When the transaction as a whole cannot be kept, all that
    share it are undone and get the error (`Database.if_undone` tells those that must know).
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._works: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._open = True
        self._door = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="keeping", daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Have it done; after `shutdown` the future has a StoreError."""
        future = Future[Any]()
        with self._door:  # nothing is left behind the end
            if self._open:
                self._works.put((future, lambda: fn(*args, **kwargs)))
                return future
        future.set_exception(StoreError("The server is stopping; nothing is kept any more."))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do what has been submitted, then end."""
        with self._door:
            self._open = False
            self._works.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        open_ = True
        while open_:
            works = [self._works.get()]
            while not self._works.empty():
                works.append(self._works.get())
            open_ = None not in works
            wanted = [work for work in works if work and work[0].set_running_or_notify_cancel()]
            if wanted:
                self._keep(wanted)

    def _keep(self, works: list[Work]) -> None:
        told: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            with self._database.write():
                for future, work in works:
                    try:
                        told.append((future, work(), None))
                    except Exception as error:  # it belongs to who submitted the work
                        told.append((future, None, error))
        except Exception as whole:  # whatever it is, nobody must wait for ever
            told = [(future, None, whole) for future, _ in works]
        for future, result, problem in told:
            if problem is None:
                future.set_result(result)
            else:
                future.set_exception(problem)
