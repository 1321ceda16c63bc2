"""The same hazards against `uow` and its peers: `make hazards`, or `python -m benchmarks.hazards`.

Each peer is wired as its own documentation says; `peers/` has one app for each, and where its wiring is
from. The handlers are the same for all (`app/handlers.py`), and get their session as the peer gives it. The
apps are `uvicorn` processes. A hazard gets a fresh process and a fresh database, on PostgreSQL unless it says
SQLite; the next one may use them too, with empty tables, if this one was held and the process lives.
What is in the database is looked at through a second connection, once the request is over.

COMMIT is held open from outside where a hazard needs it: on PostgreSQL by a deferred trigger that waits for
a lock, on SQLite by a hook of the driver that waits for a file. The pool is SQLAlchemy's own, with its
defaults, unless a hazard needs a small one.
"""
