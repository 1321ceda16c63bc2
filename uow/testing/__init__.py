"""For the tests of apps that use `uow`: each test in a transaction that is rolled back at its end.

    async def test_an_item_is_added(database: Database, client: httpx.AsyncClient) -> None:
        async with rolled_back(database) as probe:
            await client.post("/items/", params={"name": "pen"})
            probe.assert_committed(name="POST /items/")

`uow.testing.plugin` has it as a fixture of pytest. The units, their sessions and their errors are those
of production: only what reaches the database for BEGIN, COMMIT and ROLLBACK is another.
"""

from ..problems import Condition
from ._connection import CannotRollBack
from ._probe import Probe, SettledUnit
from ._rolled_back import RolledBack, rolled_back

__all__ = ["CannotRollBack", "Condition", "Probe", "RolledBack", "SettledUnit", "rolled_back"]
