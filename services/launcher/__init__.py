"""Runs the three services of the engine in a state folder of their own, as systemd would run their units."""
