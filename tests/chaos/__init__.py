"""Hazards for a real daemon under load: kill -9, crash points, power cuts. `python -m tests.chaos`.

A service is one small module with a `Workload`: clients that send, a memory of what was
acknowledged, and a look at the data afterwards. The hazards know nothing of any service.
"""
