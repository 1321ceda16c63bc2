"""How much processor time `uow` costs or saves, against the same handlers written by hand.

Everything happens in one process and without sockets: a small driver calls the apps as a server would,
sixteen requests at a time, on uvloop. The variants of a case take turns in chunks of some hundredths of
a second, so that whatever else the machine does hits all of them alike. What is measured is the process's
own processor time, `time.process_time()`: it holds the threads of aiosqlite, and not the database server.
The result of a round of chunks is a ratio; the median of these ratios is reported, with the middle half
of them as its spread.

Both sides have the same models, handlers, serialisation, driver, pool size and durability. The hand-written
side is what most FastAPI projects have: `Depends(get_session)` on an `async_sessionmaker`, with a
`commit()` in each handler that writes, before it answers. On SQLite it locks nothing when it reads, as the
driver does by itself, so that W4 by hand can lose updates; its writers wait for each other inside SQLite,
which costs little processor time and much patience: see the wall time.

    python -m benchmarks                                  every case, on SQLite and PostgreSQL
    python -m benchmarks --case N0 --seconds 5            one case, five seconds for each engine
    python -m benchmarks --case W1 --engine postgresql
"""
