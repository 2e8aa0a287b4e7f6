"""Bytes that nobody meant to send: `python -m tests.fuzz`. See __main__."""
