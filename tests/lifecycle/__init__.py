"""The life of a request, promise by promise, over real sockets and looked at through a second
connection. `L1`, `L2` ... are the promises of the contract.
"""
