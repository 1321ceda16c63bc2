"""Real servers, real databases and recorded ASGI calls for the tests: nothing here knows the
library.
"""
