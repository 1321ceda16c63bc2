"""What the library promises when something goes wrong: real server processes, killed, cancelled and held."""
