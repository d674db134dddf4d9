"""Groups writes that would wait for each other into one transaction (group commit).

A disk takes as long for sixteen small transactions as for sixteen large ones. Where many people
ask and are answered at the same time, each would wait for the disk sixteen times.
"""

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from feedback.db.database import Database, StoreError

WorkItem = tuple["Future[Any]", Callable[[], Any]]


class GroupCommit(Executor):
    """Runs work items in order on one thread; those that have come meanwhile share a transaction of
    ``database``. A future is done once what its work item has written is on the disk.

    A work item that raises is rolled back alone. When the transaction as a whole cannot be
    committed, all that share it are rolled back and get the error (see `Database.on_rollback`).
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._work_items: queue.SimpleQueue[WorkItem | None] = queue.SimpleQueue()
        self._accepting = True
        self._submit_lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="group-commit", daemon=True)
        self._thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """Queue a call of ``fn`` and return its future; after `shutdown` that has a StoreError."""
        future = Future[Any]()
        # The lock keeps work items from being queued behind the end marker, where none is run.
        with self._submit_lock:
            if self._accepting:
                self._work_items.put((future, lambda: fn(*args, **kwargs)))
                return future
        future.set_exception(StoreError("The server is stopping; nothing is kept any more."))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Run what has been submitted, then end the thread."""
        with self._submit_lock:
            self._accepting = False
            self._work_items.put(None)
        if wait:
            self._thread.join()

    def _run(self) -> None:
        running = True
        while running:
            items = [self._work_items.get()]
            while not self._work_items.empty():
                items.append(self._work_items.get())
            running = None not in items
            batch = [work for work in items if work and work[0].set_running_or_notify_cancel()]
            if batch:
                self._commit(batch)

    def _commit(self, items: list[WorkItem]) -> None:
        outcomes: list[tuple[Future[Any], Any, Exception | None]] = []
        try:
            with self._database.write():
                for future, work in items:
                    try:
                        outcomes.append((future, work(), None))
                    except Exception as error:  # it belongs to who submitted the work
                        outcomes.append((future, None, error))
        except Exception as failure:  # whatever it is, nobody must wait for ever
            outcomes = [(future, None, failure) for future, _ in items]
        for future, result, problem in outcomes:
            if problem is None:
                future.set_result(result)
            else:
                future.set_exception(problem)
