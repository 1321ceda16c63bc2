"""An inventory: items with stock, and orders that reserve it. Run it with `python -m api`."""
