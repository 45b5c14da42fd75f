"""The clients of the fault suite, as a program: writers and pollers that keep a journal.

    python -m tests.faults.clients '{"target": "127.0.0.1:1", ...}'

It ends on SIGTERM, when every writer has an answer or has given up on what it had begun.
"""

import faulthandler
import signal
import sys
import threading
from collections.abc import Callable

from tests.faults.load import Client, Plan
from tests.faults.pollers import Poller
from tests.faults.writers import BatchWriter, StreamWriter, UnaryWriter


def main(argument: str) -> None:
    """Run the plan until SIGTERM; SIGABRT tells where every thread stands."""
    faulthandler.enable()
    plan = Plan.from_argument(argument)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.set())
    unary = [Client(plan, f"unary{number}", stopping) for number in range(plan.unary)]
    streams = [Client(plan, f"stream{number}", stopping) for number in range(plan.streams)]
    batches = [Client(plan, f"batch{number}", stopping) for number in range(plan.batches)]
    polling = [Client(plan, f"poll{number}", stopping) for number in range(plan.pollers)]
    runs: list[Callable[[], None]] = [
        *(UnaryWriter(client).run for client in unary),
        *(StreamWriter(client).run for client in streams),
        *(BatchWriter(client).run for client in batches),
        *(Poller(client, unary + streams + batches).run for client in polling),
    ]
    threads = [threading.Thread(target=run, daemon=True) for run in runs]
    for thread in threads:
        thread.start()
    sys.stdout.write("started\n")
    sys.stdout.flush()
    for thread in threads:
        # With a time: a signal that the kernel hands to another thread wakes nobody who joins, and
        # Python's handler runs in this thread alone.
        while thread.is_alive():
            thread.join(0.2)


if __name__ == "__main__":
    main(sys.argv[1])
