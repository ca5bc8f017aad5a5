"""`unimp sweep`: many training runs that differ in one change each, or in the proposals of a hyper-parameter search.

The folder of a sweep has one folder per cell, and a cell is an ordinary run with an evaluation. `cell.json` lists the
commands of the cell, `lock` is held while they run, and `done.json` or `failed.json` has the outcome. `sweep.json` is
the list of evaluated cells that the report reads.
"""
