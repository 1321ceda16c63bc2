"""`python -m api`."""

import gc

gc.disable()  # nothing that is imported is garbage: to look for some would take a tenth of the start

from api.cli import app  # noqa: E402 - the collector has to be off before

gc.freeze()  # it stays as long as the process, so no collection has to look at it again
gc.enable()

app(prog_name="python -m api")
