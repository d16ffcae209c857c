"""How a run ends when something goes wrong: watchdog, heartbeats, shutdown, the lock of its directory."""
