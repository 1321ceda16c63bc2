"""The commands of `python -m api`, one module for each group of them."""
