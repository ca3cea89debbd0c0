"""Addresses on this machine for processes that look for one another."""

import socket


def free_address() -> str:
    """Nobody listens there."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"
