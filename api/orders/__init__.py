"""Orders: they hold stock while they are open, and give it back when they are cancelled."""
