"""The tests of the library and of the service; `tests/support` holds what they run on."""
