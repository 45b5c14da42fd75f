"""The same job as most would build it: FastAPI, SQLAlchemy's ORM, Celery on Redis.

It runs in a virtual environment of its own (requirements/bench.txt). Settings are sensible: sync
endpoints in FastAPI's threads, a connection pool, uvloop, prefork workers, late acknowledgement,
no results kept. It checks the token and the payload, commits before it answers, and each event is
processed by a task of its own.
"""
