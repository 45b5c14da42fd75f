"""The clients of the fault suite, as a program: writers and pollers that keep a journal.

    python -m tests.faults.clients '{"target": "127.0.0.1:1", ...}'

It ends on SIGTERM, when every writer has an answer or has given up on what it had begun.
"""

import faulthandler
import signal
import sys
import threading
from collections.abc import Callable, Mapping

from tests.faults.load import Client, Plan
from tests.faults.pollers import Poller
from tests.faults.writers import BatchWriter, StreamWriter, UnaryWriter

_WRITERS: Mapping[str, type[UnaryWriter | StreamWriter | BatchWriter]] = {
    "unary": UnaryWriter,
    "stream": StreamWriter,
    "batch": BatchWriter,
}


def main(argument: str) -> int:
    """Run the plan until SIGTERM, or until a thread dies, which gives 1.

    SIGABRT tells where every thread stands.
    """
    faulthandler.enable()
    plan = Plan.from_argument(argument)
    stopping = threading.Event()
    dead: list[str] = []

    def die(args: threading.ExceptHookArgs) -> None:
        threading.__excepthook__(args)
        dead.append(str(args.thread))
        stopping.set()

    threading.excepthook = die
    signal.signal(signal.SIGTERM, lambda _number, _frame: stopping.set())
    writing = [Client(plan, name, stopping) for name in plan.writers]
    polling = [Client(plan, f"poll{number}", stopping) for number in range(plan.pollers)]
    runs: list[Callable[[], None]] = [
        *(_WRITERS[client.name.rstrip("0123456789")](client).run for client in writing),
        *(Poller(client, writing).run for client in polling),
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
    return int(bool(dead))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
