"""Real servers and real processes for tests, on loopback, with nothing left behind."""
