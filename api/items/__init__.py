"""The items of the inventory, and the stock that was received of each."""
