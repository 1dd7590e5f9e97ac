"""The main process: what comes in by HTTP is checked and planned there, and answers leave by it."""
