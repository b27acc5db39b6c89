"""What atomcache costs, and what others cost: ``python -m benchmarks [--quick]``.

`__main__` is the command line.  One module per thing measured (`hits`, `misses`, `arrays`,
`scale`, `imports`, `together`, `crowd`, `waiting`), each with a docstring that says how it
measures and what its figures mean.  `timing` holds the clock, `peers` the competitors,
`findings` what a measurement hands over, `report` and `plots` what is written of it.
"""
