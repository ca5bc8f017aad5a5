"""`unimp sweep`: many runs that differ from one another in one thing, or in what a search proposes.

A sweep is a folder of cells, each an ordinary run's folder. What is to be done in a cell stands in its `cell.json`;
whoever does it holds its `lock`; what came of it stands in `done.json` or `failed.json`, and who began and ended what,
in the sweep's `journal.jsonl`.
"""
