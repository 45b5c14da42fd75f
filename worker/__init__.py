"""The worker: Dramatiq actors that process committed events; knows neither gRPC nor the stubs.

Importing this package does nothing, with one exception: Dramatiq's own command line takes the
broker from the package that it is pointed at, so `dramatiq worker` sets it up here.
"""

import sys

if "dramatiq.cli" in sys.modules:
    from eventstore.settings import SettingsError
    from worker.broker import set_up

    try:
        set_up()
    except SettingsError as error:
        sys.exit(str(error))
