"""Comparisons with the peers a user would take instead, and with what the machine can do at best.

A comparison is one module that ends in `COMPARISON = Comparison(...)`: its cases, its peers, its
load generator. `table` has the figures, `harness` starts, measures and interleaves, `build` makes
programs of C and Go sources, `report` draws, `command` is the command line.
"""
